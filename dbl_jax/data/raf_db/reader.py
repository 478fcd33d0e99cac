"""RAF-DB's basic emotions: labels and images as its authors ship them.

  EmoLabel/list_patition_label.txt     rows such as 'train_00001.jpg 5'
  Image/aligned/train_00001_aligned.jpg ... (or Image/aligned.zip)

in a folder `basic` or not, in a folder or a zip; or the layout of Kaggle's
copy, see `kaggle`. Nothing is extracted: zips are read in place.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbl_jax.data.formats import listing, stored
from dbl_jax.data.formats.expressions import RAF_DB_COUNTS, RAF_DB_NAMES
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.data.raf_db import kaggle
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
# The first spelling is the authors' own.
_LABEL_FILES = ("list_patition_label.txt", "list_partition_label.txt")
_NAME = re.compile(r"(train|test)_[\w-]+\.\w+", re.ASCII)
# Further folders of RAF-DB, with three files for each image.
_IGNORED = ("original", "Annotation", "boundingbox")
_EXPECTED = (
  "expected RAF-DB's basic set: EmoLabel/list_patition_label.txt and"
  " Image/aligned/train_00001_aligned.jpg and so on, under basic/ or not,"
  " or the zip of it; or Kaggle's DATASET/train/1 to DATASET/test/7"
)


def find(path: Path, _: Any = None) -> Listing:
  """Finds the images and reads their labels, see `Source.find`.

  Args:
    path: the folder that holds `basic`, `basic` itself, or a zip of either;
      or Kaggle's `DATASET`.
    _: unused.
  """
  # A folder may hold other data sets too, which are not searched.
  inner = not _has_labels(path) and _has_labels(path / "basic")
  root = path / "basic" if inner else path
  if not _has_labels(root) and os.path.isfile(path / "basic.zip"):
    return find(path / "basic.zip")
  files = stored.open_tree(root, _EXPECTED, _IGNORED)
  if found := _label_file(files, path):
    base, file = found
    labels, origin = file.read(), file.origin
    images = _images(files, f"{base}Image/aligned")
  elif (labelled := kaggle.find(path, files)) is not None:
    images, codes = labelled
    labels = "\n".join(f"{n} {c}" for n, c in codes.items()).encode()
    origin = str(path)
  else:
    tops = sorted({name.split("/")[0] for name in files})
    raise UserError(
      f"{path} has no label file (found: {few(tops) or 'nothing'});"
      f" {_EXPECTED}. Give the folder or zip you got from RAF-DB's authors."
    )
  rows = _parse(labels, origin)
  missing = [n for n in map(_image_name, rows) if n not in images]
  if missing:
    raise UserError(
      f"{path}: {len(missing)} of {len(rows)} images named in {origin} are"
      f" missing: {few(missing)}. Copy or extract the images again, whole."
    )
  splits = {
    split: tuple(
      Record(name, label, images[_image_name(name)])
      for name, (its_split, label) in sorted(rows.items())
      if its_split == split
    )
    for split in RAF_DB_COUNTS
  }
  former = _former_fingerprint(labels, images)
  listed = Listing(RAF_DB_NAMES, splits, former=former)
  warnings = _warnings(listed, str(path), len(images) - len(rows))
  return listed._replace(warnings=warnings)


def _has_labels(folder: Path) -> bool:
  places = (folder / "EmoLabel" / name for name in _LABEL_FILES)
  return any(map(os.path.isfile, places))


def _label_file(
  files: Mapping[str, StoredFile], path: Path
) -> tuple[str, StoredFile] | None:
  """Returns the folder that holds EmoLabel/, and the label file in it."""
  found = {}
  for spelling in reversed(_LABEL_FILES):
    place = f"EmoLabel/{spelling}"
    for name, file in files.items():
      if f"/{name}".endswith(f"/{place}"):
        found[name.removesuffix(place)] = file
  chosen: list[str] = [base for base in ("", "basic/") if base in found]
  chosen = chosen or sorted(found)
  if len(found) > 1 and chosen[0] not in ("", "basic/"):
    raise UserError(
      f"{path} has label files under {few(chosen)}; {_EXPECTED}. Give the"
      " folder or zip you got from RAF-DB's authors."
    )
  return (chosen[0], found[chosen[0]]) if found else None


def _images(
  files: Mapping[str, StoredFile], folder: str
) -> dict[str, StoredFile]:
  """Returns the aligned images of a folder, or of the zip of its name."""
  # Extracting aligned.zip into a folder of its name gives aligned/aligned.
  while any(name.startswith(f"{folder}/aligned/") for name in files):
    folder += "/aligned"
  inside = {n: f for n, f in files.items() if n.startswith(f"{folder}/")}
  archive = files.get(f"{folder}.zip")
  if not any(map(_is_aligned, inside)) and archive is not None:
    content = io.BytesIO(archive.read())
    inside = stored.zip_files(content, archive.origin, _EXPECTED)
  return stored.by_name({n: f for n, f in inside.items() if _is_aligned(n)})


def _is_aligned(path: str) -> bool:
  name = path.rsplit("/", 1)[-1]
  stem = name.rsplit(".", 1)[0]
  return stem.endswith("_aligned") and not name.startswith(".")


def _image_name(name: str) -> str:
  stem, suffix = name.rsplit(".", 1)
  return f"{stem}_aligned.{suffix}"


def _former_fingerprint(labels: bytes, images: Mapping[str, StoredFile]) -> str:
  """Hashes the label file and all images; see `listing.former_fingerprint`."""
  digest = hashlib.sha256(hashlib.sha256(labels).digest())
  for name, image in sorted(images.items()):
    row = f"{name}\0{image.size}\0{image.stamp}\n"
    digest.update(row.encode(errors="surrogateescape"))
  return digest.hexdigest()


def _warnings(found: Listing, origin: str, unlabelled: int) -> tuple[str, ...]:
  warnings = []
  for split, counts in listing.counts(found).items():
    warnings += listing.differences(
      origin, split, RAF_DB_NAMES, counts, ("RAF-DB", RAF_DB_COUNTS[split])
    )
  if unlabelled:
    warnings.append(
      f"{origin}: {unlabelled} aligned images have no label and are left out"
    )
  return tuple(warnings)


def _parse(data: bytes, origin: str) -> dict[str, tuple[str, int]]:
  """Parses a label file: name -> split, label."""
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{origin} is not UTF-8 text ({error.reason} at byte {error.start});"
      " expected rows such as 'train_00001.jpg 5'. Copy the original again."
    ) from None
  rows: dict[str, tuple[str, int]] = {}
  lines: dict[str, int] = {}
  for number, line in enumerate(text.split("\n"), start=1):
    if not line.strip():
      continue
    where = f"{origin}, line {number}"
    name, split, label = _parse_row(line.strip(), where)
    if name in rows:
      raise UserError(
        f"{where}: {name} with code {label + 1} was already in line"
        f" {lines[name]} with code {rows[name][1] + 1}; expected each image"
        " once. Remove the wrong row."
      )
    rows[name], lines[name] = (split, label), number
  for split in RAF_DB_COUNTS:
    if all(row[0] != split for row in rows.values()):
      raise UserError(
        f"{origin} names no {split} image ({len(rows)} rows in all); expected"
        f" rows such as '{split}_00001.jpg 5'. Copy the original again."
      )
  return rows


def _parse_row(line: str, where: str) -> tuple[str, str, int]:
  """Parses a row: name, split, label."""
  advice = "Correct the row or copy the original label file again."
  fields = line.split()
  if len(fields) != 2:
    raise UserError(
      f"{where}: found {line[:80]!r}, expected a file name and a code, such"
      f" as 'train_00001.jpg 5'. {advice}"
    )
  name, code = fields
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(
      f"{where}: found the name {name[:80]!r}, expected one like"
      f" train_00001.jpg or test_0001.jpg. {advice}"
    )
  if code not in {"1", "2", "3", "4", "5", "6", "7"}:
    codes = ", ".join(f"{i} {c}" for i, c in enumerate(RAF_DB_NAMES, start=1))
    raise UserError(
      f"{where}: found the code {code[:80]!r}, expected one of {codes}."
      f" {advice}"
    )
  return name, match[1], int(code) - 1
