"""Losses that draw the features of a class together."""

import jax
import jax.numpy as jnp

from dbl_jax.losses.batch import LossInputs, Value, as_rows, labels_of_rows


def center(seen: LossInputs, centers: jax.Array, *, rate: float = 0.5) -> Value:
  """Center loss: half the mean squared distance to the class's centre.

  Wen et al. 2016, eq. (2), over the M rows: 1/(2M) sum_i |x_i - c_{y_i}|^2.
  The centres are not learned by gradient; see `move_centers`.

  Args:
    seen: of its features, the distance is taken.
    centers: f32[C, F].
    rate: of `move_centers`, unused here.

  Returns:
    The loss and no figures.
  """
  del rate
  away = as_rows(seen.features) - centers[labels_of_rows(seen)]
  return jnp.sum(away * away, axis=1).mean() / 2, {}


def start_centers(num_classes: int, num_features: int) -> jax.Array:
  """f32[C, F], centres before the first step: zero."""
  return jnp.zeros((num_classes, num_features))


def move_centers(
  seen: LossInputs, centers: jax.Array, *, rate: float = 0.5
) -> jax.Array:
  """Centres after a batch: Wen et al. 2016, eq. (4).

    c_j <- c_j - rate x sum_{y_i = j} (c_j - x_i) / (1 + |{i: y_i = j}|)

  Args:
    seen: the batch.
    centers: f32[C, F].
    rate: alpha, 0 to 1.

  Returns:
    f32[C, F].
  """
  one_hot = jax.nn.one_hot(labels_of_rows(seen), len(centers))
  count = one_hot.sum(axis=0)[:, None]
  delta = (count * centers - _product(one_hot.T, as_rows(seen.features))) / (
    1 + count
  )
  return centers - rate * delta


def locality_preserving(seen: LossInputs, *, neighbours: int = 20) -> Value:
  """Locality-preserving loss of DLP-CNN: features near their own kind.

  Li and Deng 2019, eq. (4) and (5): 1/2 |x_i - 1/k sum of its k nearest
  neighbours of the same class|^2, here averaged over the M rows. Neighbours
  are looked for in the batch, and k is at most what it holds of the class
  besides x_i; a row alone of its class costs nothing. As in eq. (5), the
  gradient takes the neighbours as given.

  Args:
    seen: of its features, the distance is taken.
    neighbours: k.

  Returns:
    The loss and no figures.
  """
  x, labels = as_rows(seen.features), labels_of_rows(seen)
  squares = jnp.sum(x * x, axis=1)
  distances = squares[:, None] + squares[None] - 2 * _product(x, x.T)
  peers = (labels[:, None] == labels[None]) & ~jnp.eye(len(x), dtype=bool)
  k = min(neighbours, len(x) - 1)
  nearness = jnp.where(peers, -distances, -jnp.inf)
  found, nearest = jax.lax.top_k(jax.lax.stop_gradient(nearness), k)
  chosen = (found > -jnp.inf).astype(x.dtype)
  count = chosen.sum(axis=1, keepdims=True)
  # As a product: gathering [M, k, F] would take k times the memory.
  rows = jnp.arange(len(x))[:, None]
  picked = jnp.zeros((len(x), len(x))).at[rows, nearest].add(chosen)
  mean = jax.lax.stop_gradient(_product(picked, x)) / jnp.maximum(count, 1)
  away = jnp.where(count > 0, x - mean, 0.0)
  return jnp.sum(away * away, axis=1).mean() / 2, {}


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b in full float32: differences of near values are taken of it."""
  return jnp.matmul(a, b, precision="highest")
