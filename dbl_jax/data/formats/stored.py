"""Files as they are stored: in a folder, or in a zip that is read in place."""

import dataclasses
import functools
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path

from dbl_jax.errors import UserError

# A file is read whole, and many at once. FER2013's table has 0.3 GB.
_MAX_BYTES = 1 << 30
# Photos hardly shrink in a zip, and tables to a third. Small files may.
_MAX_RATIO, _ANY_RATIO_BYTES = 100, 16 << 20
# What damage makes zipfile and its decompressors raise.
_ZIP_ERRORS = (
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  struct.error,
  EOFError,
  OSError,
  OverflowError,
  RuntimeError,  # NotImplementedError among them
  ValueError,
)


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file that has not been read.

  Attributes:
    origin: its path, for messages.
    size: in bytes.
    stamp: CRC of its content (in a zip), or time of its last change in ns.
    read: returns its content.
  """

  origin: str
  size: int
  stamp: int
  read: Callable[[], bytes]


def open_tree(
  path: Path, expected: str, ignored: Collection[str] = ()
) -> dict[str, StoredFile]:
  """Finds all files of a folder or a zip, and reads none.

  Links are followed, but not to a folder that contains them. Hidden files and
  folders, and `__MACOSX`, are left out.

  Args:
    path: the folder or zip.
    expected: what should be there, for messages.
    ignored: names of folders that are not entered.

  Returns:
    The files by path below the folder, with '/' as separator, sorted.

  Raises:
    UserError: if there is no such folder or zip, it cannot be read, or
      something in it leads nowhere or out of it.
  """
  if os.path.isdir(path):
    found = dict(_walk(path, ignored))
  elif os.path.isfile(path):
    found = zip_files(path, str(path), expected)
  else:
    raise UserError(
      f"{path} does not exist; {expected}. Check --config.data.dir."
    )
  return {
    name: found[name]
    for name in sorted(found)
    if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
  }


def _walk(
  root: Path, ignored: Collection[str]
) -> Iterator[tuple[str, StoredFile]]:
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
            if entry.name not in ignored:
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
      raise _unreadable(folder, error) from error


def of_path(path: Path | os.DirEntry[str]) -> StoredFile:
  """Returns a file that lies in a folder."""
  stat, origin = path.stat(), os.fspath(path)
  return StoredFile(
    origin, stat.st_size, stat.st_mtime_ns, lambda: _read_file(Path(origin))
  )


def zip_files(
  file: Path | BytesIO, origin: str, expected: str
) -> dict[str, StoredFile]:
  """Finds the files of a zip; nothing is extracted.

  Args:
    file: the zip.
    origin: its path, for messages.
    expected: what should be there, for messages.

  Returns:
    The files by path.

  Raises:
    UserError: if it is no zip, or a path leads out of it.
  """
  try:
    archive = zipfile.ZipFile(file)
  except _ZIP_ERRORS as error:
    raise UserError(
      f"{origin} is not a zip file or is damaged ({error}); {expected}."
      " Copy or download it again."
    ) from error
  found = {}
  for info in archive.infolist():
    # Some programs on Windows write their own separator.
    name = info.filename.replace("\\", "/")
    if ".." in name.split("/") or name.startswith("/"):
      raise UserError(
        f"{origin} has an entry {info.filename!r}, which leads out of the zip;"
        " expected names below it. Ask who made the zip, or make it again."
      )
    if name and not name.endswith("/"):
      read = functools.partial(_read_entry, archive, info.filename, origin)
      place = f"{origin}/{name}"
      found[name] = StoredFile(place, info.file_size, info.CRC, read)
  return found


def _read_entry(archive: zipfile.ZipFile, entry: str, origin: str) -> bytes:
  try:
    info = archive.getinfo(entry)
    if info.flag_bits & 1:
      raise UserError(
        f"{origin} is locked by a password. Extract it with the password"
        " its authors sent, and give the folder instead."
      )
    packed, size = max(info.compress_size, 1), info.file_size
    if size > _ANY_RATIO_BYTES and size > _MAX_RATIO * packed:
      raise UserError(
        f"{origin}: {entry} would grow from {packed} to {size} bytes, more"
        f" than {_MAX_RATIO} times; expected an image or a table. It is no"
        " such file, or made to fill the memory: remove it."
      )
    _check_size(size, f"{origin}: {entry}")
    return archive.read(entry)
  except _ZIP_ERRORS as error:
    raise UserError(
      f"{origin}: {entry} cannot be read ({error}); expected a whole zip file."
      " Copy or download it again."
    ) from error


def _read_file(path: Path) -> bytes:
  try:
    _check_size(path.stat().st_size, str(path))
    return path.read_bytes()
  except OSError as error:
    raise _unreadable(path, error) from error


def _check_size(size: int, origin: str) -> None:
  if size > _MAX_BYTES:
    raise UserError(
      f"{origin} has {size} bytes; expected an image or a table, of at most"
      f" {_MAX_BYTES}. Remove it, or make it smaller."
    )


def _unreadable(path: Path, error: OSError) -> UserError:
  return UserError(
    f"{path} cannot be read ({error.strerror or error}). Check that it exists"
    " and that you may read it."
  )


def by_name(files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
  """Returns the files by their names alone.

  Raises:
    UserError: if two share a name.
  """
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
  """Lists the first names, and how many more there are."""
  names = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
  more = [f"and {len(names) - limit} more"] if len(names) > limit else []
  return ", ".join(names[:limit] + more)
