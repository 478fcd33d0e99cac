"""Any folder of class folders, with or without splits of its own.

Two layouts, in a folder or a zip:

  train/CLASS/any.jpg, test/CLASS/any.jpg, and perhaps validation/ (or val/,
  valid/): the splits as they are.
  CLASS/any.jpg: the images are split here, stratified by class; the test
  split gets `data.test_fraction` of each class, drawn by `data.split_seed`.

The classes are the names of the folders, sorted. Images may lie deeper than
their class folder. Without a validation split, one is split off the training
split as for every data set.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.datasets import SPLITS
from dbl_jax.data.formats import stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.data.splits import TEST, split_off
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
_FOLDERS = {
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
# Split -> class -> name -> file.
_Tree = dict[str, dict[str, dict[str, StoredFile]]]


def find(path: Path, options: Any) -> Listing:
  """Finds the images, see `Source.find`.

  Args:
    path: the folder or zip.
    options: `config.data`; for a folder without splits `test_fraction` and
      `split_seed` are used.
  """
  tree, warnings = read_tree(path)
  class_names = _class_names(tree, path)
  splits = {
    split: tuple(
      Record(name, label, file)
      for label, class_name in enumerate(class_names)
      for name, file in classes.get(class_name, {}).items()
    )
    for split, classes in tree.items()
  }
  if "train" not in splits:
    whole = splits[""]
    labels = np.array([record.label for record in whole])
    train, test = split_off(
      labels, options.test_fraction, options.split_seed, TEST
    )
    splits = {
      "train": tuple(whole[i] for i in train),
      "test": tuple(whole[i] for i in test),
    }
  return Listing(class_names, splits, tuple(warnings))


def find_images(path: Path) -> dict[str, StoredFile]:
  """Finds the images of a folder or zip at any depth, by path.

  Raises:
    UserError: if there are none.
  """
  expected = "expected a folder or zip of images"
  found = stored.open_tree(path, expected)
  found = {name: file for name, file in found.items() if is_image(name)}
  if not found:
    raise UserError(f"{path} holds no image; {expected}.")
  return found


def read_tree(
  path: Path, files: dict[str, StoredFile] | None = None
) -> tuple[_Tree, list[str]]:
  """Sorts the files of a folder or zip by split and class.

  Args:
    path: the folder or zip.
    files: all files in it; found here by default.

  Returns:
    Split -> class -> name -> file, where the only split is '' if there are
    none; and warnings about what is left out.

  Raises:
    UserError: if there are no class folders, or a split is missing or double.
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
    len(n) > 2 and n[0].lower() not in _FOLDERS for n in names.values()
  ):
    names = {name: parts[1:] for name, parts in names.items()}
  folders = _split_folders(sorted(tops), path)
  depth = 1 if folders else 0
  present = [split for split in SPLITS if split in folders.values()]
  tree: _Tree = {split: {} for split in present or [""]}
  astray = []
  for name, parts in names.items():
    split = folders.get(parts[0]) if folders else ""
    if split is None or len(parts) < depth + 2:
      astray.append(name)
    else:
      tree[split].setdefault(parts[depth], {})[name] = files[name]
  if astray:
    warnings.append(
      f"{path}: {len(astray)} images lie in no class folder and are left out:"
      f" {few(astray)}"
    )
  for split, classes in tree.items():
    if not classes:
      where = f"{path}/{split}" if split else str(path)
      raise UserError(
        f"{where} has no class folder with images (found:"
        f" {few(files) or 'nothing'}); {_EXPECTED}. Check --config.data.dir."
      )
  return tree, warnings


def is_image(name: str) -> bool:
  """Returns whether a file has the name of an image that can be read."""
  return bool(_IMAGE.fullmatch(name))


def _split_folders(folders: list[str], path: Path) -> dict[str, str]:
  """Maps folders that are splits to their names; empty if none is."""
  found = {f: _FOLDERS[f.lower()] for f in folders if f.lower() in _FOLDERS}
  splits = list(found.values())
  double = [f for f in found if splits.count(found[f]) > 1]
  missing = [split for split in ("train", "test") if split not in splits]
  if found and (double or missing):
    what = f"no {' and no '.join(missing)}" if missing else "one split twice"
    held_out = [f for f in found if found[f] == "validation"]
    advice = (
      f"Rename {held_out[0]} to test, to be evaluated on it"
      if missing == ["test"] and held_out
      else "Rename the folders"
    )
    raise UserError(
      f"{path} has {', '.join(double or found)}, but {what}; {_EXPECTED}."
      f" {advice}; a validation split may be missing, as it is split off the"
      " training split."
    )
  return found


def _class_names(tree: _Tree, path: Path) -> tuple[str, ...]:
  names = sorted(tree.get("train", tree.get("", {})))
  if len(names) < 2:
    raise UserError(
      f"{path} has a single class, {names[0]}; {_EXPECTED}. Check"
      " --config.data.dir: it may be one folder too deep."
    )
  for split in tree:
    extra = sorted(set(tree[split]) - set(names))
    # A rare class may have no image to spare for validation.
    lacking = sorted(set(names) - set(tree[split])) if split == "test" else []
    if extra or lacking:
      raise UserError(
        f"{path}: train and {split} have different classes: only train has"
        f" {few(lacking) or 'none'}, only {split} has {few(extra) or 'none'};"
        " expected the same folders, spelt alike, with images in each. Rename,"
        " remove or fill them."
      )
  return tuple(names)
