"""Several hosts: processes that join into one run, on loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import tiny
from dbl_jax import config as configs
from dbl_jax import train
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed
from dbl_jax.runtime.logs import read_rows
from dbl_jax.training import checkpoint

ROOT = Path(__file__).parents[2]
# Not Adam, which makes a whole step of the rounding of a gradient of zero.
CHANGES = {
  "pretrain.optimizer.name": "sgd",
  "pretrain.optimizer.learning_rate": 0.1,
  "classify.optimizer.name": "sgd",
  "classify.optimizer.learning_rate": 0.1,
  "classify.cached_views": 2,
}


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def start_process(port, number, workdir, cache):
  """One of two processes, with two devices."""
  fields = CHANGES | {"data.cache_dir": cache}
  two = os.environ["XLA_FLAGS"].replace("device_count=1", "device_count=2")
  return subprocess.Popen(
    [
      sys.executable, "-m", "dbl_jax.main", "--config=tests/tiny.py",
      f"--workdir={workdir}", f"--coordinator=localhost:{port}",
      "--num_processes=2", f"--process_id={number}",
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": two, "PYTHONPATH": "tests"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )  # fmt: skip


@pytest.mark.usefixtures("eight_devices")
def test_two_processes_train_what_one_trains(tmp_path):
  cache = str(tmp_path / "cache")
  config = tiny.get_config()
  config.update_from_flattened_dict(CHANGES | {"data.cache_dir": cache})
  alone, joined = tmp_path / "alone", tmp_path / "joined"
  port = free_port()
  processes = [start_process(port, i, joined, cache) for i in range(2)]
  said = [process.communicate(timeout=240)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert "test: 40 images" in said[0]
  assert "test: 40 images" not in said[1]  # one speaks for both

  metrics = train.train_and_evaluate(configs.resolve(config), alone)
  theirs = json.loads((joined / "metrics.json").read_text())
  accuracy = metrics["overall_accuracy"]
  assert theirs["overall_accuracy"] == pytest.approx(accuracy, abs=0.1)
  rows, their_rows = (
    read_rows(workdir / "metrics.jsonl") for workdir in (alone, joined)
  )
  assert len(rows) == len(their_rows)  # one writes for both
  for row, other in zip(rows, their_rows, strict=True):
    assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)
  for phase in ("pretrain", "classify"):
    one, two = (
      checkpoint.load_model(checkpoint.phase_dir(workdir, phase), "latest")
      for workdir in (alone, joined)
    )
    assert one[1] == two[1]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3),
      one[0],
      two[0],
    )


@pytest.mark.parametrize(("number", "count"), [(-1, 2), (2, 2), (0, -1)])
def test_a_process_needs_a_number_of_its_own(number, count):
  with pytest.raises(UserError, match="--process_id of its own"):
    distributed.initialize("localhost:1", count, number)
