"""Batch norm, with an optional ReLU, in few passes over the activations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

# torchvision's.
_MOMENTUM, EPSILON = 0.9, 1e-5


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
