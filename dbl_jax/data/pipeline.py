"""From index batches to what a training step reads.

Two forms of one input, chosen by `config.data.input`; the training loop does
not know which it has:

* resident: all images (uint8) or cached features live on the device, and only
  indices travel;
* tf_data: a `tf.data` pipeline gathers batches of them and prefetches these.

Both give the same rows for the same (seed, step).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dbl_jax.data import sampling
from dbl_jax.errors import UserError
from dbl_jax.runtime import sharding

FORMS = ("auto", "resident", "tf_data")
# Rows stay below this share of a device's memory, to leave the step room.
_RESIDENT_SHARE = 0.25
_HOST_LIMIT = 4 << 30


# A number of steps -> their batches, see `reader`.
Take = Callable[[int], dict[str, jax.Array]]


class InputPipeline(NamedTuple):
  """The input of one phase.

  Attributes:
    resident: [n, ...] on every device, or None.
    rows: the same on the host: images uint8[n, S, S, 3], or features.
    labels: int32[n].
    sampler: what each step draws.
    mesh: the devices.
  """

  resident: jax.Array | None
  rows: np.ndarray
  labels: np.ndarray
  sampler: sampling.Sampler
  mesh: jax.sharding.Mesh


def make_pipeline(
  rows: np.ndarray,
  labels: np.ndarray,
  sampler: sampling.Sampler,
  mesh: jax.sharding.Mesh,
  form: str,
) -> InputPipeline:
  """Puts the training part where the steps will find it.

  Args:
    rows: what batches are made of, [n, ...].
    labels: int32[n].
    sampler: what each step draws.
    mesh: the devices.
    form: 'resident', 'tf_data', or 'auto': resident where the rows take at
      most a quarter of the device's memory.

  Returns:
    The feed.
  """
  resident = None
  if _is_resident(rows.nbytes, mesh, form):
    resident = sharding.put(rows, sharding.replicated(mesh))
  return InputPipeline(resident, rows, labels, sampler, mesh)


def check_form(num_bytes: int, mesh: jax.sharding.Mesh, form: str) -> None:
  """Raises UserError where rows need TensorFlow, and there is none.

  Args:
    num_bytes: of all rows.
    mesh: the devices.
    form: see `make_feed`.
  """
  if not _is_resident(num_bytes, mesh, form):
    import_tensorflow()


def _is_resident(num_bytes: int, mesh: jax.sharding.Mesh, form: str) -> bool:
  return form == "resident" or (form == "auto" and _fits(num_bytes, mesh))


def _fits(num_bytes: int, mesh: jax.sharding.Mesh) -> bool:
  stats = mesh.local_devices[0].memory_stats() or {}
  limit = stats.get("bytes_limit")
  allowed = _HOST_LIMIT if limit is None else _RESIDENT_SHARE * limit
  return num_bytes <= allowed


def reader(feed: InputPipeline, start: int, stop: int, most: int) -> Take:
  """Hands out the batches of steps start to stop - 1, several at a time.

  Args:
    feed: the input of the phase.
    start: first step.
    stop: one past the last step.
    most: L, the greatest number of steps asked for at once.

  Returns:
    A function of a number of steps, at most L, giving their batches: 'id'
    int32[L, B] (see `sampling.example_ids`), 'label' int32[L, B], and either
    'index' int32[L, B] or 'row' [L, B, ...]. The axis B is split over the
    devices; each host reads its share. What lies beyond the steps asked for
    is padding.
  """
  placement = sharding.batched(feed.mesh, axis=1)
  rows = _streamed if feed.resident is None else _indexed
  host = rows(feed, start, stop)

  def take(count: int) -> dict[str, jax.Array]:
    batches = [next(host) for _ in range(count)]
    batches += batches[-1:] * (most - count)
    return {
      name: jax.make_array_from_process_local_data(
        placement, np.stack([batch[name] for batch in batches])
      )
      for name in batches[0]
    }

  return take


def gather(resident: jax.Array | None, batch: Mapping[str, Any]) -> jax.Array:
  """The rows of a batch, [B, ...], inside the jitted step."""
  return batch["row"] if resident is None else resident[batch["index"]]


def _indexed(
  feed: InputPipeline, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
  """This host's share of each batch, as indices."""
  share = sharding.local_share(feed.sampler.batch_size, feed.mesh)
  for step in range(start, stop):
    index = sampling.batch_indices(feed.sampler, step)
    ids = sampling.example_ids(index, len(feed.labels))
    index = index[share]
    yield {"index": index, "id": ids[share], "label": feed.labels[index]}


def _streamed(
  feed: InputPipeline, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
  """The same with rows for indices: `tf.data`, in parallel, prefetched."""
  tf = import_tensorflow()

  def read(step: np.int64) -> tuple[np.ndarray, ...]:
    batch = next(_indexed(feed, int(step), int(step) + 1))
    return feed.rows[batch["index"]], batch["id"], batch["label"]

  def load(step: Any) -> dict[str, Any]:
    kind = tf.as_dtype(feed.rows.dtype)
    row, ids, label = tf.numpy_function(
      read, [step], [kind, tf.int32, tf.int32], stateful=False
    )
    return {"row": row, "id": ids, "label": label}

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
