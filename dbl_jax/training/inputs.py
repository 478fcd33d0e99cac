"""Inputs of a phase: augmented images, or cached features of a frozen encoder.

A frozen encoder maps an image to the same features at every step. Extracting
them once and training the head on them is many times faster; the price is a
finite number of views per image.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dbl_jax.augment import views
from dbl_jax.data.datasets import Split
from dbl_jax.evaluation.predictions import jit_eval_step, make_forward
from dbl_jax.models.model import Model
from dbl_jax.runtime.logs import Progress


class Inputs(NamedTuple):
  """How rows of a split become inputs of the model.

  Attributes:
    encoder: mode of the encoder, see `Model.__call__`.
    draw: (key, ids int32[B], rows [B, ...], targets f32[B, C]) -> random views
      f32[V, B, ...] and their targets f32[B, C].
    plain: rows [B, ...] -> f32[B, ...], for evaluation.
  """

  encoder: str
  draw: Callable[..., tuple[jax.Array, jax.Array]]
  plain: Callable[[jax.Array], jax.Array]


def of_images(
  phase: Mapping[str, Any], image_size: int, encoder: str
) -> Inputs:
  """Makes inputs of images uint8[B, S, S, 3], augmented at every step.

  Args:
    phase: the phase's config: views, augment, mixup.
    image_size: height and width of the views, in pixels.
    encoder: 'trained' or 'frozen'.
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
  """Makes inputs of features f32[B, K, F], of which each step draws a view.

  Of the phase's config it uses views, how many of the K to draw, and mixup.
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
  """Adds mixup (Zhang et al. 2018, eq. (1)) to `draw` unless alpha is 0.

  Each example is mixed with the next one of the batch, whose order is random:
  share x own + (1 - share) x neighbour, share ~ Beta(alpha, alpha).
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


def extract(
  model: Model,
  variables: Any,
  splits: Mapping[str, Split],
  phase: Mapping[str, Any],
  key: jax.Array,
  mesh: Mesh,
  name: str,
) -> dict[str, Split]:
  """Extracts the features of a frozen encoder, once before a phase.

  For each training image there are K = phase['cached_views'] views: the image
  without augmentation and K - 1 random views, which depend only on the key and
  the image's index. Validation images are not augmented.

  Args:
    model: encoder and head.
    variables: variables of the model.
    splits: images, with 'train' and 'validation'.
    phase: the phase's config: cached_views, augment.
    key: typed key of the phase.
    mesh: the devices.
    name: name of the phase, for the progress line.

  Returns:
    'train' with features f32[n, K, F] and 'validation' with f32[n, 1, F].
  """
  train, validation = splits["train"], splits["validation"]
  images = of_images(
    dict(phase) | {"views": 1, "mixup": 0.0}, train.images.shape[1], "frozen"
  )

  def encode(
    given: tuple[Any, jax.Array | None], rows: jax.Array, ids: jax.Array
  ) -> tuple[jax.Array]:
    variables, key = given
    if key is None:
      views = images.plain(rows)
    else:
      views = images.draw(key, ids, rows, None)[0][0]
    return (model.apply(variables, views, train=False)[0],)

  step = jit_eval_step(encode, mesh)
  keys = [jax.random.fold_in(key, i) for i in range(1, phase["cached_views"])]
  passes = [(one, train.images) for one in (None, *keys)]
  passes.append((None, validation.images))
  total, before = sum(len(rows) for _, rows in passes), 0
  progress = Progress(f"{name}: features", total)
  found = []
  for one, rows in passes:

    def show(count: int, before: int = before) -> None:
      done = before + count
      progress.show(done, f"{done}/{total} views", last=done == total)

    ids = np.arange(len(rows), dtype=np.int32)
    forward = make_forward(step, (variables, one), mesh, show)
    found.append(forward(rows, ids)[0])
    before += len(rows)
  *features, held_out = found
  return {
    "train": Split(np.stack(features, axis=1), train.labels),
    "validation": Split(held_out[:, None], validation.labels),
  }
