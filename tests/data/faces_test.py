"""Faces: detection and alignment of drawn ones, and regions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from dbl_jax import train
from dbl_jax.data import face_crops, faces, sources, synthetic
from dbl_jax.data.datasets import Dataset, Split

# Outputs of the package mtcnn 1.0.0 for the images below.
REFERENCE = Path(__file__).with_name("mtcnn_reference.npz")


@pytest.fixture(scope="module")
def drawn():
  return synthetic.make_split("test", 8, 96, 1)[0]


@pytest.mark.parametrize(
  ("name", "size"), [("pnet", 17), ("rnet", 24), ("onet", 48)]
)
def test_networks_are_those_of_the_reference(name, size):
  shape = (2, size, size, 3)
  images = np.random.default_rng(size).integers(0, 256, shape, np.uint8)
  with np.load(REFERENCE) as reference:
    expected = reference[name]
  found = faces.run(name, images).reshape(expected.shape)
  found[..., 0] = 1 / (1 + np.exp(-found[..., 0]))
  # Weights are stored in half precision.
  np.testing.assert_allclose(found, expected, atol=3e-3)


def paste(images, angles, size=(640, 480), side=140):
  """A grey photo with faces in a row, and the centre of each."""
  photo = Image.new("RGB", size, (120, 120, 120))
  centres = []
  for i, (image, angle) in enumerate(zip(images, angles, strict=True)):
    face = Image.fromarray(image).resize((side, side))
    mask = Image.new("L", face.size, 255).rotate(angle, expand=True)
    face = face.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    corner = (20 + 205 * i, 60 + 90 * i)
    photo.paste(face, corner, mask)
    centres.append(np.add(corner, np.divide(face.size, 2)))
  return photo, np.array(centres)


def test_finds_every_face_where_it_is(drawn):
  photo, centres = paste(drawn[:3], (-15, 0, 15))
  found = sorted(faces.detect(photo), key=lambda face: face.box[0])
  assert len(found) == 3
  for face, centre in zip(found, centres, strict=True):
    left, top, right, bottom = face.box
    assert left < centre[0] < right
    assert top < centre[1] < bottom
    eyes, mouth = face.landmarks[:2], face.landmarks[3:]
    assert eyes[0, 0] < eyes[1, 0]
    assert eyes[:, 1].max() < mouth[:, 1].min()


@pytest.mark.parametrize("angle", [25, 60, -90])
def test_landmarks_turn_with_the_photo(drawn, angle):
  upright = faces.detect(paste(drawn[:1], [0], (240, 240))[0])[0].landmarks
  photo = paste(drawn[:1], [0], (240, 240))[0]
  turned = photo.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(120,) * 3)
  (face,) = faces.detect(turned)
  radians = np.deg2rad(angle)
  rotation = np.array(
    [[np.cos(radians), np.sin(radians)], [-np.sin(radians), np.cos(radians)]]
  )
  expected = (upright - 120) @ rotation.T + 120
  eye_distance = np.linalg.norm(upright[0] - upright[1])
  errors = np.linalg.norm(face.landmarks - expected, axis=1) / eye_distance
  assert errors.mean() < 0.1


def test_no_face_in_pictures_without_one():
  noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
  for photo in (
    Image.new("RGB", (300, 20)),
    Image.new("RGB", (1, 1)),
    Image.fromarray(noise).resize((320, 240)),
  ):
    assert faces.detect(photo) == []


def test_alignment_brings_landmarks_onto_the_template(drawn):
  template = face_crops.template_of(drawn)
  photo, _ = paste(drawn[:3], (-20, 0, 20))
  for face in faces.detect(photo):
    aligned = face_crops.align(np.asarray(photo), face.landmarks, template, 96)
    again = faces.detect(Image.fromarray(aligned))[0].landmarks / 96
    assert np.linalg.norm(again - template, axis=1).mean() < 0.05


def test_a_run_stores_the_template_of_its_images(drawn, tmp_path):
  config = tiny.get_resolved(name="image_folder", dir="photos")
  colour, grey = drawn, np.zeros((3, 32, 32, 3), np.uint8)
  for name, images in (("faces", colour), ("none", grey)):
    split = Split(images, np.zeros(len(images), np.int32))
    dataset = Dataset("image_folder", ("a",), {"train": split}, "")
    workdir = tmp_path / name
    workdir.mkdir()
    train._store_template(config, dataset, workdir)
    template, is_grey = face_crops.load_template(workdir)
    expected = face_crops.template_of(images)
    if images is grey:
      assert template is expected is None
      assert is_grey
    else:
      np.testing.assert_allclose(template, expected, atol=1e-4)
      assert not is_grey


def test_photos_that_are_not_cropped_are_aligned_for_training(drawn, tmp_path):
  root = tmp_path / "photos"
  angles = (-25, 20, 10, -15)
  for split in ("train", "test"):
    for name, shift in (("a", 0), ("b", 4)):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i, angle in enumerate(angles):
        photo, _ = paste(drawn[(i + shift) % 8 :][:1], (angle,))
        photo.save(folder / f"{i}.png")
  Image.new("RGB", (300, 200)).save(root / "test" / "b" / "nobody.png")

  def load(**data):
    fields = {"name": "image_folder", "dir": str(root), "image_size": 96}
    cache = str(tmp_path / "cache")
    return sources.load(
      tiny.get_resolved(cache_dir=cache, **fields | data).data
    )

  dataset = load(align="face")
  assert dataset.warnings == (
    "image_folder: no face is found in 1 of 9 images of test, which are used"
    " whole",
  )
  for image in dataset.splits["test"].images[:4]:
    (face,) = faces.detect(Image.fromarray(image))
    apart = face.landmarks / 96 - face_crops.FALLBACK
    assert np.linalg.norm(apart, axis=1).mean() < 0.06
  # A photo for prediction is cut out in the same way, by the same code.
  photo = Image.open(root / "test" / "a" / "0.png")
  (face,) = faces.detect(photo)
  np.testing.assert_array_equal(
    dataset.splits["test"].images[0],
    face_crops.align(
      np.asarray(photo), face.landmarks, face_crops.FALLBACK, 96
    ),
  )
  whole = load(align="none")
  assert not whole.warnings
  assert (whole.splits["test"].images != dataset.splits["test"].images).any()


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
