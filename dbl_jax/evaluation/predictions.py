"""Scores of a run on a split, stored as plain arrays without pickle."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.runtime import files


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


def save(path: Path, predictions: Predictions) -> None:
  """Writes the file atomically; creates its folder if missing."""
  content = predictions._asdict() | {
    "class_names": np.array(predictions.class_names, dtype=np.str_)
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    # Scores hardly compress, which would take a minute per gigabyte.
    np.savez(file, **content)


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
      " it away and run the same command again: it is written again from the"
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
