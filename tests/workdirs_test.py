"""The folder of a run: full disks lose nothing, and one run at a time."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mains
import pytest
import soak

import tiny
from dbl_jax import evaluate, train, workdirs
from dbl_jax.errors import UserError
from dbl_jax.runtime import files
from dbl_jax.training import checkpoint


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


def test_a_full_disk_loses_nothing(finished, small):
  """It fills in phase 2's first save, of 100 KB and more in 4 KB pages.

  How much more is by chance: Orbax writes as many files as it has time for.
  """
  config, whole = finished
  workdir = small / "run"
  late = shutil.ignore_patterns("classify", "metrics.json", "report.html")
  shutil.copytree(whole, workdir, ignore=late)
  filler = small / "filler"
  filler.write_bytes(bytes(shutil.disk_usage(small).free - 48 * 1024))
  done = subprocess.run(
    [
      *soak.command(*(f"{name}={value}" for name, value in tiny.RUN.items())),
      f"--workdir={workdir}",
      f"--config.data.cache_dir={config.data.cache_dir}",
    ],
    cwd=mains.ROOT,
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
  assert not checkpoint.saved_steps(classify)
  filler.unlink()
  train.train_and_evaluate(config, workdir)
  assert soak.differences(whole, workdir) == []


def test_a_full_disk_is_reported_wherever_it_fills(
  finished, tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device", "/some/file")

  config, whole = finished
  for place, name in (
    (train.MetricWriter, "write"),
    (checkpoint.ocp.CheckpointManager, "wait_until_finished"),
    (evaluate.report.files, "write"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, name, full)
      with pytest.raises(UserError, match="/some/file: No space left on dev"):
        train.train_and_evaluate(config, tmp_path)
  train.train_and_evaluate(config, tmp_path)
  assert soak.differences(whole, tmp_path) == []


def test_a_read_only_workdir_is_refused(tmp_path, monkeypatch):
  """As root, permissions stop nothing; a disk mounted read-only does."""

  def read_only(**_):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
  with pytest.raises(UserError, match="cannot be written: Read-only file"):
    workdirs.make(tmp_path)


@pytest.mark.parametrize(
  "name", ["a[1]", "what?", "gs:/bucket/run", "s3:/b", os.fsdecode(b"a\xff")]
)
def test_a_path_that_checkpoints_cannot_have_is_refused(tmp_path, name):
  """Of a URL, `Path` leaves one slash; Orbax uses paths as patterns."""
  with pytest.raises(UserError, match=r"is a URL, contains"):
    train.train_and_evaluate(tiny.get_resolved(), tmp_path / name)
  assert not list(tmp_path.iterdir())


def test_a_run_moved_to_such_a_path_is_read(finished, tmp_path):
  moved = tmp_path / "a[1]"
  shutil.copytree(finished[1], moved)
  directory = checkpoint.phase_dir(moved, "pretrain")
  assert checkpoint.load_model(directory, "latest")[1] == 9


@pytest.mark.parametrize(
  "text",
  [
    'RESOURCE_EXHAUSTED: Error writing "a": No space left on device [os]',
    "PERMISSION_DENIED: Failed to open: Permission denied",
    "UNKNOWN: Failed to open: Stale file handle",
    "UNKNOWN: Failed to open: Too many open files",
  ],
)
def test_errors_within_other_errors_are_found(text):
  error = RuntimeError("in the background")
  error.__cause__ = ValueError(text)
  with (
    pytest.raises(UserError, match="run the same command"),
    workdirs.plain_errors(Path()),
  ):
    raise error


def test_output_on_a_full_disk_is_not_attributed_to_the_workdir():
  with (
    pytest.raises(UserError, match="run or what the output is redirected to"),
    workdirs.plain_errors(Path("run")),
    open("/dev/full", "w", buffering=1) as full,
  ):
    print("a line", file=full)


@pytest.mark.parametrize(
  "error", [ValueError("a bug"), OSError(errno.ENOENT, "No such file")]
)
def test_bugs_are_not_attributed_to_the_disk(error):
  with pytest.raises(type(error)) as caught, workdirs.plain_errors(Path()):
    raise error
  assert caught.value is error


HOLD = """
import sys, time
from pathlib import Path
from dbl_jax import workdirs
with workdirs.only_run(Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def test_the_second_run_is_refused_until_the_first_dies(tmp_path):
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  with process.stdout:
    assert process.stdout.readline() == "held\n"
    for _ in range(2):  # being refused does not touch the lock
      with (
        pytest.raises(UserError, match=f"in use: process {process.pid} on"),
        workdirs.only_run(tmp_path),
      ):
        pass
      assert workdirs.is_held(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not workdirs.is_held(tmp_path)
  for _ in range(2):  # the lock ends with the block
    with workdirs.only_run(tmp_path):
      pass


def test_a_disk_without_locks_is_used_all_the_same(
  tmp_path, monkeypatch, caplog
):
  def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(workdirs.fcntl, "flock", flock)
  with workdirs.only_run(tmp_path):
    pass
  assert "do not start a second run in it" in caplog.text
