"""Command lines of all programs: flags, config files and error messages."""

import contextlib
import io
import itertools
import logging
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import ConfigDict

from dbl_jax.errors import UserError
from dbl_jax.runtime import environment, files

_T = TypeVar("_T")

# Folders of programs and configs: in a clone they lie next to the package, in
# an installed wheel inside of it.
_HOMES = Path(__file__).parents[1], Path(__file__).parent
# Commands of `dbl-jax`, and their programs.
COMMANDS = {
  "train": "dbl_jax/main.py",
  "evaluate": "scripts/evaluate.py",
  "predict": "scripts/predict.py",
  "table": "scripts/make_table.py",
  "check-data": "scripts/check_data.py",
  "export": "scripts/export.py",
  "demo": "dbl_jax/demo.py",
}


def run_command() -> None:
  """Entry point of `dbl-jax COMMAND FLAGS`; without COMMAND it trains."""
  program, *arguments = sys.argv
  command = "train"
  if arguments and not arguments[0].startswith("-"):
    command, *arguments = arguments
  if command not in COMMANDS or len(sys.argv) == 1:
    _exit_with(
      f"Unknown command. Expected dbl-jax and one of {', '.join(COMMANDS)}."
      " Each has --help."
    )
  sys.argv = [f"{program} {command}", *arguments]
  runpy.run_path(str(shipped(COMMANDS[command])), run_name="__main__")


def shipped(path: str) -> Path:
  """Returns the path of a program or config of this project."""
  here, package = (home / path for home in _HOMES)
  return here if here.is_file() else package


def run_main(main: Callable[[Sequence[str]], None]) -> None:
  """Runs `main(argv)`; a user's error ends it with one line and status 2."""
  # Both are None if a shell or a service closes them.
  sys.stdout = sys.stdout or io.StringIO()
  sys.stderr = sys.stderr or io.StringIO()
  _set_up_logging()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  environment.prepare()
  # File names may have characters that the terminal's encoding lacks.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  try:
    main(sys.argv)
  except UserError as error:
    _exit_with(str(error))
  except BrokenPipeError:
    _exit_with(
      "Broken pipe: the program that read the output has ended. Run the same"
      " command again; training resumes."
    )
  except OSError as error:
    where = error.filename or "A file or the disk"
    _exit_with(
      f"{where} cannot be read or written ({error.strerror or error}). Check"
      " that it exists, that you may use it, and that the disk has room."
    )
  except Exception as error:
    if (cause := files.out_of_memory(error)) is None:
      raise
    why = str(cause).strip().split("\n")[0][:200] or "MemoryError"
    _exit_with(
      f"Not enough memory ({why}). Choose a smaller batch_size or image_size,"
      " or end other programs that use the device. A run whose config changes"
      " resumes with --accept_changes."
    )
  except KeyboardInterrupt as stopped:  # or `signals.Stopped`, with a message
    how = str(stopped) or "\nStopped. Run the same command to resume."
    print(how, file=sys.stderr)
    sys.exit(getattr(stopped, "status", 130))


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


def _ignore_closed_loops(found: Any) -> None:
  """Ignores callbacks of TensorStore that come after Orbax has failed."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


class _Printable(logging.Formatter):
  def format(self, record: logging.LogRecord) -> str:
    return printable(super().format(record), keep="\n")


def _exit_with(message: str) -> NoReturn:
  print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
  sys.exit(2)


def printable(text: str, keep: str = "") -> str:
  """Escapes characters that control a terminal, except those in `keep`."""
  return "".join(
    c if c.isprintable() or c in keep else c.encode("unicode_escape").decode()
    for c in text
  )


def parse_flags(argv: Sequence[str], positional: bool = False) -> Sequence[str]:
  """Parses the command line; --help and --help=SECTION print and exit.

  Returns:
    The positional arguments, allowed only with `positional`.

  Raises:
    UserError: an unknown flag, field or file, or a value of the wrong type.
  """
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(sys.modules["__main__"].__doc__)
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  with _user_errors():
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  # Some editors on Windows begin a file, such as a flag file, with a mark.
  argv = [argument.removeprefix("\ufeff") for argument in argv]
  for argument in argv[1:]:
    if argument.startswith("--help="):
      from dbl_jax import config as configs

      print(configs.describe(argument.removeprefix("--help=")))
      sys.exit(0)
    _check_path(argument)
  with _user_errors(argv):
    if (path := _config_path(argv)) is not None:
      load_config(path)
      argv = _with_config_file(argv, path)
    rest = flags.FLAGS(argv)
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
      f"{argument}: the user {user!r} does not exist. Give the path in full."
    )


def define(define_flag: Callable[..., _T], *arguments: Any) -> _T:
  """Defines a flag by a function of `config_flags`, and returns its holder.

  The function reads the command line. An error ends the program as in
  `run_main`.
  """
  try:
    with _user_errors(sys.argv):
      return define_flag(*arguments)
  except UserError as error:
    _exit_with(str(error))


@contextlib.contextmanager
def _user_errors(argv: Sequence[str] = ()) -> Iterator[None]:
  """Converts errors of absl and ml_collections for a command line."""
  try:
    yield
  except flags.Error as error:
    message = str(error).removeprefix("ERROR:: ")
    raise UserError(f"{message}. See --help.") from error
  except UnicodeDecodeError as error:
    raise UserError(
      "The file of --flagfile is not UTF-8 text; expected a flag on each line."
      " Save it as UTF-8."
    ) from error
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_field(argv)) from error


def _config_path(argv: Sequence[str]) -> str | None:
  """The value of --config, given with '=' or as the next word."""
  found = None
  for argument, following in itertools.zip_longest(argv[1:], argv[2:]):
    name, equals, value = argument.partition("=")
    if name in ("--config", "-config"):
      if found is not None:
        raise UserError(f"{argument}: --config is given twice. Give it once.")
      found = value if equals else following
  return found


def _with_config_file(argv: Sequence[str], path: str) -> list[str]:
  """The command line with the config's name replaced by its file."""
  name, colon, variant = path.partition(":")
  file = f"{_config_file(name)}{colon}{variant}"
  flags = ("--config", "-config")
  given = {f"{flag}={path}": f"{flag}={file}" for flag in flags}
  return [
    file if before in flags else given.get(argument, argument)
    for before, argument in zip(("", *argv), argv, strict=False)
  ]


def _config_file(name: str) -> str:
  """The file of a config; a bare name is one in configs/, or a shipped one."""
  if os.path.isfile(name) or os.path.basename(name) != name:
    return name
  here = os.path.join("configs", f"{name}.py")
  return here if os.path.isfile(here) else str(shipped(here))


def _unknown_field(argv: Sequence[str]) -> str:
  """A message that names the unknown field, and fields with similar names."""
  from dbl_jax import config as configs

  path = _config_path(argv)
  if path is None:  # a program with only the section on data
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
  hint = configs.similar(unknown, names) or " See the file."
  return f"{path} has no field {unknown!r}.{hint}"


def load_config(path: str) -> Any:
  """Loads a config, not resolved.

  The path is a file, 'configs/dbl.py', or the name of one in configs/ of the
  working directory or of this project, 'dbl'. Text after a ':' is the argument
  of its `get_config`: 'dbl:sup_con'.

  Raises:
    UserError: if the file or variant does not exist, or the file is broken.
  """
  file, *argument = path.split(":", 1)
  file = _config_file(file)
  if not os.path.isfile(file):
    there = shipped("configs/dbl.py").parent.glob("[!_]*.py")
    raise UserError(
      f"--config={path}: no such file. Give the path of a config file, or the"
      f" name of one: {', '.join(sorted(one.stem for one in there))}."
    )
  try:
    get_config = runpy.run_path(file).get("get_config")
    config = get_config and get_config(*argument)
  except UserError:
    raise
  except Exception as error:  # a config file is a program
    raise UserError(_broken_config(file, argument, error)) from error
  if not isinstance(config, ConfigDict):
    found = f"returns a {type(config).__name__}" if get_config else "is missing"
    raise UserError(
      f"{file} is not a config: get_config() {found}. Define it so that it"
      " returns an ml_collections.ConfigDict, as in configs/."
    )
  return config


def _broken_config(file: str, argument: list[str], error: Exception) -> str:
  """A message with the failing line of a config file, or the variant."""
  frames = traceback.extract_tb(error.__traceback__)
  in_file = [frame for frame in frames if frame.filename == file]
  # If `get_config` takes no argument, its call fails outside of the file.
  called = any(frame.name == "get_config" for frame in in_file)
  value_error = isinstance(error, KeyError | TypeError | ValueError)
  if argument and value_error and (called or not in_file):
    return (
      f"{file} does not have the variant {argument[0]!r} ({error}). Its first"
      " lines list the variants."
    )
  line = in_file[-1].lineno if in_file else getattr(error, "lineno", None)
  return (
    f"{file}, line {line or 1}: {type(error).__name__}: {error}. Correct the"
    " file, which must be Python, or see configs/."
  )
