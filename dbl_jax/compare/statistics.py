"""Results of finished runs, and statistics over systems and seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dbl_jax.evaluation import metrics, plots
from dbl_jax.evaluation.predictions import Predictions

STRENGTHS = np.arange(31) / 20  # of logit adjustment, along its curve


class RunResult(NamedTuple):
  """One system trained with one seed. Made by `run_result`.

  It leaves out the scores, since those of all runs may exceed the memory.

  Attributes:
    system: name of its config, such as 'dbl'.
    seed: training seed.
    class_names: C names in the order of the labels.
    train_counts: int[C], training images of each class.
    labels: int32[n], true classes of the test images.
    guesses: int[n], predicted classes; the first of equal scores wins.
    top5: top-5 accuracy.
    calibration_error: see `metrics.expected_calibration_error`; NaN without
      probabilities.
    frontier: see `logit_adjustment_frontier` for `STRENGTHS`, or None.
    seconds: training time of its phases; None if unknown.
    fingerprint: of the images it was trained and tested on; '' if unknown.
    hardware: descriptions of the machines it was trained on.
  """

  system: str
  seed: int
  class_names: tuple[str, ...]
  train_counts: np.ndarray
  labels: np.ndarray
  guesses: np.ndarray
  top5: float
  calibration_error: float
  frontier: np.ndarray | None
  seconds: float | None = None
  fingerprint: str = ""
  hardware: tuple[str, ...] = ()


def run_result(
  system: str, seed: int, run: Predictions, frontier: bool = True, **about: Any
) -> RunResult:
  """Computes the result of a run from its scores.

  `frontier` adds the curve of logit adjustment, which takes as long as 31
  evaluations; `about` has other fields of `RunResult`.
  """
  curve, error = None, math.nan
  if run.calibrated:
    error = metrics.expected_calibration_error(run.labels, run.scores)
  if run.calibrated and frontier:
    curve = logit_adjustment_frontier(
      run.labels, run.scores, run.train_counts, STRENGTHS
    )
  return RunResult(
    system,
    seed,
    run.class_names,
    run.train_counts,
    run.labels,
    np.argmax(run.scores, axis=1),
    metrics.top_k_accuracy(run.scores, run.labels),
    error,
    curve,
    **about,
  )


class Gain(NamedTuple):
  """A difference of accuracies (fractions), its 95% interval, two-sided p."""

  difference: float
  lower: float
  upper: float
  p: float


def mean_std(values: Sequence[float | None]) -> tuple[float, float]:
  """Mean and sample standard deviation (divisor s - 1) of s known values.

  Unknown values, None and NaN, are left out. The mean of an empty sequence is
  NaN, and so is the deviation of fewer than two values.
  """
  known = np.array(values, np.float64)
  known = known[~np.isnan(known)]
  return (
    float(known.mean()) if known.size else math.nan,
    float(known.std(ddof=1)) if known.size > 1 else math.nan,
  )


def default_cuts(train_counts: ArrayLike) -> tuple[int, int]:
  """(many, few) for `metrics.tiers`: the mean class size, and a third of it.

  For more than `plots.MAX_CLASSES` classes they are 100 and 20, as in the
  literature; in RAF-DB every class has more images.
  """
  if np.size(train_counts) > plots.MAX_CLASSES:
    return 100, 20
  share = float(np.asarray(train_counts).mean())
  return math.floor(share), math.ceil(share / 3)


def paired_bootstrap(
  labels: ArrayLike,
  a: Mapping[int, ArrayLike],
  b: Mapping[int, ArrayLike],
  draws: int = 10_000,
) -> tuple[Gain, Gain]:
  """Percentile bootstrap of the difference in accuracy of systems a and b.

  A draw resamples images within each class, the same for both systems and all
  seeds, and training seeds; a seed of both systems is drawn for both at once.
  Deviations due to s drawn seeds are multiplied by sqrt(s/(s - 1)), since s
  resampled seeds have (s - 1)/s of the variance. With one seed of a system the
  interval covers the sampling of images only.

  Args:
    labels: int[n], true classes; n > 0.
    a: training seed -> predictions int[n].
    b: training seed -> predictions int[n].
    draws: number of bootstrap samples.

  Returns:
    a - b in mean-class and in overall accuracy, each averaged over seeds. p is
    twice the smaller share of draws at or beyond 0, with one draw added, and
    at most 1.
  """
  rng = np.random.default_rng(0)
  labels = np.asarray(labels)
  correct = np.stack([*a.values(), *b.values()], axis=1) == labels[:, None]
  weights = _seed_weights(rng, [*a], [*b], draws)
  observed = np.repeat((1 / len(a), -1 / len(b)), (len(a), len(b)))
  classes = _by_class(labels)
  totals = np.zeros((2, draws + 1))
  for members in classes:
    # Images with the same outcome in every run are interchangeable.
    patterns, count = np.unique(correct[members], axis=0, return_counts=True)
    n = count.sum()
    drawn = rng.multinomial(n, count / n, size=draws)
    hits = drawn.astype(np.float64) @ patterns
    gain = np.append(
      np.sum(hits * weights, axis=1), count @ patterns @ observed
    )
    totals += gain / np.array([[n * len(classes)], [labels.size]])
  return _gain(totals[0]), _gain(totals[1])


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts p for the number of comparisons; NaN is left out.

  Source: Holm, "A simple sequentially rejective multiple test procedure",
  Scandinavian Journal of Statistics 6, 1979.
  """
  known = sorted((p, i) for i, p in enumerate(p_values) if p == p)
  adjusted, largest = list(p_values), 0.0
  for rank, (p, i) in enumerate(known):
    largest = max(largest, min(1.0, (len(known) - rank) * p))
    adjusted[i] = largest
  return adjusted


def logit_adjustment_frontier(
  labels: ArrayLike,
  scores: ArrayLike,
  train_counts: ArrayLike,
  strengths: ArrayLike,
) -> np.ndarray:
  """Accuracies of a trained classifier under scores - strength * log(prior).

  Args:
    labels: int[n], true classes.
    scores: f32[n, C], logits.
    train_counts: int[C]; 0 counts as 1.
    strengths: f64[k]; 0 leaves the classifier unchanged, 1 balances it.

  Returns:
    f64[2, k]: overall and mean-class accuracy.

  Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021,
  eq. (9).
  """
  labels, scores = np.asarray(labels), np.asarray(scores)
  counts = np.maximum(np.asarray(train_counts, np.float64), 1)
  shifts = np.multiply.outer(strengths, np.log(counts / counts.sum()))

  def hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores = scores.astype(np.float64)
    found = [(scores - shift).argmax(axis=1) == labels for shift in shifts]
    return np.stack(found, axis=1)

  correct = metrics.in_blocks(hits, scores, labels)
  rows = [correct[members].mean(axis=0) for members in _by_class(labels)]
  return np.stack([correct.mean(axis=0), np.mean(rows, axis=0)])


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
  """Sorted indices of the images of each class that occurs."""
  order = np.argsort(labels, kind="stable")
  _, first = np.unique(labels[order], return_index=True)
  return np.split(order, first[1:])


def _seed_weights(
  rng: np.random.Generator, a: list[int], b: list[int], draws: int
) -> np.ndarray:
  """f64[draws, s + t]: weights of a's drawn seeds, and minus those of b's."""
  every = np.unique([*a, *b])
  columns = [np.searchsorted(every, seeds) for seeds in (a, b)]
  equal = np.full(every.size, 1 / every.size)
  drawn = rng.multinomial(every.size, equal, size=draws)
  # A draw needs a seed of each system.
  while True:
    empty = np.any([drawn[:, c].sum(axis=1) == 0 for c in columns], axis=0)
    if not empty.any():
      break
    drawn[empty] = rng.multinomial(every.size, equal, size=empty.sum())
  weights = []
  for column, sign in zip(columns, (1, -1), strict=True):
    of_seeds, size = drawn[:, column], len(column)
    deviation = of_seeds / of_seeds.sum(axis=1, keepdims=True) - 1 / size
    inflation = math.sqrt(size / max(size - 1, 1))
    weights.append(sign * (1 / size + inflation * deviation))
  return np.concatenate(weights, axis=1)


def _gain(values: np.ndarray) -> Gain:
  """Summarises draws, the last of which is the observed difference."""
  # Rounding errors must not make equal accuracies differ.
  values = np.round(values, 12)
  drawn = values[:-1]
  lower, upper = np.quantile(drawn, (0.025, 0.975))
  beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
  p = min(1.0, 2 * (1 + beyond) / (1 + drawn.size))
  return Gain(float(values[-1]), float(lower), float(upper), float(p))
