"""Evaluation: every image counts once, and the probe votes as it should."""

import jax
import numpy as np
import pytest

from dbl_jax import evaluate, sharding
from dbl_jax.data.prepared import Part


def mean_colour(variables, images):
  del variables
  features = images.astype(np.float32).mean(axis=(1, 2))
  return features, features[:, :2]


@pytest.fixture
def forward():
  return evaluate.make_forward(jax.jit(mean_colour), {}, sharding.make_mesh())


@pytest.mark.parametrize("n", [1, 7, 256, 300])
def test_every_image_counts_once_in_order(forward, n):
  images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), np.uint8)
  features, outputs = forward(images)
  np.testing.assert_allclose(features, images.mean(axis=(1, 2)), rtol=1e-5)
  assert outputs.shape == (n, 2)


def literal_knn(bank, labels, features, k, temperature, num_classes):
  scores = np.zeros((len(features), num_classes))
  for i, feature in enumerate(features):
    similar = [
      feature @ other / np.linalg.norm(feature) / np.linalg.norm(other)
      for other in bank
    ]
    for j in np.argsort(similar)[::-1][:k]:
      scores[i, labels[j]] += np.exp(similar[j] / temperature)
  return scores


def test_knn_votes_as_written(forward):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
  train = Part(images[:20], rng.integers(0, 3, 20).astype(np.int32))
  scores = evaluate.knn_scores(
    forward, train, images[20:], 3, neighbours=5, temperature=0.1
  )
  colours = images.mean(axis=(1, 2))
  expected = literal_knn(colours[:20], train.labels, colours[20:], 5, 0.1, 3)
  np.testing.assert_allclose(scores, expected, rtol=1e-3)


def test_knn_of_a_small_bank_takes_all_of_it(forward):
  images = np.full((2, 4, 4, 3), 9, np.uint8)
  train = Part(images, np.array([0, 1], np.int32))
  scores = evaluate.knn_scores(forward, train, images[:1], 2)
  np.testing.assert_allclose(scores[0, 0], scores[0, 1], rtol=1e-5)


def test_evaluate_gives_the_metrics_of_the_scores(forward):
  # Red wins where red is brighter than green: classes 0 and 1 of the head.
  images = np.zeros((4, 4, 4, 3), np.uint8)
  images[:3, :, :, 0] = 200
  images[3, :, :, 1] = 200
  part = Part(images, np.array([0, 0, 1, 1], np.int32))
  result = evaluate.evaluate("head", forward, part, part, ("red", "green"))
  assert result["confusion_matrix"] == [[2, 0], [1, 1]]
  assert result["overall_accuracy"] == 0.75
  assert result["mean_class_accuracy"] == 0.75
