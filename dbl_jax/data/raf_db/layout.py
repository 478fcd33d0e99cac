"""RAF-DB's basic emotions as its authors ship them, labels and images."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dbl_jax.data.formats import listing
from dbl_jax.data.formats.listing import Listing
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.data.raf_db import files, kaggle
from dbl_jax.errors import UserError

CLASS_NAMES = (
  "surprise",
  "fear",
  "disgust",
  "happiness",
  "sadness",
  "anger",
  "neutral",
)
# Images per class in RAF-DB itself (Li, Deng & Du 2017).
CLASS_COUNTS = {
  "train": (1290, 281, 717, 4772, 1982, 705, 2524),
  "test": (329, 74, 160, 1185, 478, 162, 680),
}
_NAME_PATTERN = re.compile(r"(train|test)_[\w-]+\.\w+", re.ASCII)


@dataclass(frozen=True)
class Record:
  """One labelled image.

  Attributes:
    name: as the label file has it, such as 'train_00001.jpg'.
    split: 'train' or 'test'.
    label: 0 to 6, an index into CLASS_NAMES.
    origin: where the image lies, for messages.
    read: returns the image file's content.
  """

  name: str
  split: str
  label: int
  origin: str
  read: Callable[[], bytes]


@dataclass(frozen=True)
class Layout:
  """All labelled images of a folder or zip.

  Attributes:
    origin: the folder or zip, for messages.
    records: in the order of the label file.
    unlabelled: number of images that the label file does not name.
  """

  origin: str
  records: tuple[Record, ...]
  unlabelled: int = 0


def read(path: str | os.PathLike[str]) -> Layout:
  """Reads the labels and finds the images.

  Args:
    path: the folder that holds `basic`, `basic` itself, or a zip of either;
      or the same of Kaggle's `DATASET`, see `kaggle`.

  Returns:
    The layout; the images are not read yet.

  Raises:
    UserError: if something is missing, malformed or contradictory.
  """
  found = _open(Path(path))
  rows = _parse(found.labels, found.label_origin)
  stored = {row[0]: _image_name(row[0]) for row in rows}
  missing = [name for name in stored.values() if name not in found.images]
  if missing:
    raise UserError(
      f"{found.image_origin}: {len(missing)} of {len(rows)} images named in"
      f" {found.label_origin} are missing: {files.few(missing)}. Copy or"
      " extract the images again, whole."
    )
  records = []
  for name, split, label in rows:
    image = found.images[stored[name]]
    records.append(Record(name, split, label, image.origin, image.read))
  return Layout(str(path), tuple(records), len(found.images) - len(rows))


def fingerprint(path: str | os.PathLike[str]) -> str:
  """A hash that changes when the labels or the images do.

  Images go in by name, size and time of change (in a zip: checksum), so it is
  quick and no image is read.

  Args:
    path: as for `read`.

  Returns:
    64 hexadecimal digits.

  Raises:
    UserError: if the label file or the images are not found.
  """
  found = _open(Path(path))
  digest = hashlib.sha256(hashlib.sha256(found.labels).digest())
  for name, image in sorted(found.images.items()):
    row = f"{name}\0{image.size}\0{image.stamp}\n"
    digest.update(row.encode(errors="surrogateescape"))
  return digest.hexdigest()


def as_listing(layout: Layout) -> Listing:
  """The same images as any other data set's, for checks."""
  parts = {
    split: tuple(
      listing.Record(r.name, r.label, StoredFile(r.origin, 0, 0, r.read))
      for r in sorted(layout.records, key=lambda record: record.name)
      if r.split == split
    )
    for split in CLASS_COUNTS
  }
  return Listing(CLASS_NAMES, parts, tuple(count_warnings(layout)))


def count_warnings(layout: Layout) -> list[str]:
  """What differs from RAF-DB itself, one line each; empty if nothing does."""
  warnings = []
  for split, expected in CLASS_COUNTS.items():
    count = Counter(r.label for r in layout.records if r.split == split)
    found = [count[label] for label in range(len(CLASS_NAMES))]
    warnings += listing.differences(
      layout.origin, split, CLASS_NAMES, found, ("RAF-DB", expected)
    )
  if layout.unlabelled:
    warnings.append(
      f"{layout.origin}: {layout.unlabelled} aligned images have no label and"
      " are left out"
    )
  return warnings


def _open(path: Path) -> files.Files:
  """The label file and the images, of the authors' layout or of Kaggle's."""
  try:
    return files.open_files(path)
  except UserError:
    if not os.path.exists(path):
      raise
    found = kaggle.find(path, CLASS_NAMES)
    if found is None:
      raise
  rows = "\n".join(f"{name} {code}" for name, code in found.codes.items())
  return files.Files(str(path), rows.encode(), str(path), found.images)


def _parse(data: bytes, origin: str) -> list[tuple[str, str, int]]:
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{origin} is not UTF-8 text ({error.reason} at byte {error.start});"
      " expected rows such as 'train_00001.jpg 5'. Copy the original again."
    ) from None
  rows: list[tuple[str, str, int]] = []
  lines: dict[str, tuple[int, int]] = {}
  for number, line in enumerate(text.split("\n"), start=1):
    if not line.strip():
      continue
    where = f"{origin}, line {number}"
    name, split, label = _parse_row(line.split(), where, line.strip())
    if name in lines:
      _raise_duplicate(where, name, label, *lines[name])
    lines[name] = (number, label)
    rows.append((name, split, label))
  for split in CLASS_COUNTS:
    if split not in {row[1] for row in rows}:
      raise UserError(
        f"{origin} names no {split} image ({len(rows)} rows in all); expected"
        f" rows such as '{split}_00001.jpg 5'. Copy the original again."
      )
  return rows


def _parse_row(
  fields: list[str], where: str, line: str
) -> tuple[str, str, int]:
  advice = "Mend the row or copy the original label file again."
  if len(fields) != 2:
    raise UserError(
      f"{where}: found {line[:80]!r}, expected a file name and a code, such"
      f" as 'train_00001.jpg 5'. {advice}"
    )
  name, code = fields
  match = _NAME_PATTERN.fullmatch(name)
  if not match:
    raise UserError(
      f"{where}: found the name {name[:80]!r}, expected one like"
      f" train_00001.jpg or test_0001.jpg. {advice}"
    )
  if code not in {"1", "2", "3", "4", "5", "6", "7"}:
    codes = ", ".join(f"{i} {c}" for i, c in enumerate(CLASS_NAMES, start=1))
    raise UserError(
      f"{where}: found the code {code[:80]!r}, expected one of {codes}."
      f" {advice}"
    )
  return name, match[1], int(code) - 1


def _raise_duplicate(
  where: str, name: str, label: int, first_line: int, first_label: int
) -> None:
  if label == first_label:
    how = f"with the same code, {label + 1}"
  else:
    how = f"as code {label + 1} here and {first_label + 1} there"
  raise UserError(
    f"{where}: {name} was already in line {first_line}, {how}; expected each"
    " image once. Remove the wrong row."
  )


def _image_name(name: str) -> str:
  stem, suffix = name.rsplit(".", 1)
  return f"{stem}_aligned.{suffix}"
