"""Files as they are stored: in a folder, or in a zip read in place."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from dbl_jax.errors import UserError


class StoredFile(NamedTuple):
  """A stored file; `stamp` is of its content (CRC) or its change (time)."""

  origin: str
  size: int
  stamp: int
  read: Callable[[], bytes]


def open_tree(path: Path, expected: str) -> dict[str, StoredFile]:
  """Finds all files of a folder or a zip; none is read.

  Links are followed. What systems leave behind is left out: hidden files and
  folders, and `__MACOSX`.

  Args:
    path: the folder or zip.
    expected: what should be there, for messages.

  Returns:
    The files by path below the folder, with '/' between its parts, sorted.

  Raises:
    UserError: if there is no such folder or zip, or it cannot be read.
  """
  if path.is_dir():
    found = dict(_walk(path))
  elif path.is_file():
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
  waiting, seen = [(root, "")], set()
  while waiting:
    folder, prefix = waiting.pop()
    try:
      stat = folder.stat()
      # A link to a folder above it would have no end.
      if (stat.st_dev, stat.st_ino) in seen:
        continue
      seen.add((stat.st_dev, stat.st_ino))
      with os.scandir(folder) as entries:
        for entry in entries:
          name = prefix + entry.name
          if entry.is_dir():
            waiting.append((Path(entry.path), f"{name}/"))
          elif entry.is_file():
            yield name, of_path(entry)
    except OSError as error:
      raise unreadable(folder, error) from error


def of_path(path: Path | os.DirEntry) -> StoredFile:
  """A file that lies in a folder."""
  stat, origin = path.stat(), os.fspath(path)
  return StoredFile(
    origin, stat.st_size, stat.st_mtime_ns, lambda: read_file(Path(origin))
  )


def zip_files(
  archive: zipfile.ZipFile, origin: str
) -> Iterator[tuple[str, StoredFile]]:
  """Path and file for each file in a zip."""
  for info in archive.infolist():
    if not info.is_dir():
      yield (
        info.filename,
        StoredFile(
          f"{origin}/{info.filename}",
          info.file_size,
          info.CRC,
          lambda entry=info.filename: read_entry(archive, entry, origin),
        ),
      )


def open_archive(
  file: Path | BytesIO, origin: str, expected: str
) -> zipfile.ZipFile:
  """Opens a zip; `origin` and `expected` are for messages."""
  try:
    return zipfile.ZipFile(file)
  except (zipfile.BadZipFile, OSError) as error:
    raise UserError(
      f"{origin} is not a zip file or is damaged ({error}); {expected}."
      " Copy or download it again."
    ) from error


def read_entry(archive: zipfile.ZipFile, entry: str, origin: str) -> bytes:
  """The content of a file in a zip, or UserError."""
  try:
    if archive.getinfo(entry).flag_bits & 1:
      raise UserError(
        f"{origin} is locked by a password. Extract it with the password"
        " its authors sent, and give the folder instead."
      )
    return archive.read(entry)
  except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError) as e:
    raise UserError(
      f"{origin}: {entry} cannot be read ({e}); expected a whole zip file."
      " Copy or download it again."
    ) from e


def read_file(path: Path) -> bytes:
  """The content of a file, or UserError."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
  """The error to raise for a file or folder that cannot be read."""
  return UserError(
    f"{path} cannot be read ({error.strerror or error}). Check that it exists"
    " and that you may read it."
  )


def few(names: Iterable[str], limit: int = 5) -> str:
  """The first names, and how many more there are."""
  names = list(names)
  more = [f"and {len(names) - limit} more"] if len(names) > limit else []
  return ", ".join(names[:limit] + more)
