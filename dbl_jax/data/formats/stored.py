"""Files as they are stored: in a folder, or in a zip read in place."""

import functools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from dbl_jax.errors import UserError

# A file is read whole, and many at once. FER2013's table has 0.3 GB.
_MOST_BYTES = 1 << 30
# Photos hardly shrink in a zip, and tables to a third. Of small files any may.
_MOST_RATIO, _ANY_RATIO_BYTES = 100, 16 << 20


class StoredFile(NamedTuple):
  """A stored file; `stamp` is of its content (CRC) or its change (time)."""

  origin: str
  size: int
  stamp: int
  read: Callable[[], bytes]


def open_tree(path: Path, expected: str) -> dict[str, StoredFile]:
  """Finds all files of a folder or a zip; none is read.

  Links are followed, but not to a folder that they are in. What systems leave
  behind is left out: hidden files and folders, and `__MACOSX`.

  Args:
    path: the folder or zip.
    expected: what should be there, for messages.

  Returns:
    The files by path below the folder, with '/' between its parts, sorted.

  Raises:
    UserError: if there is no such folder or zip, it cannot be read, or
      something in it leads nowhere or out of it.
  """
  if os.path.isdir(path):
    found = dict(_walk(path))
  elif os.path.isfile(path):
    archive = open_archive(path, str(path), expected)
    found = dict(zip_files(archive, str(path)))
  else:
    raise UserError(
      f"{path} does not exist; {expected}. Check --config.data.dir."
    )
  return {
    name: found[name]
    for name in sorted(found)
    if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
  }


def folder_files(folder: Path) -> Iterator[tuple[str, StoredFile]]:
  """Name and file for each file that lies in a folder itself."""
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.is_file():
          yield entry.name, of_path(entry)
  except OSError as error:
    raise unreadable(folder, error) from error


def _walk(root: Path) -> Iterator[tuple[str, StoredFile]]:
  waiting: list[tuple[Path, str, frozenset]] = [(root, "", frozenset())]
  while waiting:
    folder, prefix, above = waiting.pop()
    try:
      stat = folder.stat()
      # A link to a folder above it would have no end.
      if (stat.st_dev, stat.st_ino) in above:
        continue
      inside = above | {(stat.st_dev, stat.st_ino)}
      with os.scandir(folder) as entries:
        for entry in entries:
          name = prefix + entry.name
          if os.path.isdir(entry.path):
            waiting.append((Path(entry.path), f"{name}/", inside))
          elif os.path.isfile(entry.path):
            yield name, of_path(entry)
          elif entry.is_symlink() and not entry.name.startswith("."):
            raise UserError(
              f"{entry.path} is a link to {os.readlink(entry.path)}, where"
              " nothing can be read; expected a file or folder. Mount or"
              " restore what it links to, or remove the link."
            )
    except OSError as error:
      raise unreadable(folder, error) from error


def of_path(path: Path | os.DirEntry[str]) -> StoredFile:
  """A file that lies in a folder."""
  stat, origin = path.stat(), os.fspath(path)
  return StoredFile(
    origin, stat.st_size, stat.st_mtime_ns, lambda: read_file(Path(origin))
  )


def zip_files(
  archive: zipfile.ZipFile, origin: str
) -> Iterator[tuple[str, StoredFile]]:
  """Path and file for each file in a zip; nothing is written anywhere."""
  for info in archive.infolist():
    # Some programs on Windows write their own separator.
    name = info.filename.replace("\\", "/")
    if ".." in name.split("/") or name.startswith("/"):
      raise UserError(
        f"{origin} has an entry {info.filename!r}, which leads out of the zip;"
        " expected names below it. Ask who made the zip, or make it again."
      )
    if name and not name.endswith("/"):
      yield (
        name,
        StoredFile(
          f"{origin}/{name}",
          info.file_size,
          info.CRC,
          functools.partial(read_entry, archive, info.filename, origin),
        ),
      )


def open_archive(
  file: Path | BytesIO, origin: str, expected: str
) -> zipfile.ZipFile:
  """Opens a zip; `origin` and `expected` are for messages."""
  try:
    return zipfile.ZipFile(file)
  # The directory of a damaged zip makes zipfile raise many kinds of errors.
  except (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    ValueError,
    OverflowError,
    struct.error,
  ) as error:
    raise UserError(
      f"{origin} is not a zip file or is damaged ({error}); {expected}."
      " Copy or download it again."
    ) from error


def read_entry(archive: zipfile.ZipFile, entry: str, origin: str) -> bytes:
  """The content of a file in a zip, or UserError."""
  try:
    info = archive.getinfo(entry)
    if info.flag_bits & 1:
      raise UserError(
        f"{origin} is locked by a password. Extract it with the password"
        " its authors sent, and give the folder instead."
      )
    packed = max(info.compress_size, 1)
    if (
      info.file_size > _ANY_RATIO_BYTES
      and info.file_size > _MOST_RATIO * packed
    ):
      raise UserError(
        f"{origin}: {entry} would grow from {packed} to {info.file_size} bytes,"
        f" more than {_MOST_RATIO} times; expected an image or a table. It is"
        " no such file, or made to fill the memory: remove it."
      )
    check_size(info.file_size, f"{origin}: {entry}")
    return archive.read(entry)
  # zipfile and its decompressors raise whatever damage makes them trip over.
  except (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
  ) as e:
    raise UserError(
      f"{origin}: {entry} cannot be read ({e}); expected a whole zip file."
      " Copy or download it again."
    ) from e


def read_file(path: Path) -> bytes:
  """The content of a file, or UserError."""
  try:
    check_size(path.stat().st_size, str(path))
    return path.read_bytes()
  except OSError as error:
    raise unreadable(path, error) from error


def check_size(size: int, origin: str) -> None:
  """Raises UserError for a file too large to be an image or a table."""
  if size > _MOST_BYTES:
    raise UserError(
      f"{origin} has {size} bytes; expected an image or a table, of at most"
      f" {_MOST_BYTES}. Remove it, or make it smaller."
    )


def unreadable(path: Path, error: OSError) -> UserError:
  """The error to raise for a file or folder that cannot be read."""
  return UserError(
    f"{path} cannot be read ({error.strerror or error}). Check that it exists"
    " and that you may read it."
  )


def by_name(files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
  """The same files by their names alone, or UserError if two share one."""
  found: dict[str, StoredFile] = {}
  for path, file in files.items():
    name = path.rsplit("/", 1)[-1]
    if name in found:
      raise UserError(
        f"{file.origin} has the name of {found[name].origin}; expected each"
        " image once. Remove or rename the wrong one."
      )
    found[name] = file
  return found


def few(names: Iterable[str], limit: int = 5) -> str:
  """The first names, and how many more there are."""
  names = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
  more = [f"and {len(names) - limit} more"] if len(names) > limit else []
  return ", ".join(names[:limit] + more)
