"""Losses on distances against their papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import assert_gradient, make_inputs, rows, run, slopes

from dbl_jax.losses import metric_learning as losses

pytestmark = pytest.mark.usefixtures("debug_nans")

LABELS = np.array([0, 1, 0, 2, 0, 1])  # class 3 is absent, 2 has one image
COUNTS = np.array([30.0, 10, 5, 2])
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 2, 3))
CENTERS = RNG.normal(size=(4, 3))


def batch(features=FEATURES, labels=LABELS):
  outputs = np.zeros((*features.shape[:2], 4))
  return make_inputs(outputs, labels, counts=COUNTS, features=features)


def literal_center(features, centers):
  """Wen et al. 2016, eq. (2), over the number of rows."""
  views = rows(features, LABELS)
  return sum(np.linalg.norm(x - centers[y]) ** 2 / 2 for x, y in views) / len(
    views
  )


def literal_moves(features, centers, rate):
  """Wen et al. 2016, eq. (4) and line 6 of algorithm 1."""
  moved = centers.copy()
  for j in range(len(centers)):
    own = [x for x, y in rows(features, LABELS) if y == j]
    total = sum((centers[j] - x for x in own), np.zeros(3))
    moved[j] = centers[j] - rate * total / (1 + len(own))
  return moved


def literal_means(features, labels, k):
  """Of each row, the mean of its nearest of the same class, or None."""
  views, means = rows(features, labels), []
  for i, (x, label) in enumerate(views):
    peers = [z for j, (z, y) in enumerate(views) if y == label and j != i]
    peers.sort(key=lambda z: np.linalg.norm(x - z))
    means.append(np.mean(peers[:k], axis=0) if peers else None)
  return means


def literal_locality(features, labels, means):
  """Li and Deng 2019, eq. (4), the means given, over the number of rows."""
  terms = [
    0 if mean is None else np.linalg.norm(x - mean) ** 2 / 2
    for (x, _), mean in zip(rows(features, labels), means, strict=True)
  ]
  return np.mean(terms)


def test_center_and_its_gradient_equal_the_paper():
  def loss(given):
    return losses.center(given, jnp.asarray(CENTERS, jnp.float32))

  def expected(features):
    return literal_center(features, CENTERS)

  value, _, gradients = run(loss, batch())
  np.testing.assert_allclose(value, expected(FEATURES), rtol=1e-5)
  assert_gradient(gradients["features"], slopes(expected, FEATURES))


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_centers_move_as_the_paper_says(rate):
  moved = jax.jit(losses.move_centers)(
    batch(), jnp.asarray(CENTERS, jnp.float32), rate=rate
  )
  expected = literal_moves(FEATURES, CENTERS, rate)
  np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(moved[3], np.float32(CENTERS[3]))  # absent


def test_centers_start_from_the_first_rows_of_their_class():
  start = jnp.zeros((4, 3))
  value, _ = losses.center(batch(), start)
  assert value == 0  # without a centre, a row is not pulled towards zero
  centers = losses.move_centers(batch(), start)
  np.testing.assert_array_equal(centers[3], 0)  # absent
  for j in range(3):
    mean = FEATURES[np.equal(LABELS, j)].mean(axis=(0, 1))
    np.testing.assert_allclose(centers[j], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("views", "k"), [(1, 20), (2, 1), (2, 3), (2, 20)])
def test_locality_and_its_gradient_take_the_neighbours_as_given(k, views):
  features = FEATURES[:, :views]
  means = literal_means(features, LABELS, k)
  # With one view the only image of class 2 has no neighbour.
  assert sum(mean is None for mean in means) == (views == 1)

  def expected(values):
    return literal_locality(values, LABELS, means)

  value, _, gradients = run(
    losses.locality_preserving, batch(features), neighbours=k
  )
  np.testing.assert_allclose(value, expected(features), rtol=1e-5)
  assert_gradient(gradients["features"], slopes(expected, features))


def test_locality_of_twins_far_from_the_origin_is_nothing():
  features = np.repeat(RNG.normal(size=(6, 1, 8)) + 5, 2, axis=1)
  value, _, gradients = run(
    losses.locality_preserving, batch(features), neighbours=1
  )
  np.testing.assert_allclose(value, 0, atol=1e-10)
  np.testing.assert_allclose(gradients["features"], 0, atol=1e-5)


def test_locality_of_a_row_alone_is_nothing():
  value, _, gradients = run(
    losses.locality_preserving, batch(FEATURES[:1, :1], [2])
  )
  assert value == 0
  np.testing.assert_array_equal(gradients["features"], 0)
