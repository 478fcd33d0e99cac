"""Data larger than memory: shards on disk, resumed, checked and moved."""

import errno
import logging
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import strange
from PIL import Image

import tiny
from dbl_jax.data import datasets, face_crops, pipeline, sampling, sources
from dbl_jax.data.formats import images as image_files
from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, files

ON_DISK = {"input": "tf_data"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(sources, "_SHARD_BYTES", 30 * 16 * 16 * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Class folders of 60 images to train on, and 25 to test on."""
  root = tmp_path_factory.mktemp("folder")
  rng = np.random.default_rng(0)
  for split, number in (("train", 60), ("test", 25)):
    for i in range(number):
      path = root / split / "abc"[i % 3] / f"{i:03}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  return root


def load(folder, cache, **data):
  data = {"name": "image_folder", "dir": str(folder), "image_size": 16} | data
  options = tiny.get_resolved(cache_dir=str(cache), **data).data
  return sources.load(options)


def shards_of(cache):
  return sorted(cache.glob("*/*-of-*.npz"))


def assert_same(one, other):
  assert one._replace(splits={}) == other._replace(splits={})
  assert [*one.splits] == [*other.splits]
  for name, (images, labels) in one.splits.items():
    np.testing.assert_array_equal(images[:], other.splits[name].images[:])
    np.testing.assert_array_equal(labels, other.splits[name].labels)


def batches(dataset, form):
  images, labels = dataset.splits["train"]
  sampler = sampling.make_sampler(labels, 7, 0.0, 16, seed=1)
  feed = pipeline.make_pipeline(
    images, labels, sampler, distributed.make_mesh(), form
  )
  assert (feed.resident is None) == (form != "resident")
  take = pipeline.batch_reader(feed, 2, 8, 2)
  for _ in range(3):
    batch = take(2)
    rows = [
      pipeline.gather(feed.resident, {k: v[i] for k, v in batch.items()})
      for i in range(2)
    ]
    yield np.stack([*map(np.asarray, rows)]), batch["id"], batch["label"]


@pytest.mark.parametrize(
  "data",
  [
    {},
    {"name": "synthetic_faces", "dir": "", "num_train": 100, "num_test": 25},
    {"region": "eyes"},
    {"long_tail": "exponential", "imbalance": 5.0},
  ],
  ids=["folder", "synthetic", "region", "long_tail"],
)
def test_images_and_batches_are_those_of_memory(folder, tmp_path, data):
  encoded = load(folder, tmp_path / "encoded", input="encoded", **data)
  assert bool(shards_of(tmp_path / "encoded")) == ("num_train" in data)
  resident = load(folder, tmp_path, input="resident", **data)
  on_disk = load(folder, tmp_path, **ON_DISK, **data)
  assert len(shards_of(tmp_path)) >= 3
  assert isinstance(resident.splits["train"].images, np.ndarray)
  held = [*batches(resident, "resident")]
  for dataset, form in ((on_disk, "tf_data"), (encoded, "encoded")):
    assert not isinstance(dataset.splits["train"].images, np.ndarray)
    assert_same(resident, dataset)
    for one, other in zip(held, batches(dataset, form), strict=True):
      for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_and_a_single_file_hold_the_same(folder, tmp_path, monkeypatch):
  shards = load(folder, tmp_path / "shards")
  monkeypatch.undo()
  single = load(folder, tmp_path / "single")
  assert not shards_of(tmp_path / "single")
  assert_same(shards, single)


@pytest.mark.parametrize(
  ("available", "in_memory"), [(85 * 768 * 5, True), (85 * 768 * 3, False)]
)
def test_memory_decides(folder, tmp_path, monkeypatch, available, in_memory):
  monkeypatch.setattr(sources, "available_memory", lambda: available)
  images = load(folder, tmp_path).splits["train"].images
  assert isinstance(images, np.ndarray) == in_memory


def fail(*_):
  raise OSError(errno.ENOSPC, "No space left on device")


def disk(free, total=1):
  return lambda _: mock.Mock(spec=["free", "total"], free=free, total=total)


@pytest.mark.parametrize(
  ("usage", "align", "encoded"),
  [
    (disk(85 * 768 * 3), "none", False),
    (disk(85 * 768), "none", True),
    (disk(85 * 768), "face", False),
    (disk(0, total=0), "none", False),  # a file system that does not know
    (fail, "none", False),
  ],
)
@pytest.mark.parametrize("available", [None, 85 * 768 * 3])
def test_the_disk_decides(
  folder, tmp_path, monkeypatch, caplog, usage, align, encoded, available
):
  monkeypatch.setattr(shutil, "disk_usage", usage)
  monkeypatch.setattr(sources, "available_memory", lambda: available)
  monkeypatch.setattr(face_crops, "decode", lambda *_: None)
  monkeypatch.chdir(tmp_path)
  with caplog.at_level(logging.INFO, "dbl_jax"):
    images = load(folder, "new/cache", align=align).splits["train"].images
  assert bool(shards_of(tmp_path / "new/cache")) == (not encoded)
  assert isinstance(images, np.ndarray) == (available is None)
  line = "would take 0.0 GB of the disk of new/cache, but decoded when"
  assert (line in caplog.text) == encoded


def test_what_is_prepared_is_used_on_a_full_disk(folder, tmp_path, monkeypatch):
  load(folder, tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", disk(0))
  monkeypatch.setattr(image_files, "decode", None)
  load(folder, tmp_path)


def test_a_cache_that_cannot_be_written(folder, tmp_path, monkeypatch, caplog):
  cache = tmp_path / "file" / "cache"
  cache.parent.write_text("no folder")
  load(folder, cache, input="encoded")
  assert "splits are compared at each start" in caplog.text
  monkeypatch.setattr(shutil, "disk_usage", disk(0))
  load(folder, cache)
  with pytest.raises(UserError, match="cannot be written: Not a directory"):
    load(folder, cache, **ON_DISK)


@pytest.mark.parametrize(
  ("name", "build", "data"),
  [
    ("image_folder", lambda root: strange.faces(root, (12, 9)), {}),
    ("image_folder", strange.zipped(), {}),
    ("image_folder", strange.tarred(), {}),
    ("image_folder", strange.tarred("w:gz"), {}),
    ("raf_db", strange.raf(), {}),
    ("raf_db", strange.kaggle(), {}),
    ("expw", strange.expw(), {}),
    ("fer2013", strange.fer(), {}),
    ("fer2013", strange.fer_folders, {"long_tail": "raf_db"}),
  ],
)
def test_every_source_is_decoded_once_and_then_for_each_batch(
  tmp_path, monkeypatch, name, build, data
):
  given, cache = build(tmp_path), tmp_path / "encoded"
  form = {"name": name, "input": "encoded"} | data
  encoded = load(given, cache, **form)
  monkeypatch.setattr(image_files, "decode", None)
  load(given, cache, **form)
  monkeypatch.undo()
  assert_same(load(given, tmp_path / "prepared", **form | ON_DISK), encoded)


DAMAGES = ["", "[0]", "[]", "{}", '""', "[1, 0, true]", "[" * 100_000]


def test_encoded_images_are_all_decoded_at_the_first_start_only(
  folder, tmp_path, monkeypatch, caplog, capsys
):
  photos = tmp_path / "photos"
  shutil.copytree(folder, photos)
  shutil.copy(photos / "train/a/000.png", photos / "test/a/copy.png")
  damaged = photos / "train/b/001.png"
  whole = damaged.read_bytes()
  damaged.write_bytes(whole[:200])
  with pytest.raises(UserError, match=r"b/001.png is damaged or cut off"):
    load(photos, tmp_path, input="encoded")
  damaged.write_bytes(whole)

  def is_found():
    caplog.clear()
    load(photos, tmp_path, input="encoded")
    return "1 of test are in train too" in caplog.text

  assert is_found()
  assert "comparing splits  86/86" in capsys.readouterr().out
  with monkeypatch.context() as patch:
    patch.setattr(image_files, "decode", None)
    assert is_found()
  (path,) = tmp_path.glob("shared-*.json")
  for content in DAMAGES:
    path.write_text(content)
    assert is_found()
  monkeypatch.setattr(files, "write", fail)
  path.unlink()
  assert is_found()
  assert f"{path} cannot be written (No space left" in caplog.text
  monkeypatch.undo()
  assert is_found()
  load(photos, tmp_path, input="encoded", split_seed=1)
  load(photos, tmp_path, input="encoded", validation_fraction=0.2)
  load(photos, tmp_path, input="encoded", image_size=17)
  assert len([*tmp_path.glob("shared-*.json")]) == 4


def test_unlabelled_images_stay_encoded(folder, tmp_path):
  def with_more(form):
    data = {"name": "image_folder", "dir": str(folder), "image_size": 16}
    cache = str(tmp_path / form)
    options = tiny.get_resolved(cache_dir=cache, input=form, **data).data
    more = str(folder / "test")
    return sources.with_unlabelled(
      sources.load(options), "pretrain", more, options
    )

  resident, encoded = with_more("resident"), with_more("encoded")
  assert not shards_of(tmp_path / "encoded")
  assert_same(resident[0], encoded[0])
  assert resident[1] == encoded[1]


def test_a_killed_preparation_resumes(folder, tmp_path, monkeypatch, caplog):
  save, done = datasets.save, []

  def killed(path, dataset):
    if len(done) == 2:
      raise KeyboardInterrupt
    save(path, dataset)
    done.append(path.name)

  with monkeypatch.context() as patch:
    patch.setattr(datasets, "save", killed)
    with pytest.raises(KeyboardInterrupt):
      load(folder, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in shards_of(tmp_path)}
  assert len(before) == 2
  with caplog.at_level(logging.INFO, "dbl_jax"):
    resumed = load(folder, tmp_path)
  assert "1 of 3 shards are missing" in caplog.text
  assert before == {path: path.stat().st_mtime_ns for path in before}
  assert_same(resumed, load(folder, tmp_path / "anew"))


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def replace(path):
  shard = datasets.load_shard(path)
  datasets.save(path, shard._replace(fingerprint="another"))


@pytest.mark.parametrize("damage", [flip, cut, replace])
def test_a_damaged_shard_is_named_and_made_anew(
  folder, tmp_path, caplog, damage
):
  whole = load(folder, tmp_path)
  first, second, third = shards_of(tmp_path)
  times = [path.stat().st_mtime_ns for path in (first, third)]
  damage(second)
  expected = second.parent if damage is replace else second
  with pytest.raises(UserError) as caught:  # nothing to make it of
    load(second.parent, tmp_path)
  assert f"{expected} is not a prepared data set, or is damaged" in str(
    caught.value
  )
  assert "Set data.dir to another file, or to the original" in str(caught.value)
  assert_same(whole, load(folder, tmp_path))
  assert f"{second} is damaged" in caplog.text
  assert times == [path.stat().st_mtime_ns for path in (first, third)]


def test_shards_are_moved(folder, tmp_path, monkeypatch):
  whole = load(folder, tmp_path / "cache")
  shutil.move(tmp_path / "cache", tmp_path / "moved")
  monkeypatch.setattr(datasets, "save", lambda *_: pytest.fail("prepared"))
  assert_same(whole, load(folder, tmp_path / "moved"))
  first, *_ = shards_of(tmp_path / "moved")
  alone = load(first.parent, tmp_path / "unused")
  assert_same(whole._replace(former=""), alone._replace(former=""))
  first.unlink()
  with pytest.raises(UserError, match=r"Copy the folder again, or set"):
    datasets.load(first.parent)


def test_a_shard_that_vanishes_ends_the_run_with_its_name(folder, tmp_path):
  dataset = load(folder, tmp_path, **ON_DISK)
  for path in shards_of(tmp_path):
    path.unlink()
  with pytest.raises(UserError, match=r"npz can no longer be read"):
    next(batches(dataset, "tf_data"))


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (Path.unlink, r"\d+ of 16 images cannot be read; the first: .*png cannot"),
    (lambda path: path.write_bytes(b""), r"the first: .*png is empty"),
  ],
)
def test_an_image_that_vanishes_ends_the_run_with_its_name(
  folder, tmp_path, damage, message
):
  photos = tmp_path / "photos"
  shutil.copytree(folder, photos)
  dataset = load(photos, tmp_path, input="encoded")
  for path in photos.rglob("*.png"):
    damage(path)
  with pytest.raises(UserError, match=message):
    next(batches(dataset, "encoded"))
