"""The grid: shared stages are trained once, finished ones never again."""

import json
from pathlib import Path

import pytest

import tiny
from dbl_jax import config as configs
from dbl_jax import train, workdirs
from dbl_jax.compare import sweep
from dbl_jax.compare.records import make_rows
from dbl_jax.errors import UserError
from dbl_jax.runtime import provenance


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


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def entries(cache, tmp_path):
  systems = {"basic": supervised(cache), "decoupling": decoupled(cache)}
  return sweep.plan(systems, [0, 1], tmp_path)


def test_a_stage_that_systems_share_is_one(entries):
  basic, tau, other_seed, _ = entries
  assert tau.stage.before.workdir == basic.stage.workdir
  assert other_seed.stage.workdir != basic.stage.workdir
  assert len(sweep.stages(entries)) == 4
  order = [stage.workdir for stage in sweep.stages(entries)]
  assert order.index(basic.stage.workdir) < order.index(tau.stage.workdir)


def test_what_decides_the_result_decides_the_workdir(cache, tmp_path):
  def place(change):
    config = supervised(cache)
    change(config)
    (entry,) = sweep.plan({"basic": config}, [0], tmp_path)
    return entry.stage.workdir

  usual = place(lambda config: None)
  assert place(lambda c: c.classify.update(epochs=2)) != usual
  assert place(lambda c: c.data.update(image_size=24)) != usual
  assert place(lambda c: c.data.update(region="mouth")) != usual
  assert place(lambda c: c.update(log_every=3)) == usual
  assert place(lambda c: c.data.update(cache_dir="/elsewhere")) == usual


def test_two_phases_apart_are_the_two_phases_together(cache, tmp_path):
  config = tiny.get_config()
  config.data.update(num_train=60, num_test=20, cache_dir=str(cache))
  for phase in ("pretrain", "classify"):
    config[phase].update(batch_size=16, epochs=1)
  together = train.train_and_evaluate(
    configs.resolve(config), tmp_path / "together"
  )
  entries = sweep.plan({"dbl": config}, [0], tmp_path / "apart")
  assert not sweep.run(entries)
  (record,) = sweep.records(entries)
  shown = [record.scores.argmax(axis=1).tolist(), record.labels.tolist()]
  confusion = together["confusion_matrix"]
  for truth, guess in zip(*reversed(shown), strict=True):
    confusion[truth][guess] -= 1
  assert not any(map(any, confusion))


def test_a_grid_goes_on_and_trains_nothing_twice(entries, monkeypatch):
  trained, real = [], train.train_and_evaluate

  def killed_at_the_third(config, workdir):
    if len(trained) == 2:
      raise KeyboardInterrupt
    trained.append(workdir)
    return real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", killed_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    sweep.run(entries)
  assert len(sweep.records(entries)) == 2
  assert len(sweep.missing(entries, {})) == 2
  first = list(trained)

  def count(config, workdir):
    trained.append(workdir)
    return real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", count)
  assert sweep.run(entries) == {}
  assert len(trained) == 4
  assert not set(first) & set(trained[2:])
  for record in sweep.records(entries):
    assert record.seconds > 0
    assert set(record.hardware) == {provenance.words()}
  assert sweep.run(entries) == {}
  assert len(trained) == 4


def test_a_failure_stops_what_needs_it_and_nothing_else(entries, monkeypatch):
  broken = entries[0].stage.workdir
  real = train.train_and_evaluate

  def fail(config, workdir):
    if workdir == broken:
      raise UserError("loss is nan")
    return real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", fail)
  failed = sweep.run(entries)
  assert failed[broken] == "loss is nan"
  assert set(failed) == {broken, entries[1].stage.workdir}
  told = sweep.missing(entries, failed)
  assert told[0] == "basic, seed 0: loss is nan"
  assert "needs" in told[1]
  assert [record.seed for record in sweep.records(entries)] == [1, 1]


@pytest.fixture
def trained(monkeypatch):
  """Workdirs in the order they are trained, in no time."""
  found = []

  def train_and_evaluate(config, workdir):
    found.append(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name in ("scores_test.npz", "metrics.json", "report.html"):
      (workdir / name).write_bytes(b"")

  monkeypatch.setattr(train, "train_and_evaluate", train_and_evaluate)
  return found


def test_what_another_process_trains_is_waited_for(
  entries, trained, monkeypatch
):
  basic, tau, other, last = (entry.stage for entry in entries)
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
  assert sweep.run(entries) == {}
  assert len(waits) == 2
  assert sorted(trained) == sorted(
    [basic.workdir, tau.workdir, other.workdir, last.workdir]
  )
  assert trained[0] == basic.workdir


def test_of_two_that_begin_at_once_the_slower_passes_on(
  entries, trained, monkeypatch
):
  real, refused = train.train_and_evaluate, []

  def slower(config, workdir):
    if not refused:
      refused.append(workdir)
      raise workdirs.InUseError("in use")
    return real(config, workdir)

  monkeypatch.setattr(train, "train_and_evaluate", slower)
  assert sweep.run(entries) == {}
  assert len(set(trained)) == len(trained) == 4


def test_a_system_that_cannot_be_is_told_before_any_trains(
  cache, tmp_path, monkeypatch
):
  wrong = decoupled(cache)
  wrong.classify.trained = ("tail",)
  systems = {"basic": supervised(cache), "typo": wrong}
  entries = sweep.plan(systems, [0], tmp_path)
  monkeypatch.setattr(
    train, "train_and_evaluate", lambda *_: pytest.fail("training began")
  )
  with pytest.raises(UserError, match=r"typo: classify: .*matches no param"):
    sweep.run(entries)


def test_of_finished_systems_no_data_are_asked_for(entries, monkeypatch):
  assert sweep.run(entries) == {}
  monkeypatch.setattr(
    sweep.sources, "load", lambda *_: pytest.fail("data were read")
  )
  assert sweep.run(entries) == {}


def test_results_that_are_lost_damaged_or_of_other_images_are_seen(entries):
  entries = entries[:1]
  assert sweep.run(entries) == {}
  scores = entries[0].stage.workdir / "scores_test.npz"
  content = scores.read_bytes()
  scores.unlink()
  assert sweep.records(entries) == []
  assert sweep.run(entries) == {}
  assert scores.read_bytes() == content
  path = scores.with_name("metrics.json")
  found = json.loads(path.read_text())
  path.write_text("{")
  with pytest.raises(UserError, match=r"metrics\.json is missing or damaged"):
    sweep.records(entries)
  path.write_text(json.dumps(found | {"data_fingerprint": "another"}))
  (record,) = sweep.records(entries)
  assert record.fingerprint == "another"


def test_stages_that_saw_different_images_are_not_one_system(entries, trained):
  entries = entries[1:2]
  assert sweep.run(entries) == {}
  for workdir, fingerprint in zip(trained, "ab", strict=True):
    text = json.dumps({"data_fingerprint": fingerprint})
    (workdir / "metrics.json").write_text(text)
  with pytest.raises(UserError, match="saw different images"):
    sweep._fingerprint(entries[0].stage)


def test_a_region_is_compared_with_the_whole_face(cache, tmp_path):
  mouth = supervised(cache)
  mouth.data.region = "mouth"
  systems = {"basic": supervised(cache), "regions:mouth": mouth}
  entries = sweep.plan(systems, [0], tmp_path)
  assert sweep.run(entries) == {}
  rows = make_rows(sweep.records(entries))
  assert [row.system for row in rows] == ["basic", "regions:mouth"]
  trained_on = {sweep._fingerprint(entry.stage) for entry in entries}
  assert len(trained_on) == 2


def test_epochs_of_encoders_are_counted(tmp_path):
  config = configs.base()
  config.pretrain, config.classify = configs.simclr(), configs.classifier()
  tuned = config.copy_and_resolve_references()
  tuned.classify.trained = ("encoder/stage4", "head")
  tuned.classify.cached_views = 0
  entries = sweep.plan({"dbl": config, "tuned": tuned}, [0], tmp_path)
  assert sweep.encoder_epochs(entries) == {"dbl": 3, "tuned": 7}


def test_batches_are_at_most_as_large_as_told():
  config = configs.base()
  config.pretrain, config.classify = configs.simclr(), configs.classifier()
  given = sweep.with_budget(config, {}, 0, 0, 100)
  assert (given.pretrain.batch_size, given.classify.batch_size) == (64, 100)


def test_the_budget_is_every_encoders():
  config = configs.base()
  config.pretrain = configs.simclr()
  config.classify = configs.classifier()
  given = sweep.with_budget(config, {"name": "raf_db"}, 7, 3)
  assert given.data.name == "raf_db"
  assert (given.pretrain.epochs, given.classify.epochs) == (7, 3)
  assert config.pretrain.epochs is None
  untrained = configs.base()
  untrained.pretrain = configs.supervised()
  untrained.classify = configs.untrained("svm")
  assert sweep.with_budget(untrained, {}, 7, 3).classify.epochs == 0


def test_stages_lie_under_the_folder_given(entries, tmp_path):
  assert all(
    Path(stage.workdir).parent == tmp_path for stage in sweep.stages(entries)
  )
