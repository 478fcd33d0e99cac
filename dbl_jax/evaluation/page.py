"""The frame and style of the report page, and its few HTML building blocks.

Whatever goes into the page passes through `text` first: class names, titles
and config values come from strangers' data sets.
"""

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from string import Template

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="facts">$facts</p>
</header>
$sections
</main>
</body>
</html>
""")

_STYLE = """
:root {
  --page: #f4f6f8; --card: #ffffff; --ink: #1f2429; --faint: #5b6570;
  --line: #dde2e7; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1d2226; --ink: #e4e8ec; --faint: #9aa5b0;
    --line: #343b42; --accent: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 {
  margin: 0; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere;
}
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
p { max-width: 44rem; }
.facts { margin: .4rem 0 1.5rem; color: var(--faint); }
.facts span:not(:last-child)::after { content: " ·"; }
.note { margin: .75rem 0 0; color: var(--faint); font-size: .875rem; }
section, .tile {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
section { margin: 0 0 1.25rem; padding: 1.25rem; }
.tiles {
  display: grid; gap: 1rem; margin: 0 0 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
}
.tile { padding: 1rem 1.25rem; overflow-wrap: anywhere; }
.tile:first-child { border-top: 4px solid var(--accent); }
.tile:not(:first-child) { border-top-width: 4px; }
.tile dt { font-weight: 600; }
.tile dd { margin: 0; color: var(--faint); font-size: .9rem; }
.tile dd.value {
  color: var(--ink); font-size: 2.5rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums;
}
.tile:first-child dd.value { color: var(--accent); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; text-align: center; max-width: 100%; overflow-x: auto; }
.pictures figure { flex: 1 1 18rem; }
figcaption { margin: 0 0 .5rem; font-weight: 600; text-align: left; }
img {
  max-width: 100%; height: auto; padding: .5rem; background: #ffffff;
  border-radius: 6px;
}
.scroll { overflow-x: auto; margin-top: 1rem; }
table {
  width: 100%; border-collapse: collapse; font-size: .925rem;
  font-variant-numeric: tabular-nums;
}
th, td {
  padding: .4rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap;
}
th:first-child { text-align: left; white-space: normal; min-width: 8rem; }
tbody th { font-weight: 500; max-width: 16rem; overflow-wrap: break-word; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600; }
pre {
  margin: .75rem 0 0; overflow-x: auto; font-size: .85rem; line-height: 1.45;
}
@media (max-width: 30rem) {
  main { padding-top: 1.25rem; }
  section { padding: 1rem; }
  img { padding: 0; }
  th, td { padding: .4rem; }
  th:first-child { min-width: 5rem; }
  table { font-size: .85rem; }
}
@media print {
  :root {
    --page: #ffffff; --card: #ffffff; --ink: #000000; --faint: #444444;
    --line: #bbbbbb; --accent: #0072b2;
  }
  main { max-width: none; padding: 0; }
  .tile, tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


def page(title: str, facts: Sequence[str], sections: Iterable[str]) -> str:
  """Puts a page together.

  Args:
    title: plain text.
    facts: plain texts shown in one line under the title.
    sections: HTML; empty ones are passed over.

  Returns:
    One HTML document that needs no other file.
  """
  return _PAGE.substitute(
    title=text(title),
    style=_STYLE,
    facts=" ".join(f"<span>{text(fact)}</span>" for fact in facts),
    sections="\n".join(filter(None, sections)),
  )


def section(heading: str, *parts: str) -> str:
  """A card with a heading (plain text) over HTML parts."""
  body = "\n".join(filter(None, parts))
  return f"<section>\n<h2>{text(heading)}</h2>\n{body}\n</section>"


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of plain texts; the first column names the row."""
  columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
  body = "\n".join(
    f'<tr><th scope="row">{text(first)}</th>'
    + "".join(f"<td>{text(cell)}</td>" for cell in rest)
    + "</tr>"
    for first, *rest in rows
  )
  return (
    f'<div class="scroll"><table>\n<thead><tr>{columns}</tr></thead>\n'
    f"<tbody>\n{body}\n</tbody>\n</table></div>"
  )


def picture(png: bytes, alt: str, caption: str = "") -> str:
  """An embedded PNG, drawn at two to three of its pixels per CSS pixel.

  Where there is no room even for that, its letters would be too small to read,
  and it scrolls sideways instead.
  """
  # Bytes 16 to 24 of a PNG hold its size; the page then does not jump about.
  width, height = struct.unpack(">II", png[16:24])
  label = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
  data = base64.b64encode(png).decode("ascii")
  return (
    f'<figure>{label}<img width="{width // 2}" height="{height // 2}" '
    f'style="min-width:{width // 3}px" alt="{text(alt)}" '
    f'src="data:image/png;base64,{data}"></figure>'
  )


def pictures(*figures: str) -> str:
  """Pictures side by side, stacked where the page is narrow."""
  return f'<div class="pictures">{"".join(figures)}</div>'


def details(summary: str, code: str) -> str:
  """A folded card around a listing, both plain text."""
  return (
    f"<section><details><summary>{text(summary)}</summary>\n"
    f"<pre>{text(code)}</pre>\n</details></section>"
  )


def note(*sentences: str) -> str:
  """Small print, from plain text."""
  return f'<p class="note">{text(" ".join(filter(None, sentences)))}</p>'


def text(value: object) -> str:
  """Escapes plain text for HTML content and attribute values."""
  return html.escape(str(value), quote=True)
