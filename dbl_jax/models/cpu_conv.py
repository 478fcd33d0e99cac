"""Convolutions as chunked matrix products, for CPUs.

XLA's convolutions are slow on CPU, above all the gradient with respect to the
kernel. Here a convolution gathers windows of its input and multiplies them by
matrices derived from the kernel: by `winograd` where that is cheaper, for most
3x3 kernels with stride 1 and padding 1, else by `im2col`. The batch is
processed in chunks whose windows fit in the cache; gradients are those of a
chunk, whose windows are computed again. A depthwise convolution is a sum of
shifted images instead.

All arithmetic is float32, since bfloat16 products are not faster on CPU.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.polynomial import polynomial

# Size of the windows of a chunk, so that they and their products fit in the
# second-level cache. Each chunk also reads all matrices and updates their
# gradient, so its windows are at least twice as large as these.
CHUNK_BYTES = 2 << 20
# Cost of Winograd's transforms per output, in products. It only excludes first
# layers, which have 3 channels.
_TRANSFORM = 10
# Where Winograd's polynomials are evaluated, besides infinity. Errors are 1e-6
# of the largest output, a quarter of those with Lavin and Gray's 0, 1, -1, 2,
# -2 (see Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of
# Winograd Convolution").
_POINTS = (0, 0.75, -0.75, 1.5, -1.5)


def forward(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Convolves x, [B, H, W, C]; see `layers.conv2d`."""
  prepare, convolve, size = _plan(x, kernel, stride, padding)
  matrices = prepare(kernel)

  def step(carry: None, chunk: Array) -> tuple[None, Array]:
    return carry, convolve(chunk, matrices)

  return _scan(step, None, x, size)[1]


def backward(
  x: Array, kernel: Array, dy: Array, stride: int, padding: int
) -> tuple[Array, Array]:
  """Returns gradients of sum(dy * forward(x, kernel)) by x and by kernel."""
  prepare, convolve, size = _plan(x, kernel, stride, padding)
  matrices, pull_matrices = jax.vjp(prepare, kernel)

  def step(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
    dx, gradient = jax.vjp(convolve, chunk[0], matrices)[1](chunk[1])
    return total + gradient, dx

  total, dx = _scan(step, jnp.zeros_like(matrices), (x, dy), size)
  return dx, pull_matrices(total)[0]


def _plan(
  x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array], int]:
  """Chooses the cheaper form of a convolution.

  Returns:
    A function from the kernel to matrices f32, one from a chunk of x and the
    matrices to the output, and the number of images per chunk.
  """
  size = len(kernel)
  tile = choose_tile(x.shape, kernel.shape, stride, padding)
  matrices: Callable[[Array], Array]
  if tile:
    matrices = functools.partial(winograd_matrices, tile=tile)
    form = functools.partial(winograd, tile=tile)
    per_image = math.prod(_tiles(x.shape, tile)) * (tile + 2) ** 2
  else:
    outputs, taps = _outputs_and_taps(x.shape, size, stride, padding)
    matrices = functools.partial(im2col_matrix, taps=taps)
    form = functools.partial(im2col, size=size, stride=stride, padding=padding)
    per_image = math.prod(outputs) * math.prod(map(len, taps))

  def convolve(chunk: Array, matrices: Array) -> Array:
    return form(chunk.astype(jnp.float32), matrices).astype(x.dtype)

  budget = 2 * 4 * math.prod(jax.eval_shape(matrices, kernel).shape)
  count = images_per_chunk(
    x.shape[0], 4 * per_image * x.shape[3], max(CHUNK_BYTES, budget)
  )
  return matrices, convolve, count


def choose_tile(
  x_shape: Sequence[int], kernel_shape: Sequence[int], stride: int, padding: int
) -> int:
  """Returns the tile of the cheapest `winograd`; 0 if `im2col` is cheaper."""
  size, _, channels, features = kernel_shape
  outputs, taps = _outputs_and_taps(x_shape, size, stride, padding)
  windows = math.prod(outputs) * math.prod(map(len, taps))
  costs = {0: windows * channels * features}
  if size == 3 and stride == padding == 1:
    product = channels * features + _TRANSFORM * (channels + features)
    for tile in (2, 3, 4):
      tiles = math.prod(_tiles(x_shape, tile))
      costs[tile] = (tile + 2) ** 2 * tiles * product
  return min(costs, key=costs.__getitem__)


def _outputs_and_taps(
  x_shape: Sequence[int], size: int, stride: int, padding: int
) -> tuple[list[int], list[range]]:
  """Returns H', W' and the kernel's taps that reach more than padding.

  In small maps many do not: in a map of 1 x 1, only one of 3 x 3 does.
  """
  outputs = [(n + 2 * padding - size) // stride + 1 for n in x_shape[1:3]]
  taps = [
    range(max(0, padding - stride * (count - 1)), min(size, n + padding))
    for n, count in zip(x_shape[1:3], outputs, strict=True)
  ]
  return outputs, taps


def _tiles(x_shape: Sequence[int], tile: int) -> list[int]:
  return [-(-n // tile) for n in x_shape[1:3]]


def im2col(
  x: Array, matrix: Array, size: int, stride: int, padding: int
) -> Array:
  """Convolution as one product of gathered windows and the kernel.

  Args:
    x: f32[B, H, W, C].
    matrix: as returned by `im2col_matrix`.
    size: K, height and width of the kernel.
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.

  Returns:
    f32[B, H', W', F].
  """
  (height, width), taps = _outputs_and_taps(x.shape, size, stride, padding)
  sides = (padding, padding)
  x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))

  def gather(x: Array, axis: int, count: int, taps: range) -> Array:
    length = (count - 1) * stride + 1
    pixels = [
      lax.slice_in_dim(x, tap, tap + length, stride, axis) for tap in taps
    ]
    return jnp.stack(pixels, axis=3)

  # One direction after the other compiles twice as fast as K * K slices.
  windows = gather(gather(x, 2, width, taps[1]), 1, height, taps[0])
  y = jnp.matmul(windows.reshape(-1, len(matrix)), matrix)
  return y.reshape(x.shape[0], height, width, -1)


def im2col_matrix(kernel: Array, taps: Sequence[range]) -> Array:
  """The taps [k, l, C, F] of a kernel as f32[k * l * C, F]."""
  rows, columns = (slice(one.start, one.stop) for one in taps)
  reached = kernel.astype(jnp.float32)[rows, columns]
  return reached.reshape(-1, kernel.shape[-1])


def winograd(x: Array, matrices: Array, tile: int) -> Array:
  """Winograd's convolution F(m x m, 3x3), for stride 1 and padding 1.

  Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
  Networks", section 4.1, with their names for the transforms: from a tile d of
  n x n input pixels, n = m + 2, and a 3x3 kernel g come the m x m output pixels

    Y = A^T [(G g G^T) * (B^T d B)] A,

  with n^2 products instead of 9 m^2, such as 36 for 144. The products over all
  tiles and channels are n^2 matrix products.

  Args:
    x: f32[B, H, W, C].
    matrices: G g G^T, f32[n^2, C, F], as returned by `winograd_matrices`.
    tile: m, height and width of a tile's output in pixels, 2 to 4.

  Returns:
    f32[B, H, W, F].
  """
  a, b, _ = transforms(tile)
  size, (batch, height, width, channels) = tile + 2, x.shape
  rows, columns = _tiles(x.shape, tile)
  # One more tile than needed: the last two pixels of a tile's input are the
  # first two of the next tile.
  down, right = (
    (1, tile * (count + 1) - 1 - pixels)
    for count, pixels in ((rows, height), (columns, width))
  )
  x = jnp.pad(x, ((0, 0), down, right, (0, 0)))

  # Each transform is applied along one axis, then along the other. Splits and
  # stacks, unlike slices, have gradients that are as fast as they are.
  def to_windows(x: Array, axis: int, count: int) -> Array:
    x = x.reshape(*x.shape[:axis], count + 1, tile, *x.shape[axis + 1 :])
    current = lax.slice_in_dim(x, 0, count, axis=axis)
    following = lax.slice_in_dim(x, 1, count + 1, axis=axis)
    following = lax.slice_in_dim(following, 0, 2, axis=axis + 1)
    pixels = [*_unstack(current, axis + 1), *_unstack(following, axis + 1)]
    return jnp.stack(_combine(b, pixels))

  def to_pixels(products: Array, axis: int) -> Array:
    return jnp.stack(_combine(a, _unstack(products, 0)), axis + 1)

  windows = to_windows(to_windows(x, 2, columns), 2, rows)
  products = lax.dot_general(
    windows.reshape(size**2, -1, channels),
    matrices,
    (((2,), (1,)), ((0,), (0,))),
  )
  y = products.reshape(size, size, batch, rows, columns, products.shape[-1])
  y = to_pixels(to_pixels(y, 2), 3)
  y = y.reshape(batch, tile * rows, tile * columns, y.shape[-1])
  return y[:, :height, :width]


def winograd_matrices(kernel: Array, tile: int) -> Array:
  """G g G^T of `winograd`: kernel [3, 3, C, F] -> f32[n^2, C, F]."""
  g = transforms(tile)[2]
  taps = kernel.astype(jnp.float32).reshape(9, *kernel.shape[2:])
  return jnp.tensordot(np.kron(g, g).astype(np.float32), taps, 1)


@functools.cache
def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns A^T [m, n], B^T [n, n] and G [n, 3] of `winograd` for m = tile.

  In one direction Winograd's convolution is polynomial multiplication by Toom
  and Cook's method: A and G evaluate at n - 1 points and infinity, B^T
  interpolates.
  """
  points = np.array(_POINTS[: tile + 1])
  others = [np.delete(points, i) for i in range(tile + 1)]
  scales = [np.prod(a - rest) for a, rest in zip(points, others, strict=True)]

  def evaluate(count: int) -> np.ndarray:
    powers = np.vander(points, count, increasing=True)
    return np.concatenate([powers, np.eye(count)[-1:]])

  g = evaluate(3) / np.array([*scales, 1])[:, None]
  b = np.zeros((tile + 2, tile + 2))
  for row, roots in zip(b, [*others, points], strict=True):
    row[: len(roots) + 1] = polynomial.polyfromroots(roots)
  return evaluate(tile).T, b, g


def pad_same(x: Array, size: int, stride: int) -> Array:
  """Pads [B, H, W, C] as TensorFlow's 'SAME' does for a K x K kernel."""
  pads = [_pads(side, size, stride) for side in x.shape[1:3]]
  return jnp.pad(x, [(0, 0), *pads, (0, 0)])


def _pads(side: int, size: int, stride: int) -> tuple[int, int]:
  return lax.padtype_to_pads((side,), (size,), (stride,), "SAME")[0]


def depthwise(x: Array, kernel: Array, stride: int) -> Array:
  """See `layers.depthwise_conv2d`: shifted images times one pixel each.

  XLA fuses them into one loop, fifteen times faster than its grouped
  convolution; the gradient is thirty times faster.
  """
  padded = pad_same(x, len(kernel), stride).astype(jnp.float32)
  return _sum_of_shifts(padded, kernel, stride).astype(x.dtype)


def _sum_of_shifts(x: Array, kernel: Array, stride: int) -> Array:
  """The convolution of a padded batch without padding."""
  size, (_, height, width, _) = len(kernel), x.shape
  return sum(
    x[
      :,
      i : height - size + i + 1 : stride,
      j : width - size + j + 1 : stride,
    ]
    * kernel[i : i + 1, j : j + 1].astype(jnp.float32)
    for i in range(size)
    for j in range(size)
  )  # type: ignore[return-value]


def depthwise_backward(
  x: Array, kernel: Array, dy: Array, stride: int
) -> tuple[Array, Array]:
  """Gradients of sum(dy * depthwise(x, kernel)) by x and by kernel."""
  size, (_, height, width, channels) = len(kernel), dy.shape
  # By x: the full convolution of the dilated dy with the flipped kernel.
  edges = [(0, 0, 0)] * 4
  for axis in (1, 2):
    side, (before, _) = x.shape[axis], _pads(x.shape[axis], size, stride)
    dilated = (dy.shape[axis] - 1) * stride + 1
    edges[axis] = (size - 1 - before, side + before - dilated, stride - 1)
  # By the kernel: sums over pixels, as products with ones, which are faster.
  pixels = jnp.stack(jnp.divmod(jnp.arange(size * size), size), 1)
  covered = (height - 1) * stride + 1, (width - 1) * stride + 1

  def step(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
    padded, gradient = (part.astype(jnp.float32) for part in chunk)

    def of_pixel(pixel: Array) -> Array:
      shape = (len(padded), *covered, channels)
      shifted = lax.dynamic_slice(padded, (0, *pixel, 0), shape)
      product = shifted[:, ::stride, ::stride] * gradient
      product = product.reshape(-1, channels)
      return jnp.ones(len(product)) @ product

    wide = lax.pad(gradient, jnp.float32(0), edges)
    dx = _sum_of_shifts(wide, kernel[::-1, ::-1], 1)
    return total + lax.map(of_pixel, pixels), dx.astype(x.dtype)

  total = jnp.zeros((size * size, channels), jnp.float32)
  # Products with a shifted gradient fit in the second-level cache.
  count = images_per_chunk(
    len(x), 4 * height * width * channels, CHUNK_BYTES // 2
  )
  total, dx = _scan(step, total, (pad_same(x, size, stride), dy), count)
  return dx, total.reshape(kernel.shape).astype(kernel.dtype)


def _unstack(x: Array, axis: int) -> list[Array]:
  parts = lax.split(x, (1,) * x.shape[axis], axis)
  return [part.squeeze(axis) for part in parts]


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


def images_per_chunk(batch: int, bytes_per_image: int, budget: int) -> int:
  """Returns the number of images per chunk, about budget / bytes_per_image.

  It is the largest divisor of the batch that fits, which avoids padding, unless
  that is less than half of what fits. On several devices it is the whole batch,
  which would otherwise be gathered chunk by chunk; so is a batch of symbolic
  size.
  """
  if jax.device_count() > 1 or not isinstance(batch, int):
    return batch
  most = min(batch, max(1, budget // bytes_per_image))
  divisor = max(n for n in range(1, most + 1) if batch % n == 0)
  return divisor if 2 * divisor > most else most


def _scan(
  step: Callable[[Any, Any], tuple[Any, Array]],
  carry: Any,
  arrays: Any,
  size: int,
) -> tuple[Any, Array]:
  """`lax.scan` over chunks of the leading axis, padded with zeros to fit."""
  batch = jax.tree.leaves(arrays)[0].shape[0]
  if size == batch:
    return step(carry, arrays)
  count = -(-batch // size)

  def split(array: Array) -> Array:
    padding = [(0, count * size - batch)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(count, size, *array.shape[1:])

  carry, out = lax.scan(step, carry, jax.tree.map(split, arrays))
  return carry, out.reshape(count * size, *out.shape[2:])[:batch]
