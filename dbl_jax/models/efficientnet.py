"""EfficientNet-Lite0: EfficientNet (Tan and Le 2019) for small devices.

Without squeeze-and-excitation, and with ReLU6 in place of swish.
"""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dbl_jax.models.cpu_conv import pad_same
from dbl_jax.models.layers import BatchNorm, Conv2D, DepthwiseConv2D, sow_maps
from dbl_jax.runtime.options import one_of

# Stride of the first convolution. All stems have the same parameters.
STEMS = {"imagenet": 2, "small": 1}
# Stages: blocks, kernel size, stride, expansion and channels; table 1.
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
# TensorFlow's, of batch norm.
EPSILON = 1e-3


def _norm(x: Array, train: bool, name: str, relu: bool = True) -> Array:
  norm = BatchNorm(not train, relu, x.dtype, epsilon=EPSILON, name=name)
  return jnp.minimum(norm(x), 6) if relu else norm(x)


class InvertedBlock(nn.Module):
  """Wide 1x1, depthwise and narrow 1x1 convolutions (Sandler et al. 2018).

  Attributes:
    features: output channels.
    kernel_size: of the depthwise convolution.
    strides: of the depthwise convolution, in pixels.
    expansion: its channels as a multiple of the input's; 1 omits the wide
      convolution.
    dtype: of the computation and the output.
  """

  features: int
  kernel_size: int
  strides: int
  expansion: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / strides), ..., features]."""
    wide, y = self.expansion * x.shape[-1], x
    if self.expansion > 1:
      y = Conv2D(wide, 1, dtype=self.dtype, name="expand_conv")(y)
      y = _norm(y, train, "expand_norm")
    y = DepthwiseConv2D(
      self.kernel_size, self.strides, self.dtype, name="depthwise_conv"
    )(y)
    y = _norm(y, train, "depthwise_norm")
    y = Conv2D(self.features, 1, dtype=self.dtype, name="project_conv")(y)
    y = _norm(y, train, "project_norm", relu=False)
    return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
  """EfficientNet-Lite0 with 1,280 features (3,371,008 parameters).

  Attributes:
    stem: stride of the first convolution: 'imagenet', 2; 'small', 1, which
      suits images of up to 64 pixels. Both have the same parameters.
    dtype: of the computation; parameters and statistics are float32.
    frozen: names of modules that always run as for evaluation.
  """

  stem: Annotated[str, one_of(STEMS)] = "imagenet"
  dtype: jnp.dtype = jnp.float32
  frozen: tuple[str, ...] = ()

  # See `resnet.ResNet18`.
  small_stem: ClassVar[str] = "small"
  stems_share_weights: ClassVar[bool] = True
  pretrained_normalisation: ClassVar[str] = "inception"

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Encodes images.

    Args:
      x: f32[B, H, W, 3], normalised.
      train: batch norm uses the batch's statistics and updates its own.

    Returns:
      f32[B, 1280], averages over the last map, which is sown as 'maps',
      [B, h, w, 1280] of `dtype`, in 'intermediates'.
    """

    def training(name: str) -> bool:
      return train and name not in self.frozen

    def conv_norm(
      x: Array, name: str, features: int, size: int = 1, stride: int = 1
    ) -> Array:
      conv = Conv2D(features, size, stride, 0, self.dtype, name=name)
      x = conv(pad_same(x, size, stride))
      norm = f"{name}_norm"
      return _norm(x, training(norm), norm)

    x = conv_norm(x, "stem", 32, 3, STEMS[self.stem])
    for stage, (blocks, size, stride, expansion, features) in enumerate(
      STAGES, 1
    ):
      for block in range(1, blocks + 1):
        name = f"stage{stage}_block{block}"
        x = InvertedBlock(
          features,
          size,
          stride if block == 1 else 1,
          expansion,
          self.dtype,
          name=name,
        )(x, training(name))
    x = conv_norm(x, "last", 1280)
    x = sow_maps(self, x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
