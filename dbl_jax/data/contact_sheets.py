"""Pictures of a data set for the eye: some images of each class, and twins."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dbl_jax.data import images
from dbl_jax.data.checks import Facts
from dbl_jax.data.listing import Listing

_SIDE = 64  # of an image, in pixels
_COLUMNS = 12
_ROWS = {"train": 6, "validation": 2, "test": 3}
_LINE = 16  # height of a line of text


def write(
  found: Listing,
  facts: Sequence[Facts],
  pairs: Sequence[tuple[int, int, int]],
  out: Path,
) -> list[Path]:
  """Writes a PNG for each class, and one of twins if there are any.

  Args:
    found: the data set.
    facts: of all its images.
    pairs: twins, and bits that differ; the first of both kinds are shown.
    out: folder to write to, made if need be.

  Returns:
    The files.
  """
  out.mkdir(parents=True, exist_ok=True)
  paths = []
  for label, name in enumerate(found.class_names):
    # A file's name has at most 255 bytes.
    safe = re.sub(r"\W+", "_", name)[:50]
    paths.append(out / f"class_{label}_{safe}.png")
    _class_sheet(facts, label, name, found.parts).save(paths[-1])
  if pairs:
    paths.append(out / "twins.png")
    _twin_sheet(facts, pairs).save(paths[-1])
  return paths


def _class_sheet(
  facts: Sequence[Facts], label: int, name: str, parts: Iterable[str]
) -> Image.Image:
  bands = []
  for part in parts:
    members = [
      f
      for f in facts
      if f.part == part and f.record.label == label and not f.error
    ]
    # Seeded, so that two sheets of the same data are the same.
    order = np.random.default_rng(0).permutation(len(members))
    shown = [members[i] for i in order[: _ROWS[part] * _COLUMNS]]
    title = f"{name}: {part}, {len(shown)} of {len(members)} images"
    bands.append(_band(title, shown))
  return _stack(bands)


def _twin_sheet(
  facts: Sequence[Facts], pairs: Sequence[tuple[int, int, int]]
) -> Image.Image:
  per_row, bands = _COLUMNS // 2, []
  # One pair for each image that has twins, of those alike and nearly alike.
  alike = {p[0]: p for p in reversed(pairs) if _alike(facts, p)}
  near = {p[0]: p for p in reversed(pairs) if not _alike(facts, p)}
  shown = [
    pair
    for kind in (alike, near)
    for pair in list(reversed(kind.values()))[: 6 * per_row]
  ]
  for start in range(0, len(shown), per_row):
    row = shown[start : start + per_row]
    words = [
      f"{facts[a].part}-{facts[b].part} {bits} bits" for a, b, bits in row
    ]
    bands.append(_band(words, [facts[i] for a, b, _ in row for i in (a, b)]))
  return _stack(bands)


def _alike(facts: Sequence[Facts], pair: tuple[int, int, int]) -> bool:
  return facts[pair[0]].pixels == facts[pair[1]].pixels


def _band(title: str | list[str], shown: Sequence[Facts]) -> Image.Image:
  """A line of text over rows of images; a list of texts goes over pairs."""
  rows = max(-(-len(shown) // _COLUMNS), 1)
  size = (_COLUMNS * _SIDE, _LINE + rows * _SIDE)
  band = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(band)
  for i, text in enumerate([title] if isinstance(title, str) else title):
    # The built-in font knows Latin letters only.
    text = text.encode("latin-1", "replace").decode("latin-1")
    draw.text((i * 2 * _SIDE + 2, 2), text, fill="black")
  for i, fact in enumerate(shown):
    file = fact.record.file
    decoded = images.decode(file.read(), _SIDE, file.origin, fact.record.box)
    place = (i % _COLUMNS * _SIDE, _LINE + i // _COLUMNS * _SIDE)
    band.paste(Image.fromarray(decoded), place)
  return band


def _stack(bands: Sequence[Image.Image]) -> Image.Image:
  sheet = Image.new("RGB", (bands[0].width, sum(b.height for b in bands)))
  top = 0
  for band in bands:
    sheet.paste(band, (0, top))
    top += band.height
  return sheet
