"""Data sets by name: prepared once, split, and refused where impossible."""

import logging
import subprocess
import sys

import numpy as np
import pytest

import tiny
from dbl_jax.data import datasets, sources
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError


@pytest.fixture
def options(tmp_path):
  return tiny.get_resolved(cache_dir=str(tmp_path), num_train=60).data


def save(path, labels, size=16):
  images = np.zeros((len(labels), size, size, 3), np.uint8)
  part = Split(images, np.asarray(labels, np.int32))
  names = ("a", "b", "c")
  datasets.save(
    path, Dataset("synthetic_faces", names, {"train": part, "test": part}, "f")
  )


def test_a_prepared_file_holds_all_of_a_data_set(tmp_path):
  rng = np.random.default_rng(0)
  splits = {
    name: Split(
      rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
      rng.integers(0, 2, n).astype(np.int32),
    )
    for name, n in (("train", 20), ("test", 5))
  }
  dataset = Dataset("faces", ("a", "ü"), splits, "f00", ("beware",))
  path = tmp_path / "new" / "faces.npz"
  datasets.save(path, dataset)
  loaded = datasets.load(path)
  assert loaded._replace(splits=None) == dataset._replace(splits=None)
  for name, part in splits.items():
    for old, new in zip(part, loaded.splits[name], strict=True):
      np.testing.assert_array_equal(old, new)
      assert old.dtype == new.dtype
  assert [p.name for p in path.parent.iterdir()] == ["faces.npz"]


def test_a_second_start_reads_the_prepared_file(options, tmp_path, caplog):
  with caplog.at_level(logging.INFO, "dbl_jax"):
    first = sources.load(options)
    assert "Prepared 60 train" in caplog.text
    caplog.clear()
    second = sources.load(options)
    assert "Prepared" not in caplog.text
  assert first.fingerprint == second.fingerprint
  options.image_seed = 2
  assert sources.load(options).fingerprint != first.fingerprint
  assert len(list(tmp_path.glob("*.npz"))) == 2
  for name in ("train", "validation", "test"):
    np.testing.assert_array_equal(
      first.splits[name].images, second.splits[name].images
    )


def test_a_damaged_prepared_file_is_made_again(options, tmp_path, caplog):
  whole = sources.load(options)
  (path,) = tmp_path.glob("*.npz")
  path.write_bytes(path.read_bytes()[:1000])
  again = sources.load(options)
  assert "Preparing it anew" in caplog.text
  np.testing.assert_array_equal(
    whole.splits["test"].images, again.splits["test"].images
  )


def test_the_parts_share_no_image(options):
  splits = sources.load(options).splits
  seen = [
    {image.tobytes() for image in splits[name].images}
    for name in ("train", "validation", "test")
  ]
  assert sum(map(len, seen)) == len(set.union(*seen)) == 100
  counts = np.bincount(splits["validation"].labels, minlength=7)
  assert (counts >= 1).sum() >= 6


def test_a_prepared_file_is_enough(options, tmp_path):
  sources.load(options)
  (path,) = tmp_path.glob("*.npz")
  options.dir = str(path.rename(tmp_path / "carried.npz"))
  assert len(sources.load(options).splits["test"].labels) == 40
  options.image_size = 32
  with pytest.raises(UserError, match=r"16 px, but the config asks"):
    sources.load(options)


def test_a_class_with_one_image_is_kept_for_training(options, tmp_path, caplog):
  save(tmp_path / "x.npz", [0, 0, 1, 2, 2, 2])
  options.dir = str(tmp_path / "x.npz")
  splits = sources.load(options).splits
  assert "b has a single training image" in caplog.text
  assert 1 in splits["train"].labels
  assert 1 not in splits["validation"].labels


def test_without_a_home_a_folder_is_asked_for(options, monkeypatch):
  def nowhere():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(sources.Path, "home", nowhere)
  options.cache_dir = ""
  with pytest.raises(UserError, match="There is no home folder"):
    sources.cache_dir(options)


def test_an_unwritable_cache_is_named_before_anything_is_read(
  options, tmp_path, monkeypatch
):
  (tmp_path / "c").write_text("in the way")
  options.cache_dir = str(tmp_path / "c")
  monkeypatch.setattr(sources, "_draw", lambda *_: pytest.fail("drawn"))
  with pytest.raises(UserError, match=r"cache_dir=.*/c cannot be written"):
    sources.load(options)


@pytest.mark.parametrize(
  ("labels", "message"),
  [
    ([0, 0, 2, 2, 2], "no training image of b"),
    (None, r"x\.npz"),  # a missing file is named
  ],
)
def test_prepared_files_that_are_refused(options, tmp_path, labels, message):
  if labels is not None:
    save(tmp_path / "x.npz", labels)
  options.dir = str(tmp_path / "x.npz")
  with pytest.raises(UserError, match=message):
    sources.load(options)


def test_the_synthetic_faces_are_known_by_version_numbers_and_seed(
  options, monkeypatch
):
  def fingerprint():
    return sources._synthetic_fingerprint(options)

  found = {fingerprint()}
  for field, value in (("num_train", 61), ("num_test", 9), ("image_seed", 2)):
    options[field] = value
    found.add(fingerprint())
  monkeypatch.setattr(sources.synthetic, "VERSION", 99)
  assert len(found | {fingerprint()}) == 5


def test_data_is_read_without_tensorflow():
  code = (
    "import sys; from dbl_jax.data import sources; "
    "assert not {'tensorflow', 'tensorflow_datasets'} & {*sys.modules}"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
