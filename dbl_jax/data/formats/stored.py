"""Files as they are stored: in a folder, or in an archive read in place."""

import bz2
import dataclasses
import errno
import functools
import gzip
import logging
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

from dbl_jax.errors import UserError
from dbl_jax.runtime.environment import available_memory

log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Many files are read whole at the same time. FER2013's table has 0.3 GB.
_MAX_BYTES = 1 << 30
# Photos hardly shrink in a zip, and tables to a third. Small files may.
_MAX_RATIO, _ANY_RATIO_BYTES = 100, 16 << 20
# Errors of zipfile and its decompressors for damaged files.
_ZIP_ERRORS = (
  zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
  OSError, OverflowError, ValueError,
  RuntimeError,  # NotImplementedError among them
)  # fmt: skip
# Zip methods that Python reads.
_ZIP_METHODS = {
  zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA,
}  # fmt: skip
_ZIP_METHOD_NAMES = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
  b"\x1f\x8b": gzip.open,
  b"BZh": bz2.open,
  b"\xfd7zXZ": lzma.open,
}
_EXTRACT = "Extract it, and give the folder."
_GIVE_FOLDER = "Give the folder that holds it."
_EXPORT = "Save its images as files in class folders."
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# First bytes of files that are not read -> what they are, what to do.
_OTHER_KINDS = {
  b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _EXTRACT),
  b"Rar!\x1a\x07": ("a RAR archive", _EXTRACT),
  b"\x28\xb5\x2f\xfd": ("a Zstandard file", _EXTRACT),
  b"\x89HDF": ("an HDF5 file", _EXPORT),
  b"PAR1": ("a Parquet file", _EXPORT),
  b"\x93NUMPY": ("a NumPy array", _EXPORT),
  b"MATLAB": ("a MATLAB file", _EXPORT),
  b"SQLite": ("an SQLite file", _EXPORT),
  b"RIFF": ("a single image or video", _GIVE_FOLDER),
} | dict.fromkeys(_IMAGES, ("a single image", _GIVE_FOLDER))
# First bytes of a stand-in for a file that was never downloaded.
_STAND_INS = {
  rb"version https://git-lfs": (
    "a Git LFS pointer, not the file itself",
    "Run 'git lfs pull' in the repository that it comes from.",
  ),
  rb"\s*<(!doctype|html|\?xml|error)": (
    "a web page, which a failed download leaves",
    "Download the file again.",
  ),
}
_SPLIT_ARCHIVE = re.compile(r".+\.(\d{3}|z\d\d|r\d\d|part\d+\.rar)", re.I)
# Folders that operating systems and network disks add.
_SYSTEM_FOLDER = re.compile(
  r"__MACOSX|__pycache__|@eaDir|@tmp|@Recycle|@Recently-Snapshot|#recycle"
  r"|#snapshot|\$RECYCLE\.BIN|RECYCLER|RECYCLED|lost\+found|found\.\d{3}"
  r"|System Volume Information|Network Trash Folder|Temporary Items",
  re.IGNORECASE,
)

# Pictures of reports within the data are not data: a file next to them -> their
# names.
_OUTPUTS = {
  "run.lock": re.compile(r"confusion_matrix\.png"),
  "findings.csv": re.compile(r"(class_\d+_.*|duplicates)\.png", re.DOTALL),
  "table.csv": re.compile(r"(confusion_matrices|accuracies)\.png"),
}


@dataclasses.dataclass(frozen=True)
class StoredFile:
  """A file that has not been read.

  Attributes:
    origin: its path, for messages.
    size: in bytes.
    stamp: CRC of its content (in a zip), or time of its last change in ns.
    read: returns its content.
    crc: CRC-32 of its content, if it is known without reading.
  """

  origin: str
  size: int
  stamp: int
  read: Callable[[], bytes]
  crc: int | None = None

  def checksum(self) -> int:
    """Returns the CRC-32 of the content."""
    return zlib.crc32(self.read()) if self.crc is None else self.crc


def open_tree(
  path: Path, expected: str, ignored: Collection[str] = ()
) -> dict[str, StoredFile]:
  """Finds all files of a folder, zip or tar, without reading them.

  Links are followed, but not to a folder that contains them. Hidden files and
  folders are left out; folders that an operating system or a network disk adds
  are left out and logged.

  Args:
    path: the folder or archive.
    expected: expected content, for messages.
    ignored: names of folders that are not entered.

  Returns:
    The files by path, with '/' as separator, sorted. A folder without a file,
    at any depth, has an entry whose name ends with '/'.

  Raises:
    UserError: if the folder or archive does not exist or cannot be read, or a
      link or entry in it is broken or leads out of it.
  """
  if os.path.isdir(path):
    found = dict(_walk(path, ignored))
  elif os.path.isfile(path):
    found = _archive_files(path, expected)
  else:
    raise UserError(
      f"{path} does not exist; {expected}. Check --config.data.dir."
    )
  if system := {part for name in found for part in _system_parts(name)}:
    log.warning(
      "%s: folders of the operating system are left out: %s",
      path,
      few(sorted(system)),
    )
  outputs = {name for name in found if _is_output(name, found)}
  shown = [n for n in sorted(found) if not _is_hidden(n) and n not in outputs]
  folders = {name for name in _folders(found) if not _is_hidden(name)}
  filled = _folders(name for name in shown if not name.endswith("/"))
  files = {name: found[name] for name in shown if not name.endswith("/")}
  return files | {n: _folder(path, n) for n in sorted(folders - filled)}


def _is_hidden(name: str) -> bool:
  """Whether a path has a hidden part or a folder of the system."""
  return "/." in f"/{name}" or bool(_system_parts(name))


def _is_output(name: str, found: Collection[str]) -> bool:
  """Whether a path is that of a picture which this project wrote."""
  folder, separator, file = name.rpartition("/")
  return file.endswith(".png") and any(
    pattern.fullmatch(file) and f"{folder}{separator}{mark}" in found
    for mark, pattern in _OUTPUTS.items()
  )


def _system_parts(name: str) -> list[str]:
  """The folders of a path that the operating system made."""
  return [p for p in name.split("/")[:-1] if _SYSTEM_FOLDER.fullmatch(p)]


def _folders(names: Iterable[str]) -> set[str]:
  """All folders above some paths, each with '/' at its end."""
  found: set[str] = set()
  for name in names:
    while (end := name.rfind("/")) >= 0:
      if (folder := name[: end + 1]) in found:
        break
      found.add(folder)
      name = name[:end]
  return found


def _folder(root: Path, name: str) -> StoredFile:
  return StoredFile(f"{root}/{name}", 0, 0, lambda: b"", 0)


def _walk(
  root: Path, ignored: Collection[str]
) -> Iterator[tuple[str, StoredFile]]:
  waiting: list[tuple[Path, str, frozenset]] = [(root, "", frozenset())]
  while waiting:
    folder, prefix, above = waiting.pop()
    try:
      stat = folder.stat()
      # A link to a folder above it would never end.
      if (stat.st_dev, stat.st_ino) in above:
        continue
      inside = above | {(stat.st_dev, stat.st_ino)}
      with os.scandir(folder) as entries:
        for entry in entries:
          name = prefix + entry.name
          if os.path.isdir(entry.path):
            yield f"{name}/", _folder(root, f"{name}/")
            # What is hidden may not be readable either.
            if entry.name not in ignored and not _is_hidden(f"{name}/"):
              waiting.append((Path(entry.path), f"{name}/", inside))
          elif os.path.isfile(entry.path):
            yield name, of_path(entry)
          elif entry.is_symlink() and not entry.name.startswith("."):
            raise UserError(
              f"{entry.path} is a link to {os.readlink(entry.path)}, which"
              " cannot be read; expected a file or folder. Mount or restore"
              " what it links to, or remove the link."
            )
    except OSError as error:
      raise _unreadable(folder, error) from error


def of_path(path: Path | os.DirEntry[str]) -> StoredFile:
  """Returns a file that lies in a folder."""
  stat, origin = path.stat(), os.fspath(path)
  return StoredFile(
    origin, stat.st_size, stat.st_mtime_ns, lambda: _read_file(Path(origin))
  )


def _archive_files(path: Path, expected: str) -> dict[str, StoredFile]:
  """Finds the files of an archive, whose first bytes show its kind."""
  head = _read_at(path, 0, 512)
  if _SPLIT_ARCHIVE.fullmatch(path.name):
    raise UserError(
      f"{path} is one part of a split archive; {expected}. Join and extract all"
      " parts (7z x does both), and give the folder."
    )
  if not head:
    raise UserError(f"{path} is empty; {expected}. Copy or download it again.")
  known = [k for magic, k in _OTHER_KINDS.items() if head.startswith(magic)]
  for what, advice in (*known, *filter(None, [stand_in(head)])):
    raise UserError(f"{path} is {what}; {expected}. {advice}")
  openers = [o for magic, o in _COMPRESSED.items() if head.startswith(magic)]
  if openers:
    content = _decompress(path, openers[0])
    if not _is_tar(content):
      raise UserError(
        f"{path} is a single compressed file, not an archive; {expected}."
        " Decompress it, and give what it contains."
      )

    def read_at(place: int, size: int) -> bytes:
      return content[place : place + size]

    return _tar_files(BytesIO(content), str(path), read_at)
  if _is_tar(head):
    with path.open("rb") as file:
      return _tar_files(file, str(path), functools.partial(_read_at, path))
  if not head.startswith(b"PK") and not zipfile.is_zipfile(path):
    raise UserError(
      f"{path} is not a zip file or tar archive (it begins with"
      f" {head[:16]!r}); {expected}. Check --config.data.dir."
    )
  return zip_files(path, str(path), expected)


def _decompress(
  path: Path, open_compressed: Callable[[Any], IO[bytes]]
) -> bytes:
  """Decompresses a tar into memory, as it cannot be read in place."""
  size = path.stat().st_size
  limit = max(_ANY_RATIO_BYTES, _MAX_RATIO * size)
  limit = min(limit, (available_memory() or limit * 2) // 2)
  try:
    with open_compressed(path) as file:
      content = file.read(limit + 1)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise _unreadable(path, error) from error
    raise UserError(
      f"{path} is damaged or cut off ({error}); expected a whole archive. Copy"
      " or download it again."
    ) from error
  if len(content) > limit:
    raise UserError(
      f"{path} would grow from {size} to more than {limit} bytes, the limit for"
      f" reading it in memory. {_EXTRACT}"
    )
  return content


def _is_tar(head: bytes) -> bool:
  """Whether a file begins like a tar; old ones have a checksum, no magic."""
  try:
    tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "replace")
  except tarfile.HeaderError:
    return head[257:262] == b"ustar"
  return True


def _tar_files(
  file: IO[bytes], origin: str, read_at: Callable[[int, int], bytes]
) -> dict[str, StoredFile]:
  """Finds the files of an uncompressed tar, without extracting them.

  `read_at` takes a place and a number of bytes, and returns them.
  """
  try:
    with tarfile.open(fileobj=file, mode="r:") as archive:
      members = archive.getmembers()
      # It ignores damage after the first file; a whole tar ends with zeros.
      file.seek(archive.offset)
      if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no file begins at byte {archive.offset}")
  except (tarfile.TarError, EOFError, ValueError) as error:
    raise UserError(
      f"{origin} is damaged or cut off ({error}); expected a whole tar. Copy or"
      " download it again."
    ) from error
  found: dict[str, StoredFile] = {}
  for member in members:
    name = _name_inside(member.name.removeprefix("./"), origin)
    if member.isdir():
      found[f"{name}/"] = _folder(Path(origin), f"{name}/")
    elif member.islnk() and member.linkname.removeprefix("./") in found:
      found[name] = found[member.linkname.removeprefix("./")]
    elif not member.isreg() or member.issparse():
      raise UserError(
        f"{origin}: {name} is a link or not a regular file; expected files and"
        f" folders. {_EXTRACT}"
      )
    else:
      place = f"{origin}/{name}"
      read = functools.partial(
        _read_member, read_at, member.offset_data, member.size, place
      )
      # A stored time may be anything, such as infinite or not a number.
      stamp = int(min(1e10, max(-1e10, member.mtime)) * 1e9)
      found[name] = StoredFile(place, member.size, stamp, read)
  return found


def _read_member(
  read_at: Callable[[int, int], bytes], place: int, size: int, origin: str
) -> bytes:
  _check_size(size, origin)
  content = read_at(place, size)
  if len(content) != size:
    raise UserError(
      f"{origin} is cut off, as the archive ends before it. Copy or download"
      " the archive again."
    )
  return content


def _read_at(path: Path, place: int, size: int) -> bytes:
  try:
    with path.open("rb") as file:
      file.seek(place)
      return file.read(size)
  except OSError as error:
    raise _unreadable(path, error) from error


def _name_inside(name: str, origin: str) -> str:
  """A path in an archive; raises UserError if it leads out of it."""
  if ".." in name.split("/") or name.startswith("/"):
    raise UserError(
      f"{origin} has an entry {name!r}, which leads out of the archive;"
      " expected names below it. Ask who made the archive, or make it again."
    )
  return name


def zip_files(
  file: Path | BytesIO, origin: str, expected: str
) -> dict[str, StoredFile]:
  """Finds the files of a zip, by path, without extracting them.

  `origin` is its path and `expected` its expected content, for messages.

  Raises:
    UserError: if it is not a zip, or a path leads out of it.
  """
  try:
    archive = zipfile.ZipFile(file)
  except _ZIP_ERRORS as error:
    _raise_disk_error(error, origin)
    raise UserError(
      f"{origin} is not a zip file or is damaged ({error}); {expected}."
      " Copy or download it again."
    ) from error
  found = {}
  for info in archive.infolist():
    # Some programs on Windows write their own separator.
    name = _name_inside(info.filename.replace("\\", "/"), origin)
    method = info.compress_type
    if method not in _ZIP_METHODS and not info.flag_bits & 1:
      raise UserError(
        f"{origin}: {name} is compressed by"
        f" {_ZIP_METHOD_NAMES.get(method, f'method {method}')}, which is not"
        f" read. {_EXTRACT}"
      )
    if name.endswith("/"):
      found[name] = _folder(Path(origin), name)
    elif name:
      read = functools.partial(_read_entry, archive, info.filename, origin)
      place = f"{origin}/{name}"
      found[name] = StoredFile(place, info.file_size, info.CRC, read, info.CRC)
  return found


def _raise_disk_error(error: Exception, path: str) -> None:
  """Raises UserError if an error is one of the disk, not of the content."""
  # Seeking before the start, as damaged offsets ask for, is EINVAL.
  if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
    raise _unreadable(Path(path), error) from error


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
        f" than {_MAX_RATIO} times; expected an image or a table. If it is"
        f" one, extract it, and give the folder."
      )
    _check_size(size, f"{origin}: {entry}")
    return archive.read(entry)
  except _ZIP_ERRORS as error:
    _raise_disk_error(error, origin)
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


def stand_in(head: bytes) -> tuple[str, str] | None:
  """Describes a stand-in for a file, by its first bytes, and the remedy."""
  for pattern, kind in _STAND_INS.items():
    if re.match(pattern, head, re.IGNORECASE):
      return kind
  return None


def _check_size(size: int, origin: str) -> None:
  if size > _MAX_BYTES:
    raise UserError(
      f"{origin} has {size} bytes; expected an image or a table, of at most"
      f" {_MAX_BYTES}. Move it elsewhere, or make it smaller."
    )


def _unreadable(path: Path, error: OSError) -> UserError:
  return UserError(
    f"{path} cannot be read ({error.strerror or error}). Check that it exists"
    " and that you may read it."
  )


def by_name(files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
  """Returns files by name without folder; UserError if two share one."""
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


def unique_rows(
  text: str, origin: str, parse: Callable[[str, str], tuple[str, _T]]
) -> dict[str, _T]:
  """Parses the rows of a label file that are not blank.

  `parse` takes a row and its place, and returns a key and a value.

  Raises:
    UserError: if two rows have the same key.
  """
  rows: dict[str, _T] = {}
  lines: dict[str, int] = {}
  for number, row in enumerate(text.splitlines(), start=1):
    if row.strip():
      where = f"{origin}, line {number}"
      name, value = parse(row.strip(), where)
      if name in rows:
        raise UserError(
          f"{where}: {name} was already in line {lines[name]}; expected it"
          " once. Remove the wrong row."
        )
      rows[name], lines[name] = value, number
  return rows


def few(names: Iterable[str], limit: int = 5) -> str:
  """Lists the first names, and how many more there are."""
  names = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
  more = [f"and {len(names) - limit} more"] if len(names) > limit else []
  return ", ".join(names[:limit] + more)
