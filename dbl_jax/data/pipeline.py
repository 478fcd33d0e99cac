"""From index batches to what a training step reads.

Two forms of one input, chosen by `config.data.input`; the training loop does
not know which it has:

* resident: all images live on the device as uint8 and only indices travel;
* tf_data: a `tf.data` pipeline gathers image batches and prefetches them.

Both give the same images for the same (seed, step).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dbl_jax import sharding
from dbl_jax.data import sampling
from dbl_jax.data.prepared import Part
from dbl_jax.errors import UserError

FORMS = ("auto", "resident", "tf_data")
# Images stay below this share of a device's memory, to leave the step room.
_RESIDENT_SHARE = 0.25
_HOST_LIMIT = 4 << 30


class Feed(NamedTuple):
  """The input of one phase.

  Attributes:
    resident: uint8[n, S, S, 3] on every device, or None.
    part: the training part.
    sampler: what each step draws.
    mesh: the devices.
  """

  resident: jax.Array | None
  part: Part
  sampler: sampling.Sampler
  mesh: jax.sharding.Mesh


def make_feed(
  part: Part, sampler: sampling.Sampler, mesh: jax.sharding.Mesh, form: str
) -> Feed:
  """Puts the images where the steps will find them.

  Args:
    part: the training part.
    sampler: what each step draws.
    mesh: the devices.
    form: 'resident', 'tf_data', or 'auto': resident where the images take at
      most a quarter of the device's memory.

  Returns:
    The feed.
  """
  if form == "auto":
    form = "resident" if _fits(part.images.nbytes, mesh) else "tf_data"
  resident = None
  if form == "resident":
    resident = jax.device_put(part.images, sharding.replicated(mesh))
  return Feed(resident, part, sampler, mesh)


def _fits(num_bytes: int, mesh: jax.sharding.Mesh) -> bool:
  stats = mesh.devices.flat[0].memory_stats() or {}
  limit = stats.get("bytes_limit")
  allowed = _HOST_LIMIT if limit is None else _RESIDENT_SHARE * limit
  return num_bytes <= allowed


def batches(feed: Feed, start: int, stop: int) -> Iterator[dict[str, Any]]:
  """The batches of steps start to stop - 1.

  Args:
    feed: the input of the phase.
    start: first step.
    stop: one past the last step.

  Yields:
    'id' int32[B] (see `sampling.example_ids`), 'label' int32[B], and either
    'index' int32[B] or 'image' uint8[B, S, S, 3]; split over the devices.
  """
  placement = sharding.batched(feed.mesh)
  if feed.resident is None:
    host = _tf_data(feed, start, stop)
  else:
    host = (_index_batch(feed, step) for step in range(start, stop))
  for batch in host:
    yield jax.device_put(batch, placement)


def gather(resident: jax.Array | None, batch: dict[str, Any]) -> jax.Array:
  """The images of a batch, uint8[B, S, S, 3], inside the jitted step."""
  return batch["image"] if resident is None else resident[batch["index"]]


def _index_batch(feed: Feed, step: int) -> dict[str, np.ndarray]:
  index = sampling.batch_indices(feed.sampler, step)
  return {
    "index": index,
    "id": sampling.example_ids(index, len(feed.part.labels)),
    "label": feed.part.labels[index],
  }


def _tf_data(
  feed: Feed, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
  """Index batches mapped to image batches, in parallel, and prefetched."""
  tf = import_tensorflow()

  def index_batch(step: np.int64) -> tuple[np.ndarray, ...]:
    batch = _index_batch(feed, int(step))
    index = batch["index"]
    return feed.part.images[index], batch["id"], batch["label"]

  def load(step: Any) -> dict[str, Any]:
    image, ids, label = tf.numpy_function(
      index_batch, [step], [tf.uint8, tf.int32, tf.int32], stateful=False
    )
    return {"image": image, "id": ids, "label": label}

  dataset = (
    tf.data.Dataset.range(start, stop)
    .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .prefetch(tf.data.AUTOTUNE)
  )
  return dataset.as_numpy_iterator()


def import_tensorflow() -> Any:
  """TensorFlow, which never sees the GPU.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import tensorflow as tf
  except ImportError as error:
    raise UserError(
      "data.input='tf_data' needs TensorFlow, which is not installed here."
      " Install tensorflow-cpu, or use --config.data.input=resident."
    ) from error
  tf.config.set_visible_devices([], "GPU")
  return tf
