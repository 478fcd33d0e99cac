"""SimCLR's views of images that lie on the device as uint8."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbl_jax.augment import views
from dbl_jax.benchmarks.ours import devices

_BLUR_SIDE = 224  # the side that `views` states the blur's sigma for


def family(settings: dict[str, Any]) -> dict[str, Any]:
  """SimCLR's family with the blur in pixels of the view, as peers have it."""
  low, high = settings["blur_sigma"]
  scale = _BLUR_SIDE / settings["size"]
  return {
    "crop_scale": tuple(settings["crop_scale"]),
    "flip": settings["flip"],
    "jitter_prob": settings["jitter_prob"],
    "jitter_strength": settings["jitter_strength"],
    "grey": settings["grey"],
    "blur": settings["blur"],
    "blur_sigma": (low * scale, high * scale),
  }


def random_images(settings: dict[str, Any]) -> np.ndarray:
  """uint8[images, S, S, 3], the same for all systems' sizes and numbers."""
  size = settings["size"]
  return np.random.default_rng(0).integers(
    256, size=(settings["images"], size, size, 3), dtype=np.uint8
  )


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: images, size, batch, views, and the family."""
  found = devices.prepare(settings["device"])
  resident = jnp.asarray(random_images(settings))
  batch = settings["batch"]
  options = family(settings) | {
    "num_views": settings["views"],
    "out_size": settings["size"],
  }

  @jax.jit
  def draw(resident: jax.Array, key: jax.Array, number: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, number)
    ids = jax.random.randint(key, (batch,), 0, len(resident))
    return views.make_views(key, ids, resident[ids], **options)

  key = jax.random.key(0)
  jit_eval_step = draw.lower(resident, key, jnp.int32(0)).compile()
  calls = [0]

  def run() -> None:
    for _ in range(settings["batches_per_call"]):
      calls[0] += 1
      pictures = jit_eval_step(resident, key, jnp.int32(calls[0]))
    pictures.block_until_ready()

  units = settings["batches_per_call"] * batch * settings["views"]
  facts = {"set": found | {"images": "resident"}}
  return {"run": run, "units": units, "facts": facts}
