"""What programs set at their start: on by default, easily off, never fatal."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import logs_test
import pytest

from dbl_jax.runtime import environment

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def clean(monkeypatch, tmp_path):
  """An environment in which the user has set nothing, with an own cache."""
  names = [
    PROGRAMS, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "GLIBC_TUNABLES",
    "DBL_JAX_CACHE", "DBL_JAX_MALLOC",
  ]  # fmt: skip
  for name in [*names, *(n for n in os.environ if n.startswith("MALLOC_"))]:
    monkeypatch.setenv(name, "")  # so that it is set back, whoever sets it
    monkeypatch.delenv(name)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return monkeypatch


def run(program, *arguments):
  code = program
  if program.startswith("lambda"):
    code = f"from dbl_jax import cli\ncli.run_main({program})"
  return subprocess.run(
    [sys.executable, "-c", code, *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def test_programs_are_stored_in_the_users_cache(clean, tmp_path):
  environment.enable_compilation_cache()
  directory = Path(os.environ[PROGRAMS])
  assert directory.is_dir()
  assert directory.parent == tmp_path / "dbl_jax" / "programs"
  clean.delenv("XDG_CACHE_HOME")
  clean.setenv("HOME", str(tmp_path))
  assert environment.user_cache() == tmp_path / ".cache" / "dbl_jax"


@pytest.mark.parametrize(
  ("name", "value"),
  [(PROGRAMS, "mine"), ("DBL_JAX_CACHE", "off"), ("DBL_JAX_CACHE", "0")],
)
def test_programs_are_the_users_to_place(clean, tmp_path, name, value):
  clean.setenv("DBL_JAX_MALLOC", "off")
  clean.setenv(name, value)
  environment.prepare()
  assert os.environ.get(PROGRAMS) == (value if name == PROGRAMS else None)
  assert not list(tmp_path.iterdir())


def test_jax_s_variables_do_not_change_results(clean, caplog):
  clean.setenv("DBL_JAX_CACHE", "off")
  clean.setenv("DBL_JAX_MALLOC", "off")
  for name in environment._RESULTS:
    clean.setenv(name, "1")
  environment.prepare()
  assert not set(environment._RESULTS) & set(os.environ)
  assert "JAX_ENABLE_X64=1 is ignored" in caplog.text


def test_a_cache_that_cannot_be_written_is_a_warning(clean, tmp_path, caplog):
  def no_home():
    raise RuntimeError("Could not determine home directory.")

  (tmp_path / "file").touch()
  clean.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  environment.enable_compilation_cache()
  assert "compiles again" in caplog.text
  assert f"{tmp_path / 'file'}" in caplog.text
  clean.delenv("XDG_CACHE_HOME")
  clean.setattr(Path, "home", no_home)
  environment.enable_compilation_cache()
  assert "home directory" in caplog.text
  assert PROGRAMS not in os.environ


def test_each_kind_of_cpu_has_its_own_programs(tmp_path):
  def name(text):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    return environment._cpu_name(path)

  one = name("model: x\nflags\t\t: sse avx2\nflags\t\t: sse avx2\n")
  assert one == name("model: x\nflags\t\t: avx2 sse\n")
  assert one != name("model: x\nflags\t\t: sse avx2 avx512f\n")
  assert name("Features\t: neon\n") != name("Features\t: neon sve\n")
  assert environment._cpu_name(tmp_path / "none").isalnum()


def test_the_oldest_programs_go_when_there_are_too_many(clean, tmp_path):
  clean.setattr(environment, "CACHE_BYTES", 25)
  environment.enable_compilation_cache()
  directory = Path(os.environ[PROGRAMS])
  for age in range(4):
    path = directory / f"{age}-cache"
    path.write_bytes(bytes(10))
    os.utime(path, (1e9 - age, 1e9 - age))
  del os.environ[PROGRAMS]
  environment.enable_compilation_cache()
  assert {p.name for p in directory.iterdir()} == {"0-cache", "1-cache"}


@pytest.fixture
def libc(clean):
  """A fake C library, which is glibc and counts calls of mallopt."""
  fake = mock.Mock(["mallopt", "gnu_get_libc_version"])
  clean.setattr(ctypes, "CDLL", lambda name: fake)
  clean.setenv("DBL_JAX_CACHE", "off")
  return fake


@pytest.mark.parametrize(
  ("platform", "variables", "tuned"),
  [
    ("linux", {}, True),
    ("linux", {"DBL_JAX_MALLOC": "off"}, False),
    ("linux", {"MALLOC_ARENA_MAX": "2"}, False),
    ("linux", {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, False),
    ("darwin", {}, False),
  ],
)
def test_memory_is_tuned_where_glibc_is_and_nobody_objects(
  clean, libc, platform, variables, tuned
):
  for name, value in variables.items():
    clean.setenv(name, value)
  clean.setattr(sys, "platform", platform)
  environment.prepare()
  assert libc.mallopt.called == tuned


@pytest.mark.parametrize("error", [None, OSError, TypeError])
def test_another_or_no_c_library_is_no_error(clean, libc, error):
  del libc.gnu_get_libc_version  # as in musl
  if error:
    clean.setattr(ctypes, "CDLL", mock.Mock(side_effect=error))
  environment.prepare()
  assert not libc.mallopt.called


@pytest.mark.skipif(
  not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
  reason="glibc's malloc",
)
@pytest.mark.parametrize("switch", ["on", "off"])
def test_freed_memory_stays(clean, switch):
  clean.setenv("DBL_JAX_MALLOC", switch)
  done = run("""lambda _: (b"x" * (400 << 20)) and print(open(
    "/proc/self/statm").read().split()[1])""")
  held = int(done.stdout) * os.sysconf("SC_PAGE_SIZE")
  assert (held > 400 << 20) == (switch == "on"), done.stderr


def test_a_second_start_finds_its_programs(clean, tmp_path):
  clean.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  clean.setenv("JAX_PLATFORMS", "cpu")
  program = "lambda _: __import__('jax').jit(lambda x: x + 41)(1)"

  def kept():
    return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*-cache")}

  def start():
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return kept()

  programs = start()
  assert programs
  assert start() == programs
  for path in programs:  # what a full disk leaves
    path.write_bytes(b"")
  start()
  assert all(path.stat().st_size for path in programs)
  for path in programs:
    path.write_bytes(path.read_bytes()[:100])
  assert run(program).returncode == 0  # with JAX's warning


HELP = """
import runpy, sys
sys.argv = ["dbl-jax", "--help"]
try:
  runpy.run_module("dbl_jax.main", run_name="__main__", alter_sys=True)
except SystemExit:
  print({"jax", "tensorflow", "clu"} & set(sys.modules))
"""


def test_help_loads_neither_jax_nor_tensorflow(clean):
  done = run(HELP)
  assert "--config" in done.stdout
  assert "--workdir" in done.stdout
  assert done.stdout.endswith("set()\n")
  assert done.stderr == ""


def test_loading_and_logging_need_no_tensorflow(clean, tmp_path):
  done = run(LOGGING, str(tmp_path))
  assert (done.stdout, done.stderr) == ("False\n", "")
  assert logs_test.read_events(tmp_path / "tensorboard") == [
    (3, {"pretrain/loss": 1.5, "pretrain/grad_norm": 2.0}),
    (6, {"pretrain/loss": 0.5}),
  ]


LOGGING = """
import sys
from pathlib import Path
from dbl_jax import cli, evaluate, train
def main(argv):
  with train.MetricWriter(Path(argv[1]), True) as writer:
    writer.write("pretrain", 3, 0.5, {"loss": 1.5, "grad_norm": 2.0})
    writer.write("pretrain", 6, 1.0, {"loss": 0.5})
  print("tensorflow" in sys.modules)
cli.run_main(main)
"""
