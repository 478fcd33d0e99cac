"""What a finished run hands over to be compared, and the paper's numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.compare import statistics
from dbl_jax.compare.statistics import Comparison, Mean
from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics

# Table 1 of the paper, on RAF-DB: average and overall accuracy in per cent.
PAPER: dict[str, tuple[float | None, float | None]] = {
  "basic": (70.35, 81.68),
  "reweighting": (72.69, 80.28),
  "resampling": (72.15, 81.64),
  "decoupling": (71.36, 80.73),
  "center_loss": (72.87, 83.68),
  "dcnn": (72.42, 82.86),
  "dlp_cnn": (74.20, 84.13),
  "regions": (None, 82.69),
  "dbl": (75.87, 83.21),
}
# Table 1's names, in its order.
TITLES: dict[str, str] = {
  "basic": "Basic",
  "reweighting": "Re-weighting",
  "resampling": "Re-sampling",
  "decoupling": "Decoupling",
  "center_loss": "Center Loss",
  "dcnn": "base DCNN",
  "dlp_cnn": "DLP-CNN",
  "regions": "Lian et al.",
  "dbl": "DBL",
}
# What `about` must say; the other facts follow from the records.
ABOUT = ("dataset", "image_size", "command")


class Record(NamedTuple):
  """One system trained with one seed.

  Attributes:
    system: name of its config, such as 'dbl'.
    seed: the seed it was trained with.
    class_names: C different names, in index order.
    train_counts: int[C], training images of each class.
    labels: int[n], true classes of the test images.
    scores: f32[n, C], logits, or any scores whose argmax is the prediction.
    probabilities_ok: whether softmax(scores) is a probability.
    seconds: training time over its own stages, None if not known.
    validation_labels: int[m], true classes of the validation images.
    validation_scores: f32[m, C], as `scores`.
    fingerprint: of the images it was trained and tested on; '' if not known.
    hardware: machines it was trained on, in words.
  """

  system: str
  seed: int
  class_names: tuple[str, ...]
  train_counts: np.ndarray
  labels: np.ndarray
  scores: np.ndarray
  probabilities_ok: bool
  seconds: float | None
  validation_labels: np.ndarray
  validation_scores: np.ndarray
  fingerprint: str = ""
  hardware: tuple[str, ...] = ()


def title(system: str) -> str:
  """The name Table 1 prints, or the system's own where it is not in it."""
  return TITLES.get(system, system)


def predictions(record: Record) -> np.ndarray:
  """int[n]; the first of equal scores wins."""
  return np.argmax(record.scores, axis=1)


def summary(record: Record) -> dict[str, Any]:
  """The metrics of one run, as `metrics.summarise` gives them."""
  return metrics.summarise(confusion([record]), record.class_names)


def confusion(records: Iterable[Record]) -> np.ndarray:
  """int64[C, C] summed over records, rows are the truth."""
  each = [
    metrics.confusion_matrix(
      record.labels, predictions(record), len(record.class_names)
    )
    for record in records
  ]
  return np.sum(each, axis=0)


def by_system(records: Sequence[Record]) -> dict[str, list[Record]]:
  """Groups records by system, after checking that they can be compared.

  Returns:
    system -> its records by seed; Table 1's systems in its order, then the
    others in the order they came.

  Raises:
    UserError: there are none, two are of one system and seed, they differ in
      images, classes, training counts or test labels, or scores are not finite.
  """
  if not records:
    raise UserError(
      "found no finished run to compare; expected at least one: train one first"
    )
  seen = dict.fromkeys(record.system for record in records)
  groups: dict[str, list[Record]] = {
    system: [] for system in (*TITLES, *seen) if system in seen
  }
  for record in sorted(records, key=lambda record: record.seed):
    group = groups[record.system]
    if group and group[-1].seed == record.seed:
      raise UserError(
        f"found {record.system!r} with seed {record.seed} more than once; "
        "expected each seed once: leave one of the runs out"
      )
    _check(record, records[0])
    group.append(record)
  return groups


def facts(
  records: Sequence[Record],
  about: Mapping[str, Any],
  cuts: tuple[int, int] | None = None,
) -> dict[str, str]:
  """What a reader must know beside the numbers: label -> plain text.

  Args:
    records: the runs of the table.
    about: `dataset`, `image_size` (pixels a side, or text) and `command`;
      `epochs`, in words, may be there; others are passed over.
    cuts: (many, few) training images of the tiers; None: the data's own.

  Raises:
    ValueError: `about` lacks one of those.
  """
  lacking = [key for key in ABOUT if key not in about]
  if lacking:
    raise ValueError(f"about lacks {lacking}; expected {list(ABOUT)}")
  first, size = records[0], about["image_size"]
  hardware = [machine for record in records for machine in record.hardware]
  count = np.bincount(first.labels, minlength=len(first.class_names))
  if isinstance(size, int):
    size = f"{size} × {size} pixels"
  classes = zip(first.class_names, first.train_counts, count, strict=True)
  return {
    "Data set": str(about["dataset"]),
    "Image size": str(size),
    "Test images": str(len(first.labels)),
    "Class order (training / test images)": "; ".join(
      f"{i} {name} ({train:,} / {test:,})"
      for i, (name, train, test) in enumerate(classes)
    ),
    "Tiers": _tiers(first, cuts),
    "Seeds": seed_list({record.seed for record in records}),
    "Encoder epochs": str(about.get("epochs", "not known")),
    "Choice of checkpoints": (
      "on validation images; each run read the test images once, at its end"
    ),
    "Hardware": "; ".join(dict.fromkeys(hardware)) or "not known",
    "Command": str(about["command"]),
  }


def _tiers(record: Record, cuts: tuple[int, int] | None) -> str:
  """Where the tiers are cut and which classes they hold."""
  many, few = cuts or statistics.own_cuts(record.train_counts)
  names = statistics.tiers(record.train_counts, (many, few))
  said = {
    "many": f"more than {many:,} training images",
    "medium": "the rest",
    "few": f"fewer than {few:,}",
  }
  members: dict[str, list[str]] = {tier: [] for tier in said}
  for name, tier in zip(record.class_names, names, strict=True):
    members[tier].append(str(name))
  return "; ".join(
    f"{tier} ({words}): {', '.join(members[tier]) or 'none'}"
    for tier, words in said.items()
  )


def seed_list(seeds: Iterable[int]) -> str:
  """Seeds as text, in ascending order."""
  return ", ".join(map(str, sorted(seeds)))


def _check(record: Record, first: Record) -> None:
  """Refuses a record that cannot stand beside the first one."""
  name = f"{record.system!r} with seed {record.seed}"
  same = {
    "images": record.fingerprint == first.fingerprint,
    "classes": tuple(record.class_names) == tuple(first.class_names),
    "training counts": np.array_equal(record.train_counts, first.train_counts),
    "test labels": np.array_equal(record.labels, first.labels),
  }
  for what, equal in same.items():
    if not equal:
      raise UserError(
        f"found other {what} in {name} than in {first.system!r} with seed "
        f"{first.seed}; expected one data set and split for all: train it "
        "again on the same data"
      )
  if not np.size(record.labels):
    raise UserError(
      f"found no test images in {name}; expected at least one: check the data"
    )
  wanted, found = (len(first.labels), len(first.class_names)), record.scores
  if np.shape(found) != wanted:
    raise ValueError(
      f"scores of {name} have shape {np.shape(found)}; expected {wanted}"
    )
  if not np.isfinite(record.scores).all():
    raise UserError(
      f"found scores that are not finite in {name}; expected numbers: its "
      "training diverged, train it again with a lower learning rate"
    )


class Row(NamedTuple):
  """One system.

  Attributes:
    system: name of its config.
    title: the name to print.
    seeds: seeds of its finished runs.
    paper_average: the paper's mean-class accuracy in per cent, or None.
    paper_overall: the paper's overall accuracy in per cent, or None.
    mean_class: our mean-class accuracy over seeds.
    overall: our overall accuracy over seeds.
    recall: class name -> recall over seeds, in index order.
    tiers: tier -> mean recall of its classes, None for an empty tier.
    difference: gain over the reference; None for the reference itself or
      without one.
    calibration_error: mean over seeds; None where scores give no probability.
    seconds: mean training time of the seeds that know theirs, or None.
  """

  system: str
  title: str
  seeds: tuple[int, ...]
  paper_average: float | None
  paper_overall: float | None
  mean_class: Mean
  overall: Mean
  recall: Mapping[str, Mean]
  tiers: Mapping[str, float | None]
  difference: Comparison | None
  calibration_error: float | None
  seconds: float | None


def make_rows(
  records: Sequence[Record],
  reference: str = "basic",
  cuts: tuple[int, int] | None = None,
  draws: int = 10_000,
) -> list[Row]:
  """Sums up each system over its seeds, in Table 1's order.

  Args:
    records: finished runs on one data set, in any order.
    reference: system that the others are compared with.
    cuts: (many, few), see `statistics.tiers`; None: the data's own.
    draws: of the bootstrap.

  Raises:
    UserError: the records cannot be compared, see `records.by_system`.
  """
  groups = by_system(records)
  against = groups.get(reference)
  return [
    _row(system, group, None if system == reference else against, cuts, draws)
    for system, group in groups.items()
  ]


def _row(
  system: str,
  group: Sequence[Record],
  against: Sequence[Record] | None,
  cuts: tuple[int, int] | None,
  draws: int,
) -> Row:
  """The row of a system from its records, the reference's in `against`."""
  names, counts = group[0].class_names, group[0].train_counts
  each = [summary(record) for record in group]
  recall = {
    name: statistics.over_seeds([e["per_class"][name]["recall"] for e in each])
    for name in map(str, names)
  }
  errors = [
    statistics.expected_calibration_error(record.labels, record.scores)
    for record in group
    if record.probabilities_ok
  ]
  average, overall = PAPER.get(system, (None, None))
  return Row(
    system,
    title(system),
    tuple(record.seed for record in group),
    average,
    overall,
    statistics.over_seeds([e["mean_class_accuracy"] for e in each]),
    statistics.over_seeds([e["overall_accuracy"] for e in each]),
    recall,
    statistics.tier_recall(
      [value.mean for value in recall.values()],
      statistics.tiers(counts, cuts or statistics.own_cuts(counts)),
    ),
    _compare(group, against, draws) if against else None,
    float(np.mean(errors)) if len(errors) == len(group) else None,
    statistics.over_seeds([record.seconds for record in group]).mean,
  )


def _compare(
  group: Sequence[Record], against: Sequence[Record], draws: int
) -> Comparison:
  """The gain of a system over the reference."""
  return statistics.paired_bootstrap(
    group[0].labels,
    np.stack([predictions(record) for record in group]),
    np.stack([predictions(record) for record in against]),
    draws,
    a_seeds=[record.seed for record in group],
    b_seeds=[record.seed for record in against],
  )
