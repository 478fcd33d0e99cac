"""Images named in text files: read, and each mistake named with its line."""

import numpy as np
import pytest
import samples

import tiny
from dbl_jax.data import sources
from dbl_jax.errors import UserError

LISTS = {"train": 12, "val": 4, "test": 6}


@pytest.fixture
def root(tmp_path):
  """Two classes in the layout of ImageNet-LT."""
  root = tmp_path / "images"
  for split, number in LISTS.items():
    lines = []
    for i in range(number):
      name = f"{split}/n0{i % 2}/a picture {i}.JPEG"
      (root / name).parent.mkdir(parents=True, exist_ok=True)
      data = samples.image_bytes(100 * number + i, size=(20, 16))
      (root / name).write_bytes(data)
      lines.append(f"{name} {i % 2}\n")
    (root / f"ImageNet_LT_{split}.txt").write_text("".join(lines))
  return root


def options(root, **data):
  data = {"name": "listed", "dir": str(root), "image_size": 16} | data
  cache = root.parent / "cache"
  return tiny.get_resolved(cache_dir=str(cache), **data).data


def labels(dataset):
  return {name: part.labels.tolist() for name, part in dataset.splits.items()}


def test_lists_are_found_and_read(root):
  dataset = sources.load(options(root))
  assert dataset.class_names == ("n00", "n01")
  assert labels(dataset) == {
    "train": [0, 1] * 6,
    "validation": [0, 1] * 2,
    "test": [0, 1] * 3,
  }
  archive = samples.zip_folder(root, root.parent / "images.zip")
  zipped = sources.load(options(root, dir=str(archive)))
  for name, part in zipped.splits.items():
    np.testing.assert_array_equal(part.images, dataset.splits[name].images)


def test_tabs_and_the_separators_of_windows_are_read(root):
  before = labels(sources.load(options(root)))
  for path in root.glob("*.txt"):
    text = path.read_text().replace("/", "\\").replace("EG ", "EG\t")
    path.write_text(text)
  assert labels(sources.load(options(root))) == before


def test_lists_elsewhere_are_named_and_classes_may_share_a_folder(root):
  text = (root / "ImageNet_LT_val.txt").read_text()
  (root / "ImageNet_LT_val.txt").unlink()
  mixed = root.parent / "mine.txt"
  mixed.write_text(text.replace(" 0\n", " 1\n", 1))
  dataset = sources.load(options(root, train_split=str(mixed)))
  assert dataset.class_names == ("0", "1")
  assert sorted(labels(dataset)["train"]) == [0, 1, 1]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ("train/n00/a picture 0.JPEG", "train.txt, line 1: found 'train/n00/a pi"),
    ("\n\ntrain/n00/b.JPEG 0", "line 3: train/n00/b.JPEG does not exist"),
    ("{0} 0\n{0} 1", "line 2: .* was already in line 1"),
    ("{0} -1", "line 1: found"),
    ("{0} 999999", "line 1: class 999999; at most"),
    ("{0} 1", "training list .* lacks images of class 0"),
    ("{0} 0", "test.txt, line 2: class 1; the training list has the classes 0"),
    (" \n", "train.txt is empty"),
  ],
)
def test_a_mistake_is_named_with_its_line(root, lines, message):
  text = lines.format("train/n00/a picture 0.JPEG")
  (root / "ImageNet_LT_train.txt").write_text(text)
  (root / "ImageNet_LT_val.txt").unlink()
  with pytest.raises(UserError, match=message):
    sources.load(options(root))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    ({"dir": ""}, "needs --config.data.dir"),
    ({"train_split": "none.txt"}, r"no file none\.txt \(text files there: Ima"),
    ({"dir": "/nowhere"}, r"text files there: none\); expected train\.txt"),
  ],
)
def test_a_missing_list_is_named(root, data, message):
  with pytest.raises(UserError, match=message):
    sources.load(options(root, **data))
