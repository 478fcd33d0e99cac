"""Files that appear whole or not at all."""

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
