"""Killed at the worst moments, a run ends as if never killed.

`scripts/soak.py` does it for as long as one likes.
"""

import random
import shutil
from pathlib import Path

import pytest

from dbl_jax import soak
from dbl_jax.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("soak")
  words = soak.command("pretrain.evaluate_every=1.")
  run = soak.Run(words, folder / "whole", folder / "cache")
  assert run.start().wait() == 0, run.log.read_text()
  return run


def test_kills_while_saving_and_reporting_lose_nothing(whole, monkeypatch):
  monkeypatch.chdir(ROOT)
  run = whole._replace(folder=whole.folder.parent / "killed")
  finals = {"pretrain": 9, "classify": 9}
  monkeypatch.setitem(soak.MOMENTS, "report", 0.05)
  for target in ("save", "report"):
    hit, _ = soak.kill_at(run, target, finals, random.Random(0))
    assert hit is not None
    assert not (run.workdir / "report.html").exists()
  assert run.start().wait() == 0
  assert "going on from step" in run.log.read_text()
  assert soak.differences(whole.workdir, run.workdir) == []


class Ended:
  """A process that has ended."""

  def __init__(self, status):
    self.wait = lambda: status


@pytest.fixture
def scripted(monkeypatch, tmp_path):
  """A soak whose kills, exits and faults are told beforehand."""

  def play(kills, hits, statuses=(), faults=()):
    hits, statuses, faults = iter(hits), iter(statuses), iter(faults)

    def start(run):
      run.folder.mkdir(parents=True, exist_ok=True)
      run.log.write_text("what it said last")
      return Ended(next(statuses, 0))

    def kill_at(run, target, finals, rng):
      start(run)
      return next(hits)

    monkeypatch.setattr(soak.Run, "start", start)
    monkeypatch.setattr(soak, "kill_at", kill_at)
    monkeypatch.setattr(
      soak, "differences", lambda whole, other: next(faults, [])
    )
    return soak.soak(["run"], tmp_path, kills, seed=0, tell=told.append)

  told = []
  return play, told


SAVE, STEP, OVER = ("save", None), ("step", None), (None, 0)


def test_a_soak_kills_as_often_as_told_and_counts_the_moments(scripted):
  play, told = scripted
  tally = play(3, [SAVE, OVER, SAVE, STEP])
  assert tally.kills == {"save": 2, "step": 1}
  assert tally.ended == [1, 2]  # the second run goes on to its end
  assert tally.faults == []
  assert told[0] == "kill 1 of 3: save"
  assert told[-1] == "run ended after 2 kills: equal"


def test_a_soak_ends_at_the_first_run_that_lost_something(scripted):
  play, told = scripted
  lost = ["metrics.json is another"]
  tally = play(9, [SAVE, OVER], faults=[lost])
  assert tally.faults == lost
  assert tally.ended == [1]
  assert "metrics.json is another" in told[-1]


def test_a_soak_tells_what_a_run_that_failed_said(scripted):
  play, _ = scripted
  (fault,) = play(9, [SAVE, (None, 3)]).faults
  assert "status 3: what it said last" in fault


def test_a_soak_needs_a_run_that_succeeds_when_left_alone(scripted):
  play, _ = scripted
  with pytest.raises(UserError, match="what it said last"):
    play(1, [], statuses=[1])


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
    f"{other / 'metrics.json'} is another",
    f"{other}: the best model of classify is another",
    f"{other}: the latest model of classify is another",
  ]
