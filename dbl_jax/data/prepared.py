"""One file that holds a data set decoded: all that training needs.

The file is an uncompressed NumPy archive of plain arrays, with a checksum on
each. It is written once, so that later starts decode nothing, and it alone
trains on a machine without TensorFlow.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dbl_jax.errors import UserError

_FORMAT = 1


class Part(NamedTuple):
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
  parts: dict[str, Part]
  fingerprint: str
  warnings: tuple[str, ...] = ()

  @property
  def image_size(self) -> int:
    """Height and width of the images, in pixels."""
    return self.parts["train"].images.shape[1]


def save(path: Path, dataset: Dataset) -> None:
  """Writes the file whole or not at all."""
  arrays = {}
  for part, (images, labels) in dataset.parts.items():
    arrays[f"{part}_images"] = images
    arrays[f"{part}_labels"] = labels
  meta = {
    "format": _FORMAT,
    "name": dataset.name,
    "class_names": dataset.class_names,
    "parts": list(dataset.parts),
    "fingerprint": dataset.fingerprint,
    "warnings": dataset.warnings,
  }
  arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A name of its own, so that two runs preparing at once do not collide.
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as file:
      np.savez(file, **arrays)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


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
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    if meta["format"] != _FORMAT:
      raise ValueError(f"its format is {meta['format']}, not {_FORMAT}")
    parts = {
      part: Part(arrays[f"{part}_images"], arrays[f"{part}_labels"])
      for part in meta.get("parts", ("train", "test"))
    }
  except (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f"{path} is not a prepared data set, or is damaged ({error})."
      " Delete it and run again from the original images."
    ) from error
  return Dataset(
    name=meta["name"],
    class_names=tuple(meta["class_names"]),
    parts=parts,
    fingerprint=meta["fingerprint"],
    warnings=tuple(meta["warnings"]),
  )
