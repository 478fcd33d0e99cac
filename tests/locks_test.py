"""One run in a workdir: the second is told which process holds it."""

import signal
import subprocess
import sys

import pytest

from dbl_jax import workdirs
from dbl_jax.errors import UserError

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
  with workdirs.only_run(tmp_path):
    pass
  with workdirs.only_run(tmp_path):  # and ends with the block
    pass


def test_a_disk_without_locks_is_used_all_the_same(
  tmp_path, monkeypatch, caplog
):
  def flock(*_):
    raise OSError(workdirs.errno.ENOLCK, "No locks available")

  monkeypatch.setattr(workdirs.fcntl, "flock", flock)
  with workdirs.only_run(tmp_path):
    pass
  assert "start no second run in it" in caplog.text
