"""Table 1 of the paper, reproduced in Markdown, CSV and HTML.

A row is a line of table.csv; the printed tables are made from its columns.
System and class names are untrusted input, which each format escapes.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style

from dbl_jax.compare import plots, statistics
from dbl_jax.compare.records import (
  TABLE_1,
  RunResult,
  by_system,
  facts,
  guesses,
  summary,
)
from dbl_jax.evaluation import page
from dbl_jax.evaluation.plots import one_line
from dbl_jax.runtime import files

DASH = "–"
TITLE = "Systems compared, as in the paper's Table 1"
# Column of table.csv -> value, None where there is none.
Row = dict[str, Any]
# A heading, a text for each row, and the rows to print bold.
_Column = tuple[str, Sequence[str], set[int]]


@style.context("default")  # whatever the user's matplotlibrc says
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
  base = by_system(results).get(reference, ())
  accuracies = plots.accuracies(rows, base, paper_points=paper_points)
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
) -> list[Row]:
  """Summarises each system over its seeds, in Table 1's order.

  Args:
    results: finished runs on one data set, in any order.
    reference: system that the others are compared with.
    cuts: (many, few), see `statistics.tiers`; None: by the data.
    draws: number of bootstrap samples.

  Returns:
    For each system its name, seeds, the paper's accuracies, ours (mean and
    standard deviation), differences to the reference, recall by tier and by
    class, calibration error (None without probabilities) and training time.

  Raises:
    UserError: the runs cannot be compared, see `records.by_system`.
  """
  groups = by_system(results)
  rows = []
  for system, group in groups.items():
    base = None if system == reference else groups.get(reference)
    name, average, overall = TABLE_1.get(system, (system, None, None))
    rows.append(
      {
        "system": system,
        "title": name,
        "seeds": " ".join(str(result.seed) for result in group),
        "paper_average_percent": average,
        "paper_overall_percent": overall,
        **_accuracies(group),
        **_gains(group, base, draws),
        **_recalls(group, cuts),
      }
    )
  return rows


def _accuracies(group: Sequence[RunResult]) -> Row:
  """Mean and standard deviation of the accuracies over seeds."""
  row = {}
  for name in ("mean_class_accuracy", "overall_accuracy"):
    mean, sd = statistics.mean_std([summary(result)[name] for result in group])
    row[f"{name}_percent"], row[f"{name}_sd_percent"] = map(
      _percent, (mean, sd)
    )
  return row


def _gains(
  group: Sequence[RunResult], base: Sequence[RunResult] | None, draws: int
) -> Row:
  """Differences to the reference; no interval and p with one seed."""
  row: Row = {}
  gains: Sequence[Any] = (None, None)
  if base:
    gains = statistics.paired_bootstrap(
      group[0].predictions.labels,
      np.stack([guesses(result) for result in group]),
      np.stack([guesses(result) for result in base]),
      draws,
      a_seeds=[result.seed for result in group],
      b_seeds=[result.seed for result in base],
    )
  several = base is not None and min(len(group), len(base)) > 1
  for name, gain in zip(("mean_class", "overall"), gains, strict=True):
    row[f"{name}_difference_points"] = gain and _percent(gain.difference)
    row[f"{name}_lower_points"] = _percent(gain.lower) if several else None
    row[f"{name}_upper_points"] = _percent(gain.upper) if several else None
    row[f"{name}_p"] = gain.p if several else None
  return row


def _recalls(group: Sequence[RunResult], cuts: tuple[int, int] | None) -> Row:
  """Recall by tier and by class; between them, calibration and time."""
  runs = [result.predictions for result in group]
  counts = runs[0].train_counts
  each = [summary(result)["per_class"] for result in group]
  recall = {
    name: statistics.mean_std([one[name]["recall"] for one in each])
    for name in runs[0].class_names
  }
  tiers = statistics.tier_recall(
    [mean for mean, _ in recall.values()],
    statistics.tiers(counts, cuts or statistics.default_cuts(counts)),
  )
  error = None
  if all(run.calibrated for run in runs):
    error = statistics.mean_std(
      [
        statistics.expected_calibration_error(run.labels, run.scores)
        for run in runs
      ]
    )[0]
  row = {f"{tier}_recall_percent": _percent(x) for tier, x in tiers.items()}
  row["expected_calibration_error_percent"] = _percent(error)
  seconds = [result.seconds for result in group]
  row["training_seconds"] = statistics.mean_std(seconds)[0]
  for name, (mean, sd) in recall.items():
    row[f"recall_percent: {name}"] = _percent(mean)
    row[f"recall_sd_percent: {name}"] = _percent(sd)
  return row


def as_markdown(
  rows: Sequence[Row],
  made_by: Mapping[str, str],
  missing: Sequence[str] = (),
) -> str:
  """The tables in GitHub's Markdown, best values bold."""
  parts = [f"# {TITLE}"]
  if missing:
    parts.append("**Missing**, not finished:")
    parts.append("\n".join(f"- {_markdown(item)}" for item in missing))
  for heading, columns, note in _tables(rows):
    head, *cells = [
      list(map(_markdown, line)) for line in _cells(rows, columns)
    ]
    for i, j in _bold(columns):
      cells[i][j] = f"**{cells[i][j]}**"
    lines = [head, ["---", *(["---:"] * len(columns))], *cells]
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
  rows: Sequence[Row],
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
    head, *cells = _cells(rows, columns)
    table = page.table(head, cells, _bold(columns))
    sections.append(page.section(heading, table, page.note(note)))
  for heading, png in (figures or {}).items():
    alt = f"{heading}; the tables on this page have the numbers"
    sections.append(page.figure(heading, png, alt))
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
  rows: Sequence[Row],
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
  lines = [row | shared | row for row in rows]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines)
  return text.getvalue()


def _tables(rows: Sequence[Row]) -> list[tuple[str, list[_Column], str]]:
  """Heading, columns and note of the printed tables."""
  reference = [row for row in rows if row["overall_difference_points"] is None]
  tested = sum(row["overall_p"] is not None for row in rows)
  seconds = [row["training_seconds"] for row in rows]
  minutes = [DASH if x is None else f"{x / 60:.1f}" for x in seconds]
  classes = [key for key in rows[0] if key.startswith("recall_percent: ")]
  tables = [
    (
      "Accuracy (%)",
      [
        _numbers(rows, "Paper: average", "paper_average_percent", 2),
        _numbers(rows, "Paper: overall", "paper_overall_percent", 2),
        _numbers(rows, "Mean-class", "mean_class_accuracy_percent", 2),
        _numbers(rows, "Overall", "overall_accuracy_percent", 2),
        ("Seeds", [row["seeds"].replace(" ", ", ") for row in rows], set()),
      ],
      "Mean-class accuracy, the paper's average accuracy, is the mean of "
      "recall over classes. Mean ± standard deviation over seeds. The paper's "
      "numbers are of RAF-DB and one run each.",
    ),
    (
      f"Difference to {one_line(reference[0]['title'], 40)} (points)",
      [*_differences(rows, "Mean-class"), *_differences(rows, "Overall")],
      "With 95% intervals and two-sided p by a paired bootstrap over images "
      "within classes and over seeds; none for a system with one seed, which "
      "does not show how much runs differ. p is adjusted for the number of "
      f"comparisons in its column, {tested} (Holm); intervals and table.csv "
      "are not.",
    ),
    (
      "Recall by class (%)",
      [
        _numbers(rows, one_line(key.partition(": ")[2], 40), key, 1)
        for key in classes
      ],
      "Mean ± standard deviation over seeds.",
    ),
    (
      "Recall by tier (%)",
      [
        _numbers(rows, tier.title(), f"{tier}_recall_percent", 1)
        for tier in statistics.TIERS
      ],
      "Mean over the classes with many, a medium number of and few training "
      f"images, and over seeds; {DASH} for a tier without classes.",
    ),
    (
      "Calibration and cost",
      [
        _numbers(rows, "ECE (%)", "expected_calibration_error_percent", 1, min),
        ("Training (min)", minutes, _best(seconds, min)),
      ],
      "ECE: expected calibration error in 15 bins, mean over seeds. Training "
      "time: minutes for all stages of a system, mean over seeds; for a killed "
      "run, since its last start.",
    ),
  ]
  # Without a reference, no row has a difference.
  return tables if len(reference) < len(rows) else tables[:1] + tables[2:]


def _numbers(
  rows: Sequence[Row],
  heading: str,
  key: str,
  digits: int,
  best: Callable[..., float] = max,
) -> _Column:
  """Numbers ± deviation, the best bold; equal in print, equally good."""
  texts = []
  for row in rows:
    mean, sd = row[key], row.get(key.replace("_percent", "_sd_percent", 1))
    text = DASH if mean is None else f"{mean:.{digits}f}"
    texts.append(text if sd is None else f"{text} ± {sd:.{digits}f}")
  return heading, texts, _best([row[key] for row in rows], best, digits)


def _differences(rows: Sequence[Row], heading: str) -> list[_Column]:
  """Differences with intervals, and adjusted p; the reference counts as 0."""
  name = heading.lower().replace("-", "_")
  texts, values = [], []
  for row in rows:
    gain, lower, upper = (
      row[f"{name}_{field}_points"]
      for field in ("difference", "lower", "upper")
    )
    text = "reference" if gain is None else f"{gain:+.2f}"
    if lower is not None:
      text += f" ({lower:.2f} to {upper:.2f})"
    texts.append(text.replace("-", "−"))
    values.append(gain or 0.0)
  p = statistics.holm([row[f"{name}_p"] for row in rows])
  return [(heading, texts, _best(values, max, 2)), ("p", [*map(_p, p)], set())]


def _best(
  values: Sequence[float | None],
  best: Callable[..., float],
  digits: int = 6,
) -> set[int]:
  """Indices of the best of several values, rounded; of one, none."""
  rounded = [None if x is None else round(x, digits) for x in values]
  known = [x for x in rounded if x is not None]
  chosen = best(known) if len(known) > 1 else math.nan
  return {i for i, x in enumerate(rounded) if x == chosen}


def _cells(
  rows: Sequence[Row], columns: Sequence[_Column]
) -> list[Sequence[str]]:
  """The lines of a table, the headings first."""
  names = [row["title"] for row in rows]
  lines = zip(names, *(texts for _, texts, _ in columns), strict=True)
  return [["System", *(heading for heading, _, _ in columns)], *lines]


def _bold(columns: Sequence[_Column]) -> set[tuple[int, int]]:
  """(row, column) of the best values; column 0 has the systems."""
  return {(i, j) for j, (_, _, best) in enumerate(columns, 1) for i in best}


def _percent(fraction: float | None) -> float | None:
  return None if fraction is None else round(100 * fraction, 6)


def _p(p: float | None) -> str:
  return DASH if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(value: object) -> str:
  """Plain text as one line, with Markdown's special characters escaped."""
  return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", one_line(value, 10_000))
