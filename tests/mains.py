"""Runs a program of the project in this process, as a command line would."""

import contextlib
import io
import runpy
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags
from absl.testing import flagsaver

from dbl_jax import cli

ROOT = Path(__file__).parent.parent
PROGRAMS = {
  **{name: ROOT / "dbl_jax" / f"{name}.py" for name in ("main", "demo")},
  **{path.stem: path for path in (ROOT / "scripts").glob("*.py")},
}


class Done(NamedTuple):
  """How a program ended: its status, and what it wrote."""

  status: int
  out: str
  err: str


def run(program: str, arguments: list[str]) -> Done:
  """Runs it; an exception that would be a stack trace is raised here.

  Each run has its own flags, as programs define flags of the same names.
  """
  argv = [str(PROGRAMS[program]), *arguments]
  out, err = io.StringIO(), io.StringIO()
  status = 0
  with (
    warnings.catch_warnings(),
    flagsaver.flagsaver(),
    mock.patch.object(sys, "argv", argv),
    mock.patch.object(cli.environment, "prepare"),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
    try:
      main = runpy.run_path(argv[0], run_name=program)["main"]
      cli.run_main(main)
    except SystemExit as end:
      status = 0 if end.code is None else end.code
  flags.FLAGS.unparse_flags()
  return Done(status, out.getvalue(), err.getvalue())
