"""Full and read-only disks: one line, and the last checkpoint stays whole."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak

import tiny
from dbl_jax import evaluate, train, workdirs
from dbl_jax.errors import UserError
from dbl_jax.runtime import files
from dbl_jax.training import checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  train.train_and_evaluate(tiny.get_resolved(cache_dir=cache), workdir)
  return workdir


@pytest.fixture
def small(tmp_path):
  """A disk of its own, of 8 MB."""
  place = tmp_path / "small"
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("this user mounts nothing")
  yield place
  subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_nothing(whole, cache, small):
  """It fills in phase 2's first save, of 100 KB and more in 4 KB pages.

  How much more is by chance: Orbax writes as many files as it has time for.
  """
  workdir = small / "run"
  late = shutil.ignore_patterns("classify", "metrics.json", "report.html")
  shutil.copytree(whole, workdir, ignore=late)
  filler = small / "filler"
  filler.write_bytes(bytes(shutil.disk_usage(small).free - 48 * 1024))
  done = subprocess.run(
    [
      *soak.command(),
      f"--workdir={workdir}",
      f"--config.data.cache_dir={cache}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith(f"error: {small}"), done.stderr
  assert "No space left on device. Free some space, then run" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  pretrain, classify = (
    checkpoint.phase_dir(workdir, name) for name in ("pretrain", "classify")
  )
  assert checkpoint.load_model(pretrain, "latest")[1] == 9
  assert classify.is_dir()
  assert not checkpoint.has_steps(classify)
  filler.unlink()
  train.train_and_evaluate(tiny.get_resolved(cache_dir=cache), workdir)
  assert soak.differences(whole, workdir) == []


@pytest.mark.parametrize(
  ("place", "name"),
  [
    (train.MetricWriter, "write"),
    (checkpoint.ocp.CheckpointManager, "wait_until_finished"),
    (evaluate.report.files, "write"),
  ],
)
def test_a_full_disk_is_reported_wherever_it_fills(
  whole, cache, tmp_path, monkeypatch, place, name
):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

  config = tiny.get_resolved(cache_dir=cache)
  with monkeypatch.context() as patch:
    patch.setattr(place, name, full)
    with pytest.raises(UserError, match=r"/some/file: No space left on device"):
      train.train_and_evaluate(config, tmp_path)
  time.sleep(0.1)
  train.train_and_evaluate(config, tmp_path)
  assert soak.differences(whole, tmp_path) == []


def test_a_read_only_workdir_is_refused(cache, tmp_path, monkeypatch):
  """As root, permissions stop nothing; a disk mounted read-only does."""

  def read_only(**_):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
  with pytest.raises(UserError, match="cannot be written: Read-only file"):
    train.train_and_evaluate(tiny.get_resolved(cache_dir=cache), tmp_path)


@pytest.mark.parametrize(
  ("workdir", "message"),
  [
    ("a[1]", "one of the characters"),
    ("what?", "one of the characters"),
    ("gs:/bucket/run", "is a URL"),
    ("s3:/bucket/run", "is a URL"),
  ],
)
def test_a_path_that_checkpoints_cannot_have_is_refused_at_the_start(
  tmp_path, workdir, message
):
  """Of a URL, `Path` leaves one slash; Orbax uses paths as patterns."""
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(tiny.get_resolved(), tmp_path / workdir)
  assert not list(tmp_path.iterdir())


def test_a_run_moved_to_such_a_path_is_read(whole, tmp_path):
  moved = tmp_path / "a[1]"
  shutil.copytree(whole, moved)
  directory = checkpoint.phase_dir(moved, "classify")
  assert checkpoint.load_model(directory, "latest")[1] == 9


@pytest.mark.parametrize(
  "text",
  [
    'RESOURCE_EXHAUSTED: Error writing "a": No space left on device [os]',
    "PERMISSION_DENIED: Failed to open: Permission denied",
  ],
)
def test_errors_within_other_errors_are_found(tmp_path, text):

  def save():
    try:
      raise ValueError(text)
    except ValueError as error:
      raise RuntimeError("in the background") from error

  with (
    pytest.raises(UserError, match="run the same command"),
    workdirs.plain_errors(tmp_path),
  ):
    save()


def test_bugs_are_not_attributed_to_the_disk():
  with pytest.raises(ValueError, match="a bug"), workdirs.plain_errors(Path()):
    raise ValueError("a bug")
  missing = os.strerror(errno.ENOENT)
  with pytest.raises(OSError, match=missing), workdirs.plain_errors(Path()):
    raise OSError(errno.ENOENT, missing)


def test_a_closed_loop_is_not_shown():
  """What TensorStore's callbacks raise cannot be caught, only not shown."""
  program = """
import sys
from dbl_jax import cli
class Late:
  def __del__(self):
    raise RuntimeError(sys.argv[1])
def main(argv):
  Late()
cli.run_main(main)
"""
  for words, said in (("Event loop is closed", False), ("a bug", True)):
    done = subprocess.run(
      [sys.executable, "-c", program, words],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0
    assert ("Traceback" in done.stderr) == said
