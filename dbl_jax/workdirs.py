"""The folder of a run: created, locked, and bound to one config."""

import contextlib
import errno
import json
import logging
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, files
from dbl_jax.training import checkpoint

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
_CONFIG, _LOCK = "config.json", "run.lock"


def make(workdir: Path) -> None:
  """Creates the folder of a run, or raises UserError if it cannot be written.

  Orbax uses the path in patterns and would write checkpoints without arrays.
  TensorStore takes only paths in UTF-8.
  """
  # `Path` turns the '://' of a URL into ':/'; Python decodes bytes that are not
  # UTF-8 to surrogates.
  if re.search(r"[*?[\ud800-\udfff]|(^|/)[a-z][a-z0-9+.-]+:/", str(workdir)):
    raise UserError(
      f"--workdir={workdir} is a URL, contains * ? or [, or is not valid"
      " UTF-8. Checkpoints cannot be written there. Choose another path on a"
      " local or mounted file system."
    )
  files.make_writable(workdir, "--workdir")


def remember(
  config: ConfigDict, workdir: Path, accept_changes: bool = False
) -> None:
  """Stores the resolved config; refuses another one once there are checkpoints.

  Folders may be moved: checkpoints identify images and initial model by their
  content.

  Raises:
    UserError: if the workdir has checkpoints of another config, unless
      `accept_changes`, or its stored config is damaged.
  """
  old = _stored_config(workdir)
  new = config.to_dict()
  changed = [] if old is None else configs.differences(old, new)
  free: tuple[str, ...] = (*configs.CHANGEABLE_FIELDS, "data.dir")
  if old is not None and old["init_from"] and new["init_from"]:
    free += ("init_from",)
  serious = [c for c in changed if not c.startswith(free)]
  if serious and accept_changes:
    logger.warning(
      "%s resumes with another config: %s", workdir, "; ".join(serious)
    )
  elif serious:
    raise UserError(
      f"{workdir} holds a run of another config, which differs in"
      f" {'; '.join(serious)}. Use another --workdir, restore these fields to"
      " resume that run, or resume it with the changes by --accept_changes."
    )
  if distributed.is_main():
    text = json.dumps(new, indent=2) + "\n"
    files.write(workdir / _CONFIG, text.encode())


def _stored_config(workdir: Path) -> dict[str, Any] | None:
  """The config of the run's checkpoints, or None; its file may be lost."""
  path = workdir / _CONFIG
  directories = [checkpoint.phase_dir(workdir, name) for name in configs.PHASES]
  if not directories[0].parent.is_dir():
    return None
  try:
    return configs.migrate(json.loads(path.read_text()))
  except FileNotFoundError:
    for directory in directories:
      checkpoint.quarantine_damaged(directory)
      if checkpoint.saved_steps(directory):
        return configs.migrate(checkpoint.load_meta(directory)["config"])
    return None
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{path} is damaged ({error}). Move it away to read the config from the"
      " checkpoints, or use another --workdir."
    ) from error


class InUseError(UserError):
  """Another process is training in the workdir."""


@contextlib.contextmanager
def only_run(workdir: Path) -> Iterator[None]:
  """Locks a workdir against other processes.

  The kernel releases the lock when the process ends, however it ends. The lock
  file stays and names the last process.

  Raises:
    InUseError: if another process holds the lock, naming it.
  """
  with (workdir / _LOCK).open("a+") as file:
    _lock(file.fileno(), workdir)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    yield


def is_held(workdir: Path) -> bool:
  """Whether another process is training in a workdir, which need not exist."""
  try:
    with (workdir / _LOCK).open("r+") as file:
      _lock(file.fileno(), workdir)
  except InUseError:
    return True
  except OSError:  # never locked, or a run in it will report the error
    pass
  return False


def _lock(descriptor: int, workdir: Path) -> None:
  try:
    if fcntl is not None:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    holder = (workdir / _LOCK).read_text().strip() or "another process"
    raise InUseError(
      f"--workdir={workdir} is in use: {holder} is training there. Wait for it,"
      " stop it, or use another --workdir."
    ) from error
  except OSError as error:
    if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
      raise
    logger.warning(
      "%s cannot be locked (%s): do not start a second run in it.",
      workdir,
      error.strerror,
    )


# Errors of a disk that the user can correct; any other is a bug.
_NETWORK = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
_REMEDIES = dict.fromkeys(_NETWORK, "Mount the network disk again") | {
  errno.ENOSPC: "Free some space",
  errno.EDQUOT: "Free some of your quota",
  errno.EFBIG: "Raise the limit on the size of files",
  errno.EROFS: "Make it writable",
  errno.EACCES: "Make it readable and writable",
  errno.EPERM: "Make it readable and writable",
  errno.EIO: "Check the disk",
  errno.EMFILE: "Raise the limit of open files (ulimit -n)",
}


@contextlib.contextmanager
def plain_errors(workdir: Path) -> Iterator[None]:
  """Converts errors of a disk to `UserError`, also inside other exceptions.

  Orbax writes in the background and raises its own exceptions at the next save,
  with the error of the disk in their text or causes.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    for cause in files.causes(error):
      for number, remedy in _REMEDIES.items():
        words = os.strerror(number)
        if getattr(cause, "errno", None) == number or words in str(cause):
          # An error of printing does not name a file.
          where = f"{workdir} or what the output is redirected to"
          where = where if isinstance(cause, OSError) else f"{workdir}"
          raise UserError(
            f"{getattr(cause, 'filename', None) or where}: {words}. {remedy},"
            " then run the same command: it resumes from its last checkpoint."
          ) from error
    raise
