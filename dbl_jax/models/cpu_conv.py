"""Convolutions as chunked matrix products, for CPUs.

XLA's own convolutions are slow on CPU, most of all the gradient with respect
to the kernel (about 5 GFLOP/s, where matrix products reach 100). Here a
convolution gathers windows of its input, multiplies them by matrices made of
the kernel and puts the products in place. `winograd` does so for 3x3 kernels
with stride 1 and padding 1, `im2col` for all others, over chunks of the batch
small enough for the windows to stay in the cache.

All arithmetic is float32, whatever the type of the inputs: bfloat16 products
are no faster on CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dbl_jax.models import im2col, winograd

# Of windows, per chunk. Speed hardly changes from 2 to 16 MiB.
CHUNK_BYTES = 8 << 20


def forward(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
  """Convolves a batch of images.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, F].
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.

  Returns:
    [B, (H + 2 padding - K) // stride + 1, likewise for W, F], of x's dtype.
  """
  form = _form(x, kernel, stride, padding)
  matrices = form.matrices(kernel.astype(jnp.float32))

  def step(carry: None, chunk: jax.Array) -> tuple[None, jax.Array]:
    y = form.convolve(chunk.astype(jnp.float32), matrices)
    return carry, y.astype(x.dtype)

  return _scan_chunks(step, None, x, form.window_bytes)[1]


def backward(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """Gradients of sum(dy * forward(x, kernel)) by x and by kernel.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, F].
    dy: like the output of `forward`.
    stride: as for `forward`.
    padding: as for `forward`.

  Returns:
    Gradients by x and by kernel, of their shapes and dtypes.
  """
  form = _form(x, kernel, stride, padding)
  transposed = form.transposed_matrices(kernel.astype(jnp.float32))

  def step(total: jax.Array, chunk: tuple) -> tuple[jax.Array, jax.Array]:
    x_chunk, dy_chunk = (part.astype(jnp.float32) for part in chunk)
    total = total + form.matrices_gradient(x_chunk, dy_chunk)
    dx = form.convolve_transposed(dy_chunk, transposed)
    return total, dx.astype(x.dtype)

  matrices = jax.eval_shape(form.matrices, kernel.astype(jnp.float32))
  total = jnp.zeros(matrices.shape, jnp.float32)
  total, dx = _scan_chunks(step, total, (x, dy), form.window_bytes)
  return dx, form.kernel_gradient(total).astype(kernel.dtype)


def _form(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> winograd.Winograd | im2col.Im2Col:
  if kernel.shape[:2] == (3, 3) and stride == padding == 1:
    return winograd.Winograd(x.shape, kernel.shape)
  return im2col.Im2Col(x.shape, kernel.shape, stride, padding)


def images_per_chunk(batch: int, bytes_per_image: int) -> int:
  """How many images to convolve at a time.

  On several devices all of them: a batch split over devices would otherwise
  be gathered chunk by chunk, and each device's share is small.
  """
  if jax.device_count() > 1 or not isinstance(batch, int):
    return batch
  most = min(batch, max(1, CHUNK_BYTES // bytes_per_image))
  divisors = [size for size in range(1, most + 1) if batch % size == 0]
  # A divisor needs no padding, yet a much smaller one wastes more than that.
  return divisors[-1] if 2 * divisors[-1] > most else most


def _scan_chunks(
  step: Callable[[Any, Any], tuple[Any, jax.Array]],
  carry: Any,
  arrays: Any,
  bytes_per_image: int,
) -> tuple[Any, jax.Array]:
  """`lax.scan` over chunks of the leading axis, padded with zeros to fit."""
  batch = jax.tree.leaves(arrays)[0].shape[0]
  size = images_per_chunk(batch, bytes_per_image)
  if size == batch:
    return step(carry, arrays)
  count = -(-batch // size)

  def split(array: jax.Array) -> jax.Array:
    padding = [(0, count * size - batch)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(count, size, *array.shape[1:])

  carry, out = lax.scan(step, carry, jax.tree.map(split, arrays))
  return carry, out.reshape(count * size, *out.shape[2:])[:batch]
