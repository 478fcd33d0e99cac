"""Convolution as one product of gathered windows and the kernel.

For kernels of any size, stride and padding. All arrays are float32.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class LayerShapes:
  """Shapes of a convolution.

  Attributes:
    x_shape: (any, H, W, C).
    kernel_shape: (K, K, C, F).
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.
  """

  x_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]
  stride: int
  padding: int

  @property
  def output_size(self) -> tuple[int, int]:
    """(H', W'), height and width of the output in pixels."""
    room = 2 * self.padding - self.kernel_shape[0]
    height, width = self.x_shape[1:3]
    return (height + room) // self.stride + 1, (width + room) // self.stride + 1


class Im2Col(LayerShapes):
  """A convolution as one product, for given shapes of images and kernels."""

  @property
  def products(self) -> int:
    """Number of products of C by F matrices for one image."""
    return math.prod(self.output_size) * self.kernel_shape[0] ** 2

  @property
  def window_bytes(self) -> int:
    """Size of an image's windows."""
    height, width = self.output_size
    return 4 * height * width * math.prod(self.kernel_shape[:3])

  def matrices(self, kernel: Array) -> Array:
    """Kernel [K, K, C, F] -> [K * K * C, F]."""
    return kernel.reshape(-1, kernel.shape[-1])

  def kernel_gradient(self, matrices_gradient: Array) -> Array:
    """The transpose of `matrices`."""
    return matrices_gradient.reshape(self.kernel_shape)

  def convolve(self, x: Array, matrices: Array) -> Array:
    """[B, H, W, C], [K * K * C, F] -> [B, H', W', F]."""
    y = jnp.matmul(self._windows(x), matrices)
    return y.reshape(x.shape[0], *self.output_size, -1)

  def matrices_gradient(self, x: Array, dy: Array) -> Array:
    """[B, H, W, C], [B, H', W', F] -> [K * K * C, F]."""
    dy = dy.reshape(-1, dy.shape[-1])
    return lax.dot_general(self._windows(x), dy, (((0,), (0,)), ((), ())))

  def convolve_transposed(self, dy: Array, matrices: Array) -> Array:
    """[B, H', W', F], [K * K * C, F] -> gradient by x, [B, H, W, C].

    The same taps of the kernel reach all pixels of x whose positions agree
    modulo the stride. Each such set is one product, without the zeros that
    implementations of the transpose often insert.
    """
    _, height, width, channels = self.x_shape
    taps = matrices.reshape(self.kernel_shape)
    pixels = [
      jnp.stack(
        [self._pixels(dy, taps, i, j) for j in range(self.stride)], axis=3
      )
      for i in range(self.stride)
    ]
    dx = jnp.stack(pixels, axis=2)
    _, rows, _, columns, _, _ = dx.shape
    dx = dx.reshape(-1, rows * self.stride, columns * self.stride, channels)
    return dx[:, :height, :width]

  def _pixels(self, dy: Array, taps: Array, i: int, j: int) -> Array:
    """Gradient by x[:, i::stride, j::stride]."""
    _, height, width, channels = self.x_shape
    rows, columns = -(-height // self.stride), -(-width // self.stride)
    windows, used = [], []
    for row, down in self._reach(i):
      for column, right in self._reach(j):
        windows.append(_shift(dy, down, right, rows, columns))
        used.append(taps[row, column])
    if not used:
      return jnp.zeros((dy.shape[0], rows, columns, channels), dy.dtype)
    return lax.dot_general(
      jnp.concatenate(windows, -1),
      jnp.concatenate(used, -1),
      (((3,), (1,)), ((), ())),
    )

  def _reach(self, start: int) -> list[tuple[int, int]]:
    """Taps that reach pixels start, start + stride, ..., and their offsets.

    Pixel start + stride * n is at tap t of the window of output n + offset.
    """
    offsets = {
      tap: divmod(start + self.padding - tap, self.stride)
      for tap in range(self.kernel_shape[0])
    }
    return [
      (tap, n) for tap, (n, remainder) in offsets.items() if not remainder
    ]

  def _windows(self, x: Array) -> Array:
    """Window of each output pixel, [B * H' * W', K * K * C]."""
    sides = (self.padding, self.padding)
    x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))
    size, stride = self.kernel_shape[0], self.stride

    def gather(x: Array, axis: int, count: int) -> Array:
      length = (count - 1) * stride + 1
      taps = [
        lax.slice_in_dim(x, tap, tap + length, stride, axis)
        for tap in range(size)
      ]
      return jnp.stack(taps, axis=3)

    # One direction after the other compiles twice as fast as K * K slices.
    height, width = self.output_size
    windows = gather(gather(x, 2, width), 1, height)
    return windows.reshape(-1, size * size * x.shape[-1])


def _shift(dy: Array, down: int, right: int, rows: int, columns: int) -> Array:
  """dy[:, down : down + rows, right : right + columns], zero outside dy."""
  _, height, width, _ = dy.shape
  edges = (
    (0, 0, 0),
    (-down, down + rows - height, 0),
    (-right, right + columns - width, 0),
    (0, 0, 0),
  )
  return lax.pad(dy, jnp.zeros((), dy.dtype), edges)
