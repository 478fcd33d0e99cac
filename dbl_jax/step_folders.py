"""Folders of saved steps: which are there, and what becomes of damaged ones."""

import json
import logging
import shutil
from pathlib import Path

from dbl_jax import checksums
from dbl_jax.errors import UserError

log = logging.getLogger(__name__)
# By which the best step is chosen.
METRIC = "mean_class_accuracy"
_DAMAGED = "damaged."


def set_aside_damaged(directory: Path) -> None:
  """Renames steps whose metadata cannot be read, so that Orbax can open.

  Args:
    directory: of a phase, as returned by `checkpoint.phase_dir`.

  Raises:
    UserError: if steps had to be set aside and none is left.
  """
  for path in sorted(_steps(directory), key=lambda path: int(path.name)):
    try:
      json.loads((path / "_CHECKPOINT_METADATA").read_text())
      metrics = json.loads((path / "metrics" / "metrics").read_text())
      float(metrics[METRIC])
      stored = json.loads((path / "meta" / "metadata").read_text())
      checksums.check(stored, metrics=metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      set_aside(path, error)
  check_some_left(directory)


def has_steps(directory: Path) -> bool:
  """Whether a phase has saved anything that is not known to be damaged."""
  return bool(_steps(directory))


def _steps(directory: Path) -> list[Path]:
  paths = directory.glob("[0-9]*") if directory.is_dir() else ()
  return [path for path in paths if path.name.isdigit()]


def set_aside(path: Path, error: BaseException) -> None:
  """Moves a step out of the way; without that it could not be saved again."""
  last = all(int(path.name) >= int(x.name) for x in _steps(path.parent))
  kept = path.with_name(f"{_DAMAGED}{path.name}")
  if kept.exists():
    shutil.rmtree(kept)
  path.rename(kept)
  log.warning(
    "The checkpoint %s cannot be read (%s). It is now %s; %s.",
    path,
    first_line(error),
    kept.name,
    "going on from the one before"
    if last
    else "if it was the best on validation, the best of the others counts",
  )


def check_some_left(directory: Path) -> None:
  """Raises UserError if steps were set aside and none is left."""
  damaged = list(directory.glob(f"{_DAMAGED}*"))
  if damaged and not _steps(directory):
    raise UserError(
      f"None of the checkpoints in {directory} can be read"
      f" ({', '.join(sorted(path.name for path in damaged))}). Delete that"
      " folder to start the phase over, or use another --workdir."
    )


def first_line(error: BaseException) -> str:
  """What an error says, in one line of at most 200 characters."""
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
