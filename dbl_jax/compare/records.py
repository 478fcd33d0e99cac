"""Results of finished runs, grouped by system, and the paper's numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.compare import statistics
from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics
from dbl_jax.evaluation.predictions import Predictions

# Table 1 of the paper, in its order: name, then average and overall accuracy
# on RAF-DB in per cent.
TABLE_1: dict[str, tuple[str, float | None, float | None]] = {
  "basic": ("Basic", 70.35, 81.68),
  "reweighting": ("Re-weighting", 72.69, 80.28),
  "resampling": ("Re-sampling", 72.15, 81.64),
  "decoupling": ("Decoupling", 71.36, 80.73),
  "center_loss": ("Center Loss", 72.87, 83.68),
  "dcnn": ("base DCNN", 72.42, 82.86),
  "dlp_cnn": ("DLP-CNN", 74.20, 84.13),
  "regions": ("Lian et al.", None, 82.69),
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


def summary(result: RunResult) -> dict[str, Any]:
  """The metrics of one run, see `metrics.summarise`."""
  names = result.predictions.class_names
  return metrics.summarise(confusion([result]), names)


def confusion(results: Iterable[RunResult]) -> np.ndarray:
  """int64[C, C] summed over runs, rows are the true classes."""
  each = [
    metrics.confusion_matrix(
      result.predictions.labels,
      guesses(result),
      len(result.predictions.class_names),
    )
    for result in results
  ]
  return np.sum(each, axis=0)


def by_system(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
  """Groups runs by system, after checking that they can be compared.

  Returns:
    system -> its runs by seed; Table 1's systems in its order, then the
    others in order of appearance.

  Raises:
    UserError: there are none, two have the same system and seed, they differ
      in images, classes, training counts or test labels, or scores are not
      finite.
  """
  if not results:
    raise UserError(
      "found no finished run to compare; expected at least one: train one first"
    )
  seen = dict.fromkeys(result.system for result in results)
  groups: dict[str, list[RunResult]] = {
    system: [] for system in (*TABLE_1, *seen) if system in seen
  }
  for result in sorted(results, key=lambda result: result.seed):
    group = groups[result.system]
    if group and group[-1].seed == result.seed:
      raise UserError(
        f"found {result.system!r} with seed {result.seed} more than once; "
        "expected each seed once: leave one of the runs out"
      )
    _check(result, results[0])
    group.append(result)
  return groups


def facts(
  results: Sequence[RunResult],
  *,
  dataset: str,
  image_size: int,
  command: str,
  epochs: str = "not known",
  cuts: tuple[int, int] | None = None,
) -> dict[str, str]:
  """Describes how a table was made: label -> plain text.

  Args:
    results: the runs of the table.
    dataset: name of the data set.
    image_size: height and width in pixels.
    command: the command that makes the table.
    epochs: epochs of encoder training of each system.
    cuts: (many, few) training images of the tiers; None: by the data.
  """
  first = results[0].predictions
  names, trained = first.class_names, first.train_counts
  tested = np.bincount(first.labels, minlength=len(names))
  hardware = [machine for result in results for machine in result.hardware]
  return {
    "Data set": dataset,
    "Image size": f"{image_size} × {image_size} pixels",
    "Test images": str(len(first.labels)),
    "Class order (training / test images)": "; ".join(
      f"{i} {name} ({trained[i]:,} / {tested[i]:,})"
      for i, name in enumerate(names)
    ),
    "Tiers": _tiers(first, cuts),
    "Seeds": ", ".join(map(str, sorted({r.seed for r in results}))),
    "Encoder epochs": epochs,
    "Choice of checkpoints": (
      "the latest, or the best on validation images where a config says so;"
      " each run was evaluated on the test images once, at its end"
    ),
    "Hardware": "; ".join(dict.fromkeys(hardware)) or "not known",
    "Command": command,
  }


def _tiers(run: Predictions, cuts: tuple[int, int] | None) -> str:
  """The limits of the tiers and their classes."""
  many, few = cuts or statistics.default_cuts(run.train_counts)
  tiers = statistics.tiers(run.train_counts, (many, few))
  limits = {
    "many": f"more than {many:,} training images",
    "medium": "the rest",
    "few": f"fewer than {few:,}",
  }
  members = {
    tier: [n for n, t in zip(run.class_names, tiers, strict=True) if t == tier]
    for tier in limits
  }
  return "; ".join(
    f"{tier} ({limit}): {', '.join(members[tier]) or 'none'}"
    for tier, limit in limits.items()
  )


def _check(result: RunResult, first: RunResult) -> None:
  """Raises UserError for a run that cannot be compared with the first one."""
  name = f"{result.system!r} with seed {result.seed}"
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
        f"found other {what} in {name} than in {first.system!r} with seed "
        f"{first.seed}; expected one data set and split for all: train it "
        "again on the same data"
      )
  if not len(own.labels):
    raise UserError(
      f"found no test images in {name}; expected at least one: check the data"
    )
  if not np.isfinite(own.scores).all():
    raise UserError(
      f"found scores that are not finite in {name}; expected numbers: its "
      "training diverged, train it again with a lower learning rate"
    )
