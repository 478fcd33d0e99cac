"""Convolution, batch norm and max-pooling, also fast on CPU."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from dbl_jax.models import cpu_conv

# He et al. 2015, "Delving Deep into Rectifiers", eq. (14), as torchvision
# initialises its ResNets.
kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Of batch norm, torchvision's.
_MOMENTUM, EPSILON = 0.9, 1e-5


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
  settings: Any = {"stride": stride, "padding": padding}
  return _by_platform(
    x,
    kernel,
    functools.partial(cpu_conv.forward, **settings),
    functools.partial(cpu_conv.backward, **settings),
    functools.partial(_lax_conv, **settings),
  )


def _by_platform(
  x: Array,
  kernel: Array,
  forward: Callable[..., Array],
  backward: Callable[..., tuple[Array, Array]],
  default: Callable[..., Array],
) -> Array:
  """`forward` with the gradients `backward` on CPU; `default` elsewhere."""

  @jax.custom_vjp
  def convolve(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=forward, default=default)

  def gradients(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
      *saved,
      dy,
      cpu=backward,
      default=lambda x, kernel, dy: jax.vjp(default, x, kernel)[1](dy),
    )

  convolve.defvjp(lambda *saved: (convolve(*saved), saved), gradients)
  return convolve(x, kernel)


def _lax_conv(
  x: Array, kernel: Array, stride: int, padding: int | str
) -> Array:
  """Also a depthwise convolution, whose kernel has one input channel."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    padding if isinstance(padding, str) else [(padding, padding)] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1] // kernel.shape[2],
  )


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
  return _by_platform(
    x,
    kernel,
    functools.partial(cpu_conv.depthwise, stride=stride),
    functools.partial(cpu_conv.depthwise_backward, stride=stride),
    functools.partial(_lax_conv, stride=stride, padding="SAME"),
  )


def max_pool(x: Array, size: int, padding: int = 0) -> Array:
  """Max-pooling over windows of size x size with stride 2.

  Computed by slices along rows, then along columns: the gradient of
  `lax.reduce_window`, select-and-scatter, is ten times slower on CPU. Equal
  pixels share the gradient.

  Args:
    x: float[B, H, W, C].
    size: height and width of a window, in pixels.
    padding: pixels of -inf on each of the four sides.

  Returns:
    [B, (H + 2 padding - size) // 2 + 1, likewise for W, C], of x's dtype.
  """
  for axis in (1, 2):
    edges = [(0, 0, 0)] * 4
    edges[axis] = (padding, padding, 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    length = (x.shape[axis] - size) // 2 * 2 + 1
    taps = (
      lax.slice_in_dim(x, tap, tap + length, 2, axis) for tap in range(size)
    )
    x = functools.reduce(jnp.maximum, taps)
  return x


def sow_maps(encoder: nn.Module, maps: Array) -> Array:
  """Sows an encoder's last maps as 'maps', and returns them.

  The gradient of 'maps' in 'perturbations', if present, is that of the maps.
  """
  encoder.sow("intermediates", "maps", maps)
  if encoder.has_variable("perturbations", "maps"):
    maps = encoder.perturb("maps", maps)
  return maps


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
  x: Array, scale: Array, bias: Array, relu: bool, epsilon: float = EPSILON
) -> tuple[Array, Array, Array]:
  """Normalises by the statistics of the batch.

  Source: Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1 and the
  gradients of section 3. Only x is stored for the gradient; automatic
  differentiation also stores x less its mean and the signs for the ReLU.

  Args:
    x: float[..., C].
    scale: f32[C].
    bias: f32[C].
    relu: applies a ReLU to the result.
    epsilon: added to the variance.

  Returns:
    The result, of x's shape and dtype; mean and biased variance, f32[C],
    without gradient.
  """
  return _batch_norm_forward(x, scale, bias, relu, epsilon)[0]


def _batch_norm_forward(
  x: Array, scale: Array, bias: Array, relu: bool, epsilon: float
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
  wide, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
  mean = wide.mean(axes)
  # Both means in one pass; rounding must not make the difference negative.
  variance = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0)
  deviation = lax.rsqrt(variance + epsilon)
  y = _affine(x, mean, deviation * scale, bias)
  y = nn.relu(y) if relu else y
  saved = x, scale, bias, mean, deviation
  return (y.astype(x.dtype), mean, variance), saved


def _batch_norm_backward(
  relu: bool,
  epsilon: float,
  saved: tuple[Array, ...],
  gradients: tuple[Array, ...],
) -> tuple[Array, Array, Array]:
  del epsilon
  x, scale, bias, mean, deviation = saved
  axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
  dy = gradients[0].astype(jnp.float32)
  if relu:
    dy = jnp.where(_affine(x, mean, deviation * scale, bias) > 0, dy, 0)
  dbias = dy.sum(axes)
  dscale = (dy * _affine(x, mean, deviation, jnp.zeros_like(mean))).sum(axes)
  # dx = scale * deviation * (dy - mean of dy - x_hat * mean of dy * x_hat).
  towards = _affine(x, mean, deviation * dscale / count, dbias / count)
  dx = (dy - towards) * _broadcast(deviation * scale, x)
  return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _affine(x: Array, mean: Array, slope: Array, bias: Array) -> Array:
  centred = x.astype(jnp.float32) - _broadcast(mean, x)
  return centred * _broadcast(slope, x) + _broadcast(bias, x)


def _broadcast(vector: Array, x: Array) -> Array:
  return lax.broadcast_in_dim(vector, x.shape, (x.ndim - 1,))


class BatchNorm(nn.Module):
  """`batch_norm` with the parameters and statistics of `flax.linen.BatchNorm`.

  Attributes:
    use_running_average: normalises by the running statistics, unchanged.
    relu: applies a ReLU to the result.
    dtype: of the output. Arithmetic and statistics are float32; statistics are
      those of the whole batch, also on several devices. As in flax, the running
      variance is the biased one; PyTorch multiplies it by B / (B - 1).
    scale_init: initialises the scale.
    epsilon: added to the variance.
  """

  use_running_average: bool
  relu: bool = False
  dtype: jnp.dtype = jnp.float32
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  epsilon: float = EPSILON

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises x, [..., C], over all axes but the last."""
    shape = x.shape[-1:]
    scale = self.param("scale", self.scale_init, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    running = {
      name: self.variable("batch_stats", name, fill, shape)
      for name, fill in (("mean", jnp.zeros), ("var", jnp.ones))
    }
    if self.use_running_average:
      deviation = lax.rsqrt(running["var"].value + self.epsilon)
      y = _affine(x, running["mean"].value, deviation * scale, bias)
      y = nn.relu(y) if self.relu else y
    else:
      y, mean, variance = batch_norm(x, scale, bias, self.relu, self.epsilon)
      if not self.is_initializing():
        for name, new in (("mean", mean), ("var", variance)):
          old = running[name].value
          running[name].value = _MOMENTUM * old + (1 - _MOMENTUM) * new
    return y.astype(self.dtype)
