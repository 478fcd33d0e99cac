"""Features of a frozen encoder, extracted once before a phase."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dbl_jax import inputs
from dbl_jax.data.prepared import Part
from dbl_jax.evaluate import compiled, make_forward
from dbl_jax.models.model import Model
from dbl_jax.progress import Progress

# A compiled step, its first argument and the rows it goes over.
_Pass = tuple[Any, Any, tuple[np.ndarray, ...]]


def extract(
  model: Model,
  variables: Any,
  parts: Mapping[str, Part],
  phase: Mapping[str, Any],
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  name: str,
) -> dict[str, Part]:
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
  of_images = inputs.of_images(
    dict(phase) | {"views": 1, "mixup": 0.0}, size, "frozen"
  )

  def encode(variables: Any, views: jax.Array) -> tuple[jax.Array]:
    return (model.apply(variables, views, train=False)[0],)

  def plain(variables: Any, images: jax.Array) -> tuple[jax.Array]:
    return encode(variables, of_images.plain(images))

  def drawn(
    given: tuple[Any, jax.Array], images: jax.Array, ids: jax.Array
  ) -> tuple[jax.Array]:
    variables, key = given
    views, _ = of_images.draw(key, ids, images, None)
    return encode(variables, views[0])

  plain_step, drawn_step = compiled(plain, mesh), compiled(drawn, mesh)
  ids = np.arange(len(train.images), dtype=np.int32)
  passes: list[_Pass] = [(plain_step, variables, (train.images,))]
  for view in range(1, phase["cached_views"]):
    given = (variables, jax.random.fold_in(key, view))
    passes.append((drawn_step, given, (train.images, ids)))
  passes.append((plain_step, variables, (validation.images,)))
  *views, held_out = _run(passes, mesh, name)
  return {
    "train": Part(np.stack(views, axis=1), train.labels),
    "validation": Part(held_out[:, None], validation.labels),
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
