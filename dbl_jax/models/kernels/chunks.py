"""Splits batches into chunks whose intermediate results fit in the cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def images_per_chunk(batch: int, size_per_image: int, budget: int) -> int:
  """Number of images per chunk: about budget / size_per_image.

  On several devices it is the whole batch, which would otherwise be gathered
  chunk by chunk. So is a batch of symbolic size.

  Args:
    batch: number of images.
    size_per_image: size of one image, in the unit of the budget.
    budget: size of one chunk.

  Returns:
    The number, at least 1. It divides the batch, unless its divisors are less
    than half of what fits.
  """
  if jax.device_count() > 1 or not isinstance(batch, int):
    return batch
  most = min(batch, max(1, budget // size_per_image))
  divisors = [size for size in range(1, most + 1) if batch % size == 0]
  # A divisor needs no padding, but one much too small costs more.
  return divisors[-1] if 2 * divisors[-1] > most else most


def scan(
  step: Callable[[Any, Any], tuple[Any, Array]],
  carry: Any,
  arrays: Any,
  size: int,
) -> tuple[Any, Array]:
  """`lax.scan` over chunks of the leading axis, padded with zeros to fit.

  Args:
    step: (carry, chunk of arrays) -> carry, array with one row for each of
      the chunk's.
    carry: initial carry.
    arrays: tree of arrays [B, ...].
    size: of a chunk.

  Returns:
    The last carry and the rows, [B, ...].
  """
  batch = jax.tree.leaves(arrays)[0].shape[0]
  if size == batch:
    return step(carry, arrays)
  count = -(-batch // size)

  def split(array: Array) -> Array:
    padding = [(0, count * size - batch)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(count, size, *array.shape[1:])

  carry, out = lax.scan(step, carry, jax.tree.map(split, arrays))
  return carry, out.reshape(count * size, *out.shape[2:])[:batch]
