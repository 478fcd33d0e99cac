"""What is told of each system: accuracies over seeds, and against Basic."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dbl_jax.comparison import statistics
from dbl_jax.comparison.records import (
  PAPER,
  Record,
  by_system,
  predictions,
  summary,
  title,
)
from dbl_jax.comparison.statistics import Comparison, Mean


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
