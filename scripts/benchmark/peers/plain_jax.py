"""What a reader of the manuals of JAX and flax would write.

It runs in the environment of dbl_jax, without the project's layers, losses
and malloc settings.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import ours


def step(settings: dict[str, Any]) -> dict[str, Any]:
  """A SimCLR step of `flax.linen`'s own layers."""
  dtype = jnp.dtype(settings["dtype"])
  return ours.step(settings, PlainSimCLR(settings["stem"], dtype))


def nt_xent(settings: dict[str, Any]) -> dict[str, Any]:
  """NT-Xent by its definition."""
  return ours.nt_xent(settings, plain_nt_xent)


class PlainSimCLR(nn.Module):
  """ResNet-18 and SimCLR's head of `flax.linen`'s own layers.

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


def plain_nt_xent(z: jax.Array, temperature: float) -> jax.Array:
  """Eq. (1)-(3) with the whole similarity matrix, f32[N, 2, D] -> f32[]."""
  z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  positives = jnp.repeat((z[:, 0] * z[:, 1]).sum(-1), 2) / temperature
  rows = z.reshape(-1, z.shape[-1])
  similarities = jnp.matmul(rows, rows.T, precision="highest") / temperature
  itself = jnp.eye(len(rows), dtype=bool)
  similarities = jnp.where(itself, -jnp.inf, similarities)
  return (jax.nn.logsumexp(similarities, axis=-1) - positives).mean()
