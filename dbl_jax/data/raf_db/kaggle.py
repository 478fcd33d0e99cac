"""RAF-DB as it is found on Kaggle: class folders, and the labels again.

  DATASET/train/1/train_00001_aligned.jpg ... DATASET/test/7/...
  train_labels.csv, test_labels.csv with rows image,label

The folders 1 to 7 are the authors' codes. Folders may also have the names of
the classes; 0 to 6 is refused, as it would leave the order open.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dbl_jax.data.formats import expressions, image_folder, stored
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

_NAMES = expressions.RAF_DB_NAMES
_CSV_NAME = re.compile(r"(?:.*/)?(train|test)_labels\.csv")
_STEM = re.compile(r"((train|test)_[\w-]+?)(?:_aligned)?", re.ASCII)


def find(
  path: Path, files: dict[str, StoredFile]
) -> tuple[dict[str, StoredFile], dict[str, int]] | None:
  """Finds the layout of Kaggle's copy in a folder or zip.

  Args:
    path: the folder or zip.
    files: all files in it.

  Returns:
    The images ('train_00001_aligned.jpg' -> file) and the codes
    ('train_00001.jpg' -> 1 to 7), fewer where a CSV leaves images out; or None
    if the layout is another one.

  Raises:
    UserError: if folders, names and CSV contradict each other.
  """
  try:
    tree, _ = image_folder.read_tree(path, files)
  except UserError:
    return None
  if set(tree) != {"train", "test"}:
    return None
  images: dict[str, StoredFile] = {}
  codes: dict[str, int] = {}
  names: dict[str, str] = {}
  for split, folders in tree.items():
    for folder, inside in folders.items():
      code = _code(folder, f"{path}: {split}")
      for place, file in inside.items():
        name, aligned = _official_names(place, split, file.origin)
        if name in codes:
          raise UserError(
            f"{file.origin} has the name of {images[aligned].origin}; expected"
            " each image once. Remove the wrong one."
          )
        images[aligned], codes[name] = file, code
        names[place.rsplit("/", 1)[-1]] = name
  tables = _tables(path, files)
  labelled = {n: c for n, c in codes.items() if n.split("_")[0] not in tables}
  for table in tables.values():
    labelled |= _check_table(table, path, codes, names)
  return images, labelled


def _code(folder: str, where: str) -> int:
  if folder in ("1", "2", "3", "4", "5", "6", "7"):
    return int(folder)
  if expressions.noun(folder) in _NAMES:
    return _NAMES.index(expressions.noun(folder)) + 1
  codes = ", ".join(f"{i} {c}" for i, c in enumerate(_NAMES, start=1))
  raise UserError(
    f"{where} has a folder {folder!r}; expected {codes}, by number or by name."
    " Rename it, or set data.name=image_folder to train on the folders as"
    " they are."
  )


def _official_names(place: str, split: str, origin: str) -> tuple[str, str]:
  """Returns the names of an image in the label file and in Image/aligned."""
  stem, _, suffix = place.rsplit("/", 1)[-1].rpartition(".")
  match = _STEM.fullmatch(stem)
  if not match or match[2] != split:
    raise UserError(
      f"{origin}: expected a name such as {split}_00001_aligned.jpg in the"
      f" split {split}. Set data.name=image_folder to train on images of other"
      " names."
    )
  return f"{match[1]}.{suffix}", f"{match[1]}_aligned.{suffix}"


def _tables(
  path: Path, files: Mapping[str, StoredFile]
) -> dict[str, StoredFile]:
  """Finds the CSV of each split, in the folder or next to it."""
  found = {}
  # DATASET itself may have been given. The order enters the fingerprint, and
  # is that of the file system in runs that exist.
  for name in os.listdir(path.parent) if path.is_dir() else ():
    if match := _CSV_NAME.fullmatch(name):
      found[match[1]] = stored.of_path(path.parent / name)
  for name, file in files.items():
    if match := _CSV_NAME.fullmatch(name):
      found[match[1]] = file
  return found


def _check_table(
  table: StoredFile,
  path: Path,
  codes: Mapping[str, int],
  names: Mapping[str, str],
) -> dict[str, int]:
  """Compares a CSV with the folders; returns the codes of its images."""
  kept: dict[str, int] = {}
  lines: dict[str, int] = {}
  missing = []
  for number, image, code in _rows(table):
    where = f"{table.origin}, line {number}"
    if image in lines:
      raise UserError(
        f"{where}: {image} was already in line {lines[image]}; expected each"
        " image once. Remove the wrong row."
      )
    lines[image] = number
    name = names.get(image)
    if name is None:
      missing.append(image)
    elif code != str(codes[name]):
      raise UserError(
        f"{where}: {image} has the label {code}, but lies in the folder of"
        f" {codes[name]}; expected one label. Copy the data again."
      )
    else:
      kept[name] = codes[name]
  if missing:
    raise UserError(
      f"{path}: {len(missing)} images named in {table.origin} are missing:"
      f" {few(missing)}. Copy or extract the images again, whole."
    )
  return kept


def _rows(file: StoredFile) -> Iterator[tuple[int, str, str]]:
  """Yields line number, image and label of each row below the header."""
  text = file.read().decode("utf-8-sig", "replace")
  for number, line in enumerate(text.splitlines(), start=1):
    if number > 1 and line.strip():
      # Names have no commas; quotes are all that a CSV can add.
      fields = [field.strip(' "\t') for field in line.split(",")]
      if len(fields) != 2:
        raise UserError(
          f"{file.origin}, line {number}: found {line.strip()[:80]!r};"
          " expected image,label. Copy the file again."
        )
      yield number, fields[0], fields[1]
