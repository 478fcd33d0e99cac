"""Input of the training steps, in forms with the same batches.

`config.data.input` chooses; the training loop is the same for all:

* resident: all images (uint8) or cached features live on the device, and only
  indices are transferred;
* tf_data: a `tf.data` pipeline gathers the batches, from memory or from disk,
  and prefetches them;
* encoded: likewise, from the image files, which are decoded for each batch.

All give the same rows for the same (seed, step).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dbl_jax.data import sampling
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed
from dbl_jax.runtime.rows import Array, Rows

FORMS = ("auto", "resident", "tf_data", "encoded")
# Rows stay below this share of a device's memory, to leave the step room.
_RESIDENT_SHARE = 0.25
_HOST_LIMIT = 4 << 30
_DISPATCH_BYTES = 256 << 20
# Batches that tf.data reads ahead.
_PREFETCH = 4
# Number of steps -> their batches, see `batch_reader`.
NextBatches = Callable[[int], dict[str, jax.Array]]


class InputPipeline(NamedTuple):
  """The input of one phase.

  Attributes:
    resident: the rows on every device, or None if they are streamed.
    rows: images uint8[n, S, S, 3], or features [n, ...], in the host's memory
      or on its disk.
    labels: int32[n].
    sampler: chooses the rows of each step.
    mesh: the devices.
  """

  resident: jax.Array | None
  rows: Array
  labels: np.ndarray
  sampler: sampling.Sampler
  mesh: jax.sharding.Mesh


def make_pipeline(
  rows: Array,
  labels: np.ndarray,
  sampler: sampling.Sampler,
  mesh: jax.sharding.Mesh,
  form: str,
) -> InputPipeline:
  """Makes the input of a phase, and places resident rows on the devices.

  Args:
    rows, labels, sampler, mesh: see `InputPipeline`.
    form: 'resident', 'tf_data', or 'auto': resident if the rows are in memory
      and take at most a quarter of a device's.
  """
  resident, streamed = None, not _is_resident(rows, mesh, form)
  # One program on all hosts, also if only some lack memory.
  if not distributed.any_process(streamed):
    resident = distributed.put(rows, distributed.replicated(mesh))
  return InputPipeline(resident, rows, labels, sampler, mesh)


def check_form(rows: Any, mesh: jax.sharding.Mesh, form: str) -> None:
  """Raises UserError if an input needs TensorFlow and there is none.

  Takes all rows, or their shape and type; see `make_pipeline`.
  """
  if not _is_resident(rows, mesh, form):
    import_tensorflow()


def _is_resident(rows: Any, mesh: jax.sharding.Mesh, form: str) -> bool:
  if form != "auto":
    return form == "resident"
  if isinstance(rows, Rows):
    return False
  stats = mesh.local_devices[0].memory_stats() or {}
  limit = stats.get("bytes_limit")
  allowed = _HOST_LIMIT if limit is None else _RESIDENT_SHARE * limit
  return math.prod(rows.shape) * rows.dtype.itemsize <= allowed


def max_steps(pipeline: InputPipeline) -> int:
  """Returns how many batches a host may send together, at least 1."""
  streamed = pipeline.resident is None
  row = pipeline.rows.nbytes // len(pipeline.rows) if streamed else 0
  return max(1, _DISPATCH_BYTES // max(1, row * pipeline.sampler.batch_size))


def batch_reader(
  pipeline: InputPipeline, start: int, stop: int, max_steps_per_dispatch: int
) -> NextBatches:
  """Makes the reader of the batches of steps start to stop - 1.

  Returns:
    A function that takes a number of steps, at most L =
    max_steps_per_dispatch, and returns the batches of the next ones: 'id'
    int32[L, B] (see `sampling.example_ids`), 'label' int32[L, B], and either
    'index' int32[L, B] or 'row' [L, B, ...]. The axis B is sharded over the
    devices; each host reads its share. Batches beyond the number of steps are
    padding.
  """
  placement = distributed.batched(pipeline.mesh, axis=1)
  rows = _streamed if pipeline.resident is None else _indexed
  host = rows(pipeline, start, stop)

  def next_batches(count: int) -> dict[str, jax.Array]:
    batches = [next(host) for _ in range(count)]
    batches += batches[-1:] * (max_steps_per_dispatch - count)
    return {
      name: jax.make_array_from_process_local_data(
        placement, np.stack([batch[name] for batch in batches])
      )
      for name in batches[0]
    }

  return next_batches


def gather(resident: jax.Array | None, batch: Mapping[str, Any]) -> jax.Array:
  """Gathers the rows of a batch, [B, ...], inside the jitted step."""
  return batch["row"] if resident is None else resident[batch["index"]]


def _indexed(
  pipeline: InputPipeline, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields this host's share of each batch, as indices."""
  share = distributed.local_share(pipeline.sampler.batch_size, pipeline.mesh)
  for step in range(start, stop):
    index = sampling.batch_indices(pipeline.sampler, step)
    ids = sampling.example_ids(index, len(pipeline.labels))
    index = index[share]
    yield {"index": index, "id": ids[share], "label": pipeline.labels[index]}


def _streamed(
  pipeline: InputPipeline, start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the same with rows in place of indices, prefetched by tf.data."""
  tf = import_tensorflow()
  failed: list[UserError] = []

  def read(step: np.int64) -> tuple[np.ndarray, ...]:
    batch = next(_indexed(pipeline, int(step), int(step) + 1))
    try:
      return pipeline.rows[batch["index"]], batch["id"], batch["label"]
    except UserError as error:
      failed.append(error)
      raise

  def load(step: Any) -> dict[str, Any]:
    kind = tf.as_dtype(pipeline.rows.dtype)
    row, ids, label = tf.numpy_function(
      read, [step], [kind, tf.int32, tf.int32], stateful=False
    )
    return {"row": row, "id": ids, "label": label}

  dataset = (
    tf.data.Dataset.range(start, stop)
    .map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .prefetch(_PREFETCH)
  )
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:  # TensorFlow's own, of the same text
    raise failed[0] if failed else error from error


def import_tensorflow() -> Any:
  """Imports TensorFlow, and hides the GPU from it.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import tensorflow as tf
  except ImportError as error:
    raise UserError(
      "Streaming the data needs TensorFlow, which is not installed here."
      " Install tensorflow-cpu, or use --config.data.input=resident."
    ) from error
  tf.config.set_visible_devices([], "GPU")
  return tf
