import itertools

import numpy as np
import pytest

from dbl_jax.data.synthetic import synthetic_faces
from dbl_jax.errors import UserError

NUM_CLASSES = len(synthetic_faces.CLASS_NAMES)


@pytest.fixture(scope="module")
def balanced():
  """150 faces of each class at 32 px, as grey float images."""
  labels = np.arange(150 * NUM_CLASSES) % NUM_CLASSES
  images = synthetic_faces.render(labels, seed=3, image_size=32)
  return images.astype(np.float32).mean(-1), labels


@pytest.mark.parametrize("size", [32, 48, 63, 100])
def test_images_are_rgb_of_the_size_asked_for(size):
  images = synthetic_faces.render(np.arange(3), seed=0, image_size=size)
  assert images.shape == (3, size, size, 3)
  assert images.dtype == np.uint8
  assert images.std(axis=(1, 2, 3)).min() > 8


def test_face_depends_on_its_index_not_on_the_range_asked_for():
  labels = np.arange(40) % NUM_CLASSES
  whole = synthetic_faces.render(labels, seed=5, image_size=32)
  part = synthetic_faces.render(labels[10:35], 5, 32, start=10)
  single = synthetic_faces.render(labels[17:18], 5, 32, start=17)
  np.testing.assert_array_equal(part, whole[10:35])
  np.testing.assert_array_equal(single, whole[17:18])


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
  labels = np.arange(50) % NUM_CLASSES
  many = synthetic_faces.render(labels, seed=5, image_size=32)
  monkeypatch.setattr("os.cpu_count", lambda: 1)
  one = synthetic_faces.render(labels, seed=5, image_size=32)
  np.testing.assert_array_equal(many, one)


def test_label_changes_the_expression_and_keeps_the_person():
  sad, happy, other = (
    synthetic_faces.render(np.full(32, label), seed, 32).astype(np.float32)
    for label, seed in ((4, 1), (3, 1), (4, 2))
  )
  same_person = np.abs(sad - happy).mean()
  assert 1 < same_person < 0.5 * np.abs(sad - other).mean()


def test_seeds_and_streams_give_other_faces():
  labels = np.zeros(20, int)
  faces = [
    synthetic_faces.render(labels, seed, 32, stream=stream)
    for seed, stream in ((0, 0), (1, 0), (0, 1), (1, 1))
  ]
  everyone = np.concatenate(faces).reshape(80, -1)
  assert len(np.unique(everyone, axis=0)) == 80


def test_split_is_reproducible_long_tailed_and_shuffled():
  images, labels = synthetic_faces.make_split("train", 300, 32, seed=0)
  again, same = synthetic_faces.make_split("train", 300, 32, seed=0)
  np.testing.assert_array_equal(images, again)
  np.testing.assert_array_equal(labels, same)
  assert labels.dtype == np.int32
  profile = synthetic_faces.RAF_DB_TRAIN_COUNTS
  np.testing.assert_array_equal(
    np.bincount(labels), synthetic_faces.long_tailed_counts(300, profile)
  )
  assert np.count_nonzero(np.diff(labels)) > 100


def test_train_and_test_share_no_face_and_other_seeds_differ():
  train, _ = synthetic_faces.make_split("train", 200, 32, seed=0)
  test, _ = synthetic_faces.make_split("test", 200, 32, seed=0)
  other, _ = synthetic_faces.make_split("train", 200, 32, seed=1)
  everyone = np.concatenate([train, test, other]).reshape(600, -1)
  assert len(np.unique(everyone, axis=0)) == 600


def test_unknown_split_is_named_in_the_error():
  with pytest.raises(UserError, match="'validation'"):
    synthetic_faces.make_split("validation", 100, 32, seed=0)


@pytest.mark.parametrize("n", [7, 8, 50, 1000, 12271])
def test_long_tailed_counts_sum_to_n_and_cover_every_class(n):
  profile = synthetic_faces.RAF_DB_TRAIN_COUNTS
  counts = synthetic_faces.long_tailed_counts(n, profile)
  assert counts.sum() == n
  assert counts.min() >= 1


def test_long_tailed_counts_keep_the_proportions():
  profile = synthetic_faces.RAF_DB_TRAIN_COUNTS
  counts = synthetic_faces.long_tailed_counts
  np.testing.assert_array_equal(counts(12271, profile), profile)
  expected = np.array(profile) / sum(profile) * 5000
  assert np.abs(counts(5000, profile) - expected).max() < 1
  np.testing.assert_array_equal(counts(10, (1, 1, 1)), (4, 3, 3))
  with pytest.raises(UserError, match="at least 7"):
    counts(6, profile)


def test_every_pair_of_classes_looks_different_on_the_same_people():
  means = []
  for label in range(NUM_CLASSES):
    images = synthetic_faces.render(np.full(64, label), seed=8, image_size=32)
    means.append(images.astype(np.float32).mean(axis=(0, 3)))
  for first, second in itertools.combinations(means, 2):
    assert np.abs(first - second).max() > 10  # grey levels of 255


def test_classes_can_be_told_apart_by_a_linear_rule(balanced):
  images, labels = balanced
  flat = images.reshape(len(images), -1)
  flat = flat - flat.mean(1, keepdims=True)
  flat /= flat.std(1, keepdims=True)
  targets = np.eye(NUM_CLASSES)[labels] - 1 / NUM_CLASSES
  train, test = slice(0, 840), slice(840, None)
  gram = flat[train] @ flat[train].T + 3000 * np.eye(840)
  weights = flat[train].T @ np.linalg.solve(gram, targets[train])
  accuracy = np.mean((flat[test] @ weights).argmax(1) == labels[test])
  assert 0.3 < accuracy < 0.95
