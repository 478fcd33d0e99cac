"""What every command line shares: plain words for the user's mistakes."""

import difflib
import io
import itertools
import logging
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from dbl_jax.errors import UserError
from dbl_jax.runtime import environment, signals

_QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def run_main(program: Callable[[Sequence[str]], None]) -> None:
  """Runs a program; the user's mistakes end it with one line and status 2.

  Args:
    program: takes the command line.
  """
  handler = logging.StreamHandler()
  handler.setFormatter(_Plain("%(message)s"))
  logging.basicConfig(level=logging.WARNING, handlers=[handler])
  logging.getLogger("dbl_jax").setLevel(logging.INFO)
  logging.getLogger("jax").setLevel(logging.ERROR)
  # What Orbax's threads log with stack traces it raises too, at the next save.
  for noisy in ("absl", "asyncio", "orbax"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)
  # It says in words of its own what it then raises, also of huge images.
  logging.getLogger("PIL").setLevel(logging.CRITICAL)
  warnings.filterwarnings("error", module="PIL", message=".*decompression bomb")
  sys.unraisablehook = _without_closed_loops
  for name, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(name, value)
  environment.prepare()
  # A file's name may hold what the terminal's encoding cannot say.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  try:
    program(sys.argv)
  except UserError as error:
    _leave(str(error))
  except signals.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.status)
  except OSError as error:
    where = error.filename or "A file or the disk"
    _leave(
      f"{where} cannot be read or written ({error.strerror or error}). Check"
      " that it exists, that you may use it, and that the disk has room."
    )
  except KeyboardInterrupt:
    print("\nStopped. Run the same command to go on.", file=sys.stderr)
    sys.exit(130)


def _leave(message: str) -> NoReturn:
  """Prints one line and ends the program with status 2."""
  print(f"error: {printable(message)}", file=sys.stderr)
  sys.exit(2)


def printable(text: str, kept: str = "") -> str:
  """The text, with escapes for what a terminal would obey.

  Args:
    text: such as the name of a stranger's file.
    kept: characters that stay as they are, such as the end of a line.

  Returns:
    The text in printable characters.
  """
  return "".join(
    c if c.isprintable() or c in kept else c.encode("unicode_escape").decode()
    for c in text
  )


class _Plain(logging.Formatter):
  def format(self, record: logging.LogRecord) -> str:
    return printable(super().format(record), kept="\n")


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
    if argument.startswith("--help="):
      print_help(argument.removeprefix("--help="))
      sys.exit(0)
    _check_home(argument)
  path = _config_path(argv)
  if path is not None:
    load_config(path)
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


def print_help(section: str) -> None:
  """Prints the fields of a section of the config, such as 'losses'."""
  from dbl_jax import config as configs

  print(configs.describe(section))


def define_section(name: str, default: ConfigDict, words: str) -> Any:
  """A flag for each field of a section, such as --data.name.

  A field that there is not is met when the flag is defined; it ends the
  program then, as `speak_plainly` would.

  Args:
    name: of the section.
    default: its fields.
    words: for --help.

  Returns:
    The flag's holder; its `value` is the section.
  """
  try:
    return config_flags.DEFINE_config_dict(name, default, words)
  except (AttributeError, KeyError):
    _leave(_unknown_field(sys.argv))


def _config_path(argv: Sequence[str]) -> str | None:
  """What --config names, given with '=' or as the next word."""
  found = None
  for argument, following in itertools.zip_longest(argv[1:], argv[2:]):
    name, equals, value = argument.partition("=")
    if name in ("--config", "-config"):
      found = value if equals else following
  return found


def _check_home(argument: str) -> None:
  value = argument.partition("=")[2] or argument
  if value.startswith("~") and os.path.expanduser(value).startswith("~"):
    user = value[1:].split("/")[0]
    raise UserError(
      f"{argument}: there is no user {user!r} whose home this could be. Give"
      " the path in full."
    )


def _unknown_field(argv: Sequence[str]) -> str:
  """Says which override names no field, and what may be meant."""
  from dbl_jax import config as configs

  path = _config_path(argv)
  if path is None:  # a program with the section on data alone
    path, prefix = "The section on data", "--data."
    names = configs.field_names(configs.base().data)
  else:
    prefix, names = "--config.", configs.field_names(load_config(path))
  given = (a for a in argv if a.startswith(prefix))
  fields = [a.removeprefix(prefix).split("=")[0] for a in given] or [""]
  unknown = next(
    (f for f in fields if not any(f"{n}.".startswith(f"{f}.") for n in names)),
    fields[0],
  )
  near = difflib.get_close_matches(unknown, names, n=3, cutoff=0.5)
  hint = f"Did you mean {' or '.join(near)}?" if near else "See the file."
  return f"{path} has no field {unknown!r}. {hint}"


def _check_config_path(path: str) -> None:
  if os.path.isfile(path.split(":")[0]):
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
  try:
    get_config = runpy.run_path(file).get("get_config")
  except UserError:
    raise
  # A config is a program of the user's: it may raise anything.
  except Exception as error:
    raise UserError(_broken_config(file, error)) from error
  if get_config is None:
    raise UserError(
      f"{file} is no config: it has no function get_config. See configs/."
    )
  try:
    config = get_config(*argument)
  except UserError:
    raise
  except Exception as error:
    if not argument or not isinstance(error, KeyError | TypeError | ValueError):
      raise UserError(_broken_config(file, error)) from error
    raise UserError(
      f"{file} has no variant {':'.join(argument)!r} ({error}). Its first lines"
      " say which there are."
    ) from error
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{file}: get_config gives a {type(config).__name__}; expected an"
      " ml_collections.ConfigDict, such as dbl_jax.config.base() makes."
    )
  return config


def _broken_config(file: str, error: Exception) -> str:
  """What is wrong in a config file, and in which line of it."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == file]
  line = error.lineno if isinstance(error, SyntaxError) else (lines or [0])[-1]
  return (
    f"{file}, line {line or 1}: {type(error).__name__}: {error}; expected a"
    " config, which is Python. Mend it, or see configs/."
  )
