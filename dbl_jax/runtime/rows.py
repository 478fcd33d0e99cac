"""Rows of arrays that stay on disk, and are read when they are indexed.

They are read by position. Pages of a memory map would count as memory of the
process, and if the disk fails, a map ends the process without a message.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.errors import UserError

# int64[k], indices of rows -> the rows [k, ...].
Read = Callable[[np.ndarray], np.ndarray]
_CHUNK = 256


class Rows:
  """Rows of one or several sources; indexing the first axis reads them.

  Attributes:
    shape: (n, ...), as that of an array.
    dtype: type of the elements.
  """

  def __init__(
    self,
    parts: Sequence[tuple[int, Read]],
    row_shape: Sequence[int],
    dtype: np.dtype,
  ):
    """Takes the number of rows of each source and how they are read."""
    self._reads = [read for _, read in parts]
    self._starts = np.cumsum([0] + [number for number, _ in parts])
    self.shape = (int(self._starts[-1]), *row_shape)
    self.dtype = dtype

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    """Size of all rows in memory."""
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

  def __getitem__(self, key: Any) -> np.ndarray:
    chosen = np.arange(len(self))[key]
    index = np.atleast_1d(chosen)
    if len(self._reads) == 1:
      rows = self._reads[0](index)
    else:
      rows = np.empty((len(index), *self.shape[1:]), self.dtype)
      source = np.searchsorted(self._starts, index, side="right") - 1
      for one in np.unique(source):
        places = np.flatnonzero(source == one)
        rows[places] = self._reads[one](index[places] - self._starts[one])
    return rows if chosen.ndim else rows[0]

  def __iter__(self) -> Iterator[np.ndarray]:
    for start in range(0, len(self), _CHUNK):
      yield from self[start : start + _CHUNK]

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    return self[:].astype(dtype or self.dtype, copy=False)


def of_file(
  path: Path, offset: int, shape: Sequence[int], dtype: np.dtype
) -> Rows:
  """Returns rows of an array [n, ...] in C order that begins in a file."""
  size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize

  def read(index: np.ndarray) -> np.ndarray:
    rows = np.empty((len(index), *shape[1:]), dtype)
    flat = rows.reshape(len(index), -1).view(np.uint8)
    try:
      with path.open("rb", buffering=0) as file:
        for place in np.argsort(index, kind="stable").tolist():
          file.seek(offset + int(index[place]) * size)
          if file.readinto(flat[place]) != size:
            raise OSError("the file has become shorter")
    except OSError as error:
      raise UserError(
        f"{path} can no longer be read ({error.strerror or error}). Check the"
        " disk and that the file exists, then run the same command, which"
        " resumes."
      ) from error
    return rows

  return Rows([(shape[0], read)], shape[1:], dtype)


Array = np.ndarray | Rows


def take(array: Array, index: np.ndarray) -> Array:
  """Returns some rows; those on disk stay there."""
  if isinstance(array, np.ndarray):
    return array[index]
  read = lambda places: array[index[places]]  # noqa: E731
  return Rows([(len(index), read)], array.shape[1:], array.dtype)


def apply(change: Callable[[np.ndarray], np.ndarray], array: Array) -> Array:
  """Changes rows, [n, ...] -> [n, ...], those on disk when they are read."""
  if isinstance(array, np.ndarray):
    return change(array)
  read = lambda places: change(array[places])  # noqa: E731
  return Rows([(len(array), read)], array.shape[1:], array.dtype)


def concatenate(arrays: Sequence[Array]) -> Array:
  """Concatenates along the first axis; on disk if any of the arrays is."""
  if all(isinstance(array, np.ndarray) for array in arrays):
    return np.concatenate(arrays)
  parts = [(len(array), array.__getitem__) for array in arrays]
  return Rows(parts, arrays[0].shape[1:], arrays[0].dtype)
