"""The base DCNN: Li et al. 2017, "Reliable Crowdsourcing and Deep
Locality-Preserving Learning for Expression Recognition in the Wild", table 1.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dbl_jax.models.layers import Conv2D, max_pool, sow_maps
from dbl_jax.runtime.options import integer, one_of

# Output channels of the convolutions; pooling follows each group.
_GROUPS = ((64,), (96,), (128, 128), (256, 256))
_POOLINGS = ("average", "flatten")
# He et al. 2015, "Delving Deep into Rectifiers", eq. (10).
_dense_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class DCNN(nn.Module):
  """Base DCNN, without batch norm.

  Six 3x3 convolutions with bias and ReLU, 64, 96, 128, 128, 256 and 256
  channels, and 2x2 max-pooling after the first, second and fourth.

  Attributes:
    width: units of the last dense layer, with pooling 'flatten'.
    pooling: 'flatten', the published network, ends in a dense layer on the
      whole last map (74,930,736 parameters for images of 100 pixels, 9,394,736
      for 32). 'average', for class activation maps, averages the last map
      instead (1,200,736 parameters).
    last_pool: whether max-pooling follows the sixth convolution too. With
      'flatten' it divides the dense layer by four: 19,634,736 parameters for
      100 pixels, 3,250,736 for 32.
    dtype: of the computation; parameters are float32.
  """

  width: Annotated[int, integer(1, 1_000_000)] = 2000
  pooling: Annotated[str, one_of(_POOLINGS)] = "flatten"
  last_pool: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Encodes images.

    Args:
      x: f32[B, H, W, 3], normalised, at least 16 pixels high and wide. An odd
        map loses its last row or column where it is pooled.
      train: ignored.

    Returns:
      f32[B, width], or f32[B, 256] with pooling 'average'. The last map,
      [B, h, w, 256] of `dtype`, is sown as 'maps' in 'intermediates'.
    """
    layer = 0
    for group in _GROUPS:
      for place, features in enumerate(group, 1):
        layer += 1
        last = place == len(group)
        pool = last and (self.last_pool or group is not _GROUPS[-1])
        x = _Convolution(features, pool, self.dtype, name=f"conv{layer}")(x)
    x = sow_maps(self, x)
    if self.pooling == "average":
      return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    x = x.reshape(x.shape[0], -1)
    x = nn.Dense(
      self.width, dtype=self.dtype, kernel_init=_dense_init, name="dense"
    )(x)
    return nn.relu(x).astype(jnp.float32)


class _Convolution(nn.Module):
  """3x3 convolution, bias, ReLU and, if `pool`, max-pooling.

  ReLU is monotone, so pooling first gives the same values, and bias and ReLU
  are computed on a quarter of the pixels.
  """

  features: int
  pool: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H, W, features], half as high and wide if pooled."""
    x = Conv2D(self.features, kernel_size=3, dtype=self.dtype, name="conv")(x)
    if self.pool:
      x = max_pool(x, 2)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return nn.relu(x + bias.astype(self.dtype)[None, None, None])
