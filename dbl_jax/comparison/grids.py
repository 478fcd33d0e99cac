"""The printed tables as plain text: cells, and which of them are best."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dbl_jax.comparison import statistics
from dbl_jax.comparison.records import seed_list
from dbl_jax.comparison.rows import Row
from dbl_jax.comparison.statistics import Difference, Mean
from dbl_jax.figures import one_line

DASH = "–"
# A heading, and for each row its text and whether that is bold.
_ColumnText = tuple[str, list[tuple[str, bool]]]


class Grid(NamedTuple):
  """A printed table; the names of its rows are not among the columns."""

  heading: str
  columns: Sequence[_ColumnText]
  note: str


def grids(rows: Sequence[Row]) -> list[Grid]:
  """The printed tables, from what a reader asks first."""
  reference = [row.title for row in rows if row.difference is None]
  found = [
    Grid(
      "Accuracy (%)",
      [
        _numbers("Paper: average", [row.paper_average for row in rows], 2),
        _numbers("Paper: overall", [row.paper_overall for row in rows], 2),
        _means("Mean-class", [row.mean_class for row in rows], 2),
        _means("Overall", [row.overall for row in rows], 2),
        _column("Seeds", [seed_list(row.seeds) for row in rows]),
      ],
      "Mean-class accuracy, the paper's average accuracy, is the mean of "
      "recall over classes. Mean ± standard deviation over seeds. The paper's "
      "numbers are of RAF-DB and one run each.",
    ),
    Grid(
      f"Difference to {one_line(reference[0], 40)} (points)",
      [*_differences("Mean-class", rows), *_differences("Overall", rows)],
      "With 95% intervals and two-sided p by a paired bootstrap over images "
      "within classes and over seeds. p is not adjusted for the number of "
      "systems, and few seeds understate how much training varies.",
    )
    if len(reference) < len(rows)
    else None,
    Grid(
      "Recall by class (%)",
      [
        _means(one_line(name, 40), [row.recall[name] for row in rows], 1)
        for name in rows[0].recall
      ],
      "Mean ± standard deviation over seeds.",
    ),
    Grid(
      "Recall by tier (%)",
      [
        _numbers(tier.title(), [percent(row.tiers[tier]) for row in rows], 1)
        for tier in statistics.TIERS
      ],
      "Mean over the classes with many, a medium number of and few training "
      f"images, and over seeds; {DASH} for a tier without classes.",
    ),
    Grid(
      "Calibration and cost",
      [
        _numbers(
          "ECE (%)", [percent(row.calibration_error) for row in rows], 1, min
        ),
        _column(
          "Training time",
          [_duration(row.seconds) for row in rows],
          [row.seconds for row in rows],
          min,
        ),
      ],
      "ECE: expected calibration error in 15 bins, mean over seeds. Training "
      "time: a system's own stages, mean over seeds; of one that was killed, "
      "since its last start.",
    ),
  ]
  return [grid for grid in found if grid]


def _column(
  heading: str,
  texts: Sequence[str],
  values: Sequence[float | None] | None = None,
  best: Callable[..., float] = max,
) -> _ColumnText:
  """Texts, bold where the value is the best of several; all plain without."""
  known = [value for value in values or () if value is not None]
  chosen = best(known) if len(known) > 1 else None
  bold = [chosen is not None and value == chosen for value in values or texts]
  return heading, list(zip(texts, bold, strict=True))


def _means(heading: str, means: Sequence[Mean], digits: int) -> _ColumnText:
  """Mean ± deviation of fractions in per cent."""
  texts = [
    _number(percent(mean), digits)
    + ("" if sd is None else f" ± {100 * sd:.{digits}f}")
    for mean, sd in means
  ]
  return _column(heading, texts, [percent(mean, digits) for mean, _ in means])


def _numbers(
  heading: str,
  values: Sequence[float | None],
  digits: int,
  best: Callable[..., float] = max,
) -> _ColumnText:
  """Values that print alike are equally good."""
  rounded = [
    None if value is None else round(value, digits) for value in values
  ]
  texts = [_number(value, digits) for value in values]
  return _column(heading, texts, rounded, best)


def _differences(heading: str, rows: Sequence[Row]) -> list[_ColumnText]:
  """The difference with its interval, and p; the reference counts as 0."""
  which = heading.lower().replace("-", "_")
  found = [row.difference and getattr(row.difference, which) for row in rows]
  texts = ["reference" if d is None else _interval(d) for d in found]
  values = [0.0 if d is None else percent(d.difference, 2) for d in found]
  return [
    _column(heading, texts, values),
    _column("p", [DASH if d is None else _p(d.p) for d in found]),
  ]


def _interval(d: Difference) -> str:
  """In points, as '+1.01 (−0.52 to 2.54)'."""
  lower, upper = (f"{100 * limit:.2f}" for limit in (d.lower, d.upper))
  return f"{100 * d.difference:+.2f} ({lower} to {upper})".replace("-", "−")


def _p(p: float) -> str:
  return "<0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None, digits: int) -> str:
  return DASH if value is None else f"{value:.{digits}f}"


def percent(fraction: float | None, digits: int = 6) -> float | None:
  """A fraction in per cent, rounded; None stays None."""
  return None if fraction is None else round(100 * fraction, digits)


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return DASH
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.1f} min"
  return f"{seconds / 3600:.1f} h"
