"""The files of a comparison: table.md, table.csv, table.html, two pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbl_jax.compare import plots, table
from dbl_jax.compare.records import Record, facts, make_rows
from dbl_jax.runtime import files


def write(
  out: Path,
  records: Sequence[Record],
  missing: Sequence[str],
  about: Mapping[str, Any],
  *,
  reference: str = "basic",
  cuts: tuple[int, int] | None = None,
  paper_points: bool = False,
) -> None:
  """Writes the tables and pictures, each file whole or not at all.

  All are made before the first is written, so that what cannot be made leaves
  the old ones as they were.

  Args:
    out: folder, made if missing.
    records: finished runs on one data set.
    missing: systems asked for but not finished, and what each lacks.
    about: `dataset`, `image_size` and `command`, plain text.
    reference: system that the others are compared with.
    cuts: (many, few) training images of the tiers; None: the data's own.
    paper_points: whether to draw the paper's accuracies beside ours.

  Raises:
    UserError: the records cannot be compared, see `records.by_system`.
  """
  rows = make_rows(records, reference, cuts)
  stated = facts(records, about, cuts)
  accuracies = plots.accuracies(records, reference, paper_points=paper_points)
  matrices = plots.confusion_matrices(records)
  pictures = {
    "Mean-class against overall accuracy": accuracies,
    "Confusion matrices": matrices,
  }
  page = table.as_html(rows, stated, missing, pictures)
  contents = {
    "table.md": _utf8(table.as_markdown(rows, stated, missing)),
    "table.csv": _utf8(table.as_csv(rows, stated, missing)),
    "table.html": page.encode("utf-8", "xmlcharrefreplace"),
    "confusion_matrices.png": matrices,
    "accuracies.png": accuracies,
  }
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    files.write(out / name, content)


def _utf8(text: str) -> bytes:
  """UTF-8, with question marks for what no file can hold."""
  return text.encode("utf-8", "replace")
