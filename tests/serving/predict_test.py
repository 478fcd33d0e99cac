"""scripts/predict.py, from photos to tables and pictures."""

import csv
import dataclasses
import io
import json

import mains
import numpy as np
import pytest
from PIL import Image

import tiny
from dbl_jax import config as configs
from dbl_jax import evaluate, train
from dbl_jax.data import sources
from dbl_jax.data.formats import stored
from dbl_jax.serving import predict


@pytest.fixture
def model(predictor, monkeypatch):
  """The predictor is loaded in place of a run."""

  def load(workdir, name, align):
    changes = {"template": None} if align == "none" else {}
    return dataclasses.replace(predictor, **changes)

  monkeypatch.setattr(predict, "load", load)
  return predictor


def call(*arguments):
  return mains.run("predict", ["--workdir=run", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path, faces, photo):
  """Photos of all kinds of the same face, in a folder."""
  folder = tmp_path / "photos"
  folder.mkdir()
  photo.save(folder / "one.png")
  two = photo.copy()
  two.paste(Image.fromarray(faces[1]).resize((130, 130)), (240, 40))
  two.save(folder / "two.png")
  photo.convert("L").save(folder / "grey.png")
  photo.convert("RGBA").save(folder / "alpha.png")
  deep = np.asarray(photo.convert("L")).astype(np.uint16) * 257
  Image.fromarray(deep).save(folder / "sixteen.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise
  photo.rotate(90, expand=True).save(folder / "exif.jpg", exif=exif, quality=95)
  Image.new("RGB", (300, 200)).save(folder / "nobody.png")
  (folder / "damaged.jpg").write_bytes((folder / "exif.jpg").read_bytes()[:900])
  (folder / "notes.txt").write_text("no photo")
  return folder


def test_every_kind_of_photo(model, photos, tmp_path):
  done = call(photos, f"--out={tmp_path}/t.json", f"--draw={tmp_path}/d")
  assert done.status == 2
  assert "1 of 8 photos could not be read" in done.err
  rows = json.loads((tmp_path / "t.json").read_text())
  notes = {}
  for row in rows:
    notes.setdefault(row["photo"].rsplit("/", 1)[-1], []).append(row["note"])
  assert "damaged or cut off" in notes.pop("damaged.jpg")[0]
  assert notes.pop("nobody.png") == ["no face found"]
  assert notes.pop("two.png") == ["aligned"] * 2
  assert notes == {
    f"{name}": ["aligned"]
    for name in ("alpha.png", "exif.jpg", "grey.png", "one.png", "sixteen.png")
  }
  found = {row["photo"].rsplit("/", 1)[-1]: row for row in rows}
  for name in ("alpha.png", "exif.jpg"):
    np.testing.assert_allclose(
      found[name]["box"], found["one.png"]["box"], atol=6
    )
  probabilities = found["one.png"]["probabilities"]
  assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
  assert found["one.png"]["label"] == max(probabilities, key=probabilities.get)
  drawn = {path.name for path in (tmp_path / "d").iterdir()}
  assert {"one.jpg", "two.jpg"} <= drawn
  assert "nobody.jpg" not in drawn


def test_classes_may_have_any_name(photos, tmp_path):
  names = ("left", "photo", "two\nlines")
  scores = np.float32([0.5, 0.25, 0.25])
  one = predict.Prediction("a.png", "aligned", (1.0, 2.0, 30.0, 40.0), scores)
  predict.write(tmp_path / "t.csv", predict.rows([one], names, True))
  with (tmp_path / "t.csv").open(newline="") as file:
    (row,) = csv.DictReader(file)
  assert (row["photo"], row["left"], row["label"]) == ("a.png", "1.0", "left")
  assert row["probabilities left"] == "0.5"
  assert row["two\nlines"] == "0.25"
  photo = stored.of_path(photos / "one.png")
  predict.draw(photo, [(one.box, scores)], names, True)


def test_a_crop_is_used_as_it_is(model, faces, tmp_path):
  small = [Image.fromarray(f).resize((48, 48), Image.BILINEAR) for f in faces]
  for i, image in enumerate(small):
    image.save(tmp_path / f"{i:02d}.png")
  expected = model.classify(np.stack([np.asarray(image) for image in small]))
  for flags in (["--align=none"], []):
    out = tmp_path / "t.csv"
    done = call(f"{tmp_path}/*.png", f"--out={out}", *flags)
    assert done.status == 0, done.err
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    whole = [row["note"] == "whole picture" for row in rows]
    assert sum(whole) >= (12 if flags else 9)
    found = [[float(row[name]) for name in model.class_names] for row in rows]
    np.testing.assert_allclose(
      np.array(found)[whole], expected[whole], atol=1e-5
    )
    assert {row["label"] for row in rows} == {model.class_names[1]}


def test_a_model_of_aligned_faces_has_crops_aligned_too(
  model, faces, tmp_path, monkeypatch
):
  searching = dataclasses.replace(model, searches=True)
  monkeypatch.setattr(predict, "load", lambda *_: searching)
  Image.fromarray(faces[1]).save(tmp_path / "crop.png")
  Image.new("RGB", (300, 300)).save(tmp_path / "nobody.png")
  out = tmp_path / "t.json"
  assert call(tmp_path / "*.png", f"--out={out}").status == 0
  notes = [row["note"] for row in json.loads(out.read_text())]
  assert notes == ["aligned", "whole picture"]


def test_a_run_is_loaded_with_its_template(tmp_path):
  config = tiny.get_config()
  del config.pretrain
  config.classify = configs.supervised()
  config.classify.update(epochs=1, batch_size=16)
  config.data.update(num_train=70, num_test=14, cache_dir=str(tmp_path / "c"))
  config = configs.resolve(config)
  train.train_and_evaluate(config, tmp_path / "run")
  images = sources.load(config.data).splits["test"].images
  expected = evaluate.load(tmp_path / "run").predict(images)
  made = predict.load(tmp_path / "run", align="none")
  np.testing.assert_allclose(made.classify(images), expected, atol=1e-5)
  nearest = predict.load(tmp_path / "run", "knn")
  assert nearest.classify(images).shape == (14, 7)
  stored = tmp_path / "run" / "template.json"
  before = json.loads(stored.read_text())
  assert before["grey"] is False
  stored.write_text("{")  # damaged: computed anew
  predict.load(tmp_path / "run")
  assert json.loads(stored.read_text()) == before


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--workdir and photos are required"),
    (["nowhere.jpg"], "nowhere.jpg: no photo found"),
    (["."], "no photo found"),
    (["--out=x.txt", "one.png"], "ends in .csv or .json"),
  ],
)
def test_commands_that_cannot_be_done(
  model, arguments, message, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  done = call(*arguments)
  assert done.status == 2
  assert message in done.err
