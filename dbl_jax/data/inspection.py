"""Inspection of a data set before anything is trained on it.

Counts, sizes, imbalance, unreadable files, and duplicates: images with the
same pixels, or near-duplicates by a perceptual hash. An image that is in the
training and the test split makes test accuracy too high.
"""

import csv
import dataclasses
import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import sparse
from scipy.sparse import csgraph

from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import images, listing
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError
from dbl_jax.runtime.rows import Array

# Bits of 128. On FER2013, 95 in 100 of the pairs within it are one picture
# (correlation of 16 x 16 grey thumbnails above 0.95); at 12 it is 83.
NEAR = 8
# Of more classes a sample is shown.
MAX_CLASSES = 30
# Bits of the narrowest key; buckets of more hashes are searched one by one.
_MIN_KEY, _SMALL_BUCKET = 8, 4096
# Images that are read and hashed together.
_CHUNK = 256
# Indices of two images, and the number of bits in which they differ.
Pair = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
  """Properties of an image.

  Attributes:
    split: its split of the data set.
    record: its name, label and file.
    size: width and height in pixels; of the box, if there is one.
    mode: Pillow's, such as 'RGB' or 'L'.
    pixels: hash of its pixels as RGB.
    bits: 16 bytes, see `difference_hash`.
    error: why it cannot be read, or ''.
  """

  split: str
  record: Record
  size: tuple[int, int] = (0, 0)
  mode: str = ""
  pixels: bytes = b""
  bits: bytes = b""
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
  """Result of `inspect`; images are given by their index in `facts`.

  Attributes:
    listing: the data set.
    facts: of each image, in the order of the listing.
    same: groups of two and more images with the same pixels.
    near: near-duplicates: for each group of n images that are linked, n - 1
      pairs. Of images with the same pixels the first stands for all.
    distance: number of bits in which near-duplicates may differ.
  """

  listing: Listing
  facts: list[Facts]
  same: list[list[int]]
  near: list[Pair]
  distance: int


def listing_of(dataset: Dataset) -> Listing:
  """Lists the decoded images of a data set, as PPM files."""
  header = b"P6 %d %d 255\n" % (dataset.image_size, dataset.image_size)

  def file(name: str, i: int) -> StoredFile:
    images = dataset.splits[name].images
    read = lambda: header + images[i].tobytes()  # noqa: E731
    return StoredFile(f"{name} image {i}", 0, 0, read)

  splits = {
    name: tuple(
      Record(f"{name} {i}", label, file(name, i))
      for i, label in enumerate(split.labels.tolist())
    )
    for name, split in dataset.splits.items()
  }
  return Listing(dataset.class_names, splits, dataset.warnings)


def inspect(
  found: Listing,
  distance: int = NEAR,
  progress: Callable[[int, int], None] | None = None,
) -> Findings:
  """Reads every image and finds those that occur more than once.

  In near-duplicates at most `distance` of 128 bits differ. `progress` is called
  with the number of images read, and of all.
  """
  items = [(name, r) for name, records in found.splits.items() for r in records]
  facts = images.in_threads(lambda item: _facts(*item), items, progress)
  groups = defaultdict(list)
  for i, fact in enumerate(facts):
    if not fact.error:
      groups[fact.pixels].append(i)
  first = [group[0] for group in groups.values()]
  hashes = b"".join(facts[i].bits for i in first)
  bits = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
  same = [group for group in groups.values() if len(group) > 1]
  near = [(first[a], first[b], d) for a, b, d in _near(bits, distance)]
  return Findings(found, facts, same, near, distance)


def _facts(split: str, record: Record) -> Facts:
  file = record.file
  try:
    with images.opened(file.read(), file.origin) as image:
      mode = image.mode
      rgb = images.to_rgb(image, file.origin)
      rgb = images.cut(rgb, record.box, file.origin)
  except UserError as error:
    return Facts(split, record, error=str(error))
  digest = hashlib.blake2b(f"{rgb.size}".encode(), digest_size=16)
  digest.update(rgb.tobytes())
  bits = difference_hash(rgb).tobytes()
  return Facts(split, record, rgb.size, mode, digest.digest(), bits)


def difference_hash(image: Image.Image) -> np.ndarray:
  """Computes 128 bits, uint64[2], that recompression hardly changes.

  A bit is set where a cell is lighter than its neighbour: 64 bits compare the
  cells of 8 rows of 9 with those left of them, 64 the cells of 9 rows of 8
  with those above (dHash, in both directions).
  """
  grey = image.convert("L")
  wide = np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR))
  tall = np.asarray(grey.resize((8, 9), Image.Resampling.BILINEAR))
  bits = np.stack([wide[:, 1:] > wide[:, :-1], tall[1:] > tall[:-1]])
  return np.packbits(bits).view(np.uint64)


def _near(bits: np.ndarray, distance: int) -> list[Pair]:
  """Links hashes, uint64[n, 2], that differ in at most `distance` bits.

  Only hashes that agree in many bits are compared, see `_keys`. Of a group of n
  that are linked, n - 1 pairs are given: the closest ones that were compared.
  Memory is linear in the number of hashes, and so is time, unless thousands
  that are not alike share a key.
  """
  found, group = np.zeros((0, 3), np.int64), np.arange(len(bits))
  for keys in _keys(bits, distance):
    linked, new = [found], 0
    for pairs in _links(bits, keys, distance, group):
      linked.append(pairs)
      new += len(pairs)
      if new > len(bits) // 2:
        found, new = np.concatenate(linked), 0
        linked = [found]
        group[:] = _components(found, len(bits))
    if new:
      found = np.concatenate(linked)
      group[:] = _components(found, len(bits))
  forest = csgraph.minimum_spanning_tree(_graph(found, len(bits))).tocoo()
  return sorted(
    (*sorted((int(a), int(b))), int(weight) - 1)  # type: ignore[misc]
    for a, b, weight in zip(forest.row, forest.col, forest.data, strict=True)
  )


def _graph(pairs: np.ndarray, number: int) -> Any:
  """A graph of int[k, 3], with weights distance + 1: 0 means no edge."""
  one, other, apart = np.reshape(pairs, (-1, 3)).astype(np.int64).T
  one, other = np.minimum(one, other), np.maximum(one, other)
  # Weights of a repeated pair would be added.
  _, first = np.unique(one * number + other, return_index=True)
  one, other, apart = one[first], other[first], apart[first]
  return sparse.csr_array((apart + 1.0, (one, other)), (number, number))


def _components(pairs: np.ndarray, number: int) -> np.ndarray:
  """The group of each hash, int32[number]."""
  return csgraph.connected_components(_graph(pairs, number), directed=False)[1]


def _keys(bits: np.ndarray, distance: int) -> Iterator[np.ndarray]:
  """Yields keys uint64[n]; those of two near hashes are equal in one of them.

  Of distance + 2 bands of bits, hashes within the distance agree in two.
  """
  bands = distance + 2
  width = min(128 // bands, 32)
  if 2 * width < _MIN_KEY:
    yield np.zeros(len(bits), np.uint64)
    return
  flags = np.unpackbits(bits.view(np.uint8), axis=1)
  weights = np.uint64(1) << np.arange(width, dtype=np.uint64)
  # A band has bits from all over the image: neighbours are often equal.
  parts = [flags[:, i::bands][:, :width] @ weights for i in range(bands)]
  for one, other in itertools.combinations(parts, 2):
    yield (one << np.uint64(32)) | other


def _links(
  bits: np.ndarray, keys: np.ndarray, distance: int, group: np.ndarray
) -> Iterator[np.ndarray]:
  """Yields pairs with equal keys that connect near hashes.

  Each is int64[k, 3]: two indices and their distance. Hashes of the same
  `group`, int[n], are connected already; it may change meanwhile.
  """
  order = np.argsort(keys, kind="stable")
  keys, halves = keys[order], bits[order].T.copy()
  starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
  sizes = np.diff(starts, append=len(keys))
  own = group[order]

  def unconnected() -> np.ndarray:
    own[:] = group[order]
    return np.minimum.reduceat(own, starts) < np.maximum.reduceat(own, starts)

  def close(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
    counts = [np.bitwise_count(half[one] ^ half[other]) for half in halves]
    apart = counts[0] + counts[1]
    hits = apart <= distance
    new = np.flatnonzero(hits & (own[one] != own[other]))
    rows = (order[one[new]], order[other[new]], apart[new])
    return hits, np.stack(rows, axis=1).astype(np.int64)

  # All buckets at once: each hash with the next, with the one after that, ...
  at = np.arange(len(keys) if len(keys) > 1 else 0)
  for shift in range(1, _SMALL_BUCKET):
    if shift & (shift - 1) == 0 and at.size:
      at = at[np.repeat(unconnected(), sizes)[at]]
    at = at[at + shift < len(keys)]
    at = at[keys[at] == keys[at + shift]]
    if not at.size:
      return
    yield close(at, at + shift)[1]
  for i in np.flatnonzero((sizes > _SMALL_BUCKET) & unconnected()):
    left = starts[i] + np.arange(sizes[i])
    while len(left) > 1:
      reached, left = [left[0]], left[1:]
      while reached and len(left):
        hits, pairs = close(np.full(len(left), reached.pop()), left)
        yield pairs
        reached.extend(left[hits])
        left = left[~hits]


def _groups(findings: Findings) -> list[list[int]]:
  """Groups of near-duplicates, with all images that have the same pixels."""
  same = {group[0]: group for group in findings.same}
  group_of = _components(np.array(findings.near), len(findings.facts))
  groups: defaultdict[int, list[int]] = defaultdict(list)
  for i in sorted({i for pair in findings.near for i in pair[:2]}):
    groups[group_of[i]] += same.get(i, [i])
  return list(groups.values())


def _pairs(findings: Findings) -> list[Pair]:
  """Lists all duplicates as pairs, those between splits first."""
  facts = findings.facts
  pairs = [(group[0], i, 0) for group in findings.same for i in group[1:]]
  return sorted(
    [*pairs, *findings.near],
    key=lambda p: (facts[p[0]].split == facts[p[1]].split, p[2]),
  )


def report(findings: Findings) -> list[str]:
  """Formats the findings as lines to print."""
  found, facts, same = findings.listing, findings.facts, findings.same
  bad = [fact for fact in facts if fact.error]
  lines = [*_count_table(found), ""]
  lines += [f"Note: {warning}" for warning in found.warnings]
  lines += _size_lines([fact for fact in facts if not fact.error])
  lines.append(f"Unreadable files: {len(bad) or 'none'}")
  lines += [f"  {fact.error}" for fact in bad[:20]]
  lines += ["  ..."] if len(bad) > 20 else []
  lines.append("Exact duplicates (the same pixels):")
  lines += _duplicate_lines(facts, same, found.splits)
  labels = [{facts[i].record.label for i in group} for group in same]
  if conflicts := sum(len(one) > 1 for one in labels):
    lines.append(f"  {conflicts} pictures have different labels")
  lines.append(
    f"Near-duplicates (at most {findings.distance} of 128 bits differ):"
  )
  return lines + _duplicate_lines(facts, _groups(findings), found.splits)


def _shown(counts: Mapping[str, Sequence[int]]) -> list[int]:
  """Labels of all classes, or of many a sample evenly spaced by frequency."""
  of_class = np.sum([*counts.values()], axis=0)
  if len(of_class) <= MAX_CLASSES:
    return [*range(len(of_class))]
  places = np.linspace(0, len(of_class) - 1, MAX_CLASSES).round().astype(int)
  return np.argsort(-of_class, kind="stable")[places].tolist()


def _count_table(found: Listing) -> list[str]:
  counts = listing.counts(found)
  shown = _shown(counts)
  names = [found.class_names[label] for label in shown]
  width = max(len("imbalance"), *map(len, names))
  lines = [" " * width + "".join(f"{name:>16}" for name in counts)]
  totals = {name: max(sum(c), 1) for name, c in counts.items()}
  for label, name in zip(shown, names, strict=True):
    cells = [
      f"{c[label]:9} {c[label] / totals[split]:6.1%}"
      for split, c in counts.items()
    ]
    lines.append(f"{name:{width}}" + "".join(cells))
  if len(shown) < len(found.class_names):
    lines.append(
      f"({len(shown)} of {len(found.class_names)} classes, evenly spaced by"
      " frequency)"
    )
  ratios = [
    f"{max(c) / min(c):.1f}" if min(c) else "-" for c in counts.values()
  ]
  for name, row in (("all", map(sum, counts.values())), ("imbalance", ratios)):
    lines.append(
      f"{name:{width}}" + "".join(f"{cell:>9}       " for cell in row)
    )
  return [line.rstrip() for line in lines]


def _size_lines(good: Sequence[Facts]) -> list[str]:
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


def _duplicate_lines(
  facts: Sequence[Facts], groups: Iterable[Sequence[int]], splits: Iterable[str]
) -> list[str]:
  """Counts the images that have a duplicate, within and between splits."""
  having: Counter[tuple[str, str]] = Counter()
  for group in groups:
    inside = Counter(facts[i].split for i in group)
    for one, other in itertools.product(inside, repeat=2):
      if one != other or inside[one] > 1:
        having[one, other] += inside[one]
  within = [
    f"  within {name}: {number} images have another like them"
    for name in splits
    if (number := having[name, name])
  ]
  between = [
    f"  LEAK between {one} and {other}: {number} images of {one} are like"
    f" {having[other, one]} of {other}"
    for one, other in itertools.combinations(splits, 2)
    if (number := having[one, other])
  ]
  return within + between or ["  none"]


def table(findings: Findings) -> list[tuple[Any, ...]]:
  """Lists unreadable files and duplicates: n - 1 pairs of a group of n.

  Below the header: what ('unreadable', 'same' or 'near'), bits that differ,
  then split, class and file of one image and of the other.
  """
  facts, class_names = findings.facts, findings.listing.class_names
  rows: list[tuple[Any, ...]] = [
    ("what", "bits", "part", "class", "file", "part2", "class2", "file2")
  ]

  def who(fact: Facts) -> tuple[str, str, str]:
    record = fact.record
    return fact.split, class_names[record.label], record.file.origin

  for fact in facts:
    if fact.error:
      rows.append(("unreadable", "", *who(fact), "", "", fact.error))
  for a, b, bits in _pairs(findings):
    what = "same" if facts[a].pixels == facts[b].pixels else "near"
    rows.append((what, bits, *who(facts[a]), *who(facts[b])))
  return rows


_SIDE = 64  # of an image on a contact sheet, in pixels
_COLUMNS = 12
_ROWS = {"train": 6, "validation": 2, "test": 3}
_LINE = 16  # height of a line of text


def write(findings: Findings, out: Path) -> list[Path]:
  """Writes findings.csv, and contact sheets of classes and of duplicates.

  Each class has a sheet (PNG); of more than `MAX_CLASSES`, those in the table
  of `report`. What an earlier call wrote to the folder is removed first. The
  folder is made if missing; the files are returned.
  """
  out.mkdir(parents=True, exist_ok=True)
  ours = re.compile(r"class_\d+_.*\.png|duplicates\.png|findings\.csv")
  for old in out.iterdir():  # those of other data must not stay
    if ours.fullmatch(old.name):
      old.unlink()
  paths = [out / "findings.csv"]
  with paths[0].open(
    "w", newline="", encoding="utf-8", errors="backslashreplace"
  ) as file:
    csv.writer(file).writerows(table(findings))
  found, facts = findings.listing, findings.facts
  members = defaultdict(list)
  for fact in facts:
    if not fact.error:
      members[fact.record.label, fact.split].append(fact)
  for label in _shown(listing.counts(found)):
    name, bands = found.class_names[label], []
    for split in found.splits:
      inside = members[label, split]
      # Seeded, so that two sheets of the same data are the same.
      order = np.random.default_rng(0).permutation(len(inside))
      shown = [inside[i] for i in order[: _ROWS[split] * _COLUMNS]]
      title = f"{name}: {split}, {len(shown)} of {len(inside)} images"
      bands.append(_band([title], shown))
    # A file name has at most 255 bytes.
    safe = re.sub(r"\W+", "_", name)[:50]
    paths.append(out / f"class_{label}_{safe}.png")
    Image.fromarray(np.concatenate(bands)).save(paths[-1])
  if pairs := _pairs(findings):
    paths.append(out / "duplicates.png")
    bands = _duplicate_bands(facts, pairs)
    Image.fromarray(np.concatenate(bands)).save(paths[-1])
  return paths


def _duplicate_bands(
  facts: Sequence[Facts], pairs: Sequence[Pair]
) -> list[np.ndarray]:
  per_row, bands = _COLUMNS // 2, []
  # The first pair of each image, of the exact and of the near-duplicates.
  exact: dict[int, Pair] = {}
  near: dict[int, Pair] = {}
  for a, b, bits in pairs:
    same = facts[a].pixels == facts[b].pixels
    (exact if same else near).setdefault(a, (a, b, bits))
  shown = [p for kind in (exact, near) for p in [*kind.values()][: 6 * per_row]]
  for start in range(0, len(shown), per_row):
    row = shown[start : start + per_row]
    titles = [
      f"{facts[a].split}-{facts[b].split} {bits} bits" for a, b, bits in row
    ]
    bands.append(_band(titles, [facts[i] for p in row for i in p[:2]]))
  return bands


def _band(titles: list[str], shown: Sequence[Facts]) -> np.ndarray:
  """Draws rows of images below a title, or below one title for each pair."""
  rows = max(-(-len(shown) // _COLUMNS), 1)
  size = (_COLUMNS * _SIDE, _LINE + rows * _SIDE)
  band = Image.new("RGB", size, "white")
  draw = ImageDraw.Draw(band)
  for i, text in enumerate(titles):
    # The built-in font has Latin letters only.
    text = text.encode("latin-1", "replace").decode("latin-1")
    draw.text((i * 2 * _SIDE + 2, 2), text, fill="black")
  for i, fact in enumerate(shown):
    _, _, file, box = fact.record
    decoded = images.decode(file.read(), _SIDE, file.origin, box)
    place = (i % _COLUMNS * _SIDE, _LINE + i // _COLUMNS * _SIDE)
    band.paste(Image.fromarray(decoded), place)
  return np.asarray(band)


def digests(
  splits: Mapping[str, Split],
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[bytes]]:
  """Returns a hash of the pixels of each image, for each split.

  `progress` is called with the number of images done, and of all.
  """
  chunks = [
    (name, split.images, range(start, min(start + _CHUNK, len(split.labels))))
    for name, split in splits.items()
    for start in range(0, len(split.labels), _CHUNK)
  ]
  ends = [*itertools.accumulate(len(some) for _, _, some in chunks)]

  def of_chunk(chunk: tuple[str, Array, range]) -> list[bytes]:
    _, images_, some = chunk
    return [
      hashlib.blake2b(image.tobytes(), digest_size=16).digest()
      for image in images_[some.start : some.stop]
    ]

  def show(done: int, _: int) -> None:
    if progress is not None:
      progress(ends[done - 1], ends[-1])

  found: dict[str, list[bytes]] = {name: [] for name in splits}
  hashes = images.in_threads(of_chunk, chunks, show)
  for (name, *_), of_some in zip(chunks, hashes, strict=True):
    found[name] += of_some
  return found


def shared(
  splits: Mapping[str, Split],
  progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, str], int]:
  """Counts images that have the same pixels as one of another split.

  For pairs of splits (one, other) that share images, returns the number of
  images of the other that are in the first. For `progress` see `digests`.
  """
  hashes = digests(splits, progress)
  known = {name: set(of_split) for name, of_split in hashes.items()}
  return {
    (one, other): number
    for one, other in itertools.combinations(splits, 2)
    if (number := sum(digest in known[one] for digest in hashes[other]))
  }
