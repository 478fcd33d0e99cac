"""RAF-DB as it is found on Kaggle: class folders, with the labels again.

  DATASET/train/1/train_00001_aligned.jpg ... DATASET/test/7/...
  train_labels.csv, test_labels.csv with rows image,label

The folders 1 to 7 are the authors' codes. Folders may also have the classes'
names; 0 to 6 is refused, as nothing says which order is meant.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dbl_jax.data.formats import expressions, image_folder, stored
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

_CSV_NAME = re.compile(r"(?:.*/)?(train|test)_labels\.csv")
_STEM = re.compile(r"((train|test)_[\w-]+?)(?:_aligned)?", re.ASCII)


class Labelled(NamedTuple):
  """Images by the names the authors gave them, and their codes.

  Attributes:
    images: 'train_00001_aligned.jpg' -> file.
    codes: 'train_00001.jpg' -> 1 to 7; fewer where a CSV leaves images out.
  """

  images: dict[str, StoredFile]
  codes: dict[str, int]


def find(path: Path, class_names: Sequence[str]) -> Labelled | None:
  """Finds Kaggle's layout in a folder or zip.

  Args:
    path: the folder or zip.
    class_names: RAF-DB's, in the order of the codes 1 to 7.

  Returns:
    Images and codes, or None if the layout is another one.

  Raises:
    UserError: if folders, names and CSV contradict each other.
  """
  try:
    tree, _ = image_folder.read_tree(path)
  except UserError:
    return None
  if set(tree) != {"train", "test"}:
    return None
  images: dict[str, StoredFile] = {}
  codes: dict[str, int] = {}
  places: dict[str, str] = {}
  for part, folders in tree.items():
    for folder, files in folders.items():
      code = _code(folder, class_names, f"{path}: {part}")
      for place, file in files.items():
        name, aligned = _names(place, part, file.origin)
        if name in codes:
          raise UserError(
            f"{file.origin} has the name of {images[aligned].origin}; expected"
            " each image once. Remove the wrong one."
          )
        images[aligned], codes[name] = file, code
        places[place.rsplit("/", 1)[-1]] = name
  return Labelled(images, _checked(path, codes, places))


def _code(folder: str, class_names: Sequence[str], where: str) -> int:
  if folder in ("1", "2", "3", "4", "5", "6", "7"):
    return int(folder)
  if expressions.noun(folder) in class_names:
    return class_names.index(expressions.noun(folder)) + 1
  codes = ", ".join(f"{i} {c}" for i, c in enumerate(class_names, start=1))
  raise UserError(
    f"{where} has a folder {folder!r}; expected {codes}, by number or by name."
    " Rename it, or set data.name=image_folder to train on the folders as"
    " they are."
  )


def _names(place: str, part: str, origin: str) -> tuple[str, str]:
  stem, _, suffix = place.rsplit("/", 1)[-1].rpartition(".")
  match = _STEM.fullmatch(stem)
  if not match or match[2] != part:
    raise UserError(
      f"{origin}: expected a name such as {part}_00001_aligned.jpg in the part"
      f" {part}. Set data.name=image_folder to train on images of other names."
    )
  return f"{match[1]}.{suffix}", f"{match[1]}_aligned.{suffix}"


def _checked(
  path: Path, codes: Mapping[str, int], places: Mapping[str, str]
) -> dict[str, int]:
  """The codes of the images that the CSVs name; all, without CSVs."""
  files = _tables(path)
  kept = {
    name: code
    for name, code in codes.items()
    if name.split("_")[0] not in files
  }
  for file in files.values():
    missing = []
    seen: dict[str, int] = {}
    for number, image, code in _rows(file):
      where = f"{file.origin}, line {number}"
      name = places.get(image)
      if image in seen:
        raise UserError(
          f"{where}: {image} was already in line {seen[image]}; expected each"
          " image once. Remove the wrong row."
        )
      seen[image] = number
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
        f"{path}: {len(missing)} images named in {file.origin} are missing:"
        f" {few(missing)}. Copy or extract the images again, whole."
      )
  return kept


def _tables(path: Path) -> dict[str, StoredFile]:
  """Part -> its CSV. They lie beside the folder with the images, or in it."""
  found = {}
  # DATASET itself may have been given.
  places = [path.parent, path] if path.is_dir() else [path]
  for place in places:
    if place == path:
      files = stored.open_tree(place, "")
    else:
      files = dict(stored.folder_files(place))
    for name, file in files.items():
      if match := _CSV_NAME.fullmatch(name):
        found[match[1]] = file
  return found


def _rows(file: StoredFile) -> Iterator[tuple[int, str, str]]:
  """Line number, image and label, of each row below the header."""
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
