"""What a phase feeds on: images, or features extracted from them once.

A frozen encoder gives an image the same features at every step. Extracting
them once and training the head on them alone is many times faster; what is
lost is the endless choice of views.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dbl_jax.augment import views


class Inputs(NamedTuple):
  """How rows of a part's array become what the model reads.

  Attributes:
    encoder: what the model does with its encoder, see `Model.__call__`.
    draw: (key, ids int32[B], rows [B, ...], targets f32[B, C]) -> views
      f32[V, B, ...], random, and their targets f32[B, C].
    plain: rows [B, ...] -> f32[B, ...], for evaluation.
  """

  encoder: str
  draw: Callable[..., tuple[jax.Array, jax.Array]]
  plain: Callable[[jax.Array], jax.Array]


def of_images(
  phase: Mapping[str, Any], image_size: int, encoder: str
) -> Inputs:
  """Images uint8[B, S, S, 3], augmented at every step.

  Args:
    phase: the phase's config: views, augment, mixup.
    image_size: height and width of the views, in pixels.
    encoder: 'trained' or 'frozen'.

  Returns:
    The inputs.
  """

  def draw(key: jax.Array, ids: jax.Array, images: jax.Array) -> jax.Array:
    return views.make_views(
      key,
      ids,
      images,
      num_views=phase["views"],
      out_size=image_size,
      **phase["augment"],
    )

  return Inputs(
    encoder,
    _mixed(draw, phase["mixup"]),
    lambda images: views.plain(images, image_size),
  )


def of_features(phase: Mapping[str, Any]) -> Inputs:
  """Features f32[B, K, F] of K views of each image, one of them at each step.

  Args:
    phase: the phase's config: views (how many to draw of the K), mixup.

  Returns:
    The inputs.
  """

  num_views = phase["views"]

  def draw(key: jax.Array, ids: jax.Array, features: jax.Array) -> jax.Array:
    cached = features.shape[1]
    if cached == 1:
      return jnp.repeat(features.transpose(1, 0, 2), num_views, axis=0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
    chosen = jax.vmap(
      lambda own: jax.random.randint(own, (num_views,), 0, cached)
    )(keys)
    drawn = jnp.take_along_axis(features, chosen[:, :, None], axis=1)
    return drawn.transpose(1, 0, 2)

  return Inputs(
    "cached", _mixed(draw, phase["mixup"]), lambda features: features[:, 0]
  )


def _mixed(
  draw: Callable[..., jax.Array], alpha: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Drawing, then mixup (Zhang et al. 2018, eq. (1)) where alpha is not 0.

  Each example is mixed with its neighbour in the batch, which is as random as
  the batch: share x own + (1 - share) x neighbour, share ~ Beta(alpha, alpha).
  """

  def plain(
    key: jax.Array, ids: jax.Array, rows: jax.Array, targets: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return draw(key, ids, rows), targets

  def mixed(
    key: jax.Array, ids: jax.Array, rows: jax.Array, targets: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    draw_key, share_key = jax.random.split(key)
    found = draw(draw_key, ids, rows)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(share_key, ids)
    share = jax.vmap(lambda own: jax.random.beta(own, alpha, alpha))(keys)

    def blend(own: jax.Array, axis: int) -> jax.Array:
      shape = [1] * own.ndim
      shape[axis] = -1
      weight = share.reshape(shape)
      return weight * own + (1 - weight) * jnp.roll(own, 1, axis)

    return blend(found, 1), blend(targets, 0)

  return mixed if alpha else plain
