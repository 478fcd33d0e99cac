"""RAF-DB's basic emotions: labels and images as its authors ship them.

  EmoLabel/list_patition_label.txt     rows such as 'train_00001.jpg 5'
  Image/aligned/train_00001_aligned.jpg ... (or Image/aligned.zip)

in a folder `basic` or not, in a folder or a zip. Or as it is found on Kaggle,
class folders with the authors' codes, and the labels again:

  DATASET/train/1/train_00001_aligned.jpg ... DATASET/test/7/...
  train_labels.csv, test_labels.csv with rows image,label

Folders may also have the names of the classes; 0 to 6 is refused, since the
order would be unknown. Zips are read in place.
"""

import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbl_jax.data.datasets import RAF_DB_COUNTS, RAF_DB_NAMES, expression
from dbl_jax.data.formats import image_folder, listing, stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
# Code in the label files -> name.
_CODES = dict(zip("1234567", RAF_DB_NAMES, strict=True))
_CODES_IN_WORDS = ", ".join(f"{code} {name}" for code, name in _CODES.items())
# The first spelling is the authors' own.
_LABEL_FILES = ("list_patition_label.txt", "list_partition_label.txt")
_NAME = re.compile(r"(train|test)_[\w-]+\.\w+", re.ASCII)
_KAGGLE_CSV = re.compile(r"(?:.*/)?(train|test)_labels\.csv")
_KAGGLE_STEM = re.compile(r"((train|test)_[\w-]+?)(?:_aligned)?", re.ASCII)
# Further folders of RAF-DB, with three files for each image.
_IGNORED = ("original", "Annotation", "boundingbox")
_EXPECTED = (
  "expected RAF-DB's basic set: EmoLabel/list_patition_label.txt and"
  " Image/aligned/train_00001_aligned.jpg and so on, under basic/ or not,"
  " or the zip of it; or Kaggle's DATASET/train/1 to DATASET/test/7"
)


def find(path: Path, _: Any = None) -> Listing:
  """Finds the images and reads their labels, see `Source.find`.

  The path is the folder that holds `basic`, `basic` itself, or a zip of either;
  or Kaggle's `DATASET`.
  """
  # Other data sets in the same folder are not searched.
  inner = not _has_labels(path) and _has_labels(path / "basic")
  root = path / "basic" if inner else path
  if not _has_labels(root) and os.path.isfile(path / "basic.zip"):
    return find(path / "basic.zip")
  files = stored.open_tree(root, _EXPECTED, _IGNORED)
  if found := _label_file(files, path):
    base, file = found
    labels, origin = file.read(), file.origin
    images = _images(files, f"{base}Image/aligned")
  elif (labelled := _find_kaggle(path, files)) is not None:
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
  warnings = []
  for split, counts in listing.counts(listed).items():
    warnings += listing.differences(
      str(path), split, RAF_DB_NAMES, counts, ("RAF-DB", RAF_DB_COUNTS[split])
    )
  if unlabelled := len(images) - len(rows):
    warnings.append(
      f"{path}: {unlabelled} aligned images without a label are left out"
    )
  return listed._replace(warnings=tuple(warnings))


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
  usual = [base for base in ("", "basic/") if base in found]
  if len(found) > 1 and not usual:
    raise UserError(
      f"{path} has label files under {few(sorted(found))}; {_EXPECTED}. Give"
      " the folder or zip you got from RAF-DB's authors."
    )
  return next(((base, found[base]) for base in usual or found), None)


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


def _parse(data: bytes, origin: str) -> dict[str, tuple[str, int]]:
  """Parses a label file: name -> split, label."""
  text = data.decode("utf-8-sig", "replace")
  rows = stored.unique_rows(text, origin, _parse_row)
  for split in RAF_DB_COUNTS:
    if all(row[0] != split for row in rows.values()):
      raise UserError(
        f"{origin} lacks {split} images ({len(rows)} rows in all); expected"
        f" rows such as '{split}_00001.jpg 5'. Copy the original again."
      )
  return rows


def _parse_row(line: str, where: str) -> tuple[str, tuple[str, int]]:
  """Parses a row: name, (split, label)."""
  fields = line.split()
  if len(fields) != 2:
    found = f"{line[:80]!r}, expected a file name and a code, such as"
    found += " 'train_00001.jpg 5'"
  elif not (match := _NAME.fullmatch(fields[0])):
    found = f"the name {fields[0][:80]!r}, expected one like train_00001.jpg or"
    found += " test_0001.jpg"
  elif fields[1] not in _CODES:
    found = f"the code {fields[1][:80]!r}, expected one of {_CODES_IN_WORDS}"
  else:
    return fields[0], (match[1], int(fields[1]) - 1)
  raise UserError(
    f"{where}: found {found}. Correct the row or copy the original label file"
    " again."
  )


def _find_kaggle(
  path: Path, files: dict[str, StoredFile]
) -> tuple[dict[str, StoredFile], dict[str, int]] | None:
  """Finds the layout of Kaggle's copy in a folder or zip; None if it is not.

  Returns the images ('train_00001_aligned.jpg' -> file) and the codes
  ('train_00001.jpg' -> 1 to 7), fewer where a CSV leaves images out.
  """
  try:
    tree, _ = image_folder.read_tree(path, files)
  except UserError:
    return None
  if set(tree) != {"train", "test"}:
    return None
  images: dict[str, StoredFile] = {}
  codes: dict[str, int] = {}
  names: dict[str, str] = {}  # of the file -> of the label file
  for split, folders in tree.items():
    for folder, inside in folders.items():
      code = _kaggle_code(folder, f"{path}: {split}")
      for place, file in inside.items():
        base = place.rsplit("/", 1)[-1]
        name = _kaggle_name(base, split, file.origin)
        aligned = _image_name(name)
        if name in codes:
          raise UserError(
            f"{file.origin} has the name of {images[aligned].origin}; expected"
            " each image once. Remove the wrong one."
          )
        images[aligned], codes[name], names[base] = file, code, name
  tables = _kaggle_tables(path, files)
  labelled = {n: c for n, c in codes.items() if n.split("_")[0] not in tables}
  for table in tables.values():
    labelled |= _check_table(table, path, codes, names)
  return images, labelled


def _kaggle_code(folder: str, where: str) -> int:
  if folder in _CODES:
    return int(folder)
  if expression(folder) in RAF_DB_NAMES:
    return RAF_DB_NAMES.index(expression(folder)) + 1
  raise UserError(
    f"{where} has a folder {folder!r}; expected {_CODES_IN_WORDS}, by number"
    " or by name. Rename it, or set data.name=image_folder to train on the"
    " folders as they are."
  )


def _kaggle_name(base: str, split: str, origin: str) -> str:
  """Returns the name of an image in the label file."""
  stem, _, suffix = base.rpartition(".")
  match = _KAGGLE_STEM.fullmatch(stem)
  if not match or match[2] != split:
    raise UserError(
      f"{origin}: expected a name such as {split}_00001_aligned.jpg in the"
      f" split {split}. Set data.name=image_folder to train on images of other"
      " names."
    )
  return f"{match[1]}.{suffix}"


def _kaggle_tables(
  path: Path, files: Mapping[str, StoredFile]
) -> dict[str, StoredFile]:
  """Finds the CSV of each split, in the folder or next to it."""
  found = {}
  # The path may be DATASET itself. The order affects the fingerprint; in
  # existing runs it is that of the file system.
  for name in os.listdir(path.parent) if path.is_dir() else ():
    if match := _KAGGLE_CSV.fullmatch(name):
      found[match[1]] = stored.of_path(path.parent / name)
  for name, file in files.items():
    if match := _KAGGLE_CSV.fullmatch(name):
      found[match[1]] = file
  return found


def _check_table(
  table: StoredFile,
  path: Path,
  codes: Mapping[str, int],
  names: Mapping[str, str],
) -> dict[str, int]:
  """Compares a CSV with the folders; returns the codes of its images."""
  lines = table.read().decode("utf-8-sig", "replace").splitlines()
  # A blank row replaces the header, so that line numbers stay right.
  text = "\n".join(["", *lines[1:]])
  rows = stored.unique_rows(text, table.origin, _parse_table_row)
  for image, (code, where) in rows.items():
    if image in names and code != str(codes[names[image]]):
      raise UserError(
        f"{where}: {image} has the label {code}, but lies in the folder of"
        f" {codes[names[image]]}; expected one label. Copy the data again."
      )
  if missing := [image for image in rows if image not in names]:
    raise UserError(
      f"{path}: {len(missing)} images named in {table.origin} are missing:"
      f" {few(missing)}. Copy or extract the images again, whole."
    )
  return {names[image]: codes[names[image]] for image in rows}


def _parse_table_row(row: str, where: str) -> tuple[str, tuple[str, str]]:
  """Parses a row of a CSV: image, (label, the row's place)."""
  # Names are without commas, so a CSV can only add quotes.
  fields = [field.strip(' "\t') for field in row.split(",")]
  if len(fields) != 2:
    raise UserError(
      f"{where}: found {row[:80]!r}; expected image,label. Copy the file again."
    )
  return fields[0], (fields[1], where)
