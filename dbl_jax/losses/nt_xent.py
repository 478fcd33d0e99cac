"""NT-Xent, the contrastive loss of SimCLR, in memory linear in the batch.

The 2N x 2N matrix of similarities is never held: rows are taken a block at a
time, each against all views. As the matrix is symmetric, its rows also are
its columns, so the gradient of a row needs its own block and every row's
logsumexp, nothing else:

  s_ij = r_i . r_j,  with r = z / (|z| sqrt(tau))
  dL/dr_i = 1/2N [sum_j (softmax_i(j) + softmax_j(i)) r_j - 2 r_partner(i)]

Over several devices each takes the rows of its own examples. Nothing is
exchanged but r and the logsumexps, and no gradients are summed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Rows at a time. On two CPU cores 128 to 512 are equally fast.
_BLOCK = 256
# As `sharding.make_mesh` names it.
_AXIS = "data"


def loss_and_accuracy(
  z: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """NT-Xent, and how often the positive is the nearest.

  No temperature overflows. If the context mesh (`jax.set_mesh`) has several
  devices and N divides over them, each works on its own examples.

  Args:
    z: f32[N, 2, D], embeddings of two views of each of N examples.
    temperature: tau > 0.

  Returns:
    The loss, f32[], the mean over all 2N views; and the share of views whose
    positive is nearer than every other view, f32[] in 0..1. A tie is no hit.

  Raises:
    ValueError: if there are not two views.
  """
  if z.ndim != 3 or z.shape[1] != 2:
    raise ValueError(f"NT-Xent is over [N, 2, D], two views; got {z.shape}.")
  z = z.astype(jnp.float32)
  # Inside the root, so that an all-zero embedding has a finite gradient.
  squares = jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24)
  # Apart, because the slope of rsqrt(1e-24 * 0.01) is more than float32 holds.
  rows = z * (jax.lax.rsqrt(squares) / jnp.sqrt(temperature))
  return _of_rows(rows.reshape(-1, z.shape[-1]))


@jax.custom_vjp
def _of_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The loss and the share of hits of f32[2N, D], partners side by side."""
  return _forward(rows)[0]


def _forward(rows: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
  numbers = jnp.arange(len(rows))
  log_sums, losses, hits = _map_rows(_forward_row, (rows, numbers), (rows,))
  return (losses.mean(), hits.mean()), (rows, log_sums)


def _backward(
  residuals: tuple[jax.Array, jax.Array], cotangents: Any
) -> tuple[jax.Array]:
  rows, log_sums = residuals
  numbers = jnp.arange(len(rows))
  pulls = _map_rows(_backward_row, (rows, numbers, log_sums), (rows, log_sums))
  partners = rows.reshape(-1, 2, rows.shape[-1])[:, ::-1].reshape(rows.shape)
  return (cotangents[0] / len(rows) * (pulls - 2 * partners),)


_of_rows.defvjp(_forward, _backward)


def _forward_row(
  row: jax.Array, number: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Logsumexp over all others, loss and hit of one row."""
  similarities = _dot(row, rows.T)
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
  row: jax.Array,
  number: jax.Array,
  log_sum: jax.Array,
  rows: jax.Array,
  log_sums: jax.Array,
) -> jax.Array:
  """Sum of all others, weighted by how much they see of each other."""
  similarities = _dot(row, rows.T).at[number].set(-jnp.inf)
  weights = jnp.exp(similarities - log_sum) + jnp.exp(similarities - log_sums)
  return _dot(weights, rows)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _map_rows(
  function: Callable[..., Any], own: tuple[Any, ...], whole: tuple[Any, ...]
) -> Any:
  """Maps a function over rows, in blocks, each device over its own.

  Args:
    function: of what belongs to one row, then what all rows share.
    own: arrays with a leading axis over rows.
    whole: arrays every row sees whole.

  Returns:
    What `function` returns, with a leading axis over rows.
  """

  def local(own: tuple[Any, ...], whole: tuple[Any, ...]) -> Any:
    return jax.lax.map(
      lambda row: function(*row, *whole), own, batch_size=_BLOCK
    )

  mesh = jax.sharding.get_abstract_mesh()
  devices = mesh.shape.get(_AXIS, 1)
  # Partners stay on one device.
  if devices == 1 or _AXIS in mesh.manual_axes or len(own[0]) % (2 * devices):
    return local(own, whole)
  split, everywhere = PartitionSpec(_AXIS), PartitionSpec()
  return jax.shard_map(local, in_specs=(split, everywhere), out_specs=split)(
    own, whole
  )
