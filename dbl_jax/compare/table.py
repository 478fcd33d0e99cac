"""Table 1 of Fan et al. 2020, reproduced in Markdown, CSV and HTML.

A row is a line of table.csv; the printed tables are made from its columns.
System and class names are untrusted input, which each format escapes.
"""

import csv
import functools
import io
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from dbl_jax.compare import statistics
from dbl_jax.compare.statistics import STRENGTHS, RunResult
from dbl_jax.data.formats.stored import few
from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics, page, plots
from dbl_jax.evaluation.plots import one_line
from dbl_jax.runtime import files

# Table 1 of Fan et al. 2020, in its order: name, then average and overall
# accuracy on RAF-DB in per cent (NaN: not given).
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
DASH = "–"
TITLE = "Systems compared, as in the paper's Table 1"
# Column of table.csv -> value, NaN where there is none.
Row = dict[str, Any]
_TOP5 = "top5_accuracy_percent"  # a column for more than 30 classes
_NO_INTERVAL = dict.fromkeys(("lower", "upper", "p"), math.nan)
# Columns that `plots.accuracies_figure` draws.
_POINT = (
  "title",
  "overall_accuracy_percent",
  "mean_class_accuracy_percent",
  "mean_class_accuracy_sd_percent",
  "overall_accuracy_sd_percent",
)
# A heading, a text for each row, and the rows to print bold.
_Column = tuple[str, Sequence[str], set[int]]
# Heading, names of columns, lines of cells, (line, column) of bold cells, note.
_Table = tuple[str, list[str], list[tuple[str, ...]], set[tuple[int, int]], str]


def write(
  out: Path,
  results: Sequence[RunResult],
  missing: Sequence[str],
  *,
  reference: str = "basic",
  cuts: Sequence[int] | None = None,
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
    cuts: (many, few) training images of the tiers; None: `default_cuts`.
    paper_points: whether to draw the paper's accuracies next to ours.
    **about: `dataset`, `image_size`, `command` and `epochs`, see `facts`.

  Raises:
    UserError: the runs cannot be compared, see `by_system`.
  """
  rows = make_rows(results, reference, cuts)
  made_by = facts(results, cuts=cuts, **about)
  groups, run = by_system(results), results[0]
  paper = {
    name: (overall, average)
    for name, average, overall in TABLE_1.values()
    if not math.isnan(average)
  }
  accuracies = plots.accuracies_figure(
    list(map(operator.itemgetter(*_POINT), rows)),
    _frontier(groups.get(reference, ())),
    paper if paper_points else None,
  )
  matrices = plots.confusion_figure(
    [(title(system), confusion(group)) for system, group in groups.items()],
    run.class_names,
    run.train_counts,
  )
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
  cuts: Sequence[int] | None = None,
  draws: int = 10_000,
) -> list[Row]:
  """Summarises each system over its seeds, in Table 1's order.

  Args:
    results: finished runs on one data set, in any order.
    reference: system that the others are compared with.
    cuts: (many, few), see `metrics.tiers`; None: `default_cuts`.
    draws: number of bootstrap samples.

  Raises:
    UserError: the runs cannot be compared, see `by_system`.
  """
  groups = by_system(results)
  names, counts = results[0].class_names, results[0].train_counts
  tiers = metrics.tiers(counts, cuts or statistics.default_cuts(counts))
  rows = []
  for system, group in groups.items():
    name, average, overall = TABLE_1.get(system, (system, math.nan, math.nan))
    row: Row = {
      "system": system,
      "title": name,
      "seeds": " ".join(str(result.seed) for result in group),
      "paper_average_percent": average,
      "paper_overall_percent": overall,
    }
    each = [metrics.summarise(confusion([r]), names) for r in group]
    for accuracy in ("mean_class_accuracy", "overall_accuracy"):
      row |= _mean_sd(f"{accuracy}_percent", [one[accuracy] for one in each])
    base = () if system == reference else groups.get(reference, ())
    row |= _gains(group, base, draws)
    recalls = {
      name: [one["per_class"][name]["recall"] for one in each] for name in names
    }
    for tier, inside in tiers.items():
      members = [names[i] for i in np.flatnonzero(inside)]
      means = [statistics.mean_std(recalls[n])[0] for n in members]
      row[f"{tier}_recall_percent"] = _percent(statistics.mean_std(means)[0])
    if len(names) > plots.MAX_CLASSES:
      row |= _mean_sd(_TOP5, [result.top5 for result in group])
    errors = [result.calibration_error for result in group]
    row["expected_calibration_error_percent"] = _percent(float(np.mean(errors)))
    seconds = [result.seconds for result in group]
    row["training_seconds"] = statistics.mean_std(seconds)[0]
    for n, values in recalls.items():
      row |= _mean_sd(f"recall_percent: {n}", values)
    rows.append(row)
  return rows


def _mean_sd(column: str, values: Sequence[float | None]) -> Row:
  """Mean and standard deviation of fractions, in per cent."""
  mean, sd = statistics.mean_std(values)
  return {column: _percent(mean), _sd(column): _percent(sd)}


def _sd(column: str) -> str:
  """The column with the standard deviation of a percentage."""
  start, _, end = column.partition("_percent")
  return f"{start}_sd_percent{end}"


def _gains(
  group: Sequence[RunResult], base: Sequence[RunResult], draws: int
) -> Row:
  """Differences to the reference; no interval and p with one seed."""
  gains = [statistics.Gain(*[math.nan] * 4)] * 2
  if base:
    gains[:] = statistics.paired_bootstrap(
      group[0].labels,
      {result.seed: result.guesses for result in group},
      {result.seed: result.guesses for result in base},
      draws,
    )
  unknown = {} if min(len(group), len(base)) > 1 else _NO_INTERVAL
  row: Row = {}
  for name, gain in zip(("mean_class", "overall"), gains, strict=True):
    gain = gain._replace(**unknown)
    row[f"{name}_difference_points"] = _percent(gain.difference)
    row[f"{name}_lower_points"] = _percent(gain.lower)
    row[f"{name}_upper_points"] = _percent(gain.upper)
    row[f"{name}_p"] = gain.p
  return row


def _frontier(
  group: Sequence[RunResult],
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray] | None:
  """The curve of `plots.accuracies_figure`, if there are probabilities."""
  curves = [run.frontier for run in group if run.frontier is not None]
  if not curves or len(curves) < len(group):
    return None
  overall, mean_class = 100 * np.mean(curves, axis=0)
  name = f"Logit adjustment of {one_line(title(group[0].system))}, by strength"
  return name, overall, mean_class, STRENGTHS


def facts(
  results: Sequence[RunResult],
  *,
  dataset: str,
  image_size: int,
  command: str,
  epochs: str = "not known",
  cuts: Sequence[int] | None = None,
) -> dict[str, str]:
  """Describes how a table was made: label -> plain text.

  `image_size` is in pixels; `command` makes the table; `epochs` are those of
  encoder training of each system; `cuts` is as in `make_rows`.
  """
  first = results[0]
  names, trained = first.class_names, first.train_counts
  tested = np.bincount(first.labels, minlength=len(names))
  hardware = [machine for result in results for machine in result.hardware]
  cuts = cuts or statistics.default_cuts(trained)
  limits = {
    "many": f"more than {cuts[0]:,} training images",
    "medium": "the rest",
    "few": f"fewer than {cuts[1]:,}",
  }
  tiers = []
  for tier, inside in metrics.tiers(trained, cuts).items():
    members = few((names[i] for i in np.flatnonzero(inside)), plots.MAX_CLASSES)
    tiers.append(f"{tier} ({limits[tier]}): {members or 'none'}")
  order = [
    f"{i} {name} ({trained[i]:,} / {tested[i]:,})"
    for i, name in enumerate(names[: plots.MAX_CLASSES])
  ]
  if more := len(names) - len(order):
    order.append(f"and {more:,} more")
  return {
    "Data set": dataset,
    "Image size": f"{image_size} × {image_size} pixels",
    "Test images": str(len(first.labels)),
    "Class order (training / test images)": "; ".join(order),
    "Tiers": "; ".join(tiers),
    "Seeds": ", ".join(map(str, sorted({r.seed for r in results}))),
    "Encoder epochs": epochs,
    "Choice of checkpoints": (
      "the latest, or the best on validation images where a config says so;"
      " each run was evaluated on the test images once, at its end"
    ),
    "Hardware": "; ".join(dict.fromkeys(hardware)) or "not known",
    "Command": command,
  }


def as_markdown(
  rows: Sequence[Row], made_by: Mapping[str, str], missing: Sequence[str] = ()
) -> str:
  """The tables in GitHub's Markdown, best values bold."""
  parts = [f"# {TITLE}"]
  if missing:
    parts.append("**Missing**, not finished:")
    parts.append("\n".join(f"- {_markdown(item)}" for item in missing))
  for heading, head, cells, bold, note in _tables(rows):
    lines = [[_markdown(cell) for cell in line] for line in (head, *cells)]
    for i, j in bold:
      lines[i + 1][j] = f"**{lines[i + 1][j]}**"
    lines.insert(1, ["---", *["---:"] * (len(head) - 1)])
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
  for heading, head, cells, bold, note in _tables(rows):
    table = page.table(head, cells, bold)
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
  rows: Sequence[Row], made_by: Mapping[str, str], missing: Sequence[str] = ()
) -> str:
  """One line for each system, the facts repeated in its last columns.

  A system's own value, such as its seeds, precedes a fact of the same name.
  """
  shared = {
    re.sub(r"\W+", " ", key).strip().replace(" ", "_").lower(): value
    for key, value in made_by.items()
  }
  shared["missing"] = "; ".join(missing)
  text = io.StringIO()
  lines = [row | shared | row for row in rows]
  writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
  writer.writeheader()
  for line in lines:  # NaN, which differs from itself, is an empty cell
    writer.writerow({k: v if v == v else "" for k, v in line.items()})
  return text.getvalue()


def _tables(rows: Sequence[Row]) -> Iterator[_Table]:
  """The printed tables."""
  column = functools.partial(_column, rows)
  reference = [r for r in rows if math.isnan(r["overall_difference_points"])]
  tested = sum(not math.isnan(row["overall_p"]) for row in rows)
  seeds = [row["seeds"].replace(" ", ", ") for row in rows]
  yield _table(
    rows,
    "Accuracy (%)",
    [
      column("Paper: average", "paper_average_percent", 2),
      column("Paper: overall", "paper_overall_percent", 2),
      column("Mean-class", "mean_class_accuracy_percent", 2),
      column("Overall", "overall_accuracy_percent", 2),
      *([column("Top 5", _TOP5, 2)] if _TOP5 in rows[0] else []),
      ("Seeds", seeds, set()),
    ],
    "Mean-class accuracy, the paper's average accuracy, is the mean of recall "
    "over classes. Mean ± standard deviation over seeds. The paper's numbers "
    "are of RAF-DB and one run each.",
  )
  if len(reference) < len(rows):
    yield _table(
      rows,
      f"Difference to {one_line(reference[0]['title'], 40)} (points)",
      [*_differences(rows, "Mean-class"), *_differences(rows, "Overall")],
      "With 95% intervals and two-sided p by a paired bootstrap over images "
      "within classes and over seeds; none for a system with one seed, which "
      "does not show how much runs differ. p is adjusted for the number of "
      f"comparisons in its column, {tested} (Holm); intervals and table.csv "
      "are not.",
    )
  recalls = [key for key in rows[0] if key.startswith("recall_percent: ")]
  if len(recalls) <= plots.MAX_CLASSES:  # table.csv has those of more classes
    yield _table(
      rows,
      "Recall by class (%)",
      [column(one_line(key.partition(": ")[2], 40), key, 1) for key in recalls],
      "Mean ± standard deviation over seeds.",
    )
  yield _table(
    rows,
    "Recall by tier (%)",
    [
      column(tier.title(), f"{tier}_recall_percent", 1)
      for tier in ("many", "medium", "few")
    ],
    "Mean over the classes with many, a medium number of and few training "
    f"images, and over seeds; {DASH} for a tier without classes.",
  )
  yield _table(
    rows,
    "Calibration and cost",
    [
      column("ECE (%)", "expected_calibration_error_percent", 1, min),
      column("Training (min)", "training_seconds", 1, min, scale=1 / 60),
    ],
    "ECE: expected calibration error in 15 bins, mean over seeds. Training "
    "time: minutes for all stages of a system, mean over seeds; for a killed "
    "run, since its last start.",
  )


def _table(
  rows: Sequence[Row], heading: str, columns: Sequence[_Column], note: str
) -> _Table:
  """A table with the systems' names as its first column."""
  names = [row["title"] for row in rows]
  cells = zip(names, *(texts for _, texts, _ in columns), strict=True)
  bold = {(i, j) for j, (_, _, best) in enumerate(columns, 1) for i in best}
  head = ["System", *(name for name, _, _ in columns)]
  return heading, head, list(cells), bold, note


def _column(
  rows: Sequence[Row],
  heading: str,
  key: str,
  digits: int,
  best: Callable[..., float] = max,
  scale: float = 1,
) -> _Column:
  """Numbers ± deviation, the best bold; equal in print, equally good."""
  values = [scale * row[key] for row in rows]
  texts = []
  for row, value in zip(rows, values, strict=True):
    text = DASH if math.isnan(value) else f"{value:.{digits}f}"
    sd = row.get(_sd(key), math.nan)
    texts.append(text if math.isnan(sd) else f"{text} ± {sd:.{digits}f}")
  return heading, texts, _best(values, best, digits)


def _differences(rows: Sequence[Row], heading: str) -> list[_Column]:
  """Differences with intervals, and adjusted p; the reference counts as 0."""
  name = heading.lower().replace("-", "_")
  gains = [row[f"{name}_difference_points"] for row in rows]
  texts = []
  for row, gain in zip(rows, gains, strict=True):
    lower, upper = (row[f"{name}_{end}_points"] for end in ("lower", "upper"))
    text = "reference" if math.isnan(gain) else f"{gain:+.2f}"
    if not math.isnan(lower):
      text += f" ({lower:.2f} to {upper:.2f})"
    texts.append(text.replace("-", "−"))
  ps = [
    DASH if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"
    for p in statistics.holm([row[f"{name}_p"] for row in rows])
  ]
  best = _best(np.nan_to_num(gains).tolist(), max, 2)
  return [(heading, texts, best), ("p", ps, set())]


def _best(
  values: Sequence[float], best: Callable[..., float], digits: int
) -> set[int]:
  """Indices of the best of several rounded values; empty for one value."""
  known = {i: round(x, digits) for i, x in enumerate(values) if x == x}
  if len(known) < 2:
    return set()
  return {i for i, x in known.items() if x == best(known.values())}


def _percent(fraction: float) -> float:
  return round(100 * fraction, 6)


def _markdown(value: object) -> str:
  """Plain text as one line, with Markdown's special characters escaped."""
  return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", one_line(value, 10_000))


def title(system: str) -> str:
  """The system's name in Table 1 if it is there, else its own."""
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
    UserError: the list is empty, or runs differ in images, classes, training
      counts or test labels.
  """
  if not results:
    raise UserError("No finished run to compare. Train at least one.")
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
          f"The {what} of {result.system!r} with seed {result.seed} differ from"
          f" those of {first.system!r} with seed {first.seed}. Train it again"
          " on the same data."
        )
    groups.setdefault(result.system, []).append(result)
  return {
    system: sorted(group, key=lambda result: result.seed)
    for system, group in groups.items()
    if group
  }
