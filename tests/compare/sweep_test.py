"""Sweeps: shared stages are trained once, finished ones never again."""

import json

import numpy as np
import pytest

import tiny  # noqa: F401  (registers its encoder)
from dbl_jax import config as configs
from dbl_jax import train, workdirs
from dbl_jax.compare import sweep
from dbl_jax.compare.table import make_rows
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.evaluation.predictions import Predictions
from dbl_jax.runtime import environment


def supervised(cache):
  config = configs.base()
  config.data.update(
    num_train=60, num_test=20, image_size=16, cache_dir=str(cache)
  )
  config.model.name = "tiny"
  config.tensorboard = False
  config.classify = configs.supervised()
  config.classify.update(batch_size=16, epochs=1)
  return config


def decoupled(cache):
  config = supervised(cache)
  config.pretrain = config.classify
  config.classify = configs.untrained("tau_normalised")
  config.classify.batch_size = 16
  return config


@pytest.fixture
def plan(cache, tmp_path):
  systems = {"basic": supervised(cache), "decoupling": decoupled(cache)}
  return sweep.plan(systems, [0, 1], tmp_path)


def test_a_stage_that_systems_share_is_one(plan, tmp_path):
  (basic,), (shared, tau), (other_seed,), _ = plan.values()
  assert tau.parent == shared.workdir == basic.workdir
  assert other_seed.workdir != basic.workdir
  assert len(sweep.stages(plan)) == 4
  order = [stage.workdir for stage in sweep.stages(plan)]
  assert order.index(basic.workdir) < order.index(tau.workdir)
  assert all(workdir.parent == tmp_path for workdir in order)


def test_the_workdir_depends_on_what_affects_the_result(cache, tmp_path):
  def place(change):
    config = supervised(cache)
    change(config)
    (stage,) = sweep.plan({"basic": config}, [0], tmp_path)["basic", 0]
    return stage.workdir

  usual = place(lambda config: None)
  assert place(lambda c: c.classify.update(epochs=2)) != usual
  assert place(lambda c: c.data.update(image_size=24)) != usual
  assert place(lambda c: c.data.update(region="mouth")) != usual
  assert place(lambda c: c.update(log_every=3)) == usual
  assert place(lambda c: c.data.update(cache_dir="/elsewhere")) == usual


def test_a_stage_of_an_earlier_version_is_found(cache, tmp_path):
  systems = {"basic": supervised(cache)}
  (new,) = sweep.plan(systems, [0], tmp_path)["basic", 0]
  old = new.workdir.with_name(new.workdir.name[:-12] + "0" * 12)
  fields = new.config.to_dict()
  fields["classify"]["by_data"] = {"other": {"epochs": 60}}
  del fields["skip_nonfinite"]
  for seed, found in ((1, new.workdir), (0, old)):
    old.mkdir(exist_ok=True)
    fields["seed"] = seed
    (old / "config.json").write_text(json.dumps(fields))
    (stage,) = sweep.plan(systems, [0], tmp_path)["basic", 0]
    assert stage.workdir == found


SCORES = Predictions(
  ("a", "b"), *[np.arange(2)] * 2, np.eye(2), np.arange(2), np.eye(2), True
)


@pytest.fixture
def trained(monkeypatch):
  """Workdirs in the order they are trained, in no time."""
  found = []

  def train_and_evaluate(config, workdir):
    found.append(workdir)
    predictions.save(workdir / "scores_test.npz", SCORES)
    (workdir / "metrics.json").write_text('{"data_fingerprint": "a"}')
    (workdir / "report.html").write_text("")

  monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
  monkeypatch.setattr(sweep, "_check", lambda _: None)
  return found


def test_a_killed_sweep_resumes_and_trains_nothing_twice(
  plan, trained, monkeypatch
):
  killed, real = [], train.train_and_evaluate

  def killed_at_the_third(config, workdir):
    if len(trained) == 2 and not killed:
      killed.append(workdir)
      raise KeyboardInterrupt
    real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", killed_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    sweep.run(plan)
  assert len(sweep.results(plan)) == 2
  assert len(sweep.missing(plan, {})) == 2
  assert sweep.run(plan) == {}
  assert sweep.run(plan) == {}
  assert len(set(trained)) == len(trained) == 4
  for chain in plan.values():
    (chain[-1].workdir / "cost.json").write_text(
      '{"seconds": 2.5, "hardware": ["a", "b"]}'
    )
  basic, decoupling, *_ = sweep.results(plan)
  assert (basic.seconds, decoupling.seconds) == (2.5, 5.0)
  assert set(decoupling.hardware) == {"a", "b"}


def test_a_failure_stops_what_needs_it_and_nothing_else(
  plan, trained, monkeypatch
):
  broken = plan["basic", 0][0].workdir
  real = train.train_and_evaluate

  def fail(config, workdir):
    if workdir == broken:
      raise UserError("loss is nan")
    real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", fail)
  failed = sweep.run(plan)
  assert failed[broken] == "loss is nan"
  assert set(failed) == {broken, plan["decoupling", 0][1].workdir}
  basic, decoupling = sweep.missing(plan, failed)
  assert basic == "basic, seed 0: loss is nan"
  assert "needs" in decoupling
  assert [record.seed for record in sweep.results(plan)] == [1, 1]


def test_what_another_process_trains_is_waited_for(plan, trained, monkeypatch):
  basic, tau, other, last = sweep.stages(plan)
  held, waits = {basic.workdir, other.workdir}, []

  def meanwhile(seconds):
    waits.append(seconds)
    if len(waits) == 2:  # the other process finishes one and dies in the other
      train.train_and_evaluate(basic.config, basic.workdir)
      held.clear()

  monkeypatch.setattr(
    sweep.workdirs, "is_held", lambda workdir: workdir in held
  )
  monkeypatch.setattr(sweep.time, "sleep", meanwhile)
  assert sweep.run(plan) == {}
  assert len(waits) == 2
  assert sorted(trained) == sorted(
    [basic.workdir, tau.workdir, other.workdir, last.workdir]
  )
  assert trained[0] == basic.workdir


def test_the_slower_of_two_processes_moves_on(plan, trained, monkeypatch):
  real, refused = train.train_and_evaluate, []

  def slower(config, workdir):
    if not refused:
      refused.append(workdir)
      raise workdirs.InUseError("in use")
    return real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", slower)
  assert sweep.run(plan) == {}
  assert len(set(trained)) == len(trained) == 4


def test_an_invalid_system_stops_before_any_training(
  cache, tmp_path, monkeypatch
):
  wrong = decoupled(cache)
  wrong.classify.trained = ("tail",)
  systems = {"basic": supervised(cache), "typo": wrong}
  plan = sweep.plan(systems, [0], tmp_path)
  monkeypatch.setattr(
    train, "train_and_evaluate", lambda *_: pytest.fail("training began")
  )
  with pytest.raises(UserError, match=r"typo: classify: .*matches no param"):
    sweep.run(plan)


def test_stages_that_saw_different_images_are_not_one_system(plan, trained):
  chain = plan["decoupling", 0]
  assert sweep.run({("decoupling", 0): chain}) == {}
  chain[0].workdir.joinpath("metrics.json").write_text(
    '{"data_fingerprint": "b"}'
  )
  with pytest.raises(UserError, match="saw different images"):
    sweep.results(plan)


def test_lost_results_come_back_and_regions_are_compared(
  cache, tmp_path, monkeypatch
):
  mouth = supervised(cache)
  mouth.data.region = "mouth"
  systems = {"basic": supervised(cache), "regions:mouth": mouth}
  plan = sweep.plan(systems, [0], tmp_path)
  assert sweep.run(plan) == {}
  rows = make_rows(sweep.results(plan))
  assert [row["system"] for row in rows] == ["basic", "regions:mouth"]
  trained_on = set(map(sweep._fingerprint, plan.values()))
  assert len(trained_on) == 2

  plan = {("basic", 0): plan["basic", 0]}
  (record,) = sweep.results(plan)
  assert record.seconds > 0
  assert set(record.hardware) == {environment.words()}
  scores = plan["basic", 0][0].workdir / "scores_test.npz"
  content = scores.read_bytes()
  scores.unlink()
  assert sweep.results(plan) == []
  assert sweep.run(plan) == {}
  assert scores.read_bytes() == content
  # Finished systems need no data.
  monkeypatch.setattr(sweep.sources, "load", lambda *_: pytest.fail("read"))
  assert sweep.run(plan) == {}
  scores.with_name("metrics.json").write_text("{")
  with pytest.raises(
    UserError, match=r"metrics\.json cannot be read or is damaged"
  ):
    sweep.results(plan)


def test_epochs_of_encoders_are_counted(tmp_path):
  config = configs.base()
  config.pretrain, config.classify = configs.simclr(), configs.classifier()
  tuned = config.copy_and_resolve_references()
  tuned.classify.trained = ("encoder/stage4", "head")
  tuned.classify.cached_views = 0
  plan = sweep.plan({"dbl": config, "tuned": tuned}, [0], tmp_path)
  assert sweep.encoder_epochs(plan) == {"dbl": 3, "tuned": 7}


def test_the_budget_applies_to_every_system():
  config = configs.base()
  config.pretrain = configs.simclr()
  config.classify = configs.classifier()
  given = sweep.with_budget(config, {"name": "raf_db"}, 7, 3)
  assert given.data.name == "raf_db"
  assert (given.pretrain.epochs, given.classify.epochs) == (7, 3)
  assert config.pretrain.epochs is None
  given = sweep.with_budget(config, {}, 0, 0, 100)
  assert (given.pretrain.batch_size, given.classify.batch_size) == (64, 100)
  untrained = configs.base()
  untrained.pretrain = configs.supervised()
  untrained.classify = configs.untrained("svm")
  assert sweep.with_budget(untrained, {}, 7, 3).classify.epochs == 0
