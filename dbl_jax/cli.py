"""What every command line shares: plain words for the user's mistakes."""

import difflib
import logging
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dbl_jax import startup, stopping
from dbl_jax.errors import UserError

_QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def speak_plainly(program: Callable[[Sequence[str]], None]) -> None:
  """Runs a program; the user's mistakes end it with one line and status 2.

  Args:
    program: takes the command line.
  """
  logging.basicConfig(level=logging.WARNING, format="%(message)s")
  logging.getLogger("dbl_jax").setLevel(logging.INFO)
  logging.getLogger("jax").setLevel(logging.ERROR)
  # What Orbax's threads log with stack traces it raises too, at the next save.
  for noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)
  sys.unraisablehook = _without_closed_loops
  for name, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(name, value)
  startup.prepare()
  try:
    program(sys.argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except stopping.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.status)
  except KeyboardInterrupt:
    print("\nStopped. Run the same command to go on.", file=sys.stderr)
    sys.exit(130)


def _without_closed_loops(found: Any) -> None:
  """Python's own hook, but for what TensorStore says after Orbax has failed.

  Its callbacks come when Orbax, which raises the error, has left the loop.
  """
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def parse_flags(argv: Sequence[str]) -> None:
  """Reads the command line.

  Args:
    argv: program name and flags.

  Raises:
    UserError: naming an unknown flag, field or file, or a value of the wrong
      type.
  """
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(sys.modules["__main__"].__doc__)
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  for argument in argv[1:]:
    if argument.startswith("--config="):
      load_config(argument.removeprefix("--config="))
  try:
    rest = flags.FLAGS(list(argv))
  except flags.Error as error:
    raise UserError(f"{error}. See --help.") from error
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(argv)) from error
  if len(rest) > 1:
    raise UserError(
      f"Unexpected argument {rest[1]!r}: flags are given as --name=value."
    )


def _unknown_field(argv: Sequence[str]) -> str:
  """Says which override names no field, and what may be meant."""
  from dbl_jax import config as configs

  path = next(a for a in argv if a.startswith("--config=")).split("=", 1)[1]
  names = configs.field_names(load_config(path))
  given = (a for a in argv if a.startswith("--config."))
  fields = [a.removeprefix("--config.").split("=")[0] for a in given]
  unknown = next(
    (f for f in fields if not any(f"{n}.".startswith(f"{f}.") for n in names)),
    fields[0],
  )
  near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
  hint = f"Did you mean {' or '.join(near)}?" if near else "See the file."
  return f"{path} has no field {unknown!r}. {hint}"


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


def load_config(path: str) -> Any:
  """The config of a file, with an argument for its `get_config` after ':'.

  Args:
    path: such as 'configs/decoupling.py:lws'.

  Returns:
    The config, not resolved.

  Raises:
    UserError: if there is no such file or variant.
  """
  _check_config_path(path)
  file, *argument = path.split(":", 1)
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise UserError(
      f"{file} is no config: it has no function get_config. See configs/."
    )
  try:
    return get_config(*argument)
  except (KeyError, TypeError, ValueError) as error:
    if not argument:
      raise
    raise UserError(
      f"{file} has no variant {':'.join(argument)!r} ({error}). Its first lines"
      " say which there are."
    ) from error
