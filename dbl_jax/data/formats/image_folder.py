"""Any folder of class folders, with or without splits of its own.

Two layouts, in a folder, zip or tar:

  train/CLASS/any.jpg, test/CLASS/any.jpg, and perhaps validation/: the splits
  as they are. Usual names of splits are known, such as training_set/, val/,
  seg_test/ and seg_test/seg_test/.
  CLASS/any.jpg: the images are split here, stratified by class; the test
  split gets `data.test_fraction` of each class, drawn by `data.split_seed`.

The classes are the names of the folders, sorted; see `datasets.class_name`.
Images may lie deeper than their class folder. Without a validation split, one
is split off the training split as for every data set.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.datasets import SPLITS, class_name
from dbl_jax.data.formats import stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.data.splits import TEST, group_numbers, split_off
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
_KINDS = (
  dict.fromkeys(("train", "training", "trn"), "train")
  | dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
  | dict.fromkeys(("test", "testing", "tst"), "test")
)
# A word for a split in a folder's name, and the text before and after it.
_SPLIT_NAME = re.compile(
  rf"(?:(.+)[ _.-])?({'|'.join(sorted(_KINDS, reverse=True))})"
  r"(?:[ _.-](.+)|(\d.*|sets?|images|data))?",
  re.IGNORECASE,
)
# Where words are joined without a separator, as in FER2013Train and trainA.
_JOINT = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Text before and after the word in known names of splits.
_BEFORE = {"", "seg"}
_AFTER = {"", "set", "sets", "data", "images", "imgs", "split"}
# Folders that hold the images of a split but are not a class.
_NO_CLASS = {"images", "image", "imgs", "img", "jpegimages"}
_IMAGE = re.compile(
  r".*\.(jpe?g|jpe|jfif|png|bmp|gif|webp|tiff?|p[gnp]m)",
  re.IGNORECASE | re.DOTALL,
)
# Files with images in a form that is not searched.
_PACKED = re.compile(
  r".*\.(zip|tar|t?gz|t?bz2|t?xz|7z|rar|zst|parquet|arrow|tfrecord[^/]*|mdb"
  r"|h5|hdf5|mat|npz|npy|pkl)",
  re.IGNORECASE | re.DOTALL,
)
# Files with labels in the formats of other data sets.
_LABELS = re.compile(r".*\.(npy|txt|csv|json|xml|mat|lst)", re.I | re.DOTALL)
_EXPECTED = (
  "expected train/ and test/ (and perhaps validation/) with a folder of"
  " images for each class, or one folder of such class folders"
)
# Split -> class -> name -> file.
_Tree = dict[str, dict[str, dict[str, StoredFile]]]
_PACKED_ADVICE = (
  " Images inside of other files are not found ({}): extract them, or give one"
  " archive. TFRecords are for --config.data.name=tfds."
)
_UNLABELLED = " Images without labels are for --config.pretrain.unlabelled."


def find(path: Path, options: Any) -> Listing:
  """Finds the images, see `Source.find`.

  For a folder without splits the options `test_fraction`, `split_seed` and
  `groups` are used.
  """
  tree, warnings = read_tree(path)
  class_names, lacking = _class_names(tree, path)
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
    groups = None
    if how := options.get("groups", ""):
      classes = [class_names[record.label] for record in whole]
      groups = group_numbers([record.name for record in whole], classes, how)
    parts = split_off(
      labels, options.test_fraction, options.split_seed, TEST, groups
    )
    splits = {
      split: tuple(whole[i] for i in inside)
      for split, inside in zip(("train", "test"), parts, strict=True)
    }
  return Listing(class_names, splits, (*warnings, *lacking))


def find_images(path: Path) -> dict[str, StoredFile]:
  """Finds the images of a folder or zip, by path; UserError without any."""
  expected = "expected a folder or zip of images"
  found = stored.open_tree(path, expected)
  found = {name: file for name, file in found.items() if is_image(name)}
  if not found:
    raise UserError(f"{path} does not hold an image; {expected}.")
  return found


def read_tree(
  path: Path, files: dict[str, StoredFile] | None = None
) -> tuple[_Tree, list[str]]:
  """Sorts the files of a folder or archive by split and class.

  Args:
    path: the folder or archive.
    files: all files in it, see `stored.open_tree`; found here by default.

  Returns:
    Split -> class -> name -> file, with the only split '' for a folder
      without splits; and warnings about files that are left out.

  Raises:
    UserError: if class folders or a split are missing, a split is double, or
      folders may be splits or classes.
  """
  if files is None:
    files = stored.open_tree(path, _EXPECTED)
  images = [name for name in files if is_image(name)]
  others = [n for n in files if not is_image(n) and not n.endswith("/")]
  places = _without_wrappers({name: tuple(name.split("/")) for name in files})
  inside = _subfolders(places[name] for name in images)
  folders = _split_folders(inside, path, others)
  shared = [] if folders else sorted(_shared(inside))
  depth = 1 if folders else 0
  present = [split for split in SPLITS if split in folders.values()]
  tree: _Tree = {split: {} for split in present or [""]}
  spellings: dict[str, set[str]] = {}
  empty, astray = set(), []
  for name, place in places.items():
    split = folders.get(place[0]) if folders else ""
    if split is None or len(place) < depth + 2:
      astray += [name] if is_image(name) else []
    elif is_image(name):
      of_class = class_name(place[depth]) or place[depth]
      spellings.setdefault(of_class, set()).add(place[depth])
      tree[split].setdefault(of_class, {})[name] = files[name]
    else:
      empty.add(place[: depth + 1])
  empty -= {places[name][: depth + 1] for name in images}
  heic = any(name.lower().endswith((".heic", ".heif")) for name in others)
  advice = " (convert HEIC to JPEG)" if heic else ""
  left_out = {
    f"files without the name of an image are left out{advice}": others,
    "images outside of class folders are left out": astray,
    "folders without images are not classes": sorted(map("/".join, empty)),
  }
  warnings = [
    f"{path}: {len(names)} {what}: {few(names)}"
    for what, names in left_out.items()
    if names
  ]
  for alike in spellings.values():
    if len(alike) > 1:
      shown = ", ".join(map(ascii, sorted(alike)))
      warnings.append(f"{path}: folders spelt alike are one class: {shown}")
  if len(shared) > 1:
    warnings.append(
      f"{path}: the classes are {few(sorted(inside))}, although each of these"
      f" folders holds {few(shared)}"
    )
  times = Counter(map(str.casefold, spellings))
  if twins := [n for n in sorted(spellings) if times[n.casefold()] > 1]:
    warnings.append(f"{path}: classes differ only in case: {few(twins)}")
  packed = [name for name in others if _PACKED.fullmatch(name)]
  advice = _PACKED_ADVICE.format(few(packed)) if packed else _UNLABELLED
  for split, classes in tree.items():
    if not classes:
      where = f"{path}/{split}" if split else str(path)
      raise UserError(
        f"{where} has no class folder with images (found:"
        f" {few(files) or 'nothing'}); {_EXPECTED}. Check --config.data.dir."
        f"{advice if files else ''}"
      )
  return tree, warnings


def _without_wrappers(
  places: dict[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
  """Removes folders that hold all images, and splits inside a split.

  A zip often has a folder around everything; Kaggle's have train/train.
  """

  def tops() -> dict[str, set[str]]:
    return _subfolders(place for n, place in places.items() if is_image(n))

  while len(inside := tops()) == 1:
    ((top, below),) = inside.items()
    of_images = [p for n, p in places.items() if is_image(n) and p[0] == top]
    deep = all(len(place) > 2 for place in of_images)
    if _split_of(top) or not (deep or len(below) > 1):
      break
    places = {n: p[1:] if p[0] == top else p for n, p in places.items()}
  for top, below in inside.items():
    if split := _split_of(top):
      inner = [f for f in below if len(below) == 1 and _split_of(f) == split]
      wrapped = {
        n: (top, *p[2:])
        for n, p in places.items()
        if p[:2] in [(top, f) for f in inner]
      }
      if all(len(p) > 2 for n, p in wrapped.items() if is_image(n)):
        places = places | wrapped
  return places


def _shared(inside: dict[str, set[str]]) -> set[str]:
  """Folders that are in each of two and more folders."""
  return set.intersection(*inside.values()) if len(inside) > 1 else set()


def _subfolders(places: Iterable[tuple[str, ...]]) -> dict[str, set[str]]:
  """Folders that hold images, and the folders in them that do."""
  found: dict[str, set[str]] = {}
  for place in places:
    if len(place) > 1:
      found.setdefault(place[0], set()).update(place[1:2] if place[2:] else ())
  return found


def is_image(name: str) -> bool:
  """Returns whether a file has the name of an image that can be read."""
  return bool(_IMAGE.fullmatch(name))


def _named_split(folder: str) -> tuple[str, str, str] | None:
  """Split, and what is before and after the word, of a folder named like one.

  The folder 'faces_train2017' gives ('train', 'faces', '2017').
  """
  for name in (folder, _JOINT.sub("_", folder)):
    if match := _SPLIT_NAME.fullmatch(name):
      before, word, after, joined = match.groups(default="")
      return _KINDS[word.lower()], before.lower(), (after or joined).lower()
  return None


def _split_of(folder: str) -> str:
  """The split that a folder with a usual name is, or ''."""
  split, before, after = _named_split(folder) or ("", "", "")
  return split if before in _BEFORE and after in _AFTER else ""


def _split_folders(
  inside: dict[str, set[str]], path: Path, others: list[str]
) -> dict[str, str]:
  """Maps folders that are splits to their names; may be empty.

  Takes the folders with images and the folders in them that hold images; and
  the files that are not images.
  """
  found = {f: split for f in sorted(inside) if (split := _split_of(f))}
  flat = [f for f in inside if not inside[f]]
  if not found or (len(flat) == len(inside) > len(found)):
    _check_not_splits(inside, path)
    return {}
  splits = list(found.values())
  double = [f for f in found if splits.count(found[f]) > 1]
  unlabelled = [f for f in found if {s.lower() for s in inside[f]} <= _NO_CLASS]
  if unlabelled and not double:
    raise UserError(_no_labels(unlabelled, found, path, others))
  missing = [split for split in ("train", "test") if split not in splits]
  if double or missing:
    what = f"no {' and no '.join(missing)}" if missing else "one split twice"
    held_out = [f for f in found if found[f] == "validation"]
    advice = (
      f"Rename {held_out[0]} to test, to be evaluated on it"
      if missing == ["test"] and held_out
      else "Rename the folders"
    )
    raise UserError(
      f"{path} has {', '.join(double or found)}, but {what}; {_EXPECTED}."
      f" {advice}. Without a validation split, one is split off the training"
      " split."
    )
  return found


def _check_not_splits(inside: dict[str, set[str]], path: Path) -> None:
  """Raises UserError if the class folders look like splits."""
  named = [split for f in inside if (split := _named_split(f))]
  kinds, rests = {split[0] for split in named}, {split[1:] for split in named}
  alike = len(named) == len(inside) and len(rests) == 1 and len(kinds) > 1
  if "train" in kinds and (alike or len(_shared(inside)) > 1):
    raise UserError(
      f"{path}: the folders {few(sorted(inside))} may be splits or classes;"
      f" {_EXPECTED}. Rename them to train, validation and test if they are"
      " splits, or to names without these words if they are classes."
    )


def _no_labels(
  folders: list[str], splits: dict[str, str], path: Path, others: list[str]
) -> str:
  """A message about splits with images outside of class folders."""
  message = (
    f"{path}: {', '.join(folders)} hold images without class folders, so their"
    f" labels are unknown; {_EXPECTED}."
  )
  if labels := [name for name in others if _LABELS.fullmatch(name)]:
    message += f" Labels in other files are not read ({few(labels, 2)})."
  train = [f for f, split in splits.items() if split == "train"]
  if train and train[0] not in folders:
    return (
      f"{message} Set --config.data.dir={path / train[0]} to have a test split"
      " split off; scripts/predict.py classifies images without labels."
    )
  return (
    f"{message} Sort the images into class folders; images without labels are"
    " for --config.pretrain.unlabelled."
  )


def _class_names(tree: _Tree, path: Path) -> tuple[tuple[str, ...], list[str]]:
  """Names of the classes, and a warning for each split that lacks some."""
  names = sorted(tree.get("train", tree.get("", {})))
  if len(names) < 2:
    raise UserError(
      f"{path} has a single class, {names[0]}; {_EXPECTED}. Check"
      f" --config.data.dir: it may be one folder too deep.{_UNLABELLED}"
    )
  warnings = []
  for split in tree:
    extra = sorted(tree[split].keys() - set(names))
    lacking = sorted(set(names) - tree[split].keys())
    if extra:
      raise UserError(
        f"{path}: train and {split} have different classes: only train has"
        f" {_shown(lacking)}, only {split} has {_shown(extra)}; expected the"
        " same folders, spelt alike. Rename them, or move them elsewhere."
      )
    if lacking:
      use = (
        "the best checkpoint is chosen without them"
        if split == "validation"
        else "they do not count in its mean-class accuracy"
      )
      warnings.append(f"{path}: {split} has no {few(lacking)}, so {use}")
  return tuple(names), warnings


def _shown(names: list[str]) -> str:
  """Lists names, with code points where letters may only look alike."""
  return few(n if n.isascii() else f"{n} ({n!a})" for n in names) or "none"
