"""Table 1 remade: a row for each system, in Markdown, CSV and HTML.

Accuracies are fractions in rows and per cent in print. System and class names
are strangers' text, so each format escapes them in its own way.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dbl_jax.compare import statistics
from dbl_jax.compare.records import Row, seed_list
from dbl_jax.compare.statistics import Comparison, Difference, Mean
from dbl_jax.evaluation import page
from dbl_jax.evaluation.plots import one_line

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


TITLE = "Systems compared, as in the paper's Table 1"


def as_markdown(
  rows: Sequence[Row], facts: Mapping[str, str], missing: Sequence[str] = ()
) -> str:
  """The tables in GitHub's Markdown, best values bold."""
  parts = [f"# {TITLE}"]
  if missing:
    parts.append("**Missing**, not finished:")
    parts.append("\n".join(f"- {_markdown(item)}" for item in missing))
  for grid in grids(rows):
    head = ["System", *(_markdown(heading) for heading, _ in grid.columns)]
    lines = [head, ["---", *(["---:"] * len(grid.columns))]]
    for i, row in enumerate(rows):
      cells = [
        f"**{cells[i][0]}**" if cells[i][1] else cells[i][0]
        for _, cells in grid.columns
      ]
      lines.append([_markdown(row.title), *cells])
    parts.append(f"## {_markdown(grid.heading)}")
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append(grid.note)
  parts.append("## How these numbers were made")
  listed = [item for item in facts.items() if item[0] != "Command"]
  parts.append("\n".join(f"- {key}: {_markdown(v)}" for key, v in listed))
  ticks = re.findall("`+", facts["Command"])
  fence = "`" * max([3, *(len(run) + 1 for run in ticks)])
  parts.append(f"{fence}sh\n{facts['Command']}\n{fence}")
  return "\n\n".join(parts) + "\n"


def as_csv(
  rows: Sequence[Row], facts: Mapping[str, str], missing: Sequence[str] = ()
) -> str:
  """One line for each system, the facts repeated in its last columns.

  Of what both say, such as seeds, the system's own stands: it may lack some.
  """
  stated = {
    re.sub(r"\W+", " ", key).strip().replace(" ", "_").lower(): value
    for key, value in facts.items()
  }
  stated["missing"] = "; ".join(missing)
  lines = [own | stated | own for own in map(_csv_row, rows)]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines)
  return text.getvalue()


def as_html(
  rows: Sequence[Row],
  facts: Mapping[str, str],
  missing: Sequence[str] = (),
  figures: Mapping[str, bytes] | None = None,
) -> str:
  """A page that stands alone; `figures` is heading -> PNG, below the tables."""
  tables = [
    page.section(grid.heading, _html_table(rows, grid), page.note(grid.note))
    for grid in grids(rows)
  ]
  lacking = "".join(f"<li>{page.text(item)}</li>" for item in missing)
  alt = "; the tables on this page have the numbers"
  pictures = [
    page.section(heading, page.picture(png, heading + alt))
    for heading, png in (figures or {}).items()
  ]
  stated = "".join(
    f"<p><strong>{page.text(key)}:</strong> {page.text(v)}</p>"
    for key, v in facts.items()
    if key != "Command"
  )
  command = f"<pre>{page.text(facts['Command'])}</pre>"
  sections = [
    page.section("Missing, not finished", f"<ul>{lacking}</ul>")
    if missing
    else "",
    *tables,
    *pictures,
    page.section("How these numbers were made", stated, command),
  ]
  head = [facts["Data set"], facts["Image size"]]
  head += [f"{facts['Test images']} test images", f"seeds {facts['Seeds']}"]
  return page.page(TITLE, head, sections)


def _html_table(rows: Sequence[Row], grid: Grid) -> str:
  """As `report_page.table`, with the best values bold."""
  text = page.text
  head = ["System", *(heading for heading, _ in grid.columns)]
  columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
  lines = []
  for i, row in enumerate(rows):
    cells = "".join(
      f"<td><strong>{text(cells[i][0])}</strong></td>"
      if cells[i][1]
      else f"<td>{text(cells[i][0])}</td>"
      for _, cells in grid.columns
    )
    lines.append(f'<tr><th scope="row">{text(row.title)}</th>{cells}</tr>')
  return (
    f'<div class="scroll"><table>\n<thead><tr>{columns}</tr></thead>\n'
    f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>"
  )


def _markdown(value: object) -> str:
  """Plain text as one line that Markdown shows as it is."""
  line = one_line(value, 10_000)
  return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", line)


def _csv_row(row: Row) -> dict[str, Any]:
  """A row as columns of CSV, numbers to many digits, '' for none."""
  cells = {
    "system": row.system,
    "title": row.title,
    "seeds": " ".join(map(str, row.seeds)),
    "paper_average_percent": row.paper_average,
    "paper_overall_percent": row.paper_overall,
  }
  accuracies = {"mean_class": row.mean_class, "overall": row.overall}
  for name, (mean, sd) in accuracies.items():
    cells[f"{name}_accuracy_percent"] = percent(mean)
    cells[f"{name}_accuracy_sd_percent"] = percent(sd)
  for name in Comparison._fields:
    d = row.difference and getattr(row.difference, name)
    for part in ("difference", "lower", "upper"):
      key = f"{name}_{part}_points"
      cells[key] = percent(getattr(d, part)) if d else None
    cells[f"{name}_p"] = d.p if d else None
  for tier, recall in row.tiers.items():
    cells[f"{tier}_recall_percent"] = percent(recall)
  cells["expected_calibration_error_percent"] = percent(row.calibration_error)
  cells["training_seconds"] = row.seconds
  for name, (mean, sd) in row.recall.items():
    cells[f"recall_percent: {name}"] = percent(mean)
    cells[f"recall_sd_percent: {name}"] = percent(sd)
  return cells
