"""Data sets, and files with decoded ones.

A prepared file is an uncompressed NumPy archive of plain arrays, each with a
checksum. It is written once, so that later starts skip decoding, and suffices
for training without the original images or TensorFlow.

A large data set is prepared into a folder of such files, its shards, named
00000-of-00012.npz and so on, each with the next rows.
"""

import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.data.formats.images import in_threads
from dbl_jax.errors import UserError
from dbl_jax.runtime import files, rows

SPLITS = ("train", "validation", "test")
_FORMAT = 1
# The seven basic expressions in the order of FER2013 and ExpW, and of RAF-DB.
FER2013_NAMES = (
  "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral",
)  # fmt: skip
RAF_DB_NAMES = (
  "surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral",
)  # fmt: skip
# Images per class in RAF-DB (Li, Deng & Du 2017).
RAF_DB_COUNTS = {
  "train": (1290, 281, 717, 4772, 1982, 705, 2524),
  "test": (329, 74, 160, 1185, 478, 162, 680),
}
_SYNONYMS = {
  "surprised": "surprise",
  "afraid": "fear",
  "fearful": "fear",
  "happy": "happiness",
  "sad": "sadness",
  "angry": "anger",
} | {name: name for name in RAF_DB_NAMES}


class Split(NamedTuple):
  """Images and labels of one split of a data set.

  Attributes:
    images: uint8[n, S, S, 3], RGB, in memory or on disk.
    labels: int32[n].
  """

  images: rows.Array
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set.

  Attributes:
    name: name of the data set, such as 'raf_db'.
    class_names: C names, in the order of the labels.
    splits: 'train' and 'test', and 'validation' if it has one of its own or
      has been split off.
    fingerprint: identifies the content of its files, or its seed.
    warnings: lines for the user, logged at each start.
    names: split -> names of its images, if they have some; see `Record`.
    former: the fingerprint that earlier versions gave these files, by their
      times of change; '' if it is the same.
  """

  name: str
  class_names: tuple[str, ...]
  splits: dict[str, Split]
  fingerprint: str
  warnings: tuple[str, ...] = ()
  names: Mapping[str, Sequence[str]] = MappingProxyType({})
  former: str = ""

  @property
  def image_size(self) -> int:
    """Height and width of the images, in pixels."""
    return next(iter(self.splits.values())).images.shape[1]


def class_name(folder: str) -> str:
  """Returns the class that a folder or a stored name stands for.

  Names that look alike are one class: composed and decomposed letters, blanks
  at the ends and characters without a width make no difference.
  """
  name = unicodedata.normalize("NFC", folder)
  # Cf: zero-width spaces and joiners, marks of direction and of byte order.
  return "".join(c for c in name if unicodedata.category(c) != "Cf").strip()


def expression(name: str) -> str:
  """Returns the RAF-DB name of an expression: 'Happy' is 'happiness'.

  Other names are returned unchanged.
  """
  return _SYNONYMS.get(name.lower(), name)


def save(path: Path, dataset: Dataset) -> None:
  """Writes a prepared file atomically."""
  content: dict[str, Any] = {}
  for name, (images, labels) in dataset.splits.items():
    content[f"{name}_images"] = np.asarray(images)
    content[f"{name}_labels"] = labels
    if name in dataset.names:
      content[f"{name}_names"] = _as_bytes(list(dataset.names[name]))
  meta = {
    "format": _FORMAT,
    "name": dataset.name,
    "class_names": dataset.class_names,
    "parts": list(dataset.splits),
    "fingerprint": dataset.fingerprint,
    "warnings": dataset.warnings,
  }
  content["meta"] = _as_bytes(meta)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    np.savez(file, **content)


def _as_bytes(value: Any) -> np.ndarray:
  return np.frombuffer(json.dumps(value).encode(), np.uint8)


def shard_paths(folder: Path, number: int) -> list[Path]:
  """Returns the files of the shards of a data set."""
  return [folder / f"{i:05}-of-{number:05}.npz" for i in range(number)]


def is_prepared(path: Path) -> bool:
  """Whether a path is a prepared file, by its name, or a folder of shards."""
  # For `os`, a path that is too long does not exist.
  shards = os.path.isdir(path) and any(path.glob("[0-9]*-of-[0-9]*.npz"))
  return path.suffix == ".npz" or shards


def load(path: Path) -> Dataset:
  """Opens a prepared file or folder of shards; images stay on disk.

  All checksums are compared. Objects, which could run code, are refused.

  Raises:
    UserError: if a file is damaged or not a prepared file, or a shard is
      missing.
    OSError: if a file cannot be read now.
  """
  paths = [path]
  if path.is_dir():
    last = max(path.glob("[0-9]*-of-[0-9]*.npz"), default=path / "0-of-1.npz")
    paths = shard_paths(path, int(last.stem.rpartition("-")[2]))
    if missing := [one.name for one in paths if not one.exists()]:
      raise UserError(
        f"{path} lacks {len(missing)} of {len(paths)} shards, such as"
        f" {missing[0]}. Copy the folder again, or set data.dir to the original"
        " images, which prepares what is missing."
      )
  dataset = join(in_threads(load_shard, paths), path)
  if not {"train", "test"} <= {*dataset.splits}:
    raise _damaged(path, f"its parts are {[*dataset.splits]}")
  if len(dataset.class_names) < 2:
    raise _damaged(path, "it has fewer than two classes")
  return dataset


def load_shard(path: Path) -> Dataset:
  """Opens one file, with some or all of the rows; see `load`."""
  try:
    found = files.load(path, on_disk="_images")
    if "meta" not in found:
      arrays = [f"{n} {list(a.shape)} of {a.dtype}" for n, a in found.items()]
      raise ValueError(
        f"its arrays are {', '.join(arrays) or 'missing'}; expected meta,"
        " train_images, train_labels and those of its other splits"
      )
    return _dataset(_meta(found["meta"].tobytes()), found)
  except ValueError as error:
    raise _damaged(path, error) from error


def join(shards: Sequence[Dataset], origin: Path) -> Dataset:
  """Joins at least one shard; UserError if they are not of one data set."""
  first = shards[0]
  splits: dict[str, Split] = {}
  names: dict[str, list[str]] = {}
  for split in sorted({k for s in shards for k in s.splits}, key=SPLITS.index):
    parts = [s.splits[split] for s in shards if split in s.splits]
    pixels, labels = zip(*parts, strict=True)
    splits[split] = Split(rows.concatenate(pixels), np.concatenate(labels))
    if named := [n for s in shards for n in s.names.get(split, ())]:
      names[split] = named
  kinds = {(s.name, s.class_names, s.fingerprint, s.image_size) for s in shards}
  if len(kinds) > 1:
    raise _damaged(origin, "its shards belong to different data sets")
  warnings = dict.fromkeys(line for s in shards for line in s.warnings)
  return first._replace(splits=splits, names=names, warnings=tuple(warnings))


def _damaged(path: Path, why: object) -> UserError:
  return UserError(
    f"{path} is not a prepared data set, or is damaged ({why})."
    " Set data.dir to another file, or to the original images."
  )


def _meta(content: bytes) -> dict[str, Any]:
  """Parses the description that `save` wrote, or raises ValueError."""
  try:
    meta = json.loads(content)
  except RecursionError as error:
    raise ValueError("its description is nested too deep") from error
  if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
    raise ValueError(f"its description is not of format {_FORMAT}")
  meta.setdefault("parts", ["train", "test"])
  for field in ("name", "fingerprint"):
    if not isinstance(meta.get(field), str):
      raise ValueError(f"its {field} is not a string")
  for field in ("class_names", "parts", "warnings"):
    texts = meta.get(field)
    if not isinstance(texts, list) or not all(
      isinstance(text, str) for text in texts
    ):
      raise ValueError(f"its {field} are not a list of strings")
  if len(set(meta["class_names"])) != len(meta["class_names"]):
    raise ValueError("two of its classes have the same name")
  if not set() < set(meta["parts"]) <= {*SPLITS}:
    raise ValueError(f"its parts are {meta['parts']}")
  return meta


def _dataset(meta: dict[str, Any], found: dict[str, Any]) -> Dataset:
  """Checks the arrays and makes the data set, or raises ValueError."""
  names = tuple(meta["class_names"])
  splits: dict[str, Split] = {}
  image_names: dict[str, list[str]] = {}
  for name in sorted(meta["parts"], key=SPLITS.index):  # 'train' comes first
    images, labels = (found.get(f"{name}_{what}") for what in Split._fields)
    if images is None or labels is None:
      raise ValueError(f"it lacks the images or labels of {name}")
    shape = images.shape
    first = next(iter(splits.values())).images.shape if splits else shape
    side = max([1, *first[1:2]])
    if images.dtype != np.uint8 or shape[1:] != (side, side, 3):
      raise ValueError(f"{name} has images {list(shape)} of {images.dtype}")
    if labels.dtype != np.int32 or labels.shape != shape[:1]:
      raise ValueError(
        f"{name} has labels {list(labels.shape)} of {labels.dtype} for"
        f" {shape[0]} images"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
      raise ValueError(f"{name} has labels outside of the classes")
    splits[name] = Split(images, labels)
    if (stored := found.get(f"{name}_names")) is not None:
      image_names[name] = json.loads(stored.tobytes())
      if list(map(type, image_names[name])) != [str] * len(labels):
        raise ValueError(f"{name} lacks names of images")
  mark, warnings = meta["fingerprint"], tuple(meta["warnings"])
  return Dataset(meta["name"], names, splits, mark, warnings, image_names)
