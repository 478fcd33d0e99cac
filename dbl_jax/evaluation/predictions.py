"""Predictions on a split: computed, scored, and stored without pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics
from dbl_jax.evaluation.predictors import FittedPredictor
from dbl_jax.runtime import distributed, files

Step = Callable[..., tuple[jax.Array, ...]]
_BATCH_SIZE, _SMALL_BATCH_SIZE, _TOP = 256, 64, 5


class Predictions(NamedTuple):
  """A run's class scores on a split and on the validation split.

  Attributes:
    class_names: C names in the order of the labels.
    train_counts: int[C], training images of each class.
    labels: int32[n], true classes.
    scores: f32[n, C]; the argmax of a row is the prediction.
    validation_labels: int32[m].
    validation_scores: f32[m, C].
    calibrated: whether the softmax of a row is a class distribution.
  """

  class_names: tuple[str, ...]
  train_counts: np.ndarray
  labels: np.ndarray
  scores: np.ndarray
  validation_labels: np.ndarray
  validation_scores: np.ndarray
  calibrated: bool


def jit_eval_step(eval_step: Step, mesh: jax.sharding.Mesh) -> Step:
  """Compiles a step for `make_forward`, with outputs on every device."""
  return jax.jit(eval_step, out_shardings=distributed.replicated(mesh))


def make_forward(
  eval_step: Step,
  variables: Any,
  mesh: jax.sharding.Mesh,
  on_progress: Callable[[int], None] = lambda done: None,
) -> Callable[..., Any]:
  """Makes a function that runs a compiled step over any number of rows.

  The last batch is padded, and the padding is removed from the result. There
  are two sizes of batches, each compiled once, so that few rows are not padded
  to a large batch.

  Args:
    eval_step: function of (variables, *batches), made by `jit_eval_step`.
    variables: its first argument.
    mesh: the devices.
    on_progress: called with the number of rows done, after each batch.

  Returns:
    A function of arrays [n, ...] that returns the step's outputs for all rows.
  """
  placement = distributed.batched(mesh)

  def padded(rows: np.ndarray, size: int) -> jax.Array:
    padding = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
    return distributed.put(np.concatenate([rows, padding]), placement)

  def forward(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    small = len(arrays[0]) <= _SMALL_BATCH_SIZE
    batch_size = _SMALL_BATCH_SIZE if small else _BATCH_SIZE
    size = distributed.padded_size(batch_size, mesh)
    done: tuple[np.ndarray, ...] = ()
    for start in range(0, len(arrays[0]), size):
      batch = [array[start : start + size] for array in arrays]
      inputs = [padded(rows, size) for rows in batch]
      outputs = jax.device_get(eval_step(variables, *inputs))
      # Concatenating batches would take twice the memory.
      done = done or tuple(
        np.empty((len(arrays[0]), *output.shape[1:]), output.dtype)
        for output in outputs
      )
      for whole, output in zip(done, outputs, strict=True):
        whole[start : start + size] = output[: len(batch[0])]
      on_progress(start + len(batch[0]))
    return done

  return forward


def evaluate(
  fitted: FittedPredictor,
  model_outputs: tuple[np.ndarray, np.ndarray],
  labels: np.ndarray,
  class_names: tuple[str, ...],
) -> tuple[dict[str, Any], np.ndarray]:
  """Computes the metrics of a predictor on a split.

  Args:
    fitted: the predictor.
    model_outputs: features f32[n, F] and outputs f32[n, K] of the images.
    labels: int32[n], true classes.
    class_names: C names in the order of the labels.

  Returns:
    The result of `metrics.summarise` with 'predictor' and its 'chosen' value
    and, of more than five classes, 'top5_accuracy'; and the scores f32[n, C].

  Raises:
    UserError: if a score is NaN, for which argmax is meaningless.
  """
  scores = fitted.scores(*model_outputs)
  if bad := int(np.isnan(scores.max(axis=1)).sum()):
    raise UserError(
      f"The model's scores are not numbers (NaN) for {bad} of {len(scores)}"
      " images: training diverged. Train again with a lower learning_rate or"
      " a clip_norm."
    )
  confusion = metrics.confusion_matrix(
    labels, scores.argmax(axis=1), len(class_names)
  )
  result = metrics.summarise(confusion, class_names)
  if len(class_names) > _TOP and len(labels):
    result["top5_accuracy"] = metrics.top_k_accuracy(scores, labels, _TOP)
  return result | {"predictor": fitted.name, "chosen": fitted.chosen}, scores


def save(path: Path, predictions: Predictions) -> None:
  """Writes the file atomically; creates its folder if missing."""
  names = np.array(predictions.class_names, dtype=np.str_)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    # Not compressed: it saves little and takes a minute per gigabyte.
    np.savez(file, **predictions._asdict() | {"class_names": names})


def load(path: Path) -> Predictions:
  """Reads a file written by `save`.

  Raises:
    UserError: the file is damaged or has other content.
  """
  try:
    found = files.load(path)
    missing = [name for name in Predictions._fields if name not in found]
    if missing:
      raise ValueError(f"without {', '.join(missing)}")
    fields: dict[str, Any] = {name: found[name] for name in Predictions._fields}
    fields["class_names"] = tuple(map(str, np.atleast_1d(found["class_names"])))
    fields["calibrated"] = bool(np.all(found["calibrated"]))
    return _checked(Predictions(**fields))
  except (ValueError, FileNotFoundError) as error:
    raise UserError(
      f"{path} does not hold a run's scores, or is damaged ({error}). Move"
      " it away and run the same command again, which writes it from the"
      " checkpoint."
    ) from error


def _checked(found: Predictions) -> Predictions:
  """Raises ValueError unless shapes, dtypes and labels are consistent."""
  classes = len(found.class_names)
  shapes = {
    "train_counts": (classes,),
    "scores": (len(np.atleast_1d(found.labels)), classes),
    "validation_scores": (len(np.atleast_1d(found.validation_labels)), classes),
  }
  for name, shape in shapes.items():
    array = getattr(found, name)
    if array.shape != shape or array.dtype.kind not in "iuf":
      raise ValueError(f"its {name} are {list(array.shape)} of {array.dtype}")
  for labels in (found.labels, found.validation_labels):
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
      raise ValueError(f"its labels are {list(labels.shape)} of {labels.dtype}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
      raise ValueError(f"its labels are not in 0 to {classes - 1}")
  return found
