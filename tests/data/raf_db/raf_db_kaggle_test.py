"""RAF-DB in Kaggle's layout: the same data as in its authors'."""

import numpy as np
import pytest
import raf_db_fixture as fixture

from dbl_jax.data import raf_db
from dbl_jax.data.raf_db import layout
from dbl_jax.errors import UserError


@pytest.fixture
def official(tmp_path):
  return fixture.write(tmp_path / "official")


def write(root, official, folder=str, tables=True):
  """The official fixture's images in class folders."""
  rows = {"train": ["image,label"], "test": ["image,label"]}
  for name, code in fixture.ROWS:
    part = name.split("_")[0]
    image = fixture.image(official, name)
    place = root / "DATASET" / part / folder(code) / image.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(image.read_bytes())
    rows[part].append(f"{image.name},{code}")
  for part in rows if tables else ():
    (root / f"{part}_labels.csv").write_text("\n".join(rows[part]) + "\n")
  return root


def content(found):
  rows = [(r.name, r.split, r.label, r.read()) for r in found.records]
  return sorted(rows)


@pytest.mark.parametrize("tables", [True, False])
def test_it_is_the_same_as_the_official_layout(tmp_path, official, tables):
  root = write(tmp_path / "k", official, tables=tables)
  zipped = fixture.zip_folder(root, tmp_path / "kaggle.zip")
  for place in (root, root / "DATASET", zipped):
    found = layout.read(place)
    assert content(found) == content(layout.read(official))
    assert found.unlabelled == 0
    assert layout.fingerprint(place) == layout.fingerprint(place)


def test_loading_gives_the_same_images_in_the_same_order(tmp_path, official):
  root = write(tmp_path / "k", official)
  first, second = (
    raf_db.load(str(path), str(tmp_path / "c"), 10) for path in (official, root)
  )
  assert first[0] == second[0] == layout.CLASS_NAMES
  for split in ("train", "test"):
    for a, b in zip(first[1][split], second[1][split], strict=True):
      np.testing.assert_array_equal(a, b)


def test_folders_may_have_names(tmp_path, official):
  def folder(code):
    return "Happy" if code == 4 else layout.CLASS_NAMES[code - 1]

  root = write(tmp_path / "k", official, folder)
  assert content(layout.read(root)) == content(layout.read(official))


def test_folders_0_to_6_are_refused(tmp_path, official):
  root = write(tmp_path / "k", official, lambda code: str(code - 1))
  with pytest.raises(UserError, match=r"folder '0'; expected 1 surprise, 2"):
    layout.read(root)


def test_a_label_that_contradicts_the_folder_is_refused(tmp_path, official):
  root = write(tmp_path / "k", official)
  table = root / "train_labels.csv"
  table.write_text(
    table.read_text().replace("00001_aligned.jpg,2", "00001_aligned.jpg,3")
  )
  for place in (root, root / "DATASET"):
    with pytest.raises(UserError, match=r"csv, line 4: train_00001.* label 3"):
      layout.read(place)


def test_missing_and_unlabelled_images_are_counted(tmp_path, official):
  root = write(tmp_path / "k", official)
  (root / "DATASET/train/2/train_00001_aligned.jpg").unlink()
  with pytest.raises(UserError, match=r"1 images named in .*train_labels\.csv"):
    layout.read(root)
  table = root / "train_labels.csv"
  table.write_text("image,label\ntrain_00002_aligned.jpg,3\n")
  found = layout.read(root)
  assert found.unlabelled == 7
  assert sum(r.split == "train" for r in found.records) == 1


def test_an_image_of_another_part_is_refused(tmp_path, official):
  root = write(tmp_path / "k", official, tables=False)
  image = root / "DATASET/train/2/train_00001_aligned.jpg"
  image.rename(image.with_name("test_0099_aligned.jpg"))
  with pytest.raises(UserError, match="expected a name such as train_00001"):
    layout.read(root)
