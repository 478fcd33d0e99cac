"""Data sets in memory, and prepared files, which hold one decoded.

A prepared file is an uncompressed NumPy archive of plain arrays, each with a
checksum. It is written once, so that later starts decode nothing, and it alone
trains on a machine without the original images or TensorFlow.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.runtime import files

SPLITS = ("train", "validation", "test")
_FORMAT = 1


class Split(NamedTuple):
  """Images and labels of one split of a data set.

  Attributes:
    images: uint8[n, S, S, 3], RGB.
    labels: int32[n].
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in memory.

  Attributes:
    name: name of the data set, such as 'raf_db'.
    class_names: C names, in the order of the labels.
    splits: 'train' and 'test', and 'validation' if it has one of its own or
      has been split off.
    fingerprint: identifies the content of the files, or the seed, it was made
      from.
    warnings: lines for the user, logged at each start.
    names: split -> names of its images, where they have one; see `Record`.
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
    return self.splits["train"].images.shape[1]


def class_name(folder: str) -> str:
  """Returns the class that a folder or a stored name stands for.

  Names that look alike are one class: composed and decomposed letters, blanks
  at the ends and characters without a width make no difference.
  """
  name = unicodedata.normalize("NFC", folder)
  # Cf: zero-width spaces and joiners, marks of direction and of byte order.
  return "".join(c for c in name if unicodedata.category(c) != "Cf").strip()


def save(path: Path, dataset: Dataset) -> None:
  """Writes a prepared file atomically."""
  content: dict[str, Any] = {}
  for name, (images, labels) in dataset.splits.items():
    content[f"{name}_images"] = images
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


def load(path: Path) -> Dataset:
  """Reads a prepared file. Nothing in it is executed: objects are refused.

  Raises:
    UserError: if the file is damaged, or is no prepared file.
    OSError: if it cannot be read now.
  """
  try:
    found = files.load(path)
    if "meta" not in found:
      arrays = [f"{n} {list(a.shape)} of {a.dtype}" for n, a in found.items()]
      raise ValueError(
        f"it holds {', '.join(arrays) or 'nothing'}; a prepared file holds"
        " meta, train_images, train_labels and those of its other splits"
      )
    return _dataset(_meta(found["meta"].tobytes()), found)
  except ValueError as error:
    raise UserError(
      f"{path} is not a prepared data set, or is damaged ({error})."
      " Set data.dir to another file, or to the original images."
    ) from error


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
      raise ValueError(f"its {field} is no text")
  for field in ("class_names", "parts", "warnings"):
    texts = meta.get(field)
    if not isinstance(texts, list) or not all(
      isinstance(text, str) for text in texts
    ):
      raise ValueError(f"its {field} are no list of texts")
  names = meta["class_names"]
  if len(names) < 2 or len(set(names)) != len(names):
    raise ValueError("it has fewer than two classes, or two of one name")
  if not {"train", "test"} <= set(meta["parts"]) <= {*SPLITS}:
    raise ValueError(f"its parts are {meta['parts']}")
  return meta


def _dataset(meta: dict[str, Any], found: dict[str, np.ndarray]) -> Dataset:
  """Checks the arrays and makes the data set, or raises ValueError."""
  names = tuple(meta["class_names"])
  splits: dict[str, Split] = {}
  image_names: dict[str, list[str]] = {}
  for name in sorted(meta["parts"], key=SPLITS.index):  # 'train' comes first
    images, labels = (found.get(f"{name}_{what}") for what in Split._fields)
    if images is None or labels is None:
      raise ValueError(f"it lacks the images or labels of {name}")
    shape = images.shape
    side = splits["train"].images.shape[1] if splits else max([1, *shape[1:2]])
    if images.dtype != np.uint8 or shape[1:] != (side, side, 3):
      raise ValueError(f"{name} has images {list(shape)} of {images.dtype}")
    if labels.dtype != np.int32 or labels.shape != shape[:1]:
      raise ValueError(
        f"{name} has labels {list(labels.shape)} of {labels.dtype} for"
        f" {shape[0]} images"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
      raise ValueError(f"{name} has labels of classes there are not")
    splits[name] = Split(images, labels)
    if (stored := found.get(f"{name}_names")) is not None:
      image_names[name] = json.loads(stored.tobytes())
      if list(map(type, image_names[name])) != [str] * len(labels):
        raise ValueError(f"{name} has no name for each image")
  return Dataset(
    meta["name"],
    names,
    splits,
    meta["fingerprint"],
    tuple(meta["warnings"]),
    image_names,
  )
