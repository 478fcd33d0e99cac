"""Tiers, calibration, bootstrap and frontier against slow transcriptions."""

import math

import numpy as np
import pytest

from dbl_jax.compare import statistics
from dbl_jax.evaluation import metrics

NAN = math.nan


def _labels(*counts):
  return np.repeat(np.arange(len(counts)), counts)


def _mean_class(labels, guesses):
  return np.mean([np.mean(guesses[labels == c] == c) for c in set(labels)])


def _bootstrap(labels, a, b, draws=10_000):
  """Of predictions [n] or [seeds, n], for seeds 0, 1, ..."""
  runs = (dict(enumerate(np.atleast_2d(one))) for one in (a, b))
  return statistics.paired_bootstrap(labels, *runs, draws)


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([0.1, 0.2, 0.6], (0.3, 0.07**0.5)),
    ([0.5], (0.5, NAN)),
    ([None, 0.5, NAN], (0.5, NAN)),
    ([None], (NAN, NAN)),
  ],
)
def test_mean_and_sample_deviation(values, expected):
  found = statistics.mean_std(values)
  assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
  ("counts", "expected"),
  [
    ([1290, 281, 717, 4772, 1982, 705, 2524], (1753, 585)),  # RAF-DB
    ([30, 30, 30], (30, 10)),
    ([30] * 100, (100, 20)),
  ],
)
def test_default_cuts(counts, expected):
  assert statistics.default_cuts(counts) == expected


@pytest.mark.parametrize("bins", [1, 2, 15])
def test_calibration_error_against_a_literal_loop(bins):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 4, 300)
  scores = rng.normal(0, 2, (300, 4)).astype(np.float32)
  shares = np.exp(scores.astype(float))
  shares /= shares.sum(axis=1, keepdims=True)
  expected = 0.0
  for m in range(1, bins + 1):
    member = [
      i for i in range(300) if (m - 1) / bins < max(shares[i]) <= m / bins
    ]
    if member:
      accuracy = np.mean([shares[i].argmax() == labels[i] for i in member])
      confidence = np.mean([max(shares[i]) for i in member])
      expected += len(member) / 300 * abs(accuracy - confidence)
  found = metrics.expected_calibration_error(labels, scores, bins)
  assert found == pytest.approx(expected, abs=1e-12)
  assert expected > 0.05


def test_bootstrap_against_a_literal_loop_over_images_and_seeds():
  labels = _labels(40, 25, 8)
  rng = np.random.default_rng(1)
  # Images are hard or easy for both, which is what pairing is for.
  hard = rng.random(73)
  a, b = (
    np.where(0.9 * hard + 0.1 * rng.random((3, 73)) < share, labels, wrong)
    for share, wrong in ((0.8, (labels + 1) % 3), (0.6, (labels + 2) % 3))
  )

  def run_gain(metric, image):
    truth = labels[image]
    return np.array(
      [
        metric(truth, a[s, image]) - metric(truth, b[s, image])
        for s in range(3)
      ]
    )

  def scaled(gains, seeds):
    return gains.mean() + (3 / 2) ** 0.5 * (gains[seeds].mean() - gains.mean())

  rows = []
  for _ in range(2000):
    image = np.concatenate(
      [
        rng.choice(np.flatnonzero(labels == c), (labels == c).sum())
        for c in range(3)
      ]
    )
    seeds = rng.integers(0, 3, 3)
    both = _mean_class, lambda truth, guesses: np.mean(guesses == truth)
    gains = [run_gain(metric, image) for metric in both]
    rows.append([scaled(gain, seeds) for gain in gains])
  expected = np.quantile(rows, (0.025, 0.975), axis=0).T
  found = _bootstrap(labels, a, b)
  for one, limits in zip(found, expected, strict=True):
    np.testing.assert_allclose((one.lower, one.upper), limits, atol=0.012)


def test_holm_adjusts_for_the_number_of_comparisons():
  for p, adjusted in (
    ([0.04, NAN, 0.01, 0.03], [0.06, NAN, 0.03, 0.06]),
    ([0.9, 0.8], [1, 1]),
    ([NAN], [NAN]),
  ):
    assert statistics.holm(p) == pytest.approx(adjusted, nan_ok=True)


def test_a_common_seed_is_drawn_for_both_systems_at_once():
  # a beats b by 2 images in each seed, while seeds differ by hundreds.
  labels = _labels(500)
  right = np.array([100, 300, 450])
  a, b = (
    np.stack([np.where(np.arange(500) < k, 0, 1) for k in right + more])
    for more in (2, 0)
  )

  def gain(b, b_seeds):
    runs = (
      dict(zip([4, 6, 9], a, strict=True)),
      dict(zip(b_seeds, b, strict=True)),
    )
    return statistics.paired_bootstrap(labels, *runs)[1]

  paired, apart = gain(b, [4, 6, 9]), gain(b, [3, 5, 7])
  assert paired.difference == apart.difference == pytest.approx(2 / 500)
  assert paired.upper - paired.lower < 0.02
  assert apart.upper - apart.lower > 0.5
  # Pairs are found by number, not by place.
  assert gain(a[::-1], [9, 6, 4]) == (0, 0, 0, 1)


def test_extreme_cases_and_a_class_without_images():
  labels = np.array([0] * 30 + [2] * 20)
  found = _bootstrap(labels, labels, labels + 1, 999)
  assert found == _bootstrap(labels, labels, labels + 1, 999)
  assert found[0] == (1, 1, 1, pytest.approx(2 / 1000))
  for one in _bootstrap(labels, labels, labels, 999):
    assert one == (0, 0, 0, 1)
  found = _bootstrap(labels, np.where(labels == 2, 1, 0), labels, 100)
  assert found[0].difference == -0.5


def test_frontier_against_a_literal_loop():
  rng = np.random.default_rng(2)
  labels = _labels(60, 20, 5)
  counts = np.array([600, 200, 50])
  scores = rng.normal(0, 1, (85, 3)) + np.eye(3)[labels] + np.log(counts)
  strengths = (0, 0.5, 1, 2)
  overall, mean_class = statistics.logit_adjustment_frontier(
    labels, scores, counts, strengths
  )
  for k, strength in enumerate(strengths):
    guesses = np.zeros(85, int)
    for i, row in enumerate(scores):
      adjusted = [
        row[c] - strength * math.log(counts[c] / sum(counts)) for c in range(3)
      ]
      guesses[i] = adjusted.index(max(adjusted))
    assert overall[k] == pytest.approx(np.mean(guesses == labels))
    assert mean_class[k] == pytest.approx(_mean_class(labels, guesses))
  assert mean_class[2] > mean_class[0] + 0.1


def test_frontier_bears_classes_without_training_or_test_images():
  overall, mean_class = statistics.logit_adjustment_frontier(
    [0, 0, 1], np.eye(3)[[0, 0, 1]] * 9, [50, 50, 0], [0.0, 1.0]
  )
  np.testing.assert_allclose(mean_class, 1)
  np.testing.assert_allclose(overall, 1)
