"""Table 1 of the paper, reproduced in Markdown, CSV and HTML.

Accuracies are fractions in rows and per cent in print. System and class names
are untrusted input: each format escapes them in its own way.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.compare import plots, statistics
from dbl_jax.compare.records import (
  TABLE_1,
  RunResult,
  by_system,
  facts,
  guesses,
  seed_list,
  summary,
  title,
)
from dbl_jax.compare.statistics import Gain, MeanStd
from dbl_jax.evaluation import page
from dbl_jax.evaluation.plots import one_line
from dbl_jax.runtime import files

DASH = "–"
TITLE = "Systems compared, as in the paper's Table 1"
# A heading; for each row its text and whether it is bold.
_Column = tuple[str, list[tuple[str, bool]]]
# A heading, columns and a note.
_Table = tuple[str, list[_Column], str]


class SystemRow(NamedTuple):
  """The results of one system.

  Attributes:
    system: name of its config.
    seeds: seeds of its finished runs.
    mean_class: mean-class accuracy over seeds.
    overall: overall accuracy over seeds.
    recall: class name -> recall over seeds, in index order.
    tiers: tier -> mean recall of its classes, None for an empty tier.
    gains: in mean-class and overall accuracy over the reference; None for the
      reference itself or without one.
    calibration_error: mean over seeds; None without probabilities.
    seconds: mean training time of the seeds where it is known, or None.
  """

  system: str
  seeds: tuple[int, ...]
  mean_class: MeanStd
  overall: MeanStd
  recall: Mapping[str, MeanStd]
  tiers: Mapping[str, float | None]
  gains: tuple[Gain, Gain] | None
  calibration_error: float | None
  seconds: float | None


def write(
  out: Path,
  results: Sequence[RunResult],
  missing: Sequence[str],
  *,
  reference: str = "basic",
  cuts: tuple[int, int] | None = None,
  paper_points: bool = False,
  **about: Any,
) -> None:
  """Writes table.md, table.csv, table.html and two plots, each atomically.

  All are made before the first is written: an error leaves the old files.

  Args:
    out: folder, created if missing.
    results: finished runs on one data set.
    missing: a line for each run that is not finished.
    reference: system that the others are compared with.
    cuts: (many, few) training images of the tiers; None: by the data.
    paper_points: whether to draw the paper's accuracies next to ours.
    **about: `dataset`, `image_size`, `command` and `epochs`, see
      `records.facts`.

  Raises:
    UserError: the runs cannot be compared, see `records.by_system`.
  """
  rows = make_rows(results, reference, cuts)
  made_by = facts(results, cuts=cuts, **about)
  accuracies = plots.accuracies(results, reference, paper_points=paper_points)
  matrices = plots.confusion_matrices(results)
  pictures = {
    "Mean-class against overall accuracy": accuracies,
    "Confusion matrices": matrices,
  }
  html = as_html(rows, made_by, missing, pictures)
  contents = {
    # Lone surrogates, which UTF-8 cannot hold, become question marks.
    "table.md": as_markdown(rows, made_by, missing).encode("utf-8", "replace"),
    "table.csv": as_csv(rows, made_by, missing).encode("utf-8", "replace"),
    "table.html": html.encode("utf-8", "xmlcharrefreplace"),
    "confusion_matrices.png": matrices,
    "accuracies.png": accuracies,
  }
  out.mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    files.write(out / name, content)


def make_rows(
  results: Sequence[RunResult],
  reference: str = "basic",
  cuts: tuple[int, int] | None = None,
  draws: int = 10_000,
) -> list[SystemRow]:
  """Summarises each system over its seeds, in Table 1's order.

  Args:
    results: finished runs on one data set, in any order.
    reference: system that the others are compared with.
    cuts: (many, few), see `statistics.tiers`; None: by the data.
    draws: number of bootstrap samples.

  Raises:
    UserError: the runs cannot be compared, see `records.by_system`.
  """
  groups = by_system(results)
  base = groups.get(reference)
  rows = []
  for system, group in groups.items():
    gains = None
    if base and system != reference:
      gains = _gains(group, base, draws)
    rows.append(_row(group, cuts, gains))
  return rows


def _row(
  group: Sequence[RunResult],
  cuts: tuple[int, int] | None,
  gains: tuple[Gain, Gain] | None,
) -> SystemRow:
  """The row of a system from its runs."""
  runs = [result.predictions for result in group]
  names, counts = runs[0].class_names, runs[0].train_counts
  each = [summary(result) for result in group]
  recall = {
    name: statistics.mean_std([e["per_class"][name]["recall"] for e in each])
    for name in names
  }
  errors = [
    statistics.expected_calibration_error(run.labels, run.scores)
    for run in runs
    if run.calibrated
  ]
  tiers = statistics.tiers(counts, cuts or statistics.default_cuts(counts))
  return SystemRow(
    group[0].system,
    tuple(result.seed for result in group),
    statistics.mean_std([e["mean_class_accuracy"] for e in each]),
    statistics.mean_std([e["overall_accuracy"] for e in each]),
    recall,
    statistics.tier_recall([mean for mean, _ in recall.values()], tiers),
    gains,
    float(np.mean(errors)) if len(errors) == len(group) else None,
    statistics.mean_std([result.seconds for result in group])[0],
  )


def _gains(
  group: Sequence[RunResult], base: Sequence[RunResult], draws: int
) -> tuple[Gain, Gain]:
  """The gains of a system over the reference."""
  gains = statistics.paired_bootstrap(
    group[0].predictions.labels,
    np.stack([guesses(result) for result in group]),
    np.stack([guesses(result) for result in base]),
    draws,
    a_seeds=[result.seed for result in group],
    b_seeds=[result.seed for result in base],
  )
  if min(len(group), len(base)) > 1:
    return gains
  return Gain(gains[0].difference, None, None, None), Gain(
    gains[1].difference, None, None, None
  )


def as_markdown(
  rows: Sequence[SystemRow],
  made_by: Mapping[str, str],
  missing: Sequence[str] = (),
) -> str:
  """The tables in GitHub's Markdown, best values bold."""
  parts = [f"# {TITLE}"]
  if missing:
    parts.append("**Missing**, not finished:")
    parts.append("\n".join(f"- {_markdown(item)}" for item in missing))
  for heading, columns, note in _tables(rows):
    lines = [["System", *(_markdown(name) for name, _ in columns)]]
    lines.append(["---", *(["---:"] * len(columns))])
    for i, row in enumerate(rows):
      cells = [cells[i] for _, cells in columns]
      texts = [f"**{text}**" if bold else text for text, bold in cells]
      lines.append([_markdown(title(row.system)), *texts])
    parts.append(f"## {_markdown(heading)}")
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append(note)
  parts.append("## How these numbers were made")
  listed = [item for item in made_by.items() if item[0] != "Command"]
  parts.append("\n".join(f"- {key}: {_markdown(v)}" for key, v in listed))
  ticks = re.findall("`+", made_by["Command"])
  fence = "`" * max([3, *(len(run) + 1 for run in ticks)])
  parts.append(f"{fence}sh\n{made_by['Command']}\n{fence}")
  return "\n\n".join(parts) + "\n"


def as_html(
  rows: Sequence[SystemRow],
  made_by: Mapping[str, str],
  missing: Sequence[str] = (),
  figures: Mapping[str, bytes] | None = None,
) -> str:
  """A page with all tables, then `figures` (heading -> PNG)."""
  sections = []
  if missing:
    items = "".join(f"<li>{page.text(item)}</li>" for item in missing)
    sections.append(page.section("Missing, not finished", f"<ul>{items}</ul>"))
  for heading, columns, note in _tables(rows):
    cells = [
      [title(row.system), *(texts[i][0] for _, texts in columns)]
      for i, row in enumerate(rows)
    ]
    bold = {
      (i, j)
      for j, (_, texts) in enumerate(columns, 1)
      for i, (_, is_bold) in enumerate(texts)
      if is_bold
    }
    table = page.table(["System", *(name for name, _ in columns)], cells, bold)
    sections.append(page.section(heading, table, page.note(note)))
  for heading, png in (figures or {}).items():
    alt = f"{heading}; the tables on this page have the numbers"
    sections.append(page.section(heading, page.picture(png, alt)))
  described = "".join(
    f"<p><strong>{page.text(key)}:</strong> {page.text(v)}</p>"
    for key, v in made_by.items()
    if key != "Command"
  )
  command = f"<pre>{page.text(made_by['Command'])}</pre>"
  sections.append(
    page.section("How these numbers were made", described, command)
  )
  head = [made_by["Data set"], made_by["Image size"]]
  head += [f"{made_by['Test images']} test images", f"seeds {made_by['Seeds']}"]
  return page.page(TITLE, head, sections)


def as_csv(
  rows: Sequence[SystemRow],
  made_by: Mapping[str, str],
  missing: Sequence[str] = (),
) -> str:
  """One line for each system, the facts repeated in its last columns.

  A system's own value, such as its seeds, precedes a fact of the same name.
  """
  shared = {
    re.sub(r"\W+", " ", key).strip().replace(" ", "_").lower(): value
    for key, value in made_by.items()
  }
  shared["missing"] = "; ".join(missing)
  lines = [own | shared | own for own in map(_csv_row, rows)]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines)
  return text.getvalue()


def _csv_row(row: SystemRow) -> dict[str, Any]:
  """Columns of a row, numbers to many digits, None for a missing value."""
  average, overall = _paper(row.system)
  cells: dict[str, Any] = {
    "system": row.system,
    "title": title(row.system),
    "seeds": " ".join(map(str, row.seeds)),
    "paper_average_percent": average,
    "paper_overall_percent": overall,
  }
  accuracies = {"mean_class": row.mean_class, "overall": row.overall}
  for name, (mean, sd) in accuracies.items():
    cells[f"{name}_accuracy_percent"] = _percent(mean)
    cells[f"{name}_accuracy_sd_percent"] = _percent(sd)
  for name, gain in zip(accuracies, row.gains or (None, None), strict=True):
    for field in ("difference", "lower", "upper"):
      value = gain and getattr(gain, field)
      cells[f"{name}_{field}_points"] = _percent(value)
    cells[f"{name}_p"] = gain and gain.p
  for tier, recall in row.tiers.items():
    cells[f"{tier}_recall_percent"] = _percent(recall)
  cells["expected_calibration_error_percent"] = _percent(row.calibration_error)
  cells["training_seconds"] = row.seconds
  for name, (mean, sd) in row.recall.items():
    cells[f"recall_percent: {name}"] = _percent(mean)
    cells[f"recall_sd_percent: {name}"] = _percent(sd)
  return cells


def _tables(rows: Sequence[SystemRow]) -> list[_Table]:
  """The printed tables, the most important first."""
  tables = [_accuracy_table(rows)]
  if any(row.gains for row in rows):
    tables.append(_gain_table(rows))
  recall = [
    _percents(one_line(name, 40), [row.recall[name] for row in rows], 1)
    for name in rows[0].recall
  ]
  tiers = [
    _percents(tier.title(), [(row.tiers[tier], None) for row in rows], 1)
    for tier in statistics.TIERS
  ]
  errors: list[MeanStd] = [(row.calibration_error, None) for row in rows]
  seconds = [row.seconds for row in rows]
  cost = [
    _percents("ECE (%)", errors, 1, min),
    _column("Training time", list(map(_duration, seconds)), seconds, min),
  ]
  return [
    *tables,
    ("Recall by class (%)", recall, "Mean ± standard deviation over seeds."),
    (
      "Recall by tier (%)",
      tiers,
      "Mean over the classes with many, a medium number of and few training "
      f"images, and over seeds; {DASH} for a tier without classes.",
    ),
    (
      "Calibration and cost",
      cost,
      "ECE: expected calibration error in 15 bins, mean over seeds. Training "
      "time: of a system's own stages, mean over seeds; for a killed run, "
      "since its last start.",
    ),
  ]


def _accuracy_table(rows: Sequence[SystemRow]) -> _Table:
  """Mean-class and overall accuracy, the paper's and ours."""
  paper: list[list[MeanStd]] = [
    [(None if x is None else x / 100, None) for x in column]
    for column in zip(*(_paper(row.system) for row in rows), strict=True)
  ]
  return (
    "Accuracy (%)",
    [
      _percents("Paper: average", paper[0], 2),
      _percents("Paper: overall", paper[1], 2),
      _percents("Mean-class", [row.mean_class for row in rows], 2),
      _percents("Overall", [row.overall for row in rows], 2),
      _column("Seeds", [seed_list(row.seeds) for row in rows]),
    ],
    "Mean-class accuracy, the paper's average accuracy, is the mean of "
    "recall over classes. Mean ± standard deviation over seeds. The paper's "
    "numbers are of RAF-DB and one run each.",
  )


def _gain_table(rows: Sequence[SystemRow]) -> _Table:
  """Differences to the reference, with intervals and p."""
  columns = []
  for k, heading in enumerate(("Mean-class", "Overall")):
    gains = [row.gains and row.gains[k] for row in rows]
    texts = [_interval(gain) if gain else "reference" for gain in gains]
    values = [_percent(gain.difference, 2) if gain else 0.0 for gain in gains]
    columns.append(_column(heading, texts, values))
    p = statistics.holm([gain and gain.p for gain in gains])
    columns.append(_column("p", list(map(_p, p))))
  reference = next(title(row.system) for row in rows if row.gains is None)
  return (
    f"Difference to {one_line(reference, 40)} (points)",
    columns,
    "With 95% intervals and two-sided p by a paired bootstrap over images "
    "within classes and over seeds; none for a system with one seed, which "
    "does not show how much runs differ. p is adjusted for the "
    f"{len(rows) - 1} comparisons of its column (Holm); intervals and "
    "table.csv are not.",
  )


def _column(
  heading: str,
  texts: Sequence[str],
  values: Sequence[float | None] = (),
  best: Callable[..., float] = max,
) -> _Column:
  """Texts, bold where the value is the best of several; plain without."""
  known = [value for value in values if value is not None]
  chosen = best(known) if len(known) > 1 else None
  bold = [chosen is not None and value == chosen for value in values or texts]
  return heading, list(zip(texts, bold, strict=True))


def _percents(
  heading: str,
  means: Sequence[MeanStd],
  digits: int,
  best: Callable[..., float] = max,
) -> _Column:
  """Mean ± deviation of fractions in per cent; equal in print, equally good."""
  texts = [
    (DASH if mean is None else f"{100 * mean:.{digits}f}")
    + ("" if sd is None else f" ± {100 * sd:.{digits}f}")
    for mean, sd in means
  ]
  values = [_percent(mean, digits) for mean, _ in means]
  return _column(heading, texts, values, best)


def _interval(gain: Gain) -> str:
  """In points, such as '+1.01 (−0.52 to 2.54)'."""
  text = f"{100 * gain.difference:+.2f}"
  if gain.lower is not None and gain.upper is not None:
    text += f" ({100 * gain.lower:.2f} to {100 * gain.upper:.2f})"
  return text.replace("-", "−")


def _p(p: float | None) -> str:
  return DASH if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _paper(system: str) -> tuple[float | None, float | None]:
  """The paper's average and overall accuracy in per cent."""
  return TABLE_1[system][1:] if system in TABLE_1 else (None, None)


def _percent(fraction: float | None, digits: int = 6) -> float | None:
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


def _markdown(value: object) -> str:
  """Plain text as one line, with Markdown's special characters escaped."""
  return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", one_line(value, 10_000))
