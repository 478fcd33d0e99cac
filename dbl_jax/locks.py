"""One run in a workdir at a time."""

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from dbl_jax.errors import UserError

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_FILE = "run.lock"


class InUseError(UserError):
  """Another run is in the workdir."""


@contextlib.contextmanager
def only_run(workdir: Path) -> Iterator[None]:
  """Keeps other processes from training in a workdir during a block.

  The lock is the kernel's and ends with the process, however that ends; the
  file stays, and says who held it last.

  Args:
    workdir: an existing folder.

  Raises:
    InUseError: if another run is in it, naming its process.
  """
  with (workdir / _FILE).open("a+") as file:
    _lock(file.fileno(), workdir)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    yield


def is_held(workdir: Path) -> bool:
  """Whether another run is in a workdir now, which need not exist."""
  try:
    with (workdir / _FILE).open("r+") as file:
      _lock(file.fileno(), workdir)
  except InUseError:
    return True
  except OSError:  # none was ever there; or a run in it says what is wrong
    pass
  return False


def _lock(descriptor: int, workdir: Path) -> None:
  if fcntl is None:
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    holder = (workdir / _FILE).read_text().strip() or "another process"
    raise InUseError(
      f"--workdir={workdir} is in use: {holder} trains there. Wait for it, stop"
      " it, or use another --workdir."
    ) from error
  except OSError as error:
    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
      raise
    log.warning(
      "%s cannot be locked (%s): start no second run in it.",
      workdir,
      error.strerror,
    )
