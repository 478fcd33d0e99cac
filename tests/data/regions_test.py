"""Face regions: where they lie, and what a data set of one is."""

import numpy as np
import pytest

from dbl_jax.data import face_crops
from dbl_jax.data.datasets import Dataset, Split

NAMES = [name for name in face_crops.REGIONS if name != "face"]
# Where the features of an aligned face lie, as fractions: height, width.
PLACES = {
  "eyes": [(0.36, 0.3), (0.36, 0.7)],
  "nose": [(0.57, 0.5)],
  "mouth": [(0.75, 0.4), (0.75, 0.6)],
}


@pytest.fixture
def dataset():
  rng = np.random.default_rng(0)
  splits = {
    name: Split(
      rng.integers(0, 256, (n, 20, 20, 3), np.uint8),
      rng.integers(0, 3, n).astype(np.int32),
    )
    for name, n in (("train", 6), ("validation", 2), ("test", 3))
  }
  return Dataset("faces", ("a", "b", "c"), splits, "f00", ("beware",))


@pytest.mark.parametrize("name", face_crops.REGIONS)
def test_a_box_is_inside_symmetric_and_holds_its_features_alone(name):
  top, left, bottom, right = face_crops.REGIONS[name]
  assert 0 <= top < bottom <= 1
  assert 0 <= left < right <= 1
  assert left + right == pytest.approx(1)
  for feature, places in PLACES.items():
    inside = [top < y < bottom and left < x < right for y, x in places]
    if name == "face" or feature in name.split("_to_"):
      assert all(inside)
    elif "_to_" not in name:
      assert not any(inside)


@pytest.mark.parametrize("name", NAMES)
def test_crop_is_the_box_stretched_to_the_image(name):
  size = 100
  ramps = np.zeros((1, size, size, 3), np.uint8)
  ramps[..., 0] = 2 * np.arange(size)[:, None]
  ramps[..., 1] = 2 * np.arange(size)
  cropped = face_crops.crop(ramps, name)
  assert cropped.shape == (1, size, size, 3)
  assert cropped.dtype == np.uint8
  top, left, bottom, right = face_crops.REGIONS[name]
  # Centre of output pixel i, in the pixels of the input.
  centre = (np.arange(size) + 0.5) / size
  rows = size * (top + (bottom - top) * centre) - 0.5
  columns = size * (left + (right - left) * centre) - 0.5
  image = cropped[0].astype(float)
  for channel, places in enumerate((rows[:, None], columns)):
    expected = np.broadcast_to(2 * places, (size, size))
    np.testing.assert_allclose(image[..., channel], expected, atol=0.6)


def test_apply_crops_every_split(dataset):
  before = dataset.splits["train"].images.copy()
  mouths = face_crops.apply(dataset, "mouth")
  assert list(mouths.splits) == list(dataset.splits)
  for name, split in mouths.splits.items():
    images, labels = dataset.splits[name]
    np.testing.assert_array_equal(
      split.images, face_crops.crop(images, "mouth")
    )
    np.testing.assert_array_equal(split.labels, labels)
  np.testing.assert_array_equal(dataset.splits["train"].images, before)
  kept = {"splits": None, "fingerprint": None}
  assert mouths._replace(**kept) == dataset._replace(**kept)


def test_fingerprints_differ_by_region_and_the_face_is_unchanged(dataset):
  found = {
    face_crops.apply(dataset, name).fingerprint for name in face_crops.REGIONS
  }
  assert len(found) == 7
  assert {face_crops.whole(one) for one in found} == {"f00"}
  again = face_crops.apply(dataset, "nose").fingerprint
  assert again == face_crops.apply(dataset, "nose").fingerprint
  assert face_crops.apply(dataset, "face") is dataset
  images = dataset.splits["train"].images
  np.testing.assert_array_equal(face_crops.crop(images, "face"), images)
