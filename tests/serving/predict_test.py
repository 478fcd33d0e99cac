"""scripts/predict.py, from photos to tables and pictures."""

import csv
import io
import json

import jax
import mains
import numpy as np
import pytest
from PIL import Image

import tiny
from dbl_jax import evaluate, train
from dbl_jax.data import sources
from dbl_jax.serving import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run on drawn faces in its workdir, and its test images."""
  folder = tmp_path_factory.mktemp("run")
  config = tiny.get_resolved(
    num_train=80, num_test=14, image_size=48, cache_dir=str(folder / "cache")
  )
  mesh = train.sharding.make_mesh(jax.devices()[:1])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.sharding, "make_mesh", lambda: mesh)
    train.train_and_evaluate(config, folder / "run")
  return folder / "run", sources.load(config.data).splits["test"].images


def call(run, *arguments):
  return mains.run("predict", [f"--workdir={run[0]}", *map(str, arguments)])


@pytest.fixture
def photos(tmp_path, run):
  """Photos of all kinds of the same face, in a folder."""
  folder = tmp_path / "photos"
  folder.mkdir()
  face = Image.fromarray(run[1][1]).resize((160, 160))
  photo = Image.new("RGB", (400, 300), (120, 120, 120))
  photo.paste(face, (40, 70))
  photo.save(folder / "one.png")
  two = photo.copy()
  two.paste(face.resize((130, 130)), (240, 40))
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


def test_every_kind_of_photo(run, photos, tmp_path):
  done = call(run, photos, f"--out={tmp_path}/t.json", f"--draw={tmp_path}/d")
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


def test_a_crop_is_used_as_it_is(run, tmp_path):
  workdir, images = run
  for i, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
  expected = evaluate.load(workdir).predict(images)
  for flags in (["--align=none"], []):
    out = tmp_path / "t.csv"
    done = call(run, f"{tmp_path}/*.png", f"--out={out}", *flags)
    assert done.status == 0, done.err
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    names = list(rows[0])[-expected.shape[1] :]
    found = [[float(row[name] or "nan") for name in names] for row in rows]
    whole = [row["note"] == "whole picture" for row in rows]
    assert sum(whole) >= (14 if flags else 7)
    np.testing.assert_allclose(
      np.array(found)[whole], expected[whole], atol=1e-4
    )
    assert {row["label"] for row in rows} <= {*names, ""}


def test_another_predictor_and_lost_data(run, photos, caplog):
  done = call(run, photos / "one.png", "--predictor=knn")
  assert done.status == 0
  assert "one.png" in done.out
  damaged = run[0] / "template.json"
  damaged.write_text("{")
  assert predict.load(run[0]).template is not None
  assert "damaged" in caplog.text
  assert json.loads(damaged.read_text())["grey"] is False


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "Which run, and which photos"),
    (["nowhere.jpg"], "nowhere.jpg: no photo found"),
    (["."], "no photo found"),
    (["--out=x.txt", "one.png"], "ends in .csv or .json"),
  ],
)
def test_commands_that_cannot_be_done(
  run, arguments, message, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  done = call(run, *arguments)
  assert done.status == 2
  assert message in done.err
