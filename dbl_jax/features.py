"""Features of a frozen encoder, extracted once before a phase."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dbl_jax import inputs
from dbl_jax.data.prepared import Part
from dbl_jax.evaluate import compiled, make_forward
from dbl_jax.models.model import Model

_READ = ("train", "validation")


def extract(
  model: Model,
  variables: Any,
  parts: Mapping[str, Part],
  phase: Mapping[str, Any],
  key: jax.Array,
  mesh: jax.sharding.Mesh,
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

  Returns:
    'train' with f32[n, K, F] for images, 'validation' with f32[n, 1, F].
  """
  size = parts["train"].images.shape[1]
  of_images = inputs.of_images(dict(phase) | {"views": 1}, size, "frozen")

  def encode(variables: Any, views: jax.Array) -> jax.Array:
    return model.apply(variables, views, train=False)[0]

  def plain(variables: Any, images: jax.Array) -> tuple[jax.Array]:
    return (encode(variables, of_images.plain(images)),)

  def drawn(
    given: tuple[Any, jax.Array], ids: jax.Array, images: jax.Array
  ) -> tuple[jax.Array]:
    variables, key = given
    return (encode(variables, of_images.draw(key, ids, images)[0]),)

  forward = make_forward(compiled(plain, mesh), variables, mesh)
  views = {name: [*forward(parts[name].images)] for name in _READ}
  step = compiled(drawn, mesh)
  images = parts["train"].images
  ids = np.arange(len(images), dtype=np.int32)
  for view in range(1, phase["cached_views"]):
    given = (variables, jax.random.fold_in(key, view))
    views["train"] += make_forward(step, given, mesh)(ids, images)
  return {
    name: Part(np.stack(found, axis=1), parts[name].labels)
    for name, found in views.items()
  }
