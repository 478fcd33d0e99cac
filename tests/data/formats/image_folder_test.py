"""Folders of class folders, in every form users have them in."""

import errno
import os
import re
import shutil
from unittest import mock

import numpy as np
import pytest
import samples

import tiny
from dbl_jax import config as configs
from dbl_jax.data import sources
from dbl_jax.data.formats import image_folder, images, listing, stored
from dbl_jax.errors import UserError
from dbl_jax.training import checkpoint

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


def files(root, *names):
  """Images, tables and empty folders, by path."""
  for i, name in enumerate(names):
    place = root / name
    (place if name.endswith("/") else place.parent).mkdir(
      parents=True, exist_ok=True
    )
    if not name.endswith("/"):
      place.write_bytes(samples.image_bytes(i, "RGB", "PNG"))
  return root


def grid(*folders, classes=("ant", "bee"), count=3):
  return [
    f"{f}/{c}/{i}.png" for f in folders for c in classes for i in range(count)
  ]


def flat(*classes):
  return [f"{c}/{i}.png" for c in classes for i in range(5)]


FLAT = [f"{p}/{i}.png" for p in ("train", "test") for i in range(3)]
SPLIT = {"train": 6, "test": 6}
# Files -> images of each split, or the message.
LAYOUTS = {
  "a class in one split": (
    [*grid("train"), *grid("test", classes=("ant", "wasp"))],
    "only train has bee, only test has wasp",
  ),
  "a class in validation": (
    [*grid("train", "test"), "val/wasp/1.png"],
    "only validation has wasp; expected the same folders",
  ),
  "letters that look alike": (
    [*grid("train", "test"), "test/\u0430nt/1.png"],
    r"only test has \u0430nt \('\\u0430nt'",
  ),
  "validation alone": (grid("train", "val"), "has train, val, but no test"),
  "an unknown word": (grid("train", "tests"), "has train, but no test"),
  "no train": (grid("val", "test"), "has test, val, but no train"),
  "twice": (grid("train", "training", "test"), "but one split twice"),
  "one class": (flat("cat"), "has a single class, cat"),
  "no class": (["0.png"], "has no class folder.*config.pretrain.unlabelled"),
  "Kaggle's cats and dogs": (
    grid("training_set/training_set", "test_set/test_set"),
    SPLIT,
  ),
  "Intel's scenes": (
    [*grid("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/1.png"],
    SPLIT,
  ),
  "one folder around": (
    grid("archive/Train", "archive/Val", "archive/Test"),
    SPLIT | {"validation": 6},
  ),
  "a picture next to it": (["cover.png", *grid("a/train", "a/test")], SPLIT),
  "dev": (grid("train", "dev", "test"), SPLIT | {"validation": 6}),
  "sets": (grid("train-images", "test-images"), SPLIT),
  "AffectNet": (
    [
      "train_set/images/0.png",
      "train_set/annotations/0_exp.npy",
      "val_set/images/1.png",
      "val_set/annotations/1_exp.npy",
    ],
    r"train_set, val_set hold images without class folders.*0_exp\.npy",
  ),
  "YOLO": (
    [
      "train/images/0.png",
      "train/labels/0.txt",
      "valid/images/1.png",
      "test/images/2.png",
    ],
    r"hold images without class folders.*train/labels/0\.txt",
  ),
  "YOLO, turned": (
    ["images/train/0.png", "images/val/0.png", "labels/train/0.txt"],
    r"train, val hold images without class folders.*labels/train/0\.txt",
  ),
  "Kaggle's test without labels": (
    [*grid("train"), "test/1.png", "test/2.png"],
    r"test hold images.*data\.dir=.*/train to have a test split",
  ),
  "nothing labelled": (FLAT, "Sort the images into class folders"),
  "years": (grid("train2017", "val2017"), "may be splits or classes"),
  "words around": (grid("my_train", "my_test"), "may be splits or classes"),
  "flat, words around": (
    ["train_2019/1.png", "test_2019/1.png"],
    "may be splits or classes",
  ),
  "joined words": (
    [f"FER2013{part}/{part}_1.png" for part in ("Train", "Valid", "Test")],
    "may be splits or classes",
  ),
  "joined letters": (grid("trainA", "testA"), "may be splits or classes"),
  "abbreviated": (grid("trn", "tst"), SPLIT),
  "one word": (grid("training_v2", "holdout"), "may be splits or classes"),
  "classes named like splits": (
    flat("train", "valid", "test_tube"),
    {"train": 12, "test": 3},
  ),
  "classes named like splits, in splits": (
    grid("train", "test", classes=("train", "valid", "test_tube")),
    {"train": 9, "test": 9},
  ),
  "a train and a bus": (flat("train", "bus", "car"), {"train": 12, "test": 3}),
  "two tests": (flat("test_tube", "test_strip"), {"train": 8, "test": 2}),
  "other words": (flat("contest", "trainer"), {"train": 8, "test": 2}),
}


@pytest.mark.parametrize("archive", ["folder", "zip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_splits_are_known_or_asked_about(tmp_path, layout, archive):
  names, expected = LAYOUTS[layout]
  root = files(tmp_path / "d", *names)
  if archive == "zip":
    root = samples.zip_folder(root, tmp_path / "d.zip")
  options = get_options(root, tmp_path)
  if isinstance(expected, str):
    with pytest.raises(UserError, match=expected) as caught:
      image_folder.find(root, options)
    assert str(root) in str(caught.value)
  else:
    found = image_folder.find(root, options).splits
    assert {k: len(rows) for k, rows in found.items()} == expected


# Further files -> the warning, in a data set of the classes ant and bee.
LEFT_OUT = {
  "no image's name": (
    ["readme.txt", "train/ant/a.heic"],
    "2 files without the name of an image.*HEIC to JPEG.*train/ant/a.heic",
  ),
  "astray": (
    ["train/lost.jpg", "more/cat/b.jpg"],
    "2 images outside of class folders.*train/lost.jpg",
  ),
  "empty": (["train/cow/"], "1 folders without images .*: train/cow"),
  "hidden files": (["train/cow/.x.png"], "folders without images .*train/cow"),
  "other files": (["train/cow/a.heic"], "folders without images .*train/cow"),
  "no part": (["cow/"], None),
  "none in test": (["train/cow/1.png"], "test has no cow, so they do not"),
  "none in val": (
    grid("val", classes=("ant",)),
    "validation has no bee, so the best check",
  ),
  "trailing blank": (
    ["train/ant /1.png"],
    "alike are one class: 'ant', 'ant '",
  ),
  "another case": (["train/Ant/1.png"], "differ only in case: Ant, ant"),
  "zero width": (["test/a\u200bnt/1.png"], r"'ant', 'a\\u200bnt'"),
  "decomposed": (
    ["train/\u00e9/1.png", "test/e\u0301/2.png"],
    r"'e\\u0301', '\\xe9'",
  ),
}


@pytest.mark.parametrize("archive", ["folder", "zip"])
@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_left_out_or_lacking_is_a_warning(tmp_path, what, archive):
  more, expected = LEFT_OUT[what]
  root = files(tmp_path / "d", *grid("train", "test"), *more)
  if archive == "zip":
    root = samples.zip_folder(root, tmp_path / "d.zip")
  warnings = image_folder.find(root, None).warnings
  if expected is None or (archive == "zip" and what == "empty"):
    assert warnings == ()
  else:
    assert re.search(expected, "\n".join(warnings))


def test_folders_of_the_system_are_left_out(tmp_path, caplog):
  """Those that may not be read are not entered."""
  system = ("@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN")
  inside = [f"{place}{s}/1.png" for s in system for place in ("", "train/ant/")]
  root = files(tmp_path, *grid("train", "test"), *inside, ".trash/1.png")
  found = stored._walk

  def walk(root, ignored):
    for name, file in found(root, ignored):
      assert not any(f"{s}/1.png" in name for s in (*system, ".trash"))
      yield name, file

  with mock.patch.object(stored, "_walk", walk):
    splits = image_folder.find(root, None).splits
  assert {k: len(rows) for k, rows in splits.items()} == SPLIT
  assert "are left out: $RECYCLE.BIN, @eaDir, System Volume" in caplog.text


def test_reports_within_the_data_are_no_images(tmp_path):
  outputs = {
    "run": ("run.lock", "confusion_matrix.png"),
    "check": ("findings.csv", "class_0_ant.png", "duplicates.png"),
    "table": ("table.csv", "accuracies.png", "confusion_matrices.png"),
  }
  inside = [f"{f}/{n}" for f, names in outputs.items() for n in names]
  images = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(3)]
  root = files(tmp_path, *images, *inside, "bee/duplicates.png")
  found = image_folder.find(root, get_options(root, tmp_path))
  assert found.class_names == ("ant", "bee")
  assert sum(map(len, found.splits.values())) == 7
  assert "folders without images are not classes: check, run, table" in str(
    found
  )


def test_unreadable_images_are_counted_and_the_first_is_named(parted, tmp_path):
  for name in ("ant/3.png", "cat/1.png"):
    (parted / "train" / name).write_bytes(b"no image")
  with pytest.raises(UserError, match=r"2 of 30 images .*ant/3\.png is not"):
    sources.load(get_options(parted, tmp_path))
  assert not list((tmp_path / "cache").glob("*.npz"))


def test_copies_have_the_same_fingerprint(parted, tmp_path):
  def load(path):
    return sources.load(get_options(path, tmp_path))

  before = load(parted)
  assert before.former != before.fingerprint
  assert before.names["test"][0] == "test/ant/0.png"
  with mock.patch.object(stored.StoredFile, "checksum") as read:
    assert load(parted).fingerprint == before.fingerprint
    read.assert_not_called()  # the files did not change
  copied = tmp_path / "other mount" / "faces"
  shutil.copytree(parted, copied, copy_function=shutil.copyfile)
  full = OSError(errno.EROFS, "Read-only file system")
  with mock.patch.object(sources.files, "write", side_effect=full):
    assert load(copied).fingerprint == before.fingerprint  # a shared cache
  archive = samples.zip_folder(parted, tmp_path / "faces.zip")
  image = parted / "train" / "cat" / "0.png"
  os.utime(image)
  for path in (parted, copied, archive):
    again = load(path)
    assert again.fingerprint == before.fingerprint
    assert checkpoint.same_images(
      {"fingerprint": before.fingerprint}, again.fingerprint, again.former
    )
  # A run of an earlier version has stored a hash of the times.
  meta = {"fingerprint": load(archive).former}
  found = load(archive)
  assert checkpoint.same_images(meta, found.fingerprint, found.former)
  shutil.copy(parted / "train" / "cat" / "1.png", image)
  changed = load(parted)
  assert changed.fingerprint != before.fingerprint
  assert not checkpoint.same_images(
    {"fingerprint": before.fingerprint}, changed.fingerprint, changed.former
  )


@pytest.mark.parametrize("how", ["folder", "file"])
def test_images_of_a_group_stay_together(tmp_path, how):
  root, lines = tmp_path / "data", []
  for name in ("cat", "ant"):
    for person in range(8):
      folder = root / name / f"p{person}" if how == "folder" else root / name
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(3):
        data = samples.image_bytes(len(lines), "RGB", "PNG")
        file = folder / f"{person}_{i}.png"
        file.write_bytes(data)
        lines.append(f"{file.relative_to(root)} p{person}\n")
  table = tmp_path / "groups.txt"
  table.write_text("".join(lines))
  groups = "folder" if how == "folder" else str(table)
  options = {"groups": groups, "validation_fraction": 0.2}
  dataset = sources.load(get_options(root, tmp_path, **options))
  people = [
    {name.rsplit("/", 1)[-1][0] for name in dataset.names[split]}
    for split in ("train", "validation", "test")
  ]
  assert all(people)
  assert sum(map(len, people)) == len(set.union(*people)) == 8
  partial = tmp_path / "partial.txt"
  partial.write_text("".join(lines[1:]))
  for wrong, message in (
    ({"groups": str(partial)}, "1 of 48 images lack a group, such as cat/"),
    ({"validation_fraction": 0.1}, "each group has more images than"),
  ):
    with pytest.raises(UserError, match=message):
      sources.load(get_options(root, tmp_path, **options | wrong))


def test_images_that_do_not_fit_into_memory(parted, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, "available_memory", lambda: 20_000)
  with pytest.raises(UserError, match=r"Set --config.data.input=auto, which"):
    sources.load(get_options(parted, tmp_path, input="resident"))


def test_an_npz_from_elsewhere_is_described(tmp_path):
  path = tmp_path / "mine.npz"
  np.savez(path, x_train=np.zeros((3, 2), np.uint8))
  with pytest.raises(UserError) as caught:
    sources.load(get_options(path, tmp_path))
  assert "its arrays are x_train [3, 2] of uint8; expected" in str(caught.value)
  assert "elete" not in str(caught.value)
