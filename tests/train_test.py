"""Runs from start to report, as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import jax
import mains
import numpy as np
import pytest
from PIL import Image

import tiny
from dbl_jax import config as configs
from dbl_jax import evaluate, train
from dbl_jax.data import sources, synthetic
from dbl_jax.errors import UserError
from dbl_jax.models import model
from dbl_jax.runtime import logs
from dbl_jax.training import checkpoint, loop

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
  """A finished run: config, workdir, metrics."""
  config = tiny.get_resolved(cache_dir=cache)
  workdir = tmp_path_factory.mktemp("run")
  return config, workdir, train.train_and_evaluate(config, workdir)


def model_of(workdir, phase="classify", keep="latest"):
  return checkpoint.load_model(checkpoint.phase_dir(workdir, phase), keep)


def assert_same_model(one, other):
  assert one[1] == other[1]
  jax.tree.map(np.testing.assert_array_equal, one[0], other[0])


def second_phase(cache, start):
  """The config of the second phase alone, of a run that starts from another."""
  config = tiny.get_resolved(cache_dir=cache).unlock()
  del config.pretrain
  config.init_from = str(start)
  return config


def test_a_run_leaves_what_it_promises(finished):
  _, workdir, metrics = finished
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    "metrics.json", "metrics.jsonl", "confusion_matrix.png", "report.html",
    "checkpoints", "config.json",
  }  # fmt: skip
  parameters = (workdir / "parameters_classify.txt").read_text()
  trained, frozen = parameters.split("Frozen")
  assert "head/logits/kernel" in trained
  assert "encoder/conv/kernel" in frozen
  stored = json.loads((workdir / "metrics.json").read_text())
  assert stored["dataset"] == "synthetic_faces"
  assert stored["split"] == "test"
  assert stored["images"] == 40 == np.sum(stored["confusion_matrix"])
  assert stored["config"]["data"]["num_train"] == 150
  assert stored["overall_accuracy"] == metrics["overall_accuracy"]
  assert set(stored["per_class"]) == set(stored["class_names"])
  rows = logs.read_rows(workdir / "metrics.jsonl")
  assert {row["phase"] for row in rows} == {"pretrain", "classify"}
  assert any("knn_mean_class_accuracy" in row for row in rows)
  score = "val_mean_class_accuracy"
  scores = {row["step"]: row[score] for row in rows if score in row}
  assert scores[metrics["checkpoint_step"]] == max(scores.values())


def test_a_finished_run_is_not_trained_again(finished, capsys):
  config, workdir, metrics = finished
  before = (workdir / "metrics.jsonl").read_text()
  assert train.train_and_evaluate(config, workdir) == metrics
  assert (workdir / "metrics.jsonl").read_text() == before
  assert "resuming from step" in capsys.readouterr().out


def test_both_phases_apart_equal_both_at_once(finished, cache, tmp_path):
  """configs/simclr.py, then configs/classifier.py, is configs/dbl.py."""
  config, workdir, _ = finished
  first = config.copy_and_resolve_references().unlock()
  del first.classify
  train.train_and_evaluate(first, tmp_path / "one")
  second = second_phase(cache, tmp_path / "one")
  train.train_and_evaluate(second, tmp_path / "two")
  assert_same_model(
    model_of(workdir, "pretrain"), model_of(tmp_path / "one", "pretrain")
  )
  assert_same_model(model_of(workdir), model_of(tmp_path / "two"))


def test_evaluate_restores_the_run_s_result(finished, tmp_path):
  _, workdir, metrics = finished
  again = evaluate.evaluate_workdir(workdir, None, "test", tmp_path)
  assert again == metrics
  assert (tmp_path / "report.html").exists()
  validation = evaluate.evaluate_workdir(workdir, None, "validation", tmp_path)
  assert validation["split"] == "validation"
  with pytest.raises(UserError, match="--split=tset: expected one of"):
    evaluate.evaluate_workdir(workdir, None, "tset", tmp_path)


def test_a_finished_run_is_classified_anew_from_the_command_line(finished):
  _, workdir, _ = finished
  done = mains.run(
    "evaluate", [f"--workdir={workdir}", "--predictor=logit_adjusted"]
  )
  assert done.status == 0, done.err
  folder = workdir / "evaluation" / "test_logit_adjusted"
  found = json.loads((folder / "metrics.json").read_text())
  assert found["predictor"] == "logit_adjusted"
  assert 0 <= found["chosen"] <= 2
  assert f"mean-class accuracy {found['mean_class_accuracy']:.1%}" in done.out


def test_a_checkpoint_of_what_is_not_known_here_is_refused(
  finished, tmp_path, monkeypatch
):
  monkeypatch.delitem(model.ENCODERS, "tiny")
  with pytest.raises(UserError, match=r"model\.name='tiny' is invalid"):
    evaluate.evaluate_workdir(finished[1], None, "test", tmp_path)
  assert not list(tmp_path.iterdir())


def test_the_config_is_known_from_checkpoints_too(finished, tmp_path):
  config, workdir, metrics = finished
  other = config.copy_and_resolve_references()
  other.classify.batch_size = 16
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "config.json").unlink()
  for folder in (workdir, copy):
    with pytest.raises(UserError, match=r"classify\.batch_size: 32 -> 16"):
      train.train_and_evaluate(other, folder)
  assert train.train_and_evaluate(config, copy) == metrics
  assert (copy / "config.json").exists()


@pytest.mark.parametrize("content", [b"[]", b"5", b"{", b'{"seed": \xff}', b""])
def test_a_damaged_config_is_told(finished, tmp_path, content):
  config, workdir, _ = finished
  copy = shutil.copytree(workdir, tmp_path / "copy")
  (copy / "config.json").write_bytes(content)
  with pytest.raises(UserError, match=r"config\.json is damaged"):
    train.train_and_evaluate(config, copy)


def test_a_changed_config_goes_on_when_asked(finished, tmp_path, caplog):
  config, workdir, _ = finished
  copy = shutil.copytree(workdir, tmp_path / "copy")
  longer = config.copy_and_resolve_references()
  longer.classify.epochs = 3
  metrics = train.train_and_evaluate(longer, copy, accept_changes=True)
  assert "resumes with another config: classify.epochs: 2 -> 3" in caplog.text
  assert metrics["config"]["classify"]["epochs"] == 3
  before, after = (
    [
      row
      for row in logs.read_rows(folder / "metrics.jsonl")
      if row["phase"] == "classify" and "loss" in row
    ]
    for folder in (workdir, copy)
  )
  assert after[: len(before)] == before
  assert after[-1]["step"] > before[-1]["step"]
  # It is the run's config from now on.
  assert train.train_and_evaluate(longer, copy) == metrics


def test_changed_images_are_not_evaluated_unless_named(
  finished, tmp_path, monkeypatch, caplog
):
  _, workdir, metrics = finished
  load = evaluate.sources.load
  monkeypatch.setattr(
    evaluate.sources, "load", lambda o: load(o)._replace(fingerprint="another")
  )
  with pytest.raises(UserError, match="trained on other images than are there"):
    evaluate.evaluate_workdir(workdir, None, "test", tmp_path)
  assert not list(tmp_path.iterdir())
  again = evaluate.evaluate_workdir(workdir, "", "test", tmp_path)
  assert again["overall_accuracy"] == metrics["overall_accuracy"]
  assert "trained on other images than are there now" in caplog.text


def test_a_checkpoint_chooses_no_folder_and_must_fit_its_config(
  finished, tmp_path, monkeypatch
):
  _, workdir, _ = finished
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  load, stored = checkpoint.load_meta, {}

  def of_a_stranger(directory):
    meta = load(directory)
    meta["config"]["data"]["cache_dir"] = str(tmp_path / "victim")
    meta["config"]["classify"]["head"] |= stored
    return meta

  monkeypatch.setattr(checkpoint, "load_meta", of_a_stranger)
  evaluate.evaluate_workdir(workdir, None, "test", tmp_path / "out")
  assert not (tmp_path / "victim").exists()
  stored["a.b"] = 7
  with pytest.raises(UserError, match=r"cannot be read .*dots in field names"):
    evaluate.evaluate_workdir(workdir, None, "test", tmp_path / "out")
  del stored["a.b"]
  stored["hidden"] = [7]
  with pytest.raises(UserError, match=r"does not fit its config: .*expected"):
    evaluate.evaluate_workdir(workdir, None, "test", tmp_path / "out")


def test_a_head_is_not_trained_on_two_encoders(finished, cache, tmp_path):
  """Its features are those of the encoder it began with."""
  _, workdir, _ = finished
  start = shutil.copytree(workdir, tmp_path / "start")
  config = second_phase(cache, start)
  metrics = train.train_and_evaluate(config, tmp_path / "run")
  start = start.rename(tmp_path / "moved")
  config.init_from = str(start)
  moved = train.train_and_evaluate(config, tmp_path / "run")
  assert moved["confusion_matrix"] == metrics["confusion_matrix"]
  shutil.rmtree(start)
  other = tiny.get_resolved(cache_dir=cache).unlock()
  del other.classify
  other.seed = 1
  other.pretrain.epochs = 0
  train.train_and_evaluate(other, start)
  with pytest.raises(UserError, match="another model"):
    train.train_and_evaluate(config, tmp_path / "run")


def test_moved_folders_are_the_same_run(tmp_path, capsys):
  images, labels = synthetic.make_split("train", 40, 16, 0)
  for i, (image, label) in enumerate(zip(images, labels % 2, strict=True)):
    folder = tmp_path / "data" / f"class{label}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{i}.png")

  def run(data, cache, workdir):
    fields = {"name": "image_folder", "dir": str(tmp_path / data)}
    config = tiny.get_resolved(cache_dir=str(tmp_path / cache), **fields)
    config.unlock()
    del config.pretrain
    config.classify.update(configs.supervised())
    config.classify.update(epochs=1, batch_size=8, preset="")
    return train.train_and_evaluate(configs.resolve(config), tmp_path / workdir)

  metrics = run("data", "cache", "run")
  for name in ("data", "cache", "run"):
    (tmp_path / name).rename(tmp_path / f"{name} moved")
  capsys.readouterr()
  again = run("data moved", "cache moved", "run moved")
  assert "resuming from step" in capsys.readouterr().out
  assert again["confusion_matrix"] == metrics["confusion_matrix"]
  image = next((tmp_path / "data moved").rglob("*.png"))
  Image.fromarray(images[0] // 2).save(image)
  with pytest.raises(UserError, match="other images"):
    run("data moved", "cache moved", "run moved")


def test_a_config_that_trained_nothing_does_not_bind(
  cache, tmp_path, monkeypatch
):
  wrong = tiny.get_resolved(cache_dir=cache)
  wrong.data.update(name="image_folder", dir=str(tmp_path / "nowhere"))
  with pytest.raises(UserError, match="nowhere"):
    train.train_and_evaluate(wrong, tmp_path / "run")
  begins = mock.Mock(side_effect=StopIteration)
  monkeypatch.setattr(train, "make_phase", begins)
  with pytest.raises(StopIteration):
    train.train_and_evaluate(
      tiny.get_resolved(cache_dir=cache), tmp_path / "run"
    )


START = {  # message -> fields of a run that starts from another
  "in this order; the data has g, f, e": {
    "classify.inherit": ("encoder", "head")
  },
  "another architecture": {"model.name": "resnet18"},
  "a model to start from is missing": {"init_from": ""},
}


@pytest.mark.parametrize("message", START)
def test_a_start_that_does_not_fit_is_refused(
  finished, cache, tmp_path, monkeypatch, message
):
  config = second_phase(cache, finished[1])
  config.update_from_flattened_dict(START[message])
  dataset = sources.load(config.data)._replace(class_names=tuple("gfedcba"))
  monkeypatch.setattr(sources, "load", lambda _: dataset)
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(config, tmp_path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  finished, tmp_path, caplog
):
  config, workdir, metrics = finished
  copy = shutil.copytree(workdir, tmp_path / "copy")
  steps = checkpoint.saved_steps(checkpoint.phase_dir(copy, "classify"))
  (steps[-1] / "_CHECKPOINT_METADATA").unlink()
  assert train.train_and_evaluate(config, copy) == metrics
  assert "is damaged" in caplog.text
  assert_same_model(model_of(copy), model_of(workdir))


def test_a_result_without_its_best_checkpoint_says_so(
  cache, tmp_path, monkeypatch, caplog
):
  scores = iter([0.3, 0.5, 0.4])
  monkeypatch.setattr(
    loop, "validate", lambda *_: {"mean_class_accuracy": next(scores)}
  )
  config = tiny.get_resolved(cache_dir=cache).unlock()
  del config.classify
  config.pretrain.update(epochs=3, evaluate_every=1.0, keep="best")
  whole = train.train_and_evaluate(config, tmp_path)
  assert whole["better_checkpoint_lost"] is None
  best = whole["checkpoint_step"]
  directory = checkpoint.phase_dir(tmp_path, "pretrain")
  (directory / str(best) / "_CHECKPOINT_METADATA").unlink()
  again = train.train_and_evaluate(config, tmp_path)
  assert again["checkpoint_step"] != best
  assert again["better_checkpoint_lost"] == best
  assert f"the best checkpoint, of step {best}, was damaged" in caplog.text
  assert "better_checkpoint_lost" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A folder into which the project's wheel is installed, without the clone."""
  clone, site = (
    tmp_path_factory.mktemp("clone"),
    tmp_path_factory.mktemp("site"),
  )
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, clone)
  for name in ("dbl_jax", "configs", "scripts"):
    shutil.copytree(ROOT / name, clone / name)
  build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
  subprocess.run(
    [sys.executable, "-c", build], cwd=clone, check=True, capture_output=True
  )
  with zipfile.ZipFile(*clone.glob("*.whl")) as built:
    built.extractall(site)
  return site


def test_the_wheel_has_all_that_the_package_has(wheel):
  def files(*folders):
    return {
      str(path.relative_to(folder.parent))
      for folder in folders
      for path in folder.rglob("*")
      if path.is_file() and path.suffix != ".pyc"
    }

  inside = {f"dbl_jax/{name}" for name in files(ROOT / "configs")} | {
    f"dbl_jax/{path.relative_to(ROOT)}" for path in ROOT.glob("scripts/*.py")
  }
  assert files(wheel / "dbl_jax") == files(ROOT / "dbl_jax") | inside


def test_the_wheel_trains_without_tensorflow(wheel, cache, tmp_path):
  program = """
import sys
import zipfile
for name in ("tensorflow", "tensorflow_datasets", "tensorboard", "clu"):
  sys.modules[name] = None
from dbl_jax.cli import run_command
run_command()
"""

  def command(*arguments):
    return subprocess.run(
      [sys.executable, "-P", "-c", program, *arguments],
      cwd=tmp_path,
      env=os.environ | {"PYTHONPATH": str(wheel)},
      capture_output=True,
      text=True,
      check=False,
    )

  shutil.copy(ROOT / "tests" / "tiny.py", tmp_path)
  done = command(
    "train", "--config=tiny.py", "--workdir=run", "--config.pretrain.epochs=0",
    f"--config.data.cache_dir={cache}", "--config.tensorboard=True",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "No TensorBoard files" in done.stderr
  assert (tmp_path / "run" / "metrics.jsonl").exists()
  assert (tmp_path / "run" / "report.html").exists()
  shipped = command("--config=dbl:sup_con", "--config.data.name=raf_db")
  assert "raf_db needs --config.data.dir" in shipped.stderr
  unknown = command("train", "--config=dlb")
  assert "no such file" in unknown.stderr
  assert "basic, center_loss" in unknown.stderr
  assert "predict, table" in command("prodict").stderr


def test_a_test_set_from_elsewhere(finished, tmp_path, caplog):
  workdir, dataset = finished[1], sources.load(finished[0].data)
  images, labels = dataset.splits["test"]
  names = [dataset.class_names[label] for label in labels[:30]]
  for i, name in enumerate(names):
    folder = tmp_path / "photos" / "2020" / name.upper()
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[i]).save(folder / f"{i}.png")
  odd = tmp_path / "photos" / "contempt"
  odd.mkdir()
  Image.fromarray(images[0]).save(odd / "a.png")

  def evaluated(folder):
    return evaluate.evaluate_workdir(
      workdir, None, "test", tmp_path / "out", external=str(folder)
    )

  result = evaluated(tmp_path / "photos")
  assert "no class is named so: 1 in contempt" in caplog.text
  assert result["split"] == "external"
  counts = {name: row["count"] for name, row in result["per_class"].items()}
  assert counts == {n: names.count(n) for n in dataset.class_names}
  with pytest.raises(UserError, match=r"1 in the folder itself.*predict\.py"):
    evaluated(odd)
