"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A new file that takes the place of `path` once it is written to its end.

  Until then readers find the old one, and afterwards the whole new one. Its
  name until then is its process's own, so that two do not collide.

  Args:
    path: of the file; its folder exists.

  Yields:
    The new file, open for writing.
  """
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as file:
      yield file
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  with replacing(path) as file:
    file.write(content)
