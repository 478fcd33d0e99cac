"""Convolutions as matrix products, for CPUs.

XLA's own convolutions are slow on CPU, most of all the gradient with respect
to the kernel (4 to 6 GFLOP/s where a matrix product does 100). Here a
convolution is: gather windows of the input, multiply by the kernel, put the
products in place. Two forms do so,

* `_Winograd`, F(2x2, 3x3), for 3x3 kernels with stride 1 and padding 1:
  Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
  section 4.1;
* `_Im2col` for everything else,

over chunks of the batch small enough for the windows to stay in the cache.
All arithmetic is float32, whatever the inputs' type.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Of windows, per chunk. From 2 to 16 MiB the speed hardly changes.
CHUNK_BYTES = 8 << 20


def forward(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
  """Convolves a batch of images.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, F], of x's dtype.
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.

  Returns:
    [B, (H + 2 padding - K) // stride + 1, likewise for W, F], of x's dtype.
  """
  form = _choose(x.shape, kernel.shape, stride, padding)
  matrices = form.kernel_to_matrices(kernel.astype(jnp.float32))

  def chunk_forward(carry: None, xs: tuple) -> tuple[None, jax.Array]:
    windows = form.windows(xs[0].astype(jnp.float32))
    return carry, form.output(_matmul(windows, matrices)).astype(x.dtype)

  return _over_chunks(chunk_forward, None, (x,), form.bytes_per_image)[1]


def backward(
  x: jax.Array, kernel: jax.Array, dy: jax.Array, stride: int, padding: int
) -> tuple[jax.Array, jax.Array]:
  """Gradients of sum(dy * forward(x, kernel)).

  Args:
    x: [B, H, W, C], as in `forward`.
    kernel: [K, K, C, F].
    dy: like forward's output.
    stride: as in `forward`.
    padding: as in `forward`.

  Returns:
    Gradients with respect to x and kernel, of their shapes and dtypes.
  """
  form = _choose(x.shape, kernel.shape, stride, padding)
  input_gradient = form.input_gradient(kernel.astype(jnp.float32))

  def chunk_backward(total: jax.Array, xs: tuple) -> tuple:
    x, dy = (array.astype(jnp.float32) for array in xs)
    total = total + _matmul_tn(form.windows(x), form.output_transposed(dy))
    return total, input_gradient(dy).astype(xs[0].dtype)

  total, dx = _over_chunks(
    chunk_backward,
    jnp.zeros(form.matrices_shape, jnp.float32),
    (x, dy),
    form.bytes_per_image,
  )
  return dx, form.matrices_to_kernel_gradient(total).astype(kernel.dtype)
