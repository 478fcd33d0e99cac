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
    draw: (key, ids int32[B], rows [B, ...]) -> views f32[V, B, ...], random.
    plain: rows [B, ...] -> f32[B, ...], for evaluation.
  """

  encoder: str
  draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
  plain: Callable[[jax.Array], jax.Array]


def of_images(
  phase: Mapping[str, Any], image_size: int, encoder: str
) -> Inputs:
  """Images uint8[B, S, S, 3], augmented at every step.

  Args:
    phase: the phase's config: views, augment.
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

  return Inputs(encoder, draw, lambda images: views.plain(images, image_size))


def of_features(num_views: int) -> Inputs:
  """Features f32[B, K, F] of K views of each image, one of them at each step.

  Args:
    num_views: V, how many to draw of the K.

  Returns:
    The inputs.
  """

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

  return Inputs("cached", draw, lambda features: features[:, 0])
