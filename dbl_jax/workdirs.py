"""The folder of a run: that it can be written, and whose it is."""

import contextlib
import errno
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, files
from dbl_jax.training import checkpoint

_CONFIG = "config.json"


def make(workdir: Path) -> None:
  """Makes the folder of a run, and sees that it can be written to.

  Raises:
    UserError: if it cannot.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as file:
      file.write(b"x")
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written: {error.strerror}. Choose a"
      " folder you may write to, with space on its disk."
    ) from error


def remember(
  config: ConfigDict, workdir: Path, accept_changes: bool = False
) -> None:
  """Keeps the config with the run; once something is trained, it is the run's.

  Args:
    config: resolved.
    workdir: of the run.
    accept_changes: go on with this config though the run's is another.

  Raises:
    UserError: if it holds a run of another config, or what it kept is damaged.
  """
  old = _remembered(workdir)
  changed = [] if old is None else configs.differences(old, config.to_dict())
  serious = [c for c in changed if not c.startswith(configs.FREE_FIELDS)]
  if serious and accept_changes:
    log.warning("%s goes on changed: %s", workdir, "; ".join(serious))
  elif serious:
    raise UserError(
      f"{workdir} holds a run of another config, which differs in"
      f" {'; '.join(serious)}. Use another --workdir, set these fields back to"
      " go on with that run, or say --accept_changes to go on all the same."
    )
  if distributed.is_main():
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    files.write(workdir / _CONFIG, text.encode())


def _remembered(workdir: Path) -> dict[str, Any] | None:
  """The config of what was trained here; None where nothing was.

  Checkpoints hold it too, should the file be lost.
  """
  path = workdir / _CONFIG
  directories = [checkpoint.phase_dir(workdir, name) for name in configs.PHASES]
  if not directories[0].parent.is_dir():
    return None
  try:
    return configs.migrate(json.loads(path.read_text()))
  except FileNotFoundError:
    for directory in directories:
      checkpoint.quarantine_damaged(directory)
      if checkpoint.has_steps(directory):
        return configs.migrate(checkpoint.load_meta(directory)["config"])
    return None
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{path} is damaged ({error}). Delete it, and the config is taken from"
      " the checkpoints; or use another --workdir."
    ) from error


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
