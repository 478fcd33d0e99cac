"""Results of finished runs, grouped by system, and the paper's numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from dbl_jax.compare import statistics
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


STRENGTHS = np.arange(31) / 20  # of logit adjustment, along its curve


class RunResult(NamedTuple):
  """One system trained with one seed. Made by `run_result`.

  Its scores, f32[n, C], are not part of it: those of all runs of a table may
  exceed the memory.

  Attributes:
    system: name of its config, such as 'dbl'.
    seed: training seed.
    class_names: C names in the order of the labels.
    train_counts: int[C], training images of each class.
    labels: int32[n], true classes of the test images.
    guesses: int[n], predicted classes; the first of equal scores wins.
    top5: top-5 accuracy.
    calibration_error: see `metrics.expected_calibration_error`; NaN without
      probabilities.
    frontier: see `statistics.logit_adjustment_frontier` for `STRENGTHS`, or
      None.
    seconds: training time over its own stages, None if unknown.
    fingerprint: of the images it was trained and tested on; '' if unknown.
    hardware: descriptions of the machines it was trained on.
  """

  system: str
  seed: int
  class_names: tuple[str, ...]
  train_counts: np.ndarray
  labels: np.ndarray
  guesses: np.ndarray
  top5: float
  calibration_error: float
  frontier: np.ndarray | None
  seconds: float | None = None
  fingerprint: str = ""
  hardware: tuple[str, ...] = ()


def run_result(
  system: str, seed: int, run: Predictions, frontier: bool = True, **about: Any
) -> RunResult:
  """Computes from a run's scores what a table needs of them.

  Args:
    system: name of its config.
    seed: training seed.
    run: scores on the test images.
    frontier: whether to compute the curve of logit adjustment, which takes as
      long as 31 evaluations, if the scores are those of probabilities.
    **about: other fields of `RunResult`.
  """
  curve, error = None, math.nan
  if run.calibrated:
    error = metrics.expected_calibration_error(run.labels, run.scores)
  if run.calibrated and frontier:
    curve = statistics.logit_adjustment_frontier(
      run.labels, run.scores, run.train_counts, STRENGTHS
    )
  return RunResult(
    system,
    seed,
    run.class_names,
    run.train_counts,
    run.labels,
    np.argmax(run.scores, axis=1),
    metrics.top_k_accuracy(run.scores, run.labels),
    error,
    curve,
    **about,
  )


def title(system: str) -> str:
  """The system's name in Table 1, or its own where it is not in it."""
  return TABLE_1[system][0] if system in TABLE_1 else system


def confusion(results: Iterable[RunResult]) -> sparse.csr_array:
  """Sparse int64[C, C] summed over runs, rows are the true classes."""
  each = [
    metrics.confusion_matrix(run.labels, run.guesses, len(run.class_names))
    for run in results
  ]
  return sum(each[1:], each[0])


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
    same = {
      "images": result.fingerprint == first.fingerprint,
      "classes": result.class_names == first.class_names,
      "training counts": np.array_equal(
        result.train_counts, first.train_counts
      ),
      "test labels": np.array_equal(result.labels, first.labels),
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
