"""Depthwise convolution, which XLA computes slowly on CPU.

There, it is the sum of shifted images times one pixel of the kernel each, which
XLA fuses into one loop. It is fifteen times faster than XLA's grouped
convolution, and its gradient thirty times.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from dbl_jax.models.kernels import chunks

# Images whose products with a shifted gradient fit in the second-level cache.
_CHUNK_BYTES = 1 << 20


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv2d(x: Array, kernel: Array, stride: int) -> Array:
  """Convolves each channel with a kernel of its own.

  Args:
    x: float[B, H, W, C].
    kernel: [K, K, 1, C], of x's dtype.
    stride: step in both directions, in pixels.

  Returns:
    [B, ceil(H / stride), ceil(W / stride), C], of x's dtype. Zeros outside the
    image are divided between its sides as by TensorFlow's padding 'SAME'.
  """
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_shifted, stride=stride),
    default=functools.partial(_grouped, stride=stride),
  )


def _grouped(x: Array, kernel: Array, stride: int) -> Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _grouped_backward(
  x: Array, kernel: Array, dy: Array, stride: int
) -> tuple[Array, Array]:
  convolve = functools.partial(_grouped, stride=stride)
  return jax.vjp(convolve, x, kernel)[1](dy)


def _forward(
  x: Array, kernel: Array, stride: int
) -> tuple[Array, tuple[Array, Array]]:
  return depthwise_conv2d(x, kernel, stride), (x, kernel)


def _backward(
  stride: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  return lax.platform_dependent(
    *saved,
    dy,
    cpu=functools.partial(_shifted_backward, stride=stride),
    default=functools.partial(_grouped_backward, stride=stride),
  )


depthwise_conv2d.defvjp(_forward, _backward)


def _padding(side: int, size: int, stride: int) -> tuple[int, int]:
  """Zeros before and after an axis, of TensorFlow's 'SAME'."""
  return lax.padtype_to_pads((side,), (size,), (stride,), "SAME")[0]


def pad_same(x: Array, size: int, stride: int) -> Array:
  """Pads [B, H, W, C] as TensorFlow's 'SAME' does for a K x K kernel."""
  pads = [_padding(side, size, stride) for side in x.shape[1:3]]
  return jnp.pad(x, [(0, 0), *pads, (0, 0)])


def _shifted(x: Array, kernel: Array, stride: int) -> Array:
  size = kernel.shape[0]
  padded = pad_same(x, size, stride).astype(jnp.float32)
  return _sum_of_shifts(padded, kernel, stride).astype(x.dtype)


def _sum_of_shifts(x: Array, kernel: Array, stride: int) -> Array:
  """The convolution of a padded batch without padding."""
  size, (_, height, width, _) = kernel.shape[0], x.shape
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


def _shifted_backward(
  x: Array, kernel: Array, dy: Array, stride: int
) -> tuple[Array, Array]:
  size, (_, height, width, channels) = kernel.shape[0], dy.shape
  # By x: the full convolution of the dilated dy with the flipped kernel.
  edges = [(0, 0, 0)] * 4
  for axis in (1, 2):
    side, (before, _) = x.shape[axis], _padding(x.shape[axis], size, stride)
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
  count = chunks.images_per_chunk(
    len(x), 4 * height * width * channels, _CHUNK_BYTES
  )
  pairs = pad_same(x, size, stride), dy
  total, dx = chunks.scan(step, total, pairs, count)
  return dx, total.reshape(kernel.shape).astype(kernel.dtype)


class DepthwiseConv2D(nn.Module):
  """`depthwise_conv2d`; parameter 'kernel' f32[K, K, 1, C].

  Attributes:
    kernel_size: K.
    strides: step in both directions, in pixels.
    dtype: of the computation and the output.
  """

  kernel_size: int
  strides: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Convolves x, [B, H, W, C]."""
    size = self.kernel_size
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    kernel = self.param("kernel", init, (size, size, 1, x.shape[-1]))
    return depthwise_conv2d(
      x.astype(self.dtype), kernel.astype(self.dtype), self.strides
    )
