"""The folder of a run: that it can be written, and whose it is."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dbl_jax import checkpoint, distributed, files, step_folders
from dbl_jax import config as configs
from dbl_jax.errors import UserError

log = logging.getLogger(__name__)
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
    return configs.LATER_FIELDS | json.loads(path.read_text())
  except FileNotFoundError:
    for directory in directories:
      step_folders.set_aside_damaged(directory)
      if step_folders.has_steps(directory):
        return configs.LATER_FIELDS | checkpoint.load_meta(directory)["config"]
    return None
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{path} is damaged ({error}). Delete it, and the config is taken from"
      " the checkpoints; or use another --workdir."
    ) from error
