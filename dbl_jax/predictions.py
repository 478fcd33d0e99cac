"""Scores of a run on a part of the data, kept for comparisons.

A file of plain arrays: nothing in it is executed.
"""

import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dbl_jax.errors import UserError


class Predictions(NamedTuple):
  """What a run says of each image.

  Attributes:
    class_names: C names in the order of the labels.
    train_counts: int[C], training images of each class.
    labels: int32[n], the truth.
    scores: f32[n, C], the greatest of a row predicted.
    validation_labels: int32[m].
    validation_scores: f32[m, C].
    calibrated: whether the softmax of a row is a distribution.
  """

  class_names: tuple[str, ...]
  train_counts: np.ndarray
  labels: np.ndarray
  scores: np.ndarray
  validation_labels: np.ndarray
  validation_scores: np.ndarray
  calibrated: bool


def save(path: Path, predictions: Predictions) -> None:
  """Writes the file whole or not at all; its folder is made if need be."""
  arrays = predictions._asdict() | {
    "class_names": np.array(predictions.class_names, dtype=np.str_)
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as file:
      np.savez_compressed(file, **arrays)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def load(path: Path) -> Predictions:
  """Reads a file of `save`.

  Args:
    path: the file.

  Returns:
    The predictions.

  Raises:
    UserError: if it is damaged or something else.
  """
  try:
    with path.open("rb") as file, zipfile.ZipFile(file):
      file.seek(0)
      archive = np.load(file, allow_pickle=False)
      arrays = {name: archive[name] for name in Predictions._fields}
  except (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f"{path} does not hold a run's scores, or is damaged ({error}). Delete"
      " it and run scripts/evaluate.py on the run, which writes it anew."
    ) from error
  arrays["class_names"] = tuple(map(str, arrays["class_names"]))
  arrays["calibrated"] = bool(arrays["calibrated"])
  return Predictions(**arrays)
