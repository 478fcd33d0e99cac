"""FER2013 by its CSV and by its folders: the same classes in one order."""

import io

import numpy as np
import pytest
import samples
from PIL import Image

import tiny
from dbl_jax.data import sources
from dbl_jax.data.formats import fer2013, image_folder
from dbl_jax.errors import UserError

NAMES = fer2013.CLASS_NAMES


def labels(found, part):
  return [record.label for record in found.splits[part]]


@pytest.mark.parametrize(
  "form", ["emotion,pixels,Usage", "emotion, Usage, pixels"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_csv_gives_three_parts(tmp_path, form, end):
  path = samples.write_fer_csv(tmp_path / "d" / "fer2013.csv", form, end=end)
  for place in (path, tmp_path / "d", tmp_path):
    found = fer2013.find(place)
    assert found.class_names == NAMES
    assert labels(found, "train") == [*range(7), *range(7)]
    assert labels(found, "validation") == labels(found, "test") == [*range(7)]
    data = found.splits["test"][1].file.read()
    np.testing.assert_array_equal(
      Image.open(io.BytesIO(data)), samples.fer_pixels(17)
    )


def test_the_csv_end_to_end(tmp_path):
  path = samples.write_fer_csv(tmp_path / "fer2013.csv")
  options = {"name": "fer2013", "dir": str(path), "image_size": 48}
  options = tiny.get_resolved(cache_dir=str(tmp_path / "c"), **options).data
  splits = sources.load(options).splits
  assert {k: len(p.labels) for k, p in splits.items()} == {
    "train": 14,
    "validation": 7,
    "test": 7,
  }
  expected = np.repeat(samples.fer_pixels(16)[..., None], 3, axis=-1)
  np.testing.assert_array_equal(splits["validation"].images[1], expected)


def test_the_folder_form_has_the_order_of_the_csv(tmp_path):
  root = samples.write_fer_folders(tmp_path / "faces")
  found = fer2013.find(root)
  assert found.class_names == NAMES
  assert image_folder.find(root, None).class_names == tuple(sorted(NAMES))
  for part in ("train", "test"):
    for record in found.splits[part]:
      assert record.name.split("/")[1] == NAMES[record.label]
  assert "train has 14 images (FER2013 has 28709)" in found.warnings[0]


def test_other_spellings_of_the_folders(tmp_path):
  codes = samples.write_fer_folders(
    tmp_path / "a", lambda name: str(NAMES.index(name))
  )
  words = {"angry": "Anger", "happy": "Happiness", "sad": "sadness"}
  words = samples.write_fer_folders(
    tmp_path / "b", lambda n: words.get(n, n.title())
  )
  for root in (codes, words):
    assert labels(fer2013.find(root), "test") == sorted([*range(7)] * 2)


def test_folders_of_other_classes_are_refused(tmp_path):
  root = samples.write_fer_folders(tmp_path / "faces")
  (root / "train" / "fear").rename(root / "train" / "contempt")
  with pytest.raises(UserError, match="train has a folder 'contempt'"):
    fer2013.find(root)
  (root / "train" / "contempt").rename(tmp_path / "away")
  with pytest.raises(UserError, match="train has no image of fear"):
    fer2013.find(root)
  with pytest.raises(UserError, match=r"no train/ and test/.*image_folder"):
    fer2013.find(root / "test")


@pytest.mark.parametrize("pixel", ["", "256", "-1", "x", "1.5", "9" * 23])
def test_pixels_that_are_no_picture_are_refused(tmp_path, pixel):
  path = samples.write_fer_csv(tmp_path / "fer2013.csv")
  first, row, rest = path.read_text().split("\n", 2)
  fields = row.split(",")
  fields[1] = f"{pixel} " + fields[1].split(" ", 1)[1]
  path.write_text("\n".join((first, ",".join(fields), rest)))
  record = fer2013.find(path).splits["train"][0]
  with pytest.raises(UserError, match=r"fer2013\.csv, line 2 does not hold"):
    record.file.read()
