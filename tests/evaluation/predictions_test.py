"""Predictions: every image counts once; files are whole or refused."""

import jax
import numpy as np
import pytest

from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions, predictors
from dbl_jax.evaluation.predictions import Predictions, evaluate
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.runtime import distributed

pytestmark = pytest.mark.usefixtures("debug_nans")

LINEAR = {"params": {"head": {"logits": {}}}}

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
  names = np.array(SOME.class_names, object)  # not pickled
  some = SOME._replace(calibrated=calibrated, class_names=names)
  predictions.save(path, some)
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


def mean_colour(variables, images):
  del variables
  features = images.astype(np.float32).mean(axis=(1, 2))
  return features, features[:, :2]


@pytest.fixture
def forward():
  return predictions.make_forward(
    jax.jit(mean_colour), {}, distributed.make_mesh()
  )


@pytest.mark.parametrize("n", [1, 7, 256, 300])
def test_every_image_counts_once_in_order(forward, n):
  images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), np.uint8)
  features, outputs = forward(images)
  np.testing.assert_allclose(features, images.mean(axis=(1, 2)), rtol=1e-5)
  assert outputs.shape == (n, 2)


def classify(predictor, known, part, names):
  fitted = predictors.fit(predictor, known)
  return evaluate(fitted, known.forward(part.images), part.labels, names)


def test_evaluate_gives_the_scores_and_their_metrics(forward):
  # Red wins where red is brighter than green: classes 0 and 1 of the head.
  images = np.zeros((4, 4, 4, 3), np.uint8)
  images[:3, :, :, 0] = 200
  images[3, :, :, 1] = 200
  part = Split(images, np.array([0, 0, 1, 1], np.int32))
  known = FitContext(forward, LINEAR, {"train": part, "validation": part}, 2)
  result, scores = classify("head", known, part, ("red", "green"))
  np.testing.assert_allclose(scores, [[200, 0]] * 3 + [[0, 200]], rtol=1e-5)
  assert result["confusion_matrix"] == [[2, 0], [1, 1]]
  assert result["overall_accuracy"] == 0.75
  assert result["mean_class_accuracy"] == 0.75
  assert result["predictor"] == "head"
  assert result["chosen"] is None


def test_scores_that_are_no_numbers_are_not_the_first_class():
  fitted = predictors.FittedPredictor(lambda features, outputs: outputs)
  scores = np.array([[1, 0], [np.nan, 0], [-np.inf, 0]], np.float32)
  with pytest.raises(UserError, match=r"NaN\) for 1 of 3 images"):
    evaluate(fitted, (scores, scores), np.array([0, 0, 1]), ("red", "green"))
  result, _ = evaluate(
    fitted, (scores, scores[[0, 2]]), np.array([0, 1]), ("red", "green")
  )
  assert result["overall_accuracy"] == 1


def test_evaluate_says_what_was_chosen_on_validation(forward):
  # The head calls every image red; as the training part is nearly all red,
  # less of the prior makes the dim ones green.
  images = np.zeros((2, 4, 4, 3), np.uint8)
  images[0, :, :, 0] = 3
  images[1, :, :, 0] = 1
  part = Split(images, np.array([0, 1], np.int32))
  train = Split(images[[0] * 9 + [1]], np.array([0] * 9 + [1], np.int32))
  known = FitContext(forward, LINEAR, {"train": train, "validation": part}, 2)
  names = ("red", "green")
  result, scores = classify("logit_adjusted", known, part, names)
  # The least multiple of log 9 that is more than 1.
  assert result["chosen"] == pytest.approx(0.5)
  assert result["mean_class_accuracy"] == 1
  assert scores.argmax(axis=1).tolist() == [0, 1]
