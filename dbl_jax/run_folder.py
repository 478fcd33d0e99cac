"""The folder of a run: that it can be written, and whose it is."""

import json
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import distributed, files
from dbl_jax.errors import UserError


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


def remember(config: ConfigDict, workdir: Path) -> None:
  """Keeps the config with the run; once something is trained, it is the run's.

  Args:
    config: resolved.
    workdir: of the run.

  Raises:
    UserError: if it holds a run of another config, or what it kept is damaged.
  """
  path = workdir / "config.json"
  try:
    if path.exists() and (workdir / "checkpoints").exists():
      old = configs.LATER_FIELDS | json.loads(path.read_text())
      changed = configs.differences(old, config.to_dict())
      serious = [c for c in changed if not c.startswith(configs.FREE_FIELDS)]
      if serious:
        raise UserError(
          f"{workdir} holds a run of another config, which differs in"
          f" {'; '.join(serious)}. Use another --workdir, or set these fields"
          " back to go on with that run."
        )
    if distributed.is_main():
      text = json.dumps(config.to_dict(), indent=2) + "\n"
      files.write(path, text.encode())
  except json.JSONDecodeError as error:
    raise UserError(
      f"{path} is damaged ({error}). Delete it if the workdir is this"
      " config's, or use another --workdir."
    ) from error
