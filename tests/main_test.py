"""Programs in processes of their own; see also `bad_commands_test.py`."""

import os
import re
import subprocess
import sys

import jax
import mains
import pytest

from dbl_jax import cli
from dbl_jax import config as configs

DBL = ("-m", "dbl_jax.main", "--config=configs/dbl.py")


def call(*arguments, **variables):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=mains.ROOT,
    env=os.environ | variables,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize(
  ("arguments", "variables", "message"),
  [
    # Found where a flag is defined, before `main`.
    (("--config.data.nam=x",), {}, "no field 'data.nam'. Did you mean"),
    ((), {"JAX_PLATFORMS": "cuda"}, "a device of JAX_PLATFORMS='cuda'"),
  ],
)
def test_a_mistake_is_one_line(arguments, variables, message, tmp_path):
  workdir = tmp_path / "run"
  done = call(*DBL, f"--workdir={workdir}", *arguments, **variables)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert done.stderr.startswith("error: ")
  assert len(done.stderr.splitlines()) == 1
  assert not workdir.exists()


def test_what_cannot_be_caught_is_not_shown():
  """Callbacks of TensorStore raise after Orbax has failed; bugs are shown."""
  program = """
from dbl_jax import cli
class Late:
  def __init__(self, words):
    self.words = words
  def __del__(self):
    raise RuntimeError(self.words)
def main(argv):
  Late("Event loop is closed")
  Late("a bug")
cli.run_main(main)
"""
  done = call("-c", program)
  assert done.returncode == 0
  assert "RuntimeError: a bug" in done.stderr
  assert "Event loop" not in done.stderr


@pytest.mark.parametrize(
  "error",
  [
    MemoryError("Unable to allocate 9 GiB"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n9 GiB"),
  ],
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
  def main(_):
    raise ValueError("in Orbax") from error

  monkeypatch.setattr(cli.environment, "prepare", lambda: None)
  with pytest.raises(SystemExit, match="2"):
    cli.run_main(main)
  line = capsys.readouterr().err
  assert re.fullmatch(r"error: Not enough memory \([UR].*smaller.*\n", line)


def test_output_that_nobody_reads(monkeypatch, capsys):
  def main(_):
    raise BrokenPipeError(32, "Broken pipe")

  monkeypatch.setattr(cli.environment, "prepare", lambda: None)
  with pytest.raises(SystemExit, match="2"):
    cli.run_main(main)
  assert "error: Broken pipe" in capsys.readouterr().err
  monkeypatch.setattr(sys, "stdout", None)  # as a shell's >&- leaves it
  cli.run_main(lambda _: print(sys.stdout.isatty()))


def test_differences_name_each_field():
  old = {"a": {"b": [1, 2], "c": 3}, "d": 1}
  new = {"a": {"b": (1, 2), "c": 4}, "e": 1}
  assert configs.differences(old, new) == [
    "a.c: 3 -> 4",
    "d: 1 -> absent",
    "e: absent -> 1",
  ]


def test_settings_of_matplotlib_do_not_matter(tmp_path):
  """A notebook's backend, and LaTeX for all text."""
  (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
  program = """
import numpy as np
from dbl_jax import cli
def main(argv):
  from dbl_jax.evaluation import plots
  matrix = np.eye(2, dtype=int)
  print(len(plots.confusion_figure([("a", matrix)], "ab", [1, 1])))
cli.run_main(main)
"""
  done = call(
    "-c",
    program,
    MPLBACKEND="module://matplotlib_inline.backend_inline",
    MATPLOTLIBRC=str(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 1000
