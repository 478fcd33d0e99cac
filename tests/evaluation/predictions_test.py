"""Files of scores: read back unchanged, refused if damaged or hostile."""

import numpy as np
import pytest

from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.evaluation.predictions import Predictions

RNG = np.random.default_rng(0)
SOME = Predictions(
  class_names=("sad", "glücklich"),
  train_counts=np.array([7, 3]),
  labels=RNG.integers(0, 2, 40).astype(np.int32),
  scores=RNG.normal(size=(40, 2)).astype(np.float32),
  validation_labels=RNG.integers(0, 2, 9).astype(np.int32),
  validation_scores=RNG.normal(size=(9, 2)).astype(np.float32),
  calibrated=True,
)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "run" / "scores.npz"


@pytest.mark.parametrize("calibrated", [True, False])
def test_saved_predictions_are_loaded(path, calibrated):
  predictions.save(path, SOME._replace(calibrated=calibrated))
  found = predictions.load(path)
  assert found.class_names == SOME.class_names
  assert found.calibrated is calibrated
  for name in set(Predictions._fields) - {"class_names", "calibrated"}:
    expected = getattr(SOME, name)
    np.testing.assert_array_equal(getattr(found, name), expected)
    assert getattr(found, name).dtype == expected.dtype


def test_saving_replaces_the_file_and_leaves_no_other(path):
  for labels in (SOME.labels, 1 - SOME.labels):
    predictions.save(path, SOME._replace(labels=labels))
  np.testing.assert_array_equal(predictions.load(path).labels, 1 - SOME.labels)
  assert list(path.parent.iterdir()) == [path]


def refuse(path, content):
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  with pytest.raises(UserError, match="run the same command again") as caught:
    predictions.load(path)
  assert str(path) in str(caught.value)


def test_a_missing_or_truncated_file_is_a_user_error(path):
  with pytest.raises(UserError, match="run the same command again"):
    predictions.load(path)
  predictions.save(path, SOME)
  whole = path.read_bytes()
  for length in range(0, len(whole), 53):
    refuse(path, whole[:length])


def test_a_damaged_file_is_a_user_error_or_unchanged(path):
  predictions.save(path, SOME)
  whole = path.read_bytes()
  for place in range(0, len(whole), 3):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    try:
      found = predictions.load(path)
    except UserError:
      continue  # any other error would fail the test
    for name in Predictions._fields:  # dates and the like do not matter
      expected = getattr(SOME, name)
      np.testing.assert_array_equal(getattr(found, name), expected)


def test_class_names_are_saved_without_pickle(path):
  names = np.array(SOME.class_names, object)
  predictions.save(path, SOME._replace(class_names=names))
  assert predictions.load(path).class_names == SOME.class_names
