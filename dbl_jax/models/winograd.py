"""Winograd's convolution F(2x2, 3x3): 16 products where 36 are usual.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
Networks", section 4.1, with their names for the transforms: from a tile d of
4x4 input pixels and a 3x3 kernel g come the 2x2 output pixels

  Y = A^T [(G g G^T) * (B^T d B)] A.

The products over all tiles and channels are 16 matrix products. Kernels are
3x3, the stride is 1, the padding 1, all arrays float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_G = np.array(
  [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32
)


@dataclasses.dataclass(frozen=True)
class Winograd:
  """The convolution of one shape of images with one shape of kernels.

  Attributes:
    x_shape: (any, H, W, C).
    kernel_shape: (3, 3, C, F).
  """

  x_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]

  @property
  def window_bytes(self) -> int:
    """Size of an image's windows."""
    _, height, width, channels = self.x_shape
    return 4 * 16 * _half(height) * _half(width) * channels

  def matrices(self, kernel: jax.Array) -> jax.Array:
    """G g G^T: kernel [3, 3, C, F] -> [16, C, F]."""
    matrices = jnp.einsum("ai,bj,ijcf->abcf", _G, _G, kernel)
    return matrices.reshape(16, *kernel.shape[2:])

  def kernel_gradient(self, matrices_gradient: jax.Array) -> jax.Array:
    """The transpose of `matrices`: [16, C, F] -> [3, 3, C, F]."""
    gradient = matrices_gradient.reshape(4, 4, *matrices_gradient.shape[1:])
    return jnp.einsum("ai,bj,abcf->ijcf", _G, _G, gradient)

  def convolve(self, x: jax.Array, matrices: jax.Array) -> jax.Array:
    """Convolves: x [B, H, W, C], matrices [16, C, F] -> [B, H, W, F]."""
    products = lax.dot_general(
      _windows(x), matrices, (((2,), (1,)), ((0,), (0,)))
    )
    return _output(products, x.shape[:3])

  def matrices_gradient(self, x: jax.Array, dy: jax.Array) -> jax.Array:
    """Gradient by the matrices: [B, H, W, C], [B, H, W, F] -> [16, C, F]."""
    return lax.dot_general(
      _windows(x), _output_transposed(dy), (((1,), (1,)), ((0,), (0,)))
    )

  def transposed_matrices(self, kernel: jax.Array) -> jax.Array:
    """The matrices that take dy to the gradient by x: [16, F, C]."""
    return self.matrices(jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2))

  def convolve_transposed(
    self, dy: jax.Array, matrices: jax.Array
  ) -> jax.Array:
    """Gradient by x: [B, H, W, F], [16, F, C] -> [B, H, W, C]."""
    return self.convolve(dy, matrices)


def _half(pixels: int) -> int:
  return -(-pixels // 2)


# Each transform works along one direction, then along the other. Stacking in
# between, not once at the end, halves the time to compile.


def _windows(x: jax.Array) -> jax.Array:
  """B^T d B of all tiles: [B, H, W, C] -> [16, B * tiles, C]."""
  _, height, width, channels = x.shape
  sides = ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0))

  def transform(x: jax.Array, axis: int) -> jax.Array:
    end = x.shape[axis] - 3
    d = [lax.slice_in_dim(x, i, i + end, 2, axis) for i in range(4)]
    return jnp.stack([d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]])

  columns = transform(jnp.pad(x, sides), axis=2)
  return transform(columns, axis=2).reshape(16, -1, channels)


def _output(products: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """A^T m A of all tiles: [16, B * tiles, F] -> [B, H, W, F]."""
  batch, height, width = shape
  rows, columns = _half(height), _half(width)

  def transform(m: jax.Array, axis: int) -> jax.Array:
    return jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis)

  tiles = products.reshape(4, 4, batch, rows, columns, -1)
  y = transform(transform(tiles, axis=3), axis=4)
  return y.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]


def _output_transposed(dy: jax.Array) -> jax.Array:
  """The transpose of `_output`: [B, H, W, F] -> [16, B * tiles, F]."""
  _, height, width, features = dy.shape
  sides = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))

  def transform(dy: jax.Array, axis: int) -> jax.Array:
    even = lax.slice_in_dim(dy, 0, None, 2, axis)
    odd = lax.slice_in_dim(dy, 1, None, 2, axis)
    return jnp.stack([even, even + odd, even - odd, -odd])

  columns = transform(jnp.pad(dy, sides), axis=2)
  return transform(columns, axis=2).reshape(16, -1, features)
