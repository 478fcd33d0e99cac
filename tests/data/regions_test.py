"""Face regions: where they lie, and what a data set of one is."""

import numpy as np
import pytest

from dbl_jax.data import regions
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError

NAMES = [name for name in regions.REGIONS if name != "face"]
# Where the features of an aligned face lie, as fractions: height, width.
PLACES = {
  "eyes": [(0.36, 0.3), (0.36, 0.7)],
  "nose": [(0.57, 0.5)],
  "mouth": [(0.75, 0.4), (0.75, 0.6)],
}


def ramps(size):
  """One image: red is twice the row, green twice the column."""
  image = np.zeros((1, size, size, 3), np.uint8)
  image[..., 0] = 2 * np.arange(size)[:, None]
  image[..., 1] = 2 * np.arange(size)
  return image


def make_dataset():
  rng = np.random.default_rng(0)
  splits = {
    name: Split(
      rng.integers(0, 256, (n, 20, 20, 3), np.uint8),
      rng.integers(0, 3, n).astype(np.int32),
    )
    for name, n in (("train", 6), ("validation", 2), ("test", 3))
  }
  return Dataset("faces", ("a", "b", "c"), splits, "f00", ("beware",))


def holds(box, place):
  return box.top < place[0] < box.bottom and box.left < place[1] < box.right


def test_the_six_areas_of_lian_et_al_and_the_face():
  assert set(NAMES) == {
    "eyes",
    "nose",
    "mouth",
    "nose_to_eyes",
    "nose_to_mouth",
    "mouth_to_eyes",
  }


@pytest.mark.parametrize("name", regions.REGIONS)
def test_boxes_are_inside_and_symmetric(name):
  box = regions.REGIONS[name]
  assert 0 <= box.top < box.bottom <= 1
  assert 0 <= box.left < box.right <= 1
  assert box.left + box.right == pytest.approx(1)


@pytest.mark.parametrize("name", PLACES)
def test_areas_hold_what_they_are_called_and_nothing_else(name):
  for other, places in PLACES.items():
    for place in places:
      assert holds(regions.REGIONS[name], place) == (name == other)


@pytest.mark.parametrize("name", [name for name in NAMES if "_to_" in name])
def test_joint_areas_hold_both(name):
  box = regions.REGIONS[name]
  for part in name.split("_to_"):
    inner = regions.REGIONS[part]
    assert box.top <= inner.top
    assert box.bottom >= inner.bottom
    assert box.left <= inner.left
    assert box.right >= inner.right


@pytest.mark.parametrize("name", NAMES)
def test_crop_is_the_box_stretched_to_the_image(name):
  size = 100
  cropped = regions.crop(ramps(size), name)
  assert cropped.shape == (1, size, size, 3)
  assert cropped.dtype == np.uint8
  top, left, bottom, right = regions.REGIONS[name]
  # Centre of output pixel i, in the pixels of the input.
  centre = (np.arange(size) + 0.5) / size
  rows = size * (top + (bottom - top) * centre) - 0.5
  columns = size * (left + (right - left) * centre) - 0.5
  image = cropped[0].astype(float)
  expected = np.broadcast_to(2 * rows[:, None], (size, size))
  np.testing.assert_allclose(image[..., 0], expected, atol=0.6)
  expected = np.broadcast_to(2 * columns, (size, size))
  np.testing.assert_allclose(image[..., 1], expected, atol=0.6)


def test_the_whole_face_is_unchanged():
  images = make_dataset().splits["train"].images
  np.testing.assert_array_equal(regions.crop(images, "face"), images)


@pytest.mark.parametrize("name", NAMES)
def test_a_mirrored_region_is_the_region_of_the_mirrored_face(name):
  images = make_dataset().splits["train"].images
  mirrored = regions.crop(images[:, :, ::-1].copy(), name)[:, :, ::-1]
  difference = mirrored.astype(int) - regions.crop(images, name)
  assert np.abs(difference).max() <= 1


def test_apply_cuts_every_part():
  dataset = make_dataset()
  before = dataset.splits["train"].images.copy()
  mouths = regions.apply(dataset, "mouth")
  assert list(mouths.splits) == list(dataset.splits)
  for name, part in mouths.splits.items():
    images, labels = dataset.splits[name]
    np.testing.assert_array_equal(part.images, regions.crop(images, "mouth"))
    np.testing.assert_array_equal(part.labels, labels)
  np.testing.assert_array_equal(dataset.splits["train"].images, before)
  kept = {"splits": None, "fingerprint": None}
  assert mouths._replace(**kept) == dataset._replace(**kept)


def test_fingerprints_differ_by_region():
  dataset = make_dataset()
  found = {regions.apply(dataset, name).fingerprint for name in regions.REGIONS}
  assert len(found) == 7
  again = regions.apply(dataset, "nose").fingerprint
  assert again == regions.apply(dataset, "nose").fingerprint
  assert regions.apply(dataset, "face") is dataset


@pytest.mark.parametrize("call", [regions.crop, regions.apply])
def test_an_unknown_region_is_named(call):
  dataset = make_dataset()
  given = dataset.splits["test"].images if call is regions.crop else dataset
  with pytest.raises(UserError, match=r"region 'ear'; expected one of face, "):
    call(given, "ear")
