"""What is in a data set before anything is trained on it.

Counts, sizes, imbalance, unreadable files, and images that occur twice: the
same pixels, or nearly the same picture by a perceptual hash. A picture that
is in the training and the test part makes test accuracy too good.
"""

import hashlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dbl_jax.data import sources
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import images, listing
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError

# Bits of 128. On FER2013, of the pairs within it 95 in 100 are one picture
# (correlation of 16 x 16 grey thumbnails above 0.95); at 12 it is 83.
NEAR = 8
_BLOCK = 128  # images compared with all others at once


class Facts(NamedTuple):
  """What is known of an image.

  Attributes:
    part: its part of the data set.
    record: what it is.
    size: width and height in pixels; of the box, if there is one.
    mode: Pillow's, such as 'RGB' or 'L'.
    pixels: hash of its pixels as RGB.
    bits: uint64[2] difference hash, see `difference_hash`.
    error: why it cannot be read, or ''.
  """

  part: str
  record: Record
  size: tuple[int, int] = (0, 0)
  mode: str = ""
  pixels: bytes = b""
  bits: np.ndarray | None = None
  error: str = ""


class Twins(NamedTuple):
  """Images that occur more than once; all numbers are indices of facts.

  Attributes:
    same: groups of two and more images with the same pixels.
    near: pairs of images and their distance in bits, one of each group.
  """

  same: list[list[int]]
  near: list[tuple[int, int, int]]


def find(options: Any) -> Listing:
  """The images of the data set that options name, as they are stored.

  Args:
    options: `config.data`.

  Returns:
    The listing. Data without image files (drawn faces, a prepared file) give
    their decoded images.

  Raises:
    UserError: if there is no such data set, or its files are not in order.
  """
  source = sources.SOURCES[options.name]
  if source.find is not None and not options.dir.endswith(".npz"):
    return source.find(options)
  return _of_dataset(sources.load(options))


def _of_dataset(dataset: Dataset) -> Listing:
  side = dataset.image_size

  def file(name: str, image: np.ndarray) -> StoredFile:
    header = b"P6 %d %d 255\n" % (side, side)
    return StoredFile(name, 0, 0, lambda: header + image.tobytes())

  parts = {
    name: tuple(
      Record(f"{name} {i}", int(label), file(f"{name} image {i}", image))
      for i, (image, label) in enumerate(zip(*part, strict=True))
    )
    for name, part in dataset.parts.items()
  }
  return Listing(dataset.class_names, parts, dataset.warnings)


def examine(
  found: Listing, progress: Callable[[int, int], None] | None = None
) -> list[Facts]:
  """Reads every image.

  Args:
    found: the data set.
    progress: called with the number of images read, and of all.

  Returns:
    Facts about each, in the listing's order.
  """
  items = [(part, r) for part, records in found.parts.items() for r in records]
  return images.in_threads(lambda item: _facts(*item), items, progress)


def _facts(part: str, record: Record) -> Facts:
  file = record.file
  picture = images.Picture(file.origin, file.read, record.box)
  try:
    with images.opened(images.read(picture), file.origin) as image:
      mode = image.mode
      rgb = images.cut(images.to_rgb(image, file.origin), picture)
  except UserError as error:
    return Facts(part, record, error=str(error))
  digest = hashlib.blake2b(f"{rgb.size}".encode(), digest_size=16)
  digest.update(rgb.tobytes())
  bits = difference_hash(rgb)
  return Facts(part, record, rgb.size, mode, digest.digest(), bits)


def difference_hash(image: Image.Image) -> np.ndarray:
  """128 bits that hardly change when a picture is resized or recompressed.

  A bit says whether a cell is lighter than its neighbour: 64 compare cells of
  8 rows of 9 with those left of them, 64 cells of 9 rows of 8 with those
  above.

  Args:
    image: of any size and mode.

  Returns:
    uint64[2].
  """
  grey = image.convert("L")
  wide = np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR))
  tall = np.asarray(grey.resize((8, 9), Image.Resampling.BILINEAR))
  bits = np.stack([wide[:, 1:] > wide[:, :-1], tall[1:] > tall[:-1]])
  return np.packbits(bits).view(np.uint64)


def find_twins(facts: list[Facts], distance: int = NEAR) -> Twins:
  """Finds the images that occur more than once.

  Args:
    facts: of all images.
    distance: how many of the 128 bits may differ in a near pair.

  Returns:
    The groups and pairs.
  """
  groups = defaultdict(list)
  for i, fact in enumerate(facts):
    if not fact.error:
      groups[fact.pixels].append(i)
  same = [group for group in groups.values() if len(group) > 1]
  first = [group[0] for group in groups.values()]
  near = []
  if first:
    bits = np.stack([b for i in first if (b := facts[i].bits) is not None])
    near = [(first[a], first[b], d) for a, b, d in _close(bits, distance)]
  return Twins(same, near)


def _close(bits: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
  for start in range(0, len(bits), _BLOCK):
    block = bits[start : start + _BLOCK, None]
    apart = sum(
      np.bitwise_count(block[..., word] ^ bits[None, start:, word])
      for word in range(bits.shape[1])
    )
    a, b = np.nonzero(apart <= distance)
    for i, j in zip(a[a < b].tolist(), b[a < b].tolist(), strict=True):
      yield start + i, start + j, int(apart[i, j])


def twin_pairs(facts: list[Facts], twins: Twins) -> list[tuple[int, int, int]]:
  """All twins as pairs and their distance, those between parts first."""
  pairs = [(group[0], other, 0) for group in twins.same for other in group[1:]]
  pairs += twins.near
  return sorted(
    pairs, key=lambda p: (facts[p[0]].part == facts[p[1]].part, p[2])
  )


def report(
  found: Listing, facts: list[Facts], twins: Twins, distance: int = NEAR
) -> list[str]:
  """Says it all in lines to print.

  Args:
    found: the data set.
    facts: from `examine`.
    twins: from `find_twins`.
    distance: as `find_twins` had it.

  Returns:
    The lines.
  """
  bad = [fact for fact in facts if fact.error]
  lines = [*_count_table(found), ""]
  lines += [f"Note: {warning}" for warning in found.warnings]
  lines += _size_lines(facts)
  lines.append(f"Unreadable files: {len(bad) or 'none'}")
  lines += [f"  {fact.error}" for fact in bad[:20]]
  lines += ["  ..."] if len(bad) > 20 else []
  lines.append("The same pixels more than once:")
  same = [p for g in twins.same for p in itertools.combinations(g, 2)]
  lines += _twin_lines(facts, same, found.parts)
  conflicts = _conflicts(facts, twins.same)
  if conflicts:
    lines.append(f"  {conflicts} pictures have different labels")
  lines.append(
    f"Nearly the same picture (at most {distance} of 128 bits differ):"
  )
  # A near pair stands for all images that are the same as either.
  group = {g[0]: g for g in twins.same}
  near = [
    pair
    for a, b, _ in twins.near
    for pair in itertools.product(group.get(a, [a]), group.get(b, [b]))
  ]
  return lines + _twin_lines(facts, near, found.parts)


def _count_table(found: Listing) -> list[str]:
  counts = listing.counts(found)
  width = max(len("imbalance"), *(len(n) for n in found.class_names))
  lines = [" " * width + "".join(f"{part:>16}" for part in counts)]
  for label, name in enumerate(found.class_names):
    cells = [
      f"{c[label]:9} {c[label] / max(sum(c), 1):6.1%}" for c in counts.values()
    ]
    lines.append(f"{name:{width}}" + "".join(cells))
  total = "".join(f"{sum(c):9}       " for c in counts.values())
  ratio = "".join(
    f"{max(c) / min(c):9.1f}       " if min(c) else f"{'-':>9}       "
    for c in counts.values()
  )
  lines += [f"{'all':{width}}{total}", f"{'imbalance':{width}}{ratio}"]
  return [line.rstrip() for line in lines]


def _size_lines(facts: list[Facts]) -> list[str]:
  good = [fact for fact in facts if not fact.error]
  if not good:
    return []
  (size, number), *others = Counter(f.size for f in good).most_common()
  sides = np.array([f.size for f in good])
  low, middle, high = (
    "{:.0f} x {:.0f}".format(*side)
    for side in (sides.min(0), np.median(sides, axis=0), sides.max(0))
  )
  text = f"Size: {size[0]} x {size[1]} pixels"
  if others:
    text += (
      f" {number} times, and {len(others)} others; at least {low}, median"
      f" {middle}, at most {high}"
    )
  modes = Counter(f.mode for f in good).most_common()
  return [text, "Mode: " + ", ".join(f"{m} {n}" for m, n in modes)]


def _twin_lines(
  facts: list[Facts], pairs: Iterable[tuple[int, int]], parts: Iterable[str]
) -> list[str]:
  """How many images have a twin, within each part and between two."""
  having = defaultdict(set)
  for a, b in pairs:
    having[facts[a].part, facts[b].part].add(a)
    having[facts[b].part, facts[a].part].add(b)
  lines = []
  for part in parts:
    if number := len(having[part, part]):
      lines.append(f"  within {part}: {number} images have another like them")
  for one, other in itertools.combinations(parts, 2):
    if number := len(having[one, other]):
      lines.append(
        f"  LEAK between {one} and {other}: {number} images of {one} are like"
        f" {len(having[other, one])} of {other}"
      )
  return lines or ["  none"]


def _conflicts(facts: list[Facts], groups: list[list[int]]) -> int:
  return sum(len({facts[i].record.label for i in g}) > 1 for g in groups)


def table(
  found: Listing, facts: list[Facts], twins: Twins
) -> list[tuple[Any, ...]]:
  """Every unreadable file and every pair of twins, as rows of a CSV.

  Returns:
    The header, and rows: what, bits that differ, then part, class and file of
    one image and of the other.
  """
  rows: list[tuple[Any, ...]] = [
    ("what", "bits", "part", "class", "file", "part2", "class2", "file2")
  ]

  def who(fact: Facts) -> tuple[str, str, str]:
    record = fact.record
    return fact.part, found.class_names[record.label], record.file.origin

  for fact in facts:
    if fact.error:
      rows.append(("unreadable", "", *who(fact), "", "", fact.error))
  for a, b, bits in twin_pairs(facts, twins):
    same = facts[a].pixels == facts[b].pixels
    what = "same" if same else "near"
    rows.append((what, bits, *who(facts[a]), *who(facts[b])))
  return rows


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


_KEY_BYTES = 64


def shared(parts: Mapping[str, Split]) -> dict[tuple[str, str], int]:
  """Counts images that have the same pixels as one in another part.

  Args:
    parts: by name.

  Returns:
    For pairs of parts (one, other) that share images: how many of the
    other's images are in the first.
  """
  keys = {name: _keys(part.images) for name, part in parts.items()}
  found = {}
  for one, other in itertools.combinations(parts, 2):
    # Few images agree in some of their pixels; those are compared in all.
    common = np.intersect1d(keys[one], keys[other])
    here, there = (
      [_digest(image) for image in parts[n].images[np.isin(keys[n], common)]]
      for n in (one, other)
    )
    first = set(here)
    if number := sum(digest in first for digest in there):
      found[one, other] = number
  return found


def _keys(images: np.ndarray) -> np.ndarray:
  """uint64[n], of some of each image's bytes."""
  flat = images.reshape(len(images), math.prod(images.shape[1:]))
  some = flat[:, :: max(flat.shape[1] // _KEY_BYTES, 1)].astype(np.uint64)
  # Odd factors of 64 bits: sums that wrap around differ with the pixels.
  factors = np.random.default_rng(0).integers(2**63, size=some.shape[1])
  return some @ (factors.astype(np.uint64) | np.uint64(1))


def _digest(image: np.ndarray) -> bytes:
  return hashlib.blake2b(image.tobytes(), digest_size=16).digest()
