"""Table 1 remade: a row for each system, in Markdown, CSV and HTML.

Accuracies are fractions in rows and per cent in print. System and class names
are strangers' text, so each format escapes them in its own way.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dbl_jax import report_page
from dbl_jax.comparison.grids import Grid, grids, percent
from dbl_jax.comparison.rows import Row
from dbl_jax.comparison.statistics import Comparison
from dbl_jax.figures import one_line

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
    report_page.section(
      grid.heading, _html_table(rows, grid), report_page.note(grid.note)
    )
    for grid in grids(rows)
  ]
  lacking = "".join(f"<li>{report_page.text(item)}</li>" for item in missing)
  alt = "; the tables on this page have the numbers"
  pictures = [
    report_page.section(heading, report_page.picture(png, heading + alt))
    for heading, png in (figures or {}).items()
  ]
  stated = "".join(
    f"<p><strong>{report_page.text(key)}:</strong> {report_page.text(v)}</p>"
    for key, v in facts.items()
    if key != "Command"
  )
  command = f"<pre>{report_page.text(facts['Command'])}</pre>"
  sections = [
    report_page.section("Missing, not finished", f"<ul>{lacking}</ul>")
    if missing
    else "",
    *tables,
    *pictures,
    report_page.section("How these numbers were made", stated, command),
  ]
  head = [facts["Data set"], facts["Image size"]]
  head += [f"{facts['Test images']} test images", f"seeds {facts['Seeds']}"]
  return report_page.page(TITLE, head, sections)


def _html_table(rows: Sequence[Row], grid: Grid) -> str:
  """As `report_page.table`, with the best values bold."""
  text = report_page.text
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
