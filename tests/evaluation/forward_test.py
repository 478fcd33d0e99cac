"""Evaluation: every image counts once, and metrics are of the scores."""

import jax
import numpy as np
import pytest

from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.evaluation.forward import evaluate, make_forward
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.runtime import distributed

LINEAR = {"params": {"head": {"logits": {}}}}

pytestmark = pytest.mark.usefixtures("debug_nans")


def mean_colour(variables, images):
  del variables
  features = images.astype(np.float32).mean(axis=(1, 2))
  return features, features[:, :2]


@pytest.fixture
def forward():
  return make_forward(jax.jit(mean_colour), {}, distributed.make_mesh())


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
