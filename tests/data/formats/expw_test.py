"""ExpW: faces by photo and id, cut out; no photo is cut in two."""

import numpy as np
import pytest
import samples

import tiny
from dbl_jax.data import sources
from dbl_jax.data.formats import expw, images
from dbl_jax.errors import UserError


def get_options(root, **others):
  given = {"name": "expw", "dir": str(root), "image_size": 16}
  return tiny.get_resolved(**given, **others).data


@pytest.fixture
def root(tmp_path):
  return samples.write_expw(tmp_path / "expw", samples.expw_rows())


def test_every_face_is_in_one_part_and_a_photos_faces_together(root):
  found = expw.find(root, get_options(root))
  names = [record.name for rows in found.splits.values() for record in rows]
  assert sorted(names) == sorted(f"{r[0]}#{r[1]}" for r in samples.expw_rows())
  photos = [
    {r.name.split("#")[0] for r in rows} for rows in found.splits.values()
  ]
  assert sum(map(len, photos)) == len(set.union(*photos)) == 60
  sizes = {part: len(rows) for part, rows in found.splits.items()}
  assert 15 <= sizes["test"] <= 25
  assert 7 <= sizes["validation"] <= 11

  def test_names(**others):
    rows = expw.find(root, get_options(root, **others)).splits["test"]
    return [record.name for record in rows]

  assert test_names() == [record.name for record in found.splits["test"]]
  assert test_names() != test_names(split_seed=1)


def test_end_to_end_each_face_is_its_box(root, tmp_path):
  options = get_options(root, cache_dir=str(tmp_path / "c"))
  dataset = sources.load(options)
  assert dataset.class_names == expw.CLASS_NAMES
  rows = {f"{row[0]}#{row[1]}": row for row in samples.expw_rows()}
  records = expw.find(root, options).splits["test"]
  test = dataset.splits["test"]
  for record, image, label in zip(records, *test, strict=True):
    photo, _, top, left, right, bottom, _, expected = rows[record.name]
    assert label == expected
    data = (root / "image" / "origin" / photo).read_bytes()
    box = (left, top, right, bottom)
    np.testing.assert_array_equal(image, images.decode(data, 16, "", box))


def test_the_photos_may_lie_elsewhere_or_in_a_zip(root, tmp_path):
  options = get_options(root)
  expected = [r.name for r in expw.find(root, options).splits["train"]]
  # An aligned copy beside the photos is not mistaken for them.
  (root / "image" / "aligned").mkdir()
  for file in (root / "image" / "origin").iterdir():
    (root / "image" / "aligned" / file.name).touch()
  zipped = samples.zip_folder(root, tmp_path / "expw.zip", "ExpW/")
  other = samples.write_expw(tmp_path / "other", samples.expw_rows(), "photos")
  for place in (root, zipped, other):
    found = expw.find(place, options).splits["train"]
    assert [r.name for r in found] == expected
    assert found[0].file.size > 0


def test_counts_are_compared_with_the_authors(root):
  (warning,) = expw.find(root, get_options(root)).warnings
  assert "all has 120 images (ExpW has 91793)" in warning


def test_a_box_without_area_is_left_out_and_many_are_refused(tmp_path):
  rows = samples.expw_rows()
  rows[4] = (*rows[4][:4], rows[4][3], *rows[4][5:])  # right = left
  root = samples.write_expw(tmp_path / "expw", rows)
  found = expw.find(root, get_options(root))
  assert (
    f"1 faces are left out, as their boxes have no area: face 1 of {rows[4][0]}"
    in (found.warnings[0])
  )
  assert sum(map(len, found.splits.values())) == len(rows) - 1
  swapped = [(*r[:3], r[4], r[3], *r[5:]) for r in samples.expw_rows()]
  root = samples.write_expw(tmp_path / "swapped", swapped)
  with pytest.raises(UserError, match=r"120 of 120 boxes have no area: face 0"):
    expw.find(root, get_options(root))


def test_a_box_that_juts_out_is_moved_in_and_one_outside_refused(tmp_path):
  rows = samples.expw_rows()
  rows[0] = (*rows[0][:2], -4, -4, 6, 6, *rows[0][6:])
  root = samples.write_expw(tmp_path / "a", rows)
  options = get_options(root, cache_dir=str(tmp_path / "c"))
  assert (
    sum(len(p.labels) for p in sources.load(options).splits.values()) == 120
  )
  rows[0] = (*rows[0][:2], 100, 100, 110, 110, *rows[0][6:])
  root = samples.write_expw(tmp_path / "b", rows)
  options = get_options(root, cache_dir=str(tmp_path / "c"))
  with pytest.raises(UserError, match=r"p 0\.jpg is 40 x 30 .* lies outside"):
    sources.load(options)
