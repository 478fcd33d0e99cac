"""Results of finished runs, grouped by system, and the paper's numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics
from dbl_jax.evaluation.predictions import Predictions

# Table 1 of the paper, in its order: name, then average and overall accuracy
# on RAF-DB in per cent (NaN: not given).
TABLE_1: dict[str, tuple[str, float, float]] = {
  "basic": ("Basic", 70.35, 81.68),
  "reweighting": ("Re-weighting", 72.69, 80.28),
  "resampling": ("Re-sampling", 72.15, 81.64),
  "decoupling": ("Decoupling", 71.36, 80.73),
  "center_loss": ("Center Loss", 72.87, 83.68),
  "dcnn": ("base DCNN", 72.42, 82.86),
  "dlp_cnn": ("DLP-CNN", 74.20, 84.13),
  "regions": ("Lian et al.", math.nan, 82.69),
  "dbl": ("DBL", 75.87, 83.21),
}


class RunResult(NamedTuple):
  """One system trained with one seed.

  Attributes:
    system: name of its config, such as 'dbl'.
    seed: training seed.
    predictions: scores on the test and the validation images.
    seconds: training time over its own stages, None if unknown.
    fingerprint: of the images it was trained and tested on; '' if unknown.
    hardware: descriptions of the machines it was trained on.
  """

  system: str
  seed: int
  predictions: Predictions
  seconds: float | None = None
  fingerprint: str = ""
  hardware: tuple[str, ...] = ()


def title(system: str) -> str:
  """The system's name in Table 1, or its own where it is not in it."""
  return TABLE_1[system][0] if system in TABLE_1 else system


def guesses(result: RunResult) -> np.ndarray:
  """Predicted classes int[n]; the first of equal scores wins."""
  return np.argmax(result.predictions.scores, axis=1)


def confusion(results: Iterable[RunResult]) -> np.ndarray:
  """int64[C, C] summed over runs, rows are the true classes."""
  each = []
  for result in results:
    run = result.predictions
    classes = len(run.class_names)
    each.append(metrics.confusion_matrix(run.labels, guesses(result), classes))
  return np.sum(each, axis=0)


def by_system(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
  """Groups runs by system, after checking that they can be compared.

  Returns:
    system -> its runs by seed; Table 1's systems in its order, then the
    others in order of appearance.

  Raises:
    UserError: there are none, or they differ in images, classes, training
      counts or test labels.
  """
  if not results:
    raise UserError(
      "found no finished run to compare; expected at least one: train one first"
    )
  first = results[0]
  groups: dict[str, list[RunResult]] = {name: [] for name in TABLE_1}
  for result in results:
    own, other = result.predictions, first.predictions
    same = {
      "images": result.fingerprint == first.fingerprint,
      "classes": own.class_names == other.class_names,
      "training counts": np.array_equal(own.train_counts, other.train_counts),
      "test labels": np.array_equal(own.labels, other.labels),
    }
    for what, equal in same.items():
      if not equal:
        raise UserError(
          f"found other {what} in {result.system!r} with seed {result.seed} "
          f"than in {first.system!r} with seed {first.seed}; expected one data "
          "set and split for all: train it again on the same data"
        )
    groups.setdefault(result.system, []).append(result)
  return {
    system: sorted(group, key=lambda result: result.seed)
    for system, group in groups.items()
    if group
  }
