"""What a full or read-only disk says to the user."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dbl_jax.errors import UserError

# What the user can mend; anything else is a bug.
_MENDED_BY = {
  errno.ENOSPC: "Free some space",
  errno.EDQUOT: "Free some of your quota",
  errno.EFBIG: "Raise the limit on the size of files",
  errno.EROFS: "Make it writable",
  errno.EACCES: "Make it writable",
  errno.EPERM: "Make it writable",
  errno.EIO: "Look after the disk",
}


@contextlib.contextmanager
def plain_errors(workdir: Path) -> Iterator[None]:
  """Turns a disk's errors into a `UserError`, also those within others.

  Orbax writes in the background and raises errors of its own at the next save,
  in whose text or causes the disk's error is.

  Args:
    workdir: of the run.

  Raises:
    UserError: what cannot be written, why, and how to go on.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    found = _of_disk(error)
    if found is None:
      raise
    number, path = found
    raise UserError(
      f"{path or workdir}: {os.strerror(number)}. {_MENDED_BY[number]}, then"
      " run the same command: it goes on from its last checkpoint."
    ) from error


def _of_disk(error: BaseException) -> tuple[int, str | None] | None:
  """The disk's error in an exception or what it comes from, and the path."""
  seen: set[int] = set()
  at: BaseException | None = error
  while at is not None and id(at) not in seen:
    seen.add(id(at))
    if isinstance(at, OSError) and at.errno in _MENDED_BY:
      return at.errno, at.filename
    for number in _MENDED_BY:
      if os.strerror(number) in str(at):
        return number, None
    at = at.__cause__ or at.__context__
  return None
