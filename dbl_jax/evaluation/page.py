"""HTML building blocks of a page that loads no other file.

Class names, titles and config values are untrusted input: all of them pass
through `text`.
"""

import base64
import html
import struct
from collections.abc import Container, Iterable, Sequence
from importlib import resources
from string import Template


def page(title: str, facts: Sequence[str], sections: Iterable[str]) -> str:
  """Makes an HTML document with its style and script inside.

  `title` and `facts`, shown in one line below it, are plain text; `sections`
  are HTML, and empty ones are left out.
  """
  template = resources.files(__package__) / "report_template.html"
  return Template(template.read_text("utf-8")).substitute(
    title=text(title),
    facts=" ".join(f"<span>{text(fact)}</span>" for fact in facts),
    sections="\n".join(filter(None, sections)),
  )


def section(heading: str, *parts: str) -> str:
  """A card with a heading (plain text) over HTML parts."""
  body = "\n".join(filter(None, parts))
  return f"<section>\n<h2>{text(heading)}</h2>\n{body}\n</section>"


def figure(heading: str, png: bytes | None, alt: str, *remarks: str) -> str:
  """A card with one picture and small print; empty without a picture."""
  if png is None:
    return ""
  return section(heading, picture(png, alt), note(*remarks))


def tiles(rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
  """Headline numbers, from (label, value, remarks) in plain text."""
  body = "\n".join(
    f'<div class="tile"><dt>{text(label)}</dt>'
    f'<dd class="value">{text(value)}</dd>'
    + "".join(f"<dd>{text(remark)}</dd>" for remark in remarks)
    + "</div>"
    for label, value, remarks in rows
  )
  return f'<dl class="tiles">\n{body}\n</dl>'


def table(
  head: Sequence[str],
  rows: Iterable[Sequence[str]],
  bold: Container[tuple[int, int]] = (),
) -> str:
  """A table of plain texts that a click on a heading sorts.

  The first cell of a row names it; `bold` has (row, column), from 0.
  """
  columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
  lines = []
  for i, (first, *rest) in enumerate(rows):
    shown = [
      f"<strong>{text(cell)}</strong>" if (i, j) in bold else text(cell)
      for j, cell in enumerate(rest, 1)
    ]
    cells = "".join(f"<td>{cell}</td>" for cell in shown)
    lines.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
  body = "\n".join(lines)
  return (
    '<div class="scroll"><table class="sortable">\n'
    f"<thead><tr>{columns}</tr></thead>\n"
    f"<tbody>\n{body}\n</tbody>\n</table></div>"
  )


def picture(png: bytes, alt: str, caption: str = "") -> str:
  """An embedded PNG, drawn at two to three of its pixels per CSS pixel.

  It scrolls sideways where even that does not fit, to keep its text legible.
  """
  # Bytes 16 to 24 of a PNG hold its size, which reserves its place.
  width, height = struct.unpack(">II", png[16:24])
  label = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
  data = base64.b64encode(png).decode("ascii")
  return (
    f'<figure>{label}<img width="{width // 2}" height="{height // 2}" '
    f'style="min-width:{width // 3}px" alt="{text(alt)}" '
    f'src="data:image/png;base64,{data}"></figure>'
  )


def details(summary: str, code: str) -> str:
  """A collapsed card around a listing, both plain text."""
  return (
    f"<section><details><summary>{text(summary)}</summary>\n"
    f"<pre>{text(code)}</pre>\n</details></section>"
  )


def note(*sentences: str) -> str:
  """Small print, from plain text; empty without any."""
  content = " ".join(filter(None, sentences))
  return f'<p class="note">{text(content)}</p>' if content else ""


def text(value: object) -> str:
  """Escapes plain text for HTML content and attribute values."""
  return html.escape(str(value), quote=True)
