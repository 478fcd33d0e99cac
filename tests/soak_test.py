"""Killed at the worst moments, a run ends as if never killed.

`scripts/soak.py` does it for as long as one likes.
"""

import random
import shutil
from pathlib import Path

import pytest

from dbl_jax import soak

ROOT = Path(__file__).parent.parent


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
