"""Folders of class folders, in every form users have them in."""

import logging

import numpy as np
import pytest
import samples

import tiny
from dbl_jax import config as configs
from dbl_jax.data import sources
from dbl_jax.data.formats import image_folder, images, listing
from dbl_jax.errors import UserError

CLASSES = {"cat": 12, "ant": 9, "bee": 3}


def write(folder, counts, seed=0):
  """A folder for each class, with so many PNGs."""
  for label, (name, count) in enumerate(counts.items()):
    (folder / name).mkdir(parents=True)
    for i in range(count):
      data = samples.image_bytes(1000 * seed + 100 * label + i, "RGB", "PNG")
      (folder / name / f"{i}.png").write_bytes(data)
  return folder


@pytest.fixture
def parted(tmp_path):
  root = tmp_path / "data" / "faces"
  write(root / "train", CLASSES)
  write(root / "test", dict.fromkeys(CLASSES, 2), seed=1)
  return root


def get_options(path, tmp_path, **others):
  given = {"name": "image_folder", "dir": str(path), "image_size": 16}
  cache = str(tmp_path / "cache")
  return tiny.get_resolved(**given, cache_dir=cache, **others).data


def shape(found):
  return {
    part: [sum(r.label == c for r in rows) for c in range(3)]
    for part, rows in found.splits.items()
  }


def test_end_to_end(parted, tmp_path, capsys):
  options = get_options(parted, tmp_path)
  dataset = sources.load(options)
  assert dataset.class_names == ("ant", "bee", "cat")
  assert "image_folder: decoding  30/30" in capsys.readouterr().out
  assert {k: len(p.labels) for k, p in dataset.splits.items()} == {
    "train": 21,
    "validation": 3,
    "test": 6,
  }
  np.testing.assert_array_equal(
    dataset.splits["test"].labels, [0, 0, 1, 1, 2, 2]
  )
  data = (parted / "test" / "bee" / "1.png").read_bytes()
  np.testing.assert_array_equal(
    dataset.splits["test"].images[3], images.decode(data, 16, "")
  )
  again = sources.load(options)
  assert again.fingerprint == dataset.fingerprint
  assert "decoding" not in capsys.readouterr().out
  (parted / "train" / "cat" / "11.png").unlink()
  assert sources.load(options).fingerprint != dataset.fingerprint


def test_the_size_is_100_unless_asked_for(tmp_path):
  config = tiny.get_config()
  config.data.name = "image_folder"
  config.data.image_size = None
  assert configs.resolve(config).data.image_size == 100


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_validation_part_is_used_as_it_is(parted, tmp_path, name):
  # A rare class may have no image to spare for it.
  write(parted / name, {"cat": 4, "ant": 1}, seed=2)
  (parted / "train").rename(parted / "Training")
  dataset = sources.load(get_options(parted, tmp_path))
  assert len(dataset.splits["train"].labels) == 24
  np.testing.assert_array_equal(
    np.bincount(dataset.splits["validation"].labels), [1, 0, 4]
  )
  # Also from the prepared file.
  again = sources.load(get_options(parted, tmp_path))
  assert len(again.splits["validation"].labels) == 5


def test_a_folder_without_parts_is_split(tmp_path):
  root = write(tmp_path / "faces", CLASSES)
  options = get_options(root, tmp_path, test_fraction=0.25)
  found = image_folder.find(root, options)
  assert shape(found) == {"train": [7, 2, 9], "test": [2, 1, 3]}
  again = image_folder.find(root, options)
  assert listing.fingerprint(again) == listing.fingerprint(found)
  names = [{r.name for r in rows} for rows in found.splits.values()]
  assert len(names[0] | names[1]) == 24
  options.split_seed = 1
  other = image_folder.find(root, options)
  assert shape(other) == shape(found)
  assert {r.name for r in other.splits["test"]} != names[1]


def test_a_zip_an_outer_folder_and_deeper_images(parted, tmp_path):
  before = image_folder.find(parted, None)
  contents = {r.file.read() for r in before.splits["train"]}
  (parted / "train" / "cat" / "more").mkdir()
  image = parted / "train" / "cat" / "9.png"
  image.rename(image.parent / "more" / image.name)
  (parted / "__MACOSX").mkdir()
  (parted / "__MACOSX" / "._0.png").touch()
  (parted / "train" / ".hidden").mkdir()
  (parted / "train" / ".hidden" / "a.png").touch()
  path = samples.zip_folder(parted.parent, tmp_path / "faces.zip")
  for place in (path, parted, parted.parent):
    found = image_folder.find(place, None)
    assert shape(found) == shape(before)
    assert found.warnings == ()
    assert {r.file.read() for r in found.splits["train"]} == contents


def test_a_link_to_a_folder_above_does_no_harm(parted):
  before = shape(image_folder.find(parted, None))
  (parted / "train" / "cat" / "up").symlink_to(parted, True)
  assert shape(image_folder.find(parted, None)) == before


def test_what_is_left_out_is_said(parted):
  (parted / "readme.txt").touch()
  (parted / "train" / "cat" / "a.heic").touch()
  (parted / "train" / "lost.jpg").touch()
  (parted / "more" / "cat").mkdir(parents=True)
  (parted / "more" / "cat" / "b.jpg").touch()
  first, second = image_folder.find(parted, None).warnings
  assert "2 files have no image's name" in first
  assert "train/cat/a.heic" in first
  assert "2 images lie in no class folder" in second
  assert "train/lost.jpg" in second


def rename(old, new):
  return lambda root: (root / old).rename(root / new)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (rename("test/bee", "test/wasp"), "only train has bee, only test has wasp"),
    (rename("test/bee", "bee"), "only train has bee, only test has none"),
    (rename("test", "val"), "has train, val, but no test"),
    (rename("test", "tests"), "has train, but no test"),
    (rename("train", "val"), "has test, val, but no train"),
    (lambda root: write(root / "training", CLASSES), "but one split twice"),
    (
      lambda root: write(root / "val", {"wasp": 1}),
      "only train has none, only validation has wasp",
    ),
  ],
)
def test_parts_that_do_not_match_are_refused(parted, change, message):
  change(parted)
  with pytest.raises(UserError, match=message) as caught:
    image_folder.find(parted, None)
  assert str(parted) in str(caught.value)


def test_no_images_no_folder_and_one_class_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"empty has no class folder .* nothing"):
    image_folder.find(tmp_path / "empty", None)
  with pytest.raises(UserError, match="nowhere does not exist"):
    image_folder.find(tmp_path / "nowhere", None)
  root = write(tmp_path / "one", {"cat": 3})
  with pytest.raises(UserError, match="one/cat has no class folder"):
    image_folder.find(root / "cat", None)
  with pytest.raises(UserError, match="one has a single class, cat"):
    image_folder.find(root, None)


def test_unreadable_images_are_counted_and_the_first_is_named(parted, tmp_path):
  for name in ("ant/3.png", "cat/1.png"):
    (parted / "train" / name).write_bytes(b"no image")
  with pytest.raises(UserError, match=r"2 of 30 images .*ant/3\.png is not"):
    sources.load(get_options(parted, tmp_path))
  assert not list((tmp_path / "cache").glob("*.npz"))


def test_a_folder_needs_a_name(tmp_path):
  with pytest.raises(UserError, match=r"needs --config\.data\.dir"):
    sources.load(get_options("", tmp_path))


def test_data_of_other_classes_is_not_a_runs_data(parted, tmp_path, caplog):
  # What results.evaluate_workdir goes by.
  with caplog.at_level(logging.WARNING):
    names = sources.load(get_options(parted, tmp_path)).class_names
  (parted / "train" / "ant").rename(parted / "train" / "dog")
  (parted / "test" / "ant").rename(parted / "test" / "dog")
  assert sources.load(get_options(parted, tmp_path)).class_names != names
