"""One file that holds a data set decoded: all that training needs.

The file is an uncompressed NumPy archive of plain arrays, with a checksum on
each. It is written once, so that later starts decode nothing, and it alone
trains on a machine without TensorFlow.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.runtime import files

PARTS = ("train", "validation", "test")
_FORMAT = 1


class Split(NamedTuple):
  """Images and labels of one part of a data set.

  Attributes:
    images: uint8[n, S, S, 3], RGB.
    labels: int32[n].
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in memory.

  Attributes:
    name: the data set's name, such as 'raf_db'.
    class_names: in the order of the labels, which travels with the data.
    parts: 'train' and 'test', and 'validation' if it has one of its own or
      has been split.
    fingerprint: identifies the files, or the seed, it was made from.
    warnings: what a user should know of it, said at each start.
  """

  name: str
  class_names: tuple[str, ...]
  parts: dict[str, Split]
  fingerprint: str
  warnings: tuple[str, ...] = ()

  @property
  def image_size(self) -> int:
    """Height and width of the images, in pixels."""
    return self.parts["train"].images.shape[1]


def save(path: Path, dataset: Dataset) -> None:
  """Writes the file whole or not at all."""
  content: dict[str, Any] = {}
  for part, (images, labels) in dataset.parts.items():
    content[f"{part}_images"] = images
    content[f"{part}_labels"] = labels
  meta = {
    "format": _FORMAT,
    "name": dataset.name,
    "class_names": dataset.class_names,
    "parts": list(dataset.parts),
    "fingerprint": dataset.fingerprint,
    "warnings": dataset.warnings,
  }
  content["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    np.savez(file, **content)


def load(path: Path) -> Dataset:
  """Reads a prepared file.

  Args:
    path: the file.

  Returns:
    The data set.

  Raises:
    UserError: if the file is damaged or something else. Nothing in it is
      executed: objects are refused.
  """
  try:
    found = files.load(path)
    if "meta" not in found:
      raise ValueError("it has no array 'meta'")
    return _dataset(_meta(found["meta"].tobytes()), found)
  except ValueError as error:
    raise UserError(
      f"{path} is not a prepared data set, or is damaged ({error})."
      " Delete it and run again from the original images."
    ) from error


def _meta(content: bytes) -> dict[str, Any]:
  """What `save` wrote beside the arrays, or ValueError."""
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
  if not {"train", "test"} <= set(meta["parts"]) <= {*PARTS}:
    raise ValueError(f"its parts are {meta['parts']}")
  return meta


def _dataset(meta: dict[str, Any], found: dict[str, np.ndarray]) -> Dataset:
  """The data set, its arrays checked; or ValueError."""
  parts: dict[str, Split] = {}
  for part in sorted(meta["parts"], key=PARTS.index):  # the training part first
    images, labels = (found.get(f"{part}_{what}") for what in Split._fields)
    if images is None or labels is None:
      raise ValueError(f"it lacks the images or labels of {part}")
    side = parts["train"].images.shape[1] if "train" in parts else None
    shape = images.shape
    if (
      images.dtype != np.uint8
      or len(shape) != 4
      or shape[1:] != (side or shape[1], side or shape[1], 3)
      or shape[1] < 1
    ):
      raise ValueError(f"{part} has images {list(shape)} of {images.dtype}")
    if labels.dtype != np.int32 or labels.shape != shape[:1]:
      raise ValueError(
        f"{part} has labels {list(labels.shape)} of {labels.dtype} for"
        f" {shape[0]} images"
      )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(
      meta["class_names"]
    ):
      raise ValueError(f"{part} has labels of classes there are not")
    parts[part] = Split(images, labels)
  return Dataset(
    name=meta["name"],
    class_names=tuple(meta["class_names"]),
    parts=parts,
    fingerprint=meta["fingerprint"],
    warnings=tuple(meta["warnings"]),
  )
