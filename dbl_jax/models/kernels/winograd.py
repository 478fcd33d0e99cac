"""Winograd's convolution F(m x m, 3x3), m = 3 or 4, for 3x3 kernels.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
Networks", section 4.1, with their names for the transforms: from a tile d of
n x n input pixels, n = m + 2, and a 3x3 kernel g come the m x m output pixels

  Y = A^T [(G g G^T) * (B^T d B)] A,

with n^2 products instead of 9 m^2: 25 for 81, 36 for 144. The products
over all tiles and channels are n^2 matrix products. Both gradients are the
transposes of these steps. The stride is 1, the padding 1, all arrays float32.

In one direction this is polynomial multiplication by Toom and Cook's method:
A and G evaluate at n - 1 points and infinity, B^T interpolates. Errors depend
on the points; with these they are 1e-6 of the largest output, a quarter of
those with Lavin and Gray's 0, 1, -1, 2, -2 (see Barabasz et al. 2020, "Error
Analysis and Improving the Accuracy of Winograd Convolution").
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.polynomial import polynomial

_POINTS = (0, 0.75, -0.75, 1.5, -1.5)


@functools.cache
def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A^T [m, n], B^T [n, n] and G [n, 3] for m = tile."""
  points = np.array(_POINTS[: tile + 1])
  others = [np.delete(points, i) for i in range(tile + 1)]
  scales = [np.prod(a - rest) for a, rest in zip(points, others, strict=True)]

  def evaluate(count: int) -> np.ndarray:
    powers = np.vander(points, count, increasing=True)
    at_infinity = np.eye(count)[-1:]
    return np.concatenate([powers, at_infinity])

  g = evaluate(3) / np.array([*scales, 1])[:, None]
  b = np.zeros((tile + 2, tile + 2))
  for row, roots in zip(b, [*others, points], strict=True):
    row[: len(roots) + 1] = polynomial.polyfromroots(roots)
  return evaluate(tile).T, b, g


@dataclasses.dataclass(frozen=True)
class Winograd:
  """Winograd's convolution, for given shapes of images and kernels.

  Attributes:
    x_shape: (any, H, W, C).
    kernel_shape: (3, 3, C, F).
    tile: m, height and width of a tile's output in pixels, 3 or 4.
  """

  x_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]
  tile: int

  @property
  def products(self) -> int:
    """Number of products of C by F matrices for one image."""
    rows, columns = self._tiles
    return (self.tile + 2) ** 2 * rows * columns

  @property
  def window_bytes(self) -> int:
    """Size of an image's windows."""
    return 4 * self.products * self.x_shape[3]

  def matrices(self, kernel: Array) -> Array:
    """G g G^T: kernel [3, 3, C, F] -> [n^2, C, F]."""
    return jnp.tensordot(
      self._kernel_transform, kernel.reshape(9, *kernel.shape[2:]), 1
    )

  def kernel_gradient(self, matrices_gradient: Array) -> Array:
    """The transpose of `matrices`: [n^2, C, F] -> [3, 3, C, F]."""
    gradient = jnp.tensordot(self._kernel_transform.T, matrices_gradient, 1)
    return gradient.reshape(self.kernel_shape)

  def convolve(self, x: Array, matrices: Array) -> Array:
    """Convolves: x [B, H, W, C], matrices [n^2, C, F] -> [B, H, W, F]."""
    products = lax.dot_general(
      self._windows(x), matrices, (((2,), (1,)), ((0,), (0,)))
    )
    return self._output(products, x.shape[0])

  def matrices_gradient(self, x: Array, dy: Array) -> Array:
    """Gradient by the matrices: [B, H, W, C], [B, H, W, F] -> [n^2, C, F]."""
    return lax.dot_general(
      self._windows(x),
      self._output_transposed(dy),
      (((1,), (1,)), ((0,), (0,))),
    )

  def convolve_transposed(self, dy: Array, matrices: Array) -> Array:
    """Gradient by x: [B, H, W, F], [n^2, C, F] -> [B, H, W, C]."""
    products = lax.dot_general(
      self._output_transposed(dy), matrices, (((2,), (2,)), ((0,), (0,)))
    )
    return self._windows_transposed(products, dy.shape[0])

  @property
  def _tiles(self) -> tuple[int, int]:
    _, height, width, _ = self.x_shape
    return -(-height // self.tile), -(-width // self.tile)

  @property
  def _kernel_transform(self) -> np.ndarray:
    """From the 9 taps of a kernel to its n^2 numbers."""
    g = transforms(self.tile)[2]
    return np.kron(g, g).astype(np.float32)

  # Each transform is applied along one axis, then along the other. Stacking in
  # between instead of once at the end halves the time to compile.

  def _windows(self, x: Array) -> Array:
    """B^T d B of all tiles: [B, H, W, C] -> [n^2, B * tiles, C]."""
    b = transforms(self.tile)[1]
    x = self._pad_to_tiles(x, border=1)

    def transform(x: Array, axis: int, tiles: int) -> Array:
      end = (tiles - 1) * self.tile + 1
      pixels = [
        lax.slice_in_dim(x, i, i + end, self.tile, axis) for i in range(len(b))
      ]
      return jnp.stack(_combine(b, pixels))

    rows, columns = self._tiles
    windows = transform(transform(x, 2, columns), 2, rows)
    return windows.reshape(len(b) ** 2, -1, x.shape[-1])

  def _windows_transposed(self, windows: Array, batch: int) -> Array:
    """The transpose of `_windows`: [n^2, B * tiles, C] -> [B, H, W, C]."""
    b = transforms(self.tile)[1].T

    def transform(windows: Array, axis: int) -> Array:
      first, *pixels, last = _combine(b, windows)
      # Tiles overlap: these two belong to the neighbours.
      pixels[-1] += _shift(first, -1, axis)
      pixels[0] += _shift(last, 1, axis)
      return jnp.stack(pixels, axis + 1)

    return self._join_tiles(windows, batch, transform)

  def _output(self, products: Array, batch: int) -> Array:
    """A^T m A of all tiles: [n^2, B * tiles, F] -> [B, H, W, F]."""
    a = transforms(self.tile)[0]

    def transform(products: Array, axis: int) -> Array:
      return jnp.stack(_combine(a, products), axis + 1)

    return self._join_tiles(products, batch, transform)

  def _output_transposed(self, dy: Array) -> Array:
    """The transpose of `_output`: [B, H, W, F] -> [n^2, B * tiles, F]."""
    a = transforms(self.tile)[0].T
    dy = self._pad_to_tiles(dy, border=0)

    def transform(dy: Array, axis: int) -> Array:
      pixels = [
        lax.slice_in_dim(dy, i, None, self.tile, axis) for i in range(self.tile)
      ]
      return jnp.stack(_combine(a, pixels))

    products = transform(transform(dy, 2), 2)
    return products.reshape(len(a) ** 2, -1, dy.shape[-1])

  def _pad_to_tiles(self, x: Array, border: int) -> Array:
    """Pads with a border of zeros, and at the end to complete the last tile."""
    _, height, width, _ = self.x_shape
    rows, columns = self._tiles
    down = (border, border + self.tile * rows - height)
    right = (border, border + self.tile * columns - width)
    return jnp.pad(x, ((0, 0), down, right, (0, 0)))

  def _join_tiles(
    self, tiles: Array, batch: int, transform: Callable[[Array, int], Array]
  ) -> Array:
    """[n^2, B * tiles, C] -> [B, H, W, C]: transforms and joins tiles.

    `transform` moves the leading axis behind the given axis of tiles.
    """
    _, height, width, _ = self.x_shape
    rows, columns = self._tiles
    size, channels = self.tile + 2, tiles.shape[-1]
    tiles = tiles.reshape(size, size, batch, rows, columns, channels)
    x = transform(transform(tiles, 2), 3)
    x = x.reshape(batch, self.tile * rows, self.tile * columns, channels)
    return x[:, :height, :width]


def _combine(matrix: np.ndarray, parts: Iterable[Array]) -> list[Array]:
  """The product of a matrix and a column of arrays."""

  def combine(row: np.ndarray) -> Array:
    terms = [
      part if factor == 1 else float(factor) * part
      for factor, part in zip(row, parts, strict=True)
      if factor
    ]
    return sum(terms[1:], terms[0])

  return [combine(row) for row in matrix]


def _shift(x: Array, by: int, axis: int) -> Array:
  """Shifts x towards higher indices of an axis and fills with zeros."""
  edges = [(0, 0, 0)] * x.ndim
  edges[axis] = (by, -by, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), edges)
