"""Files that appear whole or not at all."""

import contextlib
import glob
import math
import os
import secrets
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

# Seconds without a write after which a new file's writer must be dead.
_STALE = 3600.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A new file that takes the place of `path` once it is written to its end.

  Until then readers find the old one, and afterwards the whole new one, also
  after a loss of power. Its name until then is its own, so that two writers,
  which may have one process number on two hosts, do not collide.
  What a killed process left of the same file an hour ago or longer is removed.

  Args:
    path: of the file; its folder exists.

  Yields:
    The new file, open for writing.
  """
  partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
  _remove_stale(path)
  try:
    with partial.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
  now = time.time()
  for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
    # Another process may be faster.
    with contextlib.suppress(OSError):
      if now - left.stat().st_mtime > _STALE:
        left.unlink()


def write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  with replacing(path) as file:
    file.write(content)


_HEADERS = {
  (1, 0): npy.read_array_header_1_0,
  (2, 0): npy.read_array_header_2_0,
}
# Scores and images hardly shrink; small arrays of labels may.
_MOST_RATIO, _ANY_RATIO_BYTES = 100, 16 << 20


def load(path: Path) -> dict[str, np.ndarray]:
  """Reads all arrays of a file that `np.savez` has written.

  Objects are refused, since unpickling them runs code. No more memory is
  taken than the file's own size and a check of it allow.

  Args:
    path: the file.

  Returns:
    The arrays by name.

  Raises:
    ValueError: saying in some words what is wrong with the file.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
      _check_growth(
        "the whole",
        sum(info.compress_size for info in entries),
        sum(info.file_size for info in entries),
      )
      return {
        info.filename.removesuffix(".npy"): _read(archive, info)
        for info in entries
      }
  # The parsers of zipfile and NumPy raise whatever damage makes them trip over.
  except Exception as error:
    raise ValueError(str(error) or type(error).__name__) from error


def _check_growth(what: str, packed: int, size: int) -> None:
  if size > max(_MOST_RATIO * packed, _ANY_RATIO_BYTES):
    raise ValueError(f"{what} would grow from {packed} bytes too far")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  _check_growth(info.filename, info.compress_size, info.file_size)
  with archive.open(info) as file:
    version = npy.read_magic(file)
    if version not in _HEADERS:
      raise ValueError(f"{info.filename} has the unknown version {version}")
    shape, fortran_order, dtype = _HEADERS[version](file)
    if dtype.hasobject:
      raise ValueError(f"{info.filename} holds objects, not numbers")
    size = math.prod(shape) * dtype.itemsize
    found = info.file_size - file.tell()
    if size != found:
      raise ValueError(
        f"{info.filename} has {found} bytes for an array {list(shape)} of"
        f" {dtype}"
      )
    # To the end, where the checksum is compared.
    content = bytearray(file.read())
    if len(content) != size:
      raise ValueError(f"{info.filename} is cut off")
  flat = np.frombuffer(content, dtype)
  return flat.reshape(shape, order="F" if fortran_order else "C")
