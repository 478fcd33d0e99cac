"""Images named in text files, as ImageNet-LT and Places-LT are published.

A line holds the path of an image below `data.dir`, a blank and the number of
its class, from 0:

  train/n01440764/n01440764_190.JPEG 0

The lists are found in `data.dir` by their names (`ImageNet_LT_train.txt`,
`val.txt`, `test.txt`), or named by `data.train_split`, `data.validation_split`
and `data.test_split`. `data.dir` may be a zip. A class is named after the
folder of its training images where each class has one of its own, else by its
number.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dbl_jax.data.datasets import SPLITS
from dbl_jax.data.formats import stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

IMAGE_SIZE = 224
_MAX_CLASSES = 100_000
_NAMES = {"train": "train", "validation": "val(id|idation)?", "test": "test"}
_ROW = "path of an image, a blank and the number of its class"
# Path below data.dir -> the file, or None if it does not exist.
_Find = Callable[[str], StoredFile | None]


def find(path: Path, options: Any) -> Listing:
  """Reads the lists, whose names the options may give; see `Source.find`."""
  find_file, names = _files(path)
  splits: dict[str, _Rows] = {}
  for split in SPLITS:
    file = _list_file(split, options[f"{split}_split"], path, find_file, names)
    if file is not None:
      splits[split] = _read(file, find_file)
  class_names = _class_names(splits["train"])
  found = set(splits["train"].labels)
  if missing := [i for i in range(len(class_names)) if i not in found]:
    raise UserError(
      f"The training list of {path} lacks images of class"
      f" {few(map(str, missing))}; expected classes numbered from 0 without a"
      " gap. Correct the numbers in all lists."
    )
  for rows in splits.values():
    for i, label in enumerate(rows.labels):
      if label >= len(class_names):
        raise UserError(
          f"{rows.origin(i)}: class {label}; the training list has the classes"
          f" 0 to {len(class_names) - 1}. Check that the lists belong together."
        )
  return Listing(class_names, splits)


def _files(path: Path) -> tuple[_Find, list[str]]:
  """Returns how files are found, and the names of those at the top."""
  if path.is_file():
    inside = stored.zip_files(path, str(path), "expected a zip of images")
    return inside.get, [name for name in inside if name.endswith(".txt")]

  def find_file(name: str) -> StoredFile | None:
    try:
      return stored.of_path(path / name)
    except OSError:
      return None

  try:
    return find_file, sorted(file.name for file in path.glob("*.txt"))
  except OSError:
    return find_file, []


def _list_file(
  split: str, given: str, path: Path, find_file: _Find, names: list[str]
) -> StoredFile | None:
  """Returns the list of a split; None if that for validation is missing."""
  pattern = re.compile(rf"(.*[_/-])?({_NAMES[split]})\.txt", re.IGNORECASE)
  found = [given] if given else [n for n in names if pattern.fullmatch(n)]
  file = find_file(found[0]) if len(found) == 1 else None
  if file is None and (given or found or split != "validation"):
    what = f"no file {given}" if given else few(found) or "none"
    raise UserError(
      f"{path} has no single list of {split} images: {what} (text files there:"
      f" {few(names) or 'none'}); expected {split}.txt, lines of {_ROW}. Set"
      f" --config.data.{split}_split to its path."
    )
  return file


def _read(file: StoredFile, find_file: _Find) -> "_Rows":
  """Parses a list, and checks that its images exist."""
  rows = _Rows(file.origin, find_file)
  lines: dict[str, int] = {}
  text = file.read().decode("utf-8-sig", "surrogateescape")
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    name, label = ("", *line.strip().rsplit(None, 1))[-2:]
    name = name.removeprefix("./")
    if "\\" in name and find_file(name) is None:  # written on Windows
      name = name.replace("\\", "/").removeprefix("./")
    where = f"{file.origin}, line {number}"
    if not name or not re.fullmatch(r"[0-9]{1,6}", label):
      raise UserError(
        f"{where}: found {line.strip()[:80]!r}; expected the {_ROW}. Correct"
        " the line."
      )
    if int(label) >= _MAX_CLASSES:
      raise UserError(
        f"{where}: class {label}; at most {_MAX_CLASSES} classes are read."
      )
    if name in lines:
      raise UserError(
        f"{where}: {name} was already in line {lines[name]}; expected each"
        " image once. Remove the wrong line."
      )
    if find_file(name) is None:
      raise UserError(
        f"{where}: {name} does not exist in data.dir. Set --config.data.dir"
        " to the folder that the paths begin in, or copy the images again."
      )
    lines[name] = number
    rows.labels.append(int(label))
  rows.names, rows.lines = list(lines), list(lines.values())
  if not rows.names:
    raise UserError(f"{file.origin} is empty; expected lines of the {_ROW}.")
  return rows


class _Rows(Sequence[Record]):
  """The images of a list; a file is opened when its record is used."""

  def __init__(self, path: str, find_file: _Find):
    self._path, self._find = path, find_file
    self.names: list[str] = []
    self.labels: list[int] = []
    self.lines: list[int] = []

  def origin(self, index: int) -> str:
    """Returns the line of an image, for messages."""
    return f"{self._path}, line {self.lines[index]}"

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: Any) -> Any:
    name = self.names[index]
    file = self._find(name)
    if file is None:
      raise UserError(f"{self.origin(index)}: {name} is missing. Restore it.")
    return Record(name, self.labels[index], file)


def _class_names(train: _Rows) -> tuple[str, ...]:
  """Names classes after their folders, or else by number."""
  folders: dict[int, set[str]] = {}
  for name, label in zip(train.names, train.labels, strict=True):
    folders.setdefault(label, set()).add("/".join(name.split("/")[:-1][-1:]))
  numbers = range(max(train.labels) + 1)
  names = [folder for c in numbers for folder in folders.get(c, ())]
  if len(names) == len(set(names)) == len(folders) == len(numbers):
    return tuple(names)
  return tuple(map(str, numbers))
