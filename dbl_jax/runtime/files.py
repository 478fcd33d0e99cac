"""Atomic file writes, and arrays read without pickle."""

import contextlib
import errno
import math
import os
import secrets
import struct
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from dbl_jax.errors import UserError
from dbl_jax.runtime import rows

# Seconds without a write after which the writer of a new file must be dead.
_STALE = 3600.0


def make_writable(folder: Path, flag: str) -> None:
  """Creates a folder; raises UserError for the flag if it is not writable."""
  with writing(folder, flag), tempfile.TemporaryFile(dir=folder) as file:
    file.write(b"x")


@contextlib.contextmanager
def writing(folder: Path, flag: str) -> Iterator[None]:
  """Creates a folder; errors while it is written to become UserError."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise UserError(
      f"{flag}={folder} cannot be written: {error.strerror or error}. Choose a"
      " folder you may write to, with space on its disk."
    ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """Opens a new file that replaces `path` once it is complete.

  Readers find the old file or the new one, also after a loss of power. The
  temporary name is unique, because two hosts may have equal process numbers.
  Temporary files of the same path that are an hour old are removed.
  """
  start, end = f".{path.name}.", ".partial"
  for left in path.parent.iterdir():
    if left.name.startswith(start) and left.name.endswith(end):
      with contextlib.suppress(OSError):  # another process may be faster
        if time.time() - left.stat().st_mtime > _STALE:
          left.unlink()
  partial = path.with_name(f"{start}{secrets.token_hex(6)}{end}")
  try:
    with partial.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
  """Writes a file atomically."""
  with replacing(path) as file:
    file.write(content)


def causes(error: BaseException) -> Iterator[BaseException]:
  """Yields an exception, then its cause or context, and so on."""
  chain: list[BaseException] = []
  cause: BaseException | None = error
  while cause is not None and cause not in chain:
    yield cause
    chain.append(cause)
    cause = cause.__cause__ or cause.__context__


def out_of_memory(error: BaseException) -> BaseException | None:
  """Returns the first cause that is a lack of memory, of a host or a device.

  JAX's exception is recognised by its status code. TensorStore uses the same
  code for a full disk, in a ValueError.
  """
  for cause in causes(error):
    status = isinstance(cause, RuntimeError) and str(cause).partition(":")[0]
    if isinstance(cause, MemoryError) or status == "RESOURCE_EXHAUSTED":
      return cause
  return None


# Scores and images hardly compress; small arrays of labels may.
_MAX_RATIO, _MIN_LIMIT = 100, 16 << 20


def load(path: Path, on_disk: str | None = None) -> dict[str, Any]:
  """Reads all arrays of a file written by `np.savez`.

  Objects are refused, since unpickling runs code. Memory is allocated only
  after sizes in headers have been compared with the size of the file.

  Args:
    path: the file.
    on_disk: arrays whose names end with it stay on disk, see `rows.Rows`;
      their checksums are verified too.

  Raises:
    ValueError: what is wrong with the file.
    OSError, MemoryError: the file cannot be read now.
  """
  try:
    with path.open("rb") as whole, np.load(whole, allow_pickle=False) as arrays:
      entries = arrays.zip.infolist()
      sizes = np.array([[i.compress_size, i.file_size] for i in entries])
      sizes = sizes.reshape(-1, 2)
      for packed, size in [*sizes, sizes.sum(axis=0)]:
        if size > max(_MAX_RATIO * packed, _MIN_LIMIT):
          raise ValueError(f"{packed} bytes would grow to {size}")
      stay = {}
      for info in entries:
        name = info.filename.removesuffix(".npy")
        with arrays.zip.open(info) as file:
          shape, fortran, dtype = _check_header(file, info)
          if on_disk is not None and name.endswith(on_disk):
            if fortran:
              raise ValueError(f"{name} is not in C order")
            offset = _offset(whole, info) + file.tell()
            stay[name] = rows.of_file(path, offset, shape, dtype)
            while file.read(1 << 20):  # zipfile compares the checksum
              pass
      return {n: stay[n] if n in stay else arrays[n] for n in arrays.files}
  # The parsers of zipfile and NumPy raise anything for a damaged file.
  except Exception as error:
    # Seeking to a damaged offset is EINVAL.
    if isinstance(error, MemoryError) or (
      isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    ):
      raise
    raise ValueError(str(error) or type(error).__name__) from error


def _offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
  """Returns the place where the content of an uncompressed entry begins."""
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f"{info.filename} is compressed")
  file.seek(info.header_offset + 26)
  return info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _check_header(
  file: IO[bytes], info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype]:
  """Returns shape, whether it is in Fortran order, and dtype of an entry.

  Raises ValueError if its size differs from that in its header.
  """
  version = npy.read_magic(file)
  if version not in ((1, 0), (2, 0)):
    raise ValueError(f"{info.filename} has the unknown version {version}")
  read_header = getattr(npy, f"read_array_header_{version[0]}_0")
  shape, fortran, dtype = read_header(file)
  if dtype.hasobject:
    raise ValueError(f"{info.filename} holds objects, not numbers")
  found = info.file_size - file.tell()
  if found != math.prod(shape) * dtype.itemsize:
    raise ValueError(
      f"{info.filename} has {found} bytes for an array {list(shape)} of {dtype}"
    )
  return shape, fortran, dtype
