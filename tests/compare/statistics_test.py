"""Tiers, calibration, bootstrap and frontier against slow transcriptions."""

import math

import numpy as np
import pytest

from dbl_jax.compare import statistics

NAN = math.nan


def _labels(*counts):
  return np.repeat(np.arange(len(counts)), counts)


def _first_right(labels, *hits):
  """Predictions with the first hits[c] images of class c right."""
  guesses = (labels + 1) % (labels.max() + 1)
  for c, hit in enumerate(hits):
    guesses[np.flatnonzero(labels == c)[:hit]] = c
  return guesses


def _overall(labels, guesses):
  return np.mean(guesses == labels)


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
  found = statistics.expected_calibration_error(labels, scores, bins)
  assert found == pytest.approx(expected, abs=1e-12)
  assert expected > 0.05


def test_calibration_error_of_known_cases():
  sure = np.eye(3)[[0, 1, 2]] * 1000
  assert statistics.expected_calibration_error([0, 1, 2], sure) == 0
  assert statistics.expected_calibration_error([1, 2, 0], sure) == 1
  # Ties: a fair coin that is right half of the time is calibrated.
  coin = np.zeros((4, 2))
  assert statistics.expected_calibration_error([0, 0, 1, 1], coin) == 0
  # A gap of +1/2 up to the edge of the bins does not offset one of -0.9.
  mixed = np.log([[5, 5], [5, 5], [9, 1], [9, 1]])
  found = statistics.expected_calibration_error([0, 0, 1, 1], mixed, bins=2)
  assert found == pytest.approx((0.5 + 0.9) / 2)
  assert math.isnan(statistics.expected_calibration_error([], np.zeros((0, 2))))


def test_bootstrap_reports_the_observed_differences():
  labels = _labels(10, 5)
  a, b = _first_right(labels, 8, 2), _first_right(labels, 9, 1)
  mean_class, overall = _bootstrap(labels, a, b, 200)
  assert mean_class.difference == pytest.approx((-0.1 + 0.2) / 2)
  assert overall.difference == pytest.approx(0)
  mean_class, _ = _bootstrap(labels, [a, b], [b], 200)
  assert mean_class.difference == pytest.approx(0.025)


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
    gains = [run_gain(metric, image) for metric in (_mean_class, _overall)]
    rows.append([scaled(gain, seeds) for gain in gains])
  expected = np.quantile(rows, (0.025, 0.975), axis=0).T
  found = _bootstrap(labels, a, b)
  for one, limits in zip(found, expected, strict=True):
    np.testing.assert_allclose((one.lower, one.upper), limits, atol=0.012)


def test_interval_is_that_of_paired_proportions():
  # Of 400 and 100 images a alone has 40 and 12 right, b alone 20 and 4.
  labels = _labels(400, 100)
  a, b = np.array(labels), np.array(labels)
  a[:20] = b[20:60] = 1
  a[400:404] = b[404:416] = 0
  found = _bootstrap(labels, a, b)
  gains, variances = [], []
  for more, less, n in ((40, 20, 400), (12, 4, 100)):
    gains.append((more - less) / n)
    variances.append(((more + less) / n - gains[-1] ** 2) / n)
  sd = math.sqrt(sum(variances)) / 2
  mean = sum(gains) / 2
  assert found[0].difference == pytest.approx(mean)
  assert found[0][1:3] == pytest.approx(
    (mean - 1.96 * sd, mean + 1.96 * sd), abs=0.003
  )
  z = mean / sd
  assert found[0].p == pytest.approx(math.erfc(z / 2**0.5), abs=0.004)


def test_the_seeds_part_has_the_variance_of_a_mean_over_seeds():
  # All images of a seed are right or wrong: nothing but seeds varies.
  labels = _labels(50)
  accuracies = np.array([0, 1, 1, 0, 1])
  runs = np.where(accuracies[:, None], labels, 1)
  gain, _ = _bootstrap(labels, runs, labels * np.ones((5, 1)))
  rng = np.random.default_rng(0)
  drawn = accuracies[rng.integers(0, 5, (10_000, 5))].mean(axis=1)
  limits = 0.6 + (5 / 4) ** 0.5 * (np.quantile(drawn, (0.025, 0.975)) - 0.6)
  assert gain[:3] == pytest.approx((0.6 - 1, *(limits - 1)))


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


def test_different_numbers_of_seeds_can_be_compared():
  labels = _labels(50, 10)
  a = np.stack([_first_right(labels, k, 5) for k in (40, 42, 44)])
  found = _bootstrap(labels, a, _first_right(labels, 30, 5), 500)
  assert found[1].difference == pytest.approx(12 / 60)
  assert found[1].lower > 0


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
