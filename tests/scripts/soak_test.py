"""A run killed at the worst moments ends as if never killed.

`scripts/soak.py` does it for as long as one likes.
"""

import random
import shutil
from pathlib import Path

import mains
import pytest
import soak

import tiny
from dbl_jax import train
from dbl_jax.errors import UserError


def test_kills_while_saving_and_reporting_lose_nothing(
  finished, tmp_path, monkeypatch, capsys
):
  config, whole = finished
  monkeypatch.chdir(mains.ROOT)
  words = soak.command(*(f"{name}={x}" for name, x in tiny.RUN.items()))
  run = soak.Run(words, tmp_path, Path(config.data.cache_dir))
  finals = {"pretrain": 9, "classify": 17}
  monkeypatch.setitem(soak.MOMENTS, "report", 0.05)
  for target in ("save", "report"):
    hit, _ = soak.kill_at(run, target, finals, random.Random(0))
    assert hit is not None, run.output
    assert not (run.workdir / "report.html").exists()
  train.train_and_evaluate(config, run.workdir)
  assert "resuming from step" in run.output + capsys.readouterr().out
  assert soak.differences(whole, run.workdir) == []


SAVE, STEP, OVER = ("save", None), ("step", None), (None, 0)
LOST = ["metrics.json differs"]


@pytest.mark.parametrize(
  ("kills", "hits", "statuses", "lost", "counted", "faults"),
  [
    # The second run is killed twice, then finishes.
    (3, [SAVE, OVER, SAVE, STEP], [0, 0], [], {"save": 2, "step": 1}, ""),
    (9, [SAVE, OVER], [0], LOST, {"save": 1}, "metrics.json differs"),
    (9, [SAVE, (None, 3)], [0], [], {"save": 1}, "failed: last words"),
    (1, [], [1], [], None, "uninterrupted run failed: last words"),
  ],
  ids=["equal", "lost", "failed", "failed alone"],
)
def test_kills_are_counted_until_a_run_differs(
  monkeypatch, tmp_path, capsys, kills, hits, statuses, lost, counted, faults
):
  hits, statuses = iter(hits), iter(statuses)

  class Ended:
    def wait(self):
      return next(statuses)

  monkeypatch.setattr(soak.Run, "start", lambda run: Ended())
  monkeypatch.setattr(soak.Run, "output", "last words")
  monkeypatch.setattr(soak, "kill_at", lambda *_: next(hits))
  monkeypatch.setattr(soak, "differences", lambda *_: lost)

  def run():
    return soak.soak(["run"], tmp_path, kills, seed=0, moments=["save"])

  if counted is None:
    with pytest.raises(UserError, match=faults):
      run()
    return
  found, found_faults = run()
  assert found == counted
  assert faults in " ".join(found_faults)
  assert bool(found_faults) == bool(faults)
  out = capsys.readouterr().out
  assert f"kill 1 of {kills}: save" in out
  assert faults in out


def test_what_differs_is_named(finished, tmp_path):
  whole, other = finished[1], tmp_path / "other"
  assert soak.differences(whole, whole) == []
  shutil.copytree(whole, other)
  shutil.rmtree(other / "checkpoints" / "classify")
  shutil.copytree(
    other / "checkpoints" / "pretrain", other / "checkpoints" / "classify"
  )
  (other / "metrics.json").write_text("{}")
  assert soak.differences(whole, other) == [
    f"{other / 'metrics.json'} differs",
    f"{other}: the best model of classify differs",
    f"{other}: the latest model of classify differs",
  ]
