"""A run killed at the worst moments ends as if never killed.

`scripts/soak.py` does it for as long as one likes.
"""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest
import soak

from dbl_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("soak")
  words = soak.command("pretrain.evaluate_every=1.")
  run = soak.Run(words, folder / "whole", folder / "cache")
  assert run.start().wait() == 0, run.output
  return run


def test_kills_while_saving_and_reporting_lose_nothing(whole, monkeypatch):
  monkeypatch.chdir(ROOT)
  run = dataclasses.replace(whole, folder=whole.folder.parent / "killed")
  finals = {"pretrain": 9, "classify": 9}
  monkeypatch.setitem(soak.MOMENTS, "report", 0.05)
  for target in ("step", "save", "report"):
    hit, _ = soak.kill_at(run, target, finals, random.Random(0))
    assert hit is not None
    assert not (run.workdir / "report.html").exists()
  assert run.start().wait() == 0
  assert "resuming from step" in run.output
  assert soak.differences(whole.workdir, run.workdir) == []


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


def test_what_differs_is_named(whole, tmp_path):
  assert soak.differences(whole.workdir, whole.workdir) == []
  other = tmp_path / "other"
  shutil.copytree(whole.workdir, other)
  shutil.rmtree(other / "checkpoints" / "classify")
  shutil.copytree(
    other / "checkpoints" / "pretrain", other / "checkpoints" / "classify"
  )
  (other / "metrics.json").write_text("{}")
  assert soak.differences(whole.workdir, other) == [
    f"{other / 'metrics.json'} differs",
    f"{other}: the best model of classify differs",
    f"{other}: the latest model of classify differs",
  ]
