"""Any folder of class folders, with or without parts of its own.

Two layouts, in a folder or a zip:

  train/CLASS/any.jpg, test/CLASS/any.jpg, and perhaps validation/ (or val/,
  valid/): the parts as they are.
  CLASS/any.jpg: the images are split here, stratified by class; the test
  part gets `data.test_fraction` of each class, drawn by `data.split_seed`.

The classes are the names of the folders, sorted. Images may lie deeper than
their class folder. Without a validation part, one is split off the training
part as for every data set.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data import splits
from dbl_jax.data.datasets import SPLITS
from dbl_jax.data.formats import stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
_PARTS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "test": "test",
  "testing": "test",
}
_IMAGE = re.compile(
  r".*\.(jpe?g|jpe|jfif|png|bmp|gif|webp|tiff?|p[gnp]m)",
  re.IGNORECASE | re.DOTALL,
)
_EXPECTED = (
  "expected train/ and test/ (and perhaps validation/) with a folder of"
  " images for each class, or one folder of such class folders"
)
# Part -> class -> name -> file.
_Tree = dict[str, dict[str, dict[str, StoredFile]]]


def find(path: Path, options: Any) -> Listing:
  """Finds the images of a folder or zip.

  Args:
    path: the folder or zip.
    options: `config.data`; for a folder without parts `test_fraction` and
      `split_seed` are used.

  Returns:
    The images, by name within each class.

  Raises:
    UserError: if there are no class folders, or training and test part have
      different ones.
  """
  tree, warnings = read_tree(path)
  class_names = _class_names(tree, path)
  parts = {
    part: tuple(
      Record(name, label, file)
      for label, class_name in enumerate(class_names)
      for name, file in tree[part].get(class_name, {}).items()
    )
    for part in tree
  }
  if "train" not in parts:
    parts = _split(parts[""], options)
  return Listing(class_names, parts, tuple(warnings))


def read_tree(
  path: Path, files: dict[str, StoredFile] | None = None
) -> tuple[_Tree, list[str]]:
  """Sorts the files of a folder or zip by part and class.

  Args:
    path: the folder or zip.
    files: what `stored.open_tree` found there, if it has been asked.

  Returns:
    Part -> class -> name -> file, where the only part is '' if there are
    none; and warnings about what is left out.

  Raises:
    UserError: if there are no class folders, or a part is missing or double.
  """
  if files is None:
    files = stored.open_tree(path, _EXPECTED)
  names = {name: tuple(name.split("/")) for name in files if is_image(name)}
  others = [name for name in files if name not in names]
  warnings = []
  if others:
    warnings.append(
      f"{path}: {len(others)} files have no image's name and are left out:"
      f" {few(others)}"
    )
  # The folder that a zip often has around everything.
  while len(tops := {n[0] for n in names.values()}) == 1 and all(
    len(n) > 2 and n[0].lower() not in _PARTS for n in names.values()
  ):
    names = {name: parts[1:] for name, parts in names.items()}
  folders = _part_folders(sorted(tops), path)
  depth = 1 if folders else 0
  present = [part for part in SPLITS if part in folders.values()]
  tree: _Tree = {part: {} for part in present or [""]}
  astray = []
  for name, parts in names.items():
    part = folders.get(parts[0]) if folders else ""
    if part is None or len(parts) < depth + 2:
      astray.append(name)
    else:
      tree[part].setdefault(parts[depth], {})[name] = files[name]
  if astray:
    warnings.append(
      f"{path}: {len(astray)} images lie in no class folder and are left out:"
      f" {few(astray)}"
    )
  for part, classes in tree.items():
    if not classes:
      where = f"{path}/{part}" if part else str(path)
      raise UserError(
        f"{where} has no class folder with images (found:"
        f" {few(files) or 'nothing'}); {_EXPECTED}. Check --config.data.dir."
      )
  return tree, warnings


def is_image(name: str) -> bool:
  """Whether a file has the name of an image that can be read."""
  return bool(_IMAGE.fullmatch(name))


def _part_folders(folders: list[str], path: Path) -> dict[str, str]:
  """Folder -> part, for those folders that are parts; empty if none is."""
  found = {f: _PARTS[f.lower()] for f in folders if f.lower() in _PARTS}
  parts = list(found.values())
  double = [f for f in found if parts.count(found[f]) > 1]
  missing = [part for part in ("train", "test") if part not in parts]
  if found and (double or missing):
    what = f"no {' and no '.join(missing)}" if missing else "one part twice"
    held_out = [f for f in found if found[f] == "validation"]
    advice = (
      f"Rename {held_out[0]} to test, to be judged on it"
      if missing == ["test"] and held_out
      else "Rename the folders"
    )
    raise UserError(
      f"{path} has {', '.join(double or found)}, but {what}; {_EXPECTED}."
      f" {advice}; a validation part may be missing, as it is split off the"
      " training part."
    )
  return found


def _class_names(tree: _Tree, path: Path) -> tuple[str, ...]:
  first = "train" if "train" in tree else ""
  names = sorted(tree[first])
  if len(names) < 2:
    raise UserError(
      f"{path} has a single class, {names[0]}; {_EXPECTED}. Check"
      " --config.data.dir: it may be one folder too deep."
    )
  for part in tree:
    extra = sorted(set(tree[part]) - set(names))
    # A rare class may have no image to spare for validation.
    lacking = sorted(set(names) - set(tree[part])) if part == "test" else []
    if extra or lacking:
      raise UserError(
        f"{path}: train and {part} have different classes: only train has"
        f" {_some(lacking)}, only {part} has {_some(extra)}; expected the same"
        " folders, spelt alike, with images in each. Rename, remove or fill"
        " them."
      )
  return tuple(names)


def _some(names: Iterable[str]) -> str:
  return few(names) or "none"


def _split(
  records: tuple[Record, ...], options: Any
) -> dict[str, tuple[Record, ...]]:
  train, test = splits.split_off(
    np.array([record.label for record in records]),
    options.test_fraction,
    options.split_seed,
    splits.TEST,
  )
  return {
    "train": tuple(records[i] for i in train),
    "test": tuple(records[i] for i in test),
  }
