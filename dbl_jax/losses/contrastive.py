"""Contrastive losses on embeddings, with and without labels."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from dbl_jax.losses import (
  LossInputs,
  Value,
  as_rows,
  labels_of_rows,
  matmul,
)
from dbl_jax.runtime.options import number

Temperature = Annotated[float, number(1e-3)]


def nt_xent(z: Array, temperature: float) -> Array:
  """Normalised temperature-scaled cross-entropy over pairs of views.

  Source: the paper's eq. (1)-(3); Chen et al. 2020, SimCLR. With rows numbered
  2k-1 and 2k for the two views of example k,

    l(i, j) = -log exp(s_ij / tau) / sum_{m != i} exp(s_im / tau)
    L = 1/(2N) sum_k [l(2k-1, 2k) + l(2k, 2k-1)],

  where s is cosine similarity. No 2N x 2N matrix is stored.

  Args:
    z: f32[N, 2, D], embeddings of two views of each of N examples.
    temperature: tau > 0.

  Returns:
    f32[], the mean over all 2N views.
  """
  return loss_and_accuracy(z, temperature)[0]


def nt_xent_term(inputs: LossInputs, *, temperature: Temperature) -> Value:
  """Normalised temperature-scaled cross-entropy, see `nt_xent`.

  Args:
    inputs: with embeddings f32[N, 2, D].
    temperature: divisor tau of the similarities.

  Returns:
    The loss and {'contrastive_accuracy': f32[]}, the share of views nearest to
    their positive. A tie is a miss, so that equal embeddings score 0.
  """
  loss, accuracy = loss_and_accuracy(inputs.embeddings, temperature)
  return loss, {"contrastive_accuracy": accuracy}


def sup_con(inputs: LossInputs, *, temperature: Temperature) -> Value:
  """Supervised contrastive loss: all views of a class are positives.

  Khosla et al. 2020, eq. (2), L_out: for view i with positives P(i), the other
  views of its class,

    L_i = -1/|P(i)| sum_{p in P(i)} log exp(s_ip / tau) /
          sum_{a != i} exp(s_ia / tau).

  Args:
    inputs: with embeddings f32[B, V, D], V at least 2.
    temperature: divisor tau of the similarities.

  Returns:
    The mean over all views and no metrics.
  """
  z, labels = _unit(as_rows(inputs.embeddings)), labels_of_rows(inputs)
  logits = matmul(z, z.T) / temperature
  other = ~jnp.eye(len(z), dtype=bool)
  log_p = logits - _logsumexp(logits, other)
  positive = (labels[:, None] == labels[None]) & other
  return -_mean_where(log_p, positive).mean(), {}


def balanced_contrastive(
  inputs: LossInputs, *, temperature: Temperature
) -> Value:
  """Balanced contrastive loss (BCL): all classes count alike.

  Zhu et al. 2022, eq. (5): in the denominator each class's views count by
  their mean (class-averaging), and every class has a learned prototype in
  every batch (class-complement), so that no class is absent:

    L_i = -1/|B_y| sum_{p in B_y} log exp(s_ip / tau) /
          sum_j 1/|B_j| sum_{k in B_j} exp(s_ik / tau),

  where B_j holds the batch's views of class j and its prototype, without view
  i. The prototypes are parameters of the head (option `prototypes`); the paper
  derives them from a classifier trained jointly, which phase 1 of DBL lacks.

  Args:
    inputs: with embeddings f32[B, V, D] and prototypes f32[C, D].
    temperature: divisor tau of the similarities.

  Returns:
    The mean over all views and no metrics.
  """
  z, labels = _unit(as_rows(inputs.embeddings)), labels_of_rows(inputs)
  prototypes = _unit(inputs.prototypes)
  num_classes = len(prototypes)
  columns = jnp.concatenate([labels, jnp.arange(num_classes)])
  points = jnp.concatenate([z, prototypes])
  logits = matmul(z, points.T) / temperature
  other = jnp.arange(len(columns))[None] != jnp.arange(len(z))[:, None]
  same = labels[:, None] == columns[None]
  members = jnp.bincount(columns, length=num_classes)[columns]
  # Without view i, its own class has one member less: at least its prototype.
  sizes = jnp.maximum(members[None] - same, 1).astype(jnp.float32)
  log_p = logits - _logsumexp(logits - jnp.log(sizes), other)
  return -_mean_where(log_p, same & other).mean(), {}


def _unit(z: Array) -> Array:
  """Normalises rows; an all-zero row stays zero and its gradient finite."""
  z = z.astype(jnp.float32)
  squares = jnp.sum(z * z, axis=-1, keepdims=True)
  return z * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def _logsumexp(logits: Array, where: Array) -> Array:
  return jax.nn.logsumexp(logits, axis=1, keepdims=True, where=where)


def _mean_where(values: Array, where: Array) -> Array:
  total = jnp.sum(values, axis=1, where=where)
  return total / jnp.maximum(where.sum(axis=1), 1)


# Rows per block. On two CPU cores 128 to 512 are equally fast.
_BLOCK = 256
# The axis of `sharding.make_mesh`.
_AXIS = "data"


def loss_and_accuracy(z: Array, temperature: float) -> tuple[Array, Array]:
  """Computes `nt_xent` and the share of views nearest to their positive.

  It runs in blocks of rows and does not overflow at any temperature. If the
  context mesh (`jax.set_mesh`) has several devices and N is divisible by their
  number, each computes the rows of its own examples.

  Returns:
    The loss, f32[], and the share, f32[] in 0..1. A tie is a miss.

  Raises:
    ValueError: if there are not two views.
  """
  if z.ndim != 3 or z.shape[1] != 2:
    raise ValueError(f"NT-Xent is over [N, 2, D], two views; got {z.shape}.")
  z = z.astype(jnp.float32)
  # Inside the root, so that an all-zero embedding has a finite gradient.
  squares = jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24)
  # Separate: the derivative of rsqrt(1e-24 * 0.01) overflows float32.
  rows = z * (jax.lax.rsqrt(squares) / jnp.sqrt(temperature))
  return _of_rows(rows.reshape(-1, z.shape[-1]))


@jax.custom_vjp
def _of_rows(rows: Array) -> tuple[Array, Array]:
  """Loss and share of hits of f32[2N, D], with partners in adjacent rows."""
  return _forward(rows)[0]


def _forward(rows: Array) -> tuple[Any, tuple[Array, Array]]:
  numbers = jnp.arange(len(rows))
  log_sums, losses, hits = _map_rows(_forward_row, (rows, numbers), (rows,))
  return (losses.mean(), hits.mean()), (rows, log_sums)


def _backward(residuals: tuple[Array, Array], cotangents: Any) -> tuple[Array]:
  rows, log_sums = residuals
  numbers = jnp.arange(len(rows))
  pulls = _map_rows(_backward_row, (rows, numbers, log_sums), (rows, log_sums))
  partners = rows.reshape(-1, 2, rows.shape[-1])[:, ::-1].reshape(rows.shape)
  return (cotangents[0] / len(rows) * (pulls - 2 * partners),)


_of_rows.defvjp(_forward, _backward)


def _forward_row(
  row: Array, number: Array, rows: Array
) -> tuple[Array, Array, Array]:
  """Logsumexp over all others, loss and hit of one row."""
  similarities = matmul(row, rows.T)
  positive = similarities[number ^ 1]
  rest = similarities.at[number].set(-jnp.inf).at[number ^ 1].set(-jnp.inf)
  nearest = rest.max()
  top = jnp.maximum(nearest, positive)
  total = jnp.exp(rest - top).sum() + jnp.exp(positive - top)
  log_sum = top + jnp.log(total)
  # Compared, because argmax runs element by element on CPUs.
  hit = (positive > nearest).astype(jnp.float32)
  return log_sum, log_sum - positive, hit


def _backward_row(
  row: Array, number: Array, log_sum: Array, rows: Array, log_sums: Array
) -> Array:
  """Sum of all other rows, weighted by both softmax probabilities."""
  similarities = matmul(row, rows.T).at[number].set(-jnp.inf)
  weights = jnp.exp(similarities - log_sum) + jnp.exp(similarities - log_sums)
  return matmul(weights, rows)


def _map_rows(
  function: Callable[..., Any], own: tuple[Any, ...], whole: tuple[Any, ...]
) -> Any:
  """Maps a function over rows in blocks; each device maps its own rows.

  The function maps entries of the arrays in `own`, which have a leading axis
  over rows, and the arrays that all rows share to a tree of arrays.
  """

  def local(own: tuple[Any, ...], whole: tuple[Any, ...]) -> Any:
    return jax.lax.map(
      lambda row: function(*row, *whole), own, batch_size=_BLOCK
    )

  mesh = jax.sharding.get_abstract_mesh()
  devices = mesh.shape.get(_AXIS, 1)
  # Both views of an example stay on one device.
  if devices == 1 or _AXIS in mesh.manual_axes or len(own[0]) % (2 * devices):
    return local(own, whole)
  split, everywhere = PartitionSpec(_AXIS), PartitionSpec()
  return jax.shard_map(local, in_specs=(split, everywhere), out_specs=split)(
    own, whole
  )
