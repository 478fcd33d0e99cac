"""python -m dbl_jax.main --config=configs/dbl.py --workdir=runs/dbl."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dbl_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The system to train: a file in configs/."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder of the run: checkpoints, figures, report. Run again with the same"
  " one to go on where it stopped. Default: runs/<name of the config file>.",
)

_QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def speak_plainly(program: Callable[[Sequence[str]], None]) -> None:
  """Runs a program; the user's mistakes end it with one line and status 2.

  Args:
    program: takes the command line.
  """
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  logging.getLogger("dbl_jax").setLevel(logging.INFO)
  for noisy in ("absl", "jax", "orbax"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
  for name, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(name, value)
  try:
    program(sys.argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command to go on.", file=sys.stderr)
    sys.exit(130)


def parse_flags(argv: Sequence[str]) -> None:
  """Reads the command line.

  Args:
    argv: program name and flags.

  Raises:
    UserError: naming an unknown flag, field or file, or a value of the wrong
      type.
  """
  for argument in argv[1:]:
    if argument.startswith("--config="):
      _check_config_path(argument.removeprefix("--config="))
  try:
    rest = flags.FLAGS(list(argv), known_only=False)
  except flags.Error as error:
    raise UserError(f"{error}. See --help.") from error
  except AttributeError as error:
    raise UserError(
      f"The config has no field {error}. Its fields are listed by printing"
      " it: see the config file and dbl_jax/config.py."
    ) from error
  if len(rest) > 1:
    raise UserError(
      f"Unexpected argument {rest[1]!r}: flags are given as --name=value."
    )


def _check_config_path(path: str) -> None:
  found = Path(path.split(":")[0])
  if found.is_file():
    return
  near = sorted(str(p) for p in Path("configs").glob("*.py"))
  hint = (
    f"There are {', '.join(near)}."
    if near
    else "There is no folder configs/ here: run from the project's root, or"
    " give the path of your own config file."
  )
  raise UserError(f"--config={path}: no such file. {hint}")


def main(argv: Sequence[str]) -> None:
  """Trains and evaluates what the flags describe."""
  parse_flags(argv)
  if _CONFIG.value is None:
    raise UserError("Which system? Give --config=configs/dbl.py or another.")
  from dbl_jax import config as configs
  from dbl_jax import train

  config = configs.resolve(_CONFIG.value)
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = Path(_WORKDIR.value or f"runs/{name}")
  metrics = train.train_and_evaluate(config, workdir)
  print(
    f"{metrics['split']}: {metrics['images']} images, overall accuracy"
    f" {metrics['overall_accuracy']:.1%}, mean-class accuracy"
    f" {metrics['mean_class_accuracy']:.1%}\n"
    f"Report: {workdir / 'report.html'}"
  )


def run() -> None:
  """Entry point of the command `dbl-jax`."""
  speak_plainly(main)


if __name__ == "__main__":
  run()
