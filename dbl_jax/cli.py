"""Command lines of all programs: flags, config files and error messages."""

import difflib
import io
import itertools
import logging
import os
import re
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


def run_main(main: Callable[[Sequence[str]], None]) -> None:
  """Runs a program. An error of the user ends it with one line and status 2.

  Args:
    main: takes the command line.
  """
  _set_up_logging()
  for name, value in _QUIET_TENSORFLOW.items():
    os.environ.setdefault(name, value)
  environment.prepare()
  # File names may have characters that the terminal's encoding lacks.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  try:
    main(sys.argv)
  except UserError as error:
    _exit_with(str(error))
  except signals.Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(stopped.status)
  except OSError as error:
    where = error.filename or "A file or the disk"
    _exit_with(
      f"{where} cannot be read or written ({error.strerror or error}). Check"
      " that it exists, that you may use it, and that the disk has room."
    )
  except KeyboardInterrupt:
    print("\nStopped. Run the same command to resume.", file=sys.stderr)
    sys.exit(130)


def _set_up_logging() -> None:
  handler = logging.StreamHandler()
  handler.setFormatter(_Printable("%(message)s"))
  logging.basicConfig(level=logging.WARNING, handlers=[handler])
  logging.getLogger("dbl_jax").setLevel(logging.INFO)
  logging.getLogger("jax").setLevel(logging.ERROR)
  # Orbax's threads log stack traces of errors that the next save raises, and
  # Pillow logs what it raises.
  for name in ("absl", "asyncio", "orbax", "PIL"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  warnings.filterwarnings("error", module="PIL", message=".*decompression bomb")
  sys.unraisablehook = _ignore_closed_loops


class _Printable(logging.Formatter):
  def format(self, record: logging.LogRecord) -> str:
    return printable(super().format(record), keep="\n")


def _ignore_closed_loops(found: Any) -> None:
  """Ignores callbacks of TensorStore that come after Orbax has failed."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def _exit_with(message: str) -> NoReturn:
  """Prints one line and ends the program with status 2."""
  print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
  sys.exit(2)


def printable(text: str, keep: str = "") -> str:
  """Escapes characters that control a terminal.

  Args:
    text: for example a file name from elsewhere.
    keep: characters that are not escaped.

  Returns:
    The text in printable characters.
  """
  return "".join(
    c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
    for c in text
  )


def parse_flags(argv: Sequence[str], positional: bool = False) -> Sequence[str]:
  """Parses the command line; --help and --help=SECTION print and exit.

  Args:
    argv: program name and flags.
    positional: whether arguments that are no flags are allowed.

  Returns:
    The arguments that are no flags.

  Raises:
    UserError: an unknown flag, field or file, or a value of the wrong type.
  """
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(sys.modules["__main__"].__doc__)
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  try:
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    for argument in argv[1:]:
      if argument.startswith("--help="):
        from dbl_jax import config as configs

        print(configs.describe(argument.removeprefix("--help=")))
        sys.exit(0)
      _check_path(argument)
    path = _config_path(argv)
    if path is not None:
      load_config(path)
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(f"{_message(error)}. See --help.") from error
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(argv)) from error
  if len(rest) > 1 and not positional:
    raise UserError(
      f"Unexpected argument {rest[1]!r}: flags are given as --name=value."
    )
  return rest[1:]


def _check_path(argument: str) -> None:
  """Raises UserError if a flag's value is a URL or in an unknown home."""
  value = argument.partition("=")[2] or argument
  if re.match("[A-Za-z][A-Za-z0-9+.-]+://", value):
    raise UserError(
      f"{argument}: URLs are not supported. Give the path of a local or mounted"
      " folder."
    )
  if value.startswith("~") and os.path.expanduser(value).startswith("~"):
    user = value[1:].split("/")[0]
    raise UserError(
      f"{argument}: there is no user {user!r} whose home this could be. Give"
      " the path in full."
    )


def define_config_file(name: str, words: str) -> Any:
  """Defines a flag for a config file and flags for its fields, see below."""
  return _define(config_flags.DEFINE_config_file, name, None, words)


def define_section(name: str, default: ConfigDict, words: str) -> Any:
  """Defines a flag for each field of a section, such as --data.name.

  ml_collections reads the command line when a flag is defined. An error then
  ends the program as in `run_main`.

  Args:
    name: name of the section.
    default: its fields.
    words: text for --help.

  Returns:
    The flag's holder; its `value` is the section.
  """
  return _define(config_flags.DEFINE_config_dict, name, default, words)


def _define(define: Callable[..., Any], *arguments: Any) -> Any:
  try:
    return define(*arguments)
  except flags.Error as error:
    _exit_with(_message(error))
  except (AttributeError, KeyError):
    _exit_with(_unknown_field(sys.argv))


def _message(error: flags.Error) -> str:
  return str(error).removeprefix("ERROR:: ")


def _config_path(argv: Sequence[str]) -> str | None:
  """The value of --config, given with '=' or as the next word."""
  found = None
  for argument, following in itertools.zip_longest(argv[1:], argv[2:]):
    name, equals, value = argument.partition("=")
    if name in ("--config", "-config"):
      found = value if equals else following
  return found


def _unknown_field(argv: Sequence[str]) -> str:
  """A message that names the unknown field, and fields with similar names."""
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


def load_config(path: str) -> Any:
  """Loads a config file, with an argument for its `get_config` after ':'.

  Args:
    path: such as 'configs/decoupling.py:lws'.

  Returns:
    The config, not resolved.

  Raises:
    UserError: if there is no such file or variant, or the file is broken.
  """
  file, *argument = path.split(":", 1)
  if not os.path.isfile(file):
    near = sorted(map(str, Path("configs").glob("*.py")))
    raise UserError(
      f"--config={path}: no such file. There are {', '.join(near)}."
      if near
      else f"--config={path}: no such file. There is no folder configs/ here:"
      " run from the project's root, or give the path of your own config file."
    )
  try:
    get_config = runpy.run_path(file).get("get_config")
    config = None if get_config is None else get_config(*argument)
  except UserError:
    raise
  except Exception as error:  # a config file is a program
    raise UserError(_broken_config(file, argument, error)) from error
  if get_config is None:
    raise UserError(
      f"{file} is no config: it has no function get_config. See configs/."
    )
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"{file}: get_config returns a {type(config).__name__}; expected an"
      " ml_collections.ConfigDict, such as dbl_jax.config.base() makes."
    )
  return config


def _broken_config(file: str, argument: list[str], error: Exception) -> str:
  """A message with the line of a config file that fails, or its variant."""
  frames = traceback.extract_tb(error.__traceback__)
  in_file = [frame for frame in frames if frame.filename == file]
  # If `get_config` takes no argument, its call fails outside of the file.
  called = any(frame.name == "get_config" for frame in in_file)
  value_error = isinstance(error, KeyError | TypeError | ValueError)
  if argument and value_error and (called or not in_file):
    return (
      f"{file} has no variant {argument[0]!r} ({error}). Its first lines list"
      " the variants."
    )
  line = in_file[-1].lineno if in_file else 1
  if isinstance(error, SyntaxError):
    line = error.lineno
  return (
    f"{file}, line {line or 1}: {type(error).__name__}: {error}; expected a"
    " config, which is Python. Correct it, or see configs/."
  )
