"""Convolution of maps of a few pixels, as one product with one matrix.

With so few pixels, most of a 3x3 window is padding. A matrix from all pixels of
the input to all pixels of the output omits it: 16 products of channels instead
of 36 for a 2x2 map, and one instead of 9 for a single pixel. All arrays are
float32.
"""

import itertools
import math
from collections.abc import Iterator

import jax.numpy as jnp
from jax import Array, lax

from dbl_jax.models.kernels.im2col import LayerShapes


class Dense(LayerShapes):
  """A convolution as one matrix, for given shapes of images and kernels."""

  @property
  def products(self) -> int:
    """Number of products of C by F matrices for one image."""
    return math.prod(self.x_shape[1:3]) * math.prod(self.output_size)

  @property
  def window_bytes(self) -> int:
    """Size of an image."""
    return 4 * math.prod(self.x_shape[1:])

  def matrices(self, kernel: Array) -> Array:
    """Kernel [K, K, C, F] -> [H * W * C, H' * W' * F]."""
    zeros = jnp.zeros(self.kernel_shape[2:], kernel.dtype)
    pixels = math.prod(self.x_shape[1:3])
    rows: list[list[Array]] = [[] for _ in range(pixels)]
    for pixel, _, tap in self._links():
      rows[pixel].append(kernel[tap] if tap else zeros)
    return jnp.concatenate([jnp.concatenate(row, axis=-1) for row in rows])

  def kernel_gradient(self, matrices_gradient: Array) -> Array:
    """The transpose of `matrices`."""
    size, _, channels, features = self.kernel_shape
    blocks = matrices_gradient.reshape(
      math.prod(self.x_shape[1:3]), channels, -1, features
    )
    taps: dict[tuple[int, ...], list[Array]] = {
      tap: [] for tap in itertools.product(range(size), repeat=2)
    }
    for pixel, output, tap in self._links():
      if tap:
        taps[tap].append(blocks[pixel, :, output])
    zeros = jnp.zeros((channels, features), matrices_gradient.dtype)
    sums = [sum(parts, zeros) for parts in taps.values()]
    return jnp.stack(sums).reshape(self.kernel_shape)

  def convolve(self, x: Array, matrix: Array) -> Array:
    """[B, H, W, C], [H * W * C, H' * W' * F] -> [B, H', W', F]."""
    y = jnp.matmul(_flat(x), matrix)
    return y.reshape(x.shape[0], *self.output_size, self.kernel_shape[3])

  def matrices_gradient(self, x: Array, dy: Array) -> Array:
    """[B, H, W, C], [B, H', W', F] -> [H * W * C, H' * W' * F]."""
    return lax.dot_general(_flat(x), _flat(dy), (((0,), (0,)), ((), ())))

  def convolve_transposed(self, dy: Array, matrix: Array) -> Array:
    """[B, H', W', F], [H * W * C, H' * W' * F] -> [B, H, W, C]."""
    dx = lax.dot_general(_flat(dy), matrix, (((1,), (1,)), ((), ())))
    return dx.reshape(dy.shape[0], *self.x_shape[1:])

  def _links(self) -> Iterator[tuple[int, int, tuple[int, ...] | None]]:
    """All pairs (pixel, output), with the tap between them or None."""
    pixels = list(itertools.product(*map(range, self.x_shape[1:3])))
    outputs = list(itertools.product(*map(range, self.output_size)))
    for i, pixel in enumerate(pixels):
      for j, output in enumerate(outputs):
        tap = tuple(
          at + self.padding - self.stride * start
          for at, start in zip(pixel, output, strict=True)
        )
        inside = all(0 <= t < self.kernel_shape[0] for t in tap)
        yield i, j, tap if inside else None


def _flat(x: Array) -> Array:
  return x.reshape(x.shape[0], math.prod(x.shape[1:]))
