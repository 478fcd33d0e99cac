"""Losses that reduce distances between features of one class."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.losses import (
  LossInputs,
  Value,
  as_rows,
  labels_of_rows,
  matmul,
)
from dbl_jax.runtime.options import integer, number

Rate = Annotated[float, number(0, 1)]


def center(inputs: LossInputs, centers: Array, *, rate: Rate = 0.5) -> Value:
  """Center loss: half the mean squared distance to the class's centre.

  Wen et al. 2016, eq. (2), over the M rows: 1/(2M) sum_i |x_i - c_{y_i}|^2.
  The centres are not learned by gradient; see `move_centers`. A row whose class
  has no centre yet has loss 0: a centre at zero would first shrink all
  features.

  Args:
    inputs: with features.
    centers: f32[C, F], zeros for a class without a centre.
    rate: how fast the centres move, see `move_centers`.

  Returns:
    The loss and no metrics.
  """
  del rate  # for the update
  labels = labels_of_rows(inputs)
  away = as_rows(inputs.features) - centers[labels]
  known = jnp.any(centers != 0, axis=1)[labels]
  return jnp.where(known, jnp.sum(away * away, axis=1), 0.0).mean() / 2, {}


def move_centers(
  inputs: LossInputs, centers: Array, *, rate: Rate = 0.5
) -> Array:
  """Updates the centres after a batch: Wen et al. 2016, eq. (4).

    c_j <- c_j - rate x sum_{y_i = j} (c_j - x_i) / (1 + |{i: y_i = j}|)

  The first centre of a class is the mean of its first rows. The centres are
  f32[C, F], before and after; the rate is the paper's alpha.
  """
  one_hot = jax.nn.one_hot(labels_of_rows(inputs), len(centers))
  count = one_hot.sum(axis=0)[:, None]
  total = matmul(one_hot.T, as_rows(inputs.features))
  moved = centers - rate * (count * centers - total) / (1 + count)
  known = jnp.any(centers != 0, axis=1, keepdims=True)
  return jnp.where(known, moved, total / jnp.maximum(count, 1))


def locality_preserving(
  inputs: LossInputs, *, neighbours: Annotated[int, integer(1)] = 20
) -> Value:
  """Locality-preserving loss of DLP-CNN, on distances to class neighbours.

  Li and Deng 2019, eq. (4) and (5): 1/2 |x_i - 1/k sum of its k nearest
  neighbours of the same class|^2, here averaged over the M rows. Neighbours
  come from the batch; if it holds fewer than k others of the class, all of
  them. A row without neighbours has loss 0. As in eq. (5), no gradient flows
  through the neighbours.

  Args:
    inputs: with features.
    neighbours: number k of neighbours.

  Returns:
    The loss and no metrics.
  """
  x, labels = as_rows(inputs.features), labels_of_rows(inputs)
  squares = jnp.sum(x * x, axis=1)
  distances = squares[:, None] + squares[None] - 2 * matmul(x, x.T)
  peers = (labels[:, None] == labels[None]) & ~jnp.eye(len(x), dtype=bool)
  k = min(neighbours, len(x) - 1)
  nearness = jnp.where(peers, -distances, -jnp.inf)
  found, nearest = jax.lax.top_k(jax.lax.stop_gradient(nearness), k)
  chosen = (found > -jnp.inf).astype(x.dtype)
  count = chosen.sum(axis=1, keepdims=True)
  # As a product: gathering [M, k, F] would take k times the memory.
  rows = jnp.arange(len(x))[:, None]
  picked = jnp.zeros((len(x), len(x))).at[rows, nearest].add(chosen)
  mean = jax.lax.stop_gradient(matmul(picked, x)) / jnp.maximum(count, 1)
  away = jnp.where(count > 0, x - mean, 0.0)
  return jnp.sum(away * away, axis=1).mean() / 2, {}
