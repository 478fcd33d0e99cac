"""Convolution by the implementation that is fast on the platform."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from dbl_jax.models.kernels import cpu_conv

# He et al. 2015, "Delving Deep into Rectifiers", eq. (14), as torchvision
# initialises its ResNets.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Convolves a batch of images.

  It is `lax.conv_general_dilated` (cuDNN) on accelerators and `cpu_conv` on
  CPU, with the same values up to rounding. The choice is made when the program
  is compiled for a platform, not when it is traced.

  Args:
    x: float[B, H, W, C].
    kernel: [K, K, C, F], of x's dtype.
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.

  Returns:
    [B, (H + 2 padding - K) // stride + 1, likewise for W, F], of x's dtype.
  """
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(cpu_conv.forward, stride=stride, padding=padding),
    default=functools.partial(_lax_conv, stride=stride, padding=padding),
  )


def _lax_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _lax_backward(
  x: Array, kernel: Array, dy: Array, stride: int, padding: int
) -> tuple[Array, Array]:
  convolve = functools.partial(_lax_conv, stride=stride, padding=padding)
  return jax.vjp(convolve, x, kernel)[1](dy)


def _conv2d_forward(
  x: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
  return conv2d(x, kernel, stride, padding), (x, kernel)


def _conv2d_backward(
  stride: int, padding: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
  return lax.platform_dependent(
    *saved,
    dy,
    cpu=functools.partial(cpu_conv.backward, stride=stride, padding=padding),
    default=functools.partial(_lax_backward, stride=stride, padding=padding),
  )


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


class Conv2D(nn.Module):
  """Convolution without bias; parameter 'kernel' f32[K, K, C, features].

  Attributes:
    features: output channels.
    kernel_size: K.
    strides: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels; K // 2 if None, which
      keeps the size at stride 1.
    dtype: of the computation and the output.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Convolves x, [B, H, W, C]."""
    size = self.kernel_size
    kernel = self.param(
      "kernel", kernel_init, (size, size, x.shape[-1], self.features)
    )
    padding = size // 2 if self.padding is None else self.padding
    return conv2d(
      x.astype(self.dtype), kernel.astype(self.dtype), self.strides, padding
    )
