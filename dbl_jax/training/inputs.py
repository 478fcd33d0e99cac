"""What a phase feeds on: images, or features extracted from them once.

A frozen encoder gives an image the same features at every step. Extracting
them once and training the head on them alone is many times faster; what is
lost is the endless choice of views.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dbl_jax.augment import views
from dbl_jax.data.datasets import Split
from dbl_jax.evaluation.forward import jit_eval_step, make_forward
from dbl_jax.models.model import Model
from dbl_jax.runtime.logs import Progress


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


# A compiled step, its first argument and the rows it goes over.
_Pass = tuple[Any, Any, tuple[np.ndarray, ...]]


def extract(
  model: Model,
  variables: Any,
  parts: Mapping[str, Split],
  phase: Mapping[str, Any],
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  name: str,
) -> dict[str, Split]:
  """The parts a phase reads, with features in place of images.

  Of each training image K = phase['cached_views'] views: the plain image and
  K - 1 random ones, which depend on the key and the image's index alone. Of
  validation images the plain one.

  Args:
    model: encoder and head.
    variables: the model's variables.
    parts: with 'train' and 'validation'.
    phase: the phase's config: cached_views, augment.
    key: typed key of the phase.
    mesh: the devices.
    name: of the phase, to show.

  Returns:
    'train' with f32[n, K, F] for images, 'validation' with f32[n, 1, F].
  """
  train, validation = parts["train"], parts["validation"]
  size = train.images.shape[1]
  image_inputs = of_images(
    dict(phase) | {"views": 1, "mixup": 0.0}, size, "frozen"
  )

  def encode(variables: Any, views: jax.Array) -> tuple[jax.Array]:
    return (model.apply(variables, views, train=False)[0],)

  def plain(variables: Any, images: jax.Array) -> tuple[jax.Array]:
    return encode(variables, image_inputs.plain(images))

  def drawn(
    given: tuple[Any, jax.Array], images: jax.Array, ids: jax.Array
  ) -> tuple[jax.Array]:
    variables, key = given
    views, _ = image_inputs.draw(key, ids, images, None)
    return encode(variables, views[0])

  plain_step, drawn_step = (
    jit_eval_step(plain, mesh),
    jit_eval_step(drawn, mesh),
  )
  ids = np.arange(len(train.images), dtype=np.int32)
  passes: list[_Pass] = [(plain_step, variables, (train.images,))]
  for view in range(1, phase["cached_views"]):
    given = (variables, jax.random.fold_in(key, view))
    passes.append((drawn_step, given, (train.images, ids)))
  passes.append((plain_step, variables, (validation.images,)))
  *views, held_out = _run(passes, mesh, name)
  return {
    "train": Split(np.stack(views, axis=1), train.labels),
    "validation": Split(held_out[:, None], validation.labels),
  }


def _run(
  passes: Sequence[_Pass], mesh: jax.sharding.Mesh, name: str
) -> list[np.ndarray]:
  """What each (step, first argument, rows) gives, with one progress line."""
  total = sum(len(rows[0]) for _, _, rows in passes)
  progress = Progress(f"{name}: features", total)
  found, before = [], 0
  for step, given, rows in passes:

    def seen(count: int, before: int = before) -> None:
      done = before + count
      progress.show(done, f"{done}/{total} views", last=done == total)

    found.append(make_forward(step, given, mesh, seen)(*rows)[0])
    before += len(rows[0])
  return found
