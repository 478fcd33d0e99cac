"""ResNet-18 and SimCLR's head as a reader of flax's manual would write them.

Only `flax.linen`'s own layers, laid out as `models.resnet` and `models.heads`
are: what the convolutions and the max-pooling of this project are measured
against, and what the FLOPs of a step are counted on.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class PlainSimCLR(nn.Module):
  """Encoder and projection head.

  Attributes:
    stem: 'imagenet' or 'small', see `models.resnet.ResNet18`.
    dtype: of the encoder's computation.
  """

  stem: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Images f32[B, H, W, 3] in [0, 1] -> embeddings f32[B, 128]."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
    norm = functools.partial(
      nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype
    )
    x = (x - 0.5) / 0.25
    if self.stem == "imagenet":
      x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=3)(x)))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    else:
      x = nn.relu(norm()(conv(64, (3, 3), padding=1)(x)))
    for stage, features in enumerate((64, 128, 256, 512)):
      for block in range(2):
        strides = (2, 2) if stage and not block else (1, 1)
        y = conv(features, (3, 3), strides, padding=1)(x)
        y = conv(features, (3, 3), padding=1)(nn.relu(norm()(y)))
        y = norm()(y)
        if x.shape != y.shape:
          x = norm()(conv(features, (1, 1), strides)(x))
        x = nn.relu(x + y)
    h = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    h = nn.relu(nn.BatchNorm(not train)(nn.Dense(512, use_bias=False)(h)))
    z = nn.Dense(128, use_bias=False)(h)
    return nn.BatchNorm(not train, use_bias=False)(z)
