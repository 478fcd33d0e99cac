"""ResNet-18, 34, 50 (He et al. 2016, table 1) and 32 (section 4.2)."""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dbl_jax.models.layers import BatchNorm, Conv2D, max_pool, sow_maps
from dbl_jax.runtime.options import one_of

# Kernel size and stride of the first convolution.
STEMS = {"imagenet": (7, 2), "medium": (3, 2), "small": (3, 1)}


class ResidualBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut, He et al. 2016, eq. (1) and (2).

  Attributes:
    features: output channels.
    strides: of the first convolution, in pixels.
    zero_init_residual: initialises the last batch norm's scale to zero, so
      that the block starts as its shortcut (Goyal et al. 2017, section 5.1).
    dtype: of the computation and the output.
  """

  features: int
  strides: int = 1
  zero_init_residual: bool = False
  dtype: jnp.dtype = jnp.float32

  def _layers(self) -> list[tuple[int, int, int]]:
    """Output channels, kernel size and stride of each convolution."""
    return [(self.features, 3, self.strides), (self.features, 3, 1)]

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, features]."""
    y, layers = x, self._layers()
    for layer, (out, size, strides) in enumerate(layers, 1):
      last = layer == len(layers)
      zero = last and self.zero_init_residual
      y = Conv2D(out, size, strides, dtype=self.dtype, name=f"conv{layer}")(y)
      y = BatchNorm(
        not train,
        relu=not last,
        dtype=self.dtype,
        scale_init=nn.initializers.constant(1.0 - zero),
        name=f"norm{layer}",
      )(y)
    if x.shape[-1] != out or self.strides > 1:
      x = self._shortcut(x, out, train)
    return nn.relu(x + y)

  def _shortcut(self, x: Array, features: int, train: bool) -> Array:
    """[B, H, W, C] -> [B, H / strides, W / strides, features]."""
    conv = Conv2D(
      features, 1, self.strides, dtype=self.dtype, name="shortcut_conv"
    )
    norm = BatchNorm(not train, dtype=self.dtype, name="shortcut_norm")
    return norm(conv(x))


class PaddedBlock(ResidualBlock):
  """`ResidualBlock` with a shortcut without parameters: option A of He et al.

  It takes every second pixel and adds channels of zeros.
  """

  def _shortcut(self, x: Array, features: int, train: bool) -> Array:
    extra = features - x.shape[-1]
    x = x[:, :: self.strides, :: self.strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, extra)))


class Bottleneck(ResidualBlock):
  """1x1, 3x3 and 1x1 convolutions and a shortcut, He et al. 2016, figure 5.

  As in torchvision, the 3x3 convolution has the stride. The attributes are
  those of `ResidualBlock`; the output has 4 x features channels.
  """

  def _layers(self) -> list[tuple[int, int, int]]:
    narrow, wide = self.features, 4 * self.features
    return [(narrow, 1, 1), (narrow, 3, self.strides), (wide, 1, 1)]


class ResNet18(nn.Module):
  """ResNet-18.

  Attributes:
    stem: first layers. 'imagenet', a 7x7 convolution with stride 2 and
      max-pooling, divides height and width by 4 (11,176,512 parameters);
      'medium', a 3x3 convolution with stride 2, for images of 32 to 64 pixels,
      by 2; 'small', a 3x3 convolution with stride 1, for about 32 pixels, not
      at all (both 11,168,832 parameters).
    zero_init_residual: starts each block as its shortcut, see `ResidualBlock`.
    dtype: of the computation; parameters and statistics are float32.
    frozen: names of modules that always run as for evaluation.
  """

  stem: Annotated[str, one_of(STEMS)] = "imagenet"
  zero_init_residual: bool = False
  dtype: jnp.dtype = jnp.float32
  frozen: tuple[str, ...] = ()

  # Stem for images of up to 64 pixels, and whether it can load weights of the
  # stem 'imagenet', which published files have; their normalisation.
  small_stem: ClassVar[str] = "medium"
  stems_share_weights: ClassVar[bool] = False
  pretrained_normalisation: ClassVar[str] = "imagenet"
  # Channels of the first stage; blocks of each stage, and their kind.
  width: ClassVar[int] = 64
  blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
  block: ClassVar[type[nn.Module]] = ResidualBlock

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Encodes images.

    Args:
      x: f32[B, H, W, 3], normalised.
      train: batch norm uses the batch's statistics and updates its own.

    Returns:
      f32[B, F], averages over the last map, which is sown as 'maps',
      [B, h, w, F] of `dtype`, in 'intermediates'; F is 512, of
      ResNet-50 2048 and of ResNet-32 64.
    """
    size, strides = STEMS[self.stem]
    x = Conv2D(self.width, size, strides, dtype=self.dtype, name="stem")(x)

    def training(name: str) -> bool:
      return train and name not in self.frozen

    fixed = not training("stem_norm")
    x = BatchNorm(fixed, relu=True, dtype=self.dtype, name="stem_norm")(x)
    if self.stem == "imagenet":
      x = max_pool(x, 3, padding=1)
    for stage, blocks in enumerate(self.blocks, 1):
      for block in range(1, blocks + 1):
        name = f"stage{stage}_block{block}"
        x = self.block(
          self.width * 2 ** (stage - 1),
          strides=2 if stage > 1 and block == 1 else 1,
          zero_init_residual=self.zero_init_residual,
          dtype=self.dtype,
          name=name,
        )(x, training(name))
    x = sow_maps(self, x)
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class ResNet34(ResNet18):
  """ResNet-34: 3, 4, 6 and 3 blocks (21,284,672 parameters)."""

  blocks: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)


class ResNet50(ResNet34):
  """ResNet-50: 3, 4, 6 and 3 bottleneck blocks (23,508,032 parameters)."""

  block: ClassVar[type[nn.Module]] = Bottleneck


class ResNet32(ResNet18):
  """ResNet-32, for 32 x 32 images (463,504 parameters with stem 'small')."""

  stem: Annotated[str, one_of(STEMS)] = "small"
  width: ClassVar[int] = 16
  blocks: ClassVar[tuple[int, ...]] = (5, 5, 5)
  block: ClassVar[type[nn.Module]] = PaddedBlock
