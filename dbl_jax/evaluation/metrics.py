"""Metrics for imbalanced classes, computed from a confusion matrix.

Confusion matrices are sparse: one of C classes has at most as many cells as
there are images, while C x C numbers of 8,142 classes take 530 MB.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, special

from dbl_jax.errors import UserError

# int[C, C], dense or sparse; rows are the true classes.
Confusion: TypeAlias = Any
# With more classes, `summarise` lists the cells of the matrix.
MAX_DENSE = 1000
_BLOCK = 2**20  # numbers in a block; temporary arrays take 8 MB


def confusion_matrix(
  labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> sparse.csr_array:
  """Counts predictions of each class for images of each class.

  Args:
    labels: int[n], true classes, 0 to num_classes - 1.
    predictions: int[n], predicted classes, 0 to num_classes - 1.
    num_classes: C, the number of classes.

  Returns:
    Sparse int64[C, C]: entry [i, j] counts images of class i predicted as
    class j (rows are the truth, as in scikit-learn).

  Raises:
    ValueError: the arrays differ in length, are not vectors of integers, or
      hold a class out of range.
  """
  pair = np.asarray(labels), np.asarray(predictions)
  for name, values in zip(("labels", "predictions"), pair, strict=True):
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
      raise ValueError(
        f"{name} are {values.dtype}{list(values.shape)}; expected integers [n]"
      )
    if values.size and not 0 <= values.min() <= values.max() < num_classes:
      raise ValueError(
        f"{name} run from {values.min()} to {values.max()}; expected 0 to "
        f"{num_classes - 1}"
      )
  if pair[0].size != pair[1].size:
    raise ValueError(
      f"{pair[0].size} labels but {pair[1].size} predictions; expected one"
      " prediction for each label"
    )
  places = tuple(values.astype(np.int64) for values in pair)
  images = np.ones(pair[0].size, np.int64)
  # Repeated places are summed.
  return sparse.coo_array((images, places), (num_classes,) * 2).tocsr()


def summarise(
  confusion: Confusion, class_names: Sequence[str]
) -> dict[str, Any]:
  """Derives every reported metric from a confusion matrix.

  Mean-class accuracy ("average accuracy" in Fan et al. 2020, section 5.1) is
  the mean of recall over the classes that have images.

  Args:
    confusion: int[C, C], dense or sparse, rows are the truth.
    class_names: C different names, in index order.

  Returns:
    A dict that JSON can hold, all fractions in [0, 1]: `images`,
    `overall_accuracy` and `mean_class_accuracy` (None without images),
    `per_class` (name -> `recall`, None for a class that does not occur;
    `precision`, 0 for a class never predicted; `f1`, 0 where undefined;
    `count`, images of that class), `confusion_matrix` (list of lists) and
    `class_names`. With more than `MAX_DENSE` classes `confusion_matrix` is None
    and `confusion_cells` lists [true class, predicted class, images] of each
    cell that is not 0.

  Raises:
    UserError: two classes share a name.
    ValueError: the matrix is not [C, C] for C names.
  """
  confusion = sparse.csr_array(confusion, dtype=np.int64)
  names = [str(name) for name in class_names]
  if confusion.shape != (len(names), len(names)):
    raise ValueError(
      f"{len(names)} class names for a confusion matrix"
      f" {list(confusion.shape)}; expected a row and a column for each"
    )
  repeated = [name for name, n in Counter(names).items() if n > 1]
  if repeated:
    raise UserError(
      f"Duplicate class name {repeated[0]!r}. Rename one of the classes."
    )
  correct, count = correct_and_count(confusion)
  predicted, images = confusion.sum(axis=0), int(count.sum())
  recall = _ratio(correct, count)
  precision = _ratio(correct, predicted)
  f1 = _ratio(2 * correct, count + predicted)
  per_class = {
    name: {
      "recall": float(recall[i]) if count[i] else None,
      "precision": float(precision[i]),
      "f1": float(f1[i]),
      "count": int(count[i]),
    }
    for i, name in enumerate(names)
  }
  summary = {
    "images": images,
    "overall_accuracy": float(correct.sum() / images) if images else None,
    "mean_class_accuracy": float(recall[count > 0].mean()) if images else None,
    "per_class": per_class,
    "confusion_matrix": None,
    "class_names": names,
  }
  if len(names) <= MAX_DENSE:
    return summary | {"confusion_matrix": confusion.toarray().tolist()}
  cells = confusion.tocoo()
  rows = np.stack([cells.row, cells.col, cells.data], axis=1)
  return summary | {"confusion_cells": rows.tolist()}


def confusion_of(summary: Mapping[str, Any]) -> sparse.csr_array:
  """Returns the confusion matrix of a summary, or of a file metrics.json.

  The result is sparse int64[C, C].
  """
  if summary["confusion_matrix"] is not None:
    return sparse.csr_array(summary["confusion_matrix"], dtype=np.int64)
  shape = (len(summary["class_names"]),) * 2
  cells = np.array(summary["confusion_cells"], np.int64).reshape(-1, 3)
  true, predicted, images = cells.T
  return sparse.coo_array((images, (true, predicted)), shape).tocsr()


def correct_and_count(
  confusion: Confusion,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns int64[C] correct predictions and int64[C] images of each class."""
  confusion = sparse.csr_array(confusion, dtype=np.int64)
  return confusion.diagonal(), confusion.sum(axis=1)


def tiers(
  train_counts: ArrayLike, cuts: Sequence[int] = (100, 20)
) -> dict[str, np.ndarray]:
  """Groups classes by their number of training images.

  Args:
    train_counts: int[C], training images of each class.
    cuts: (many, few).

  Returns:
    bool[C] of 'many', classes with more than `many` images, 'medium', and
    'few', those with fewer than `few`.

  Source: Liu et al., "Large-scale long-tailed recognition in an open world",
  CVPR 2019, which cuts at 100 and 20.
  """
  many, few = cuts
  counts = np.asarray(train_counts)
  above, below = counts > many, counts < few
  return {"many": above, "medium": ~(above | below), "few": below & ~above}


def by_tier(
  confusion: Confusion, train_counts: ArrayLike
) -> dict[str, dict[str, Any]]:
  """Computes mean-class accuracy within each of the `tiers`.

  Args:
    confusion: int[C, C], dense or sparse, rows are the truth.
    train_counts: int[C], training images of each class.

  Returns:
    Tier -> `classes`, the number of its classes that occur in the truth;
    `accuracy`, the mean of their recall; and `interval`, see
    `mean_class_interval`. The latter two are None without classes.
  """
  correct, count = correct_and_count(confusion)
  found = {}
  for tier, inside in tiers(train_counts).items():
    found_in = inside & (count > 0)
    recall = correct[found_in] / count[found_in]
    found[tier] = {
      "classes": recall.size,
      "accuracy": float(recall.mean()) if recall.size else None,
      "interval": _mean_interval(correct[found_in], count[found_in]),
    }
  return found


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
  """Computes the share of images whose class is among the k highest scores.

  Among equal scores the first class ranks highest, as in argmax.

  Args:
    scores: f32[n, C], n at least 1.
    labels: int[n], true classes.
    k: number of classes.
  """

  def hits(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    true_score = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    ahead = (scores > true_score) | ((scores == true_score) & before)
    return ahead.sum(axis=1) < k

  return float(in_blocks(hits, scores, labels).mean())


def in_blocks(
  function: Callable[..., np.ndarray], *arrays: np.ndarray
) -> np.ndarray:
  """Applies a function of rows to blocks of them, which bounds its memory.

  Args:
    function: arrays [m, ...] -> array [m, ...], each row by itself.
    *arrays: [n, ...].

  Returns:
    The results, concatenated.
  """
  width = max(array[:1].size for array in arrays)
  size = max(_BLOCK // max(width, 1), 1)
  starts = range(0, max(len(arrays[0]), 1), size)
  return np.concatenate(
    [function(*(array[i : i + size] for array in arrays)) for i in starts]
  )


def wilson_interval(
  successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
  """Interval for a proportion that also holds near 0 and 1 and for few trials.

  Args:
    successes: [...], successes in each group.
    trials: [...], trials in each group.
    confidence: two-sided confidence level.

  Returns:
    (lower, upper), each f64[...] in [0, 1]; NaN where there were no trials.

  Source: Wilson, "Probable inference, the law of succession, and statistical
  inference", JASA 22, 1927.
  """
  z = NormalDist().inv_cdf(0.5 + confidence / 2)
  trials = np.asarray(trials, np.float64)
  n = np.where(trials > 0, trials, np.nan)
  p = np.asarray(successes, np.float64) / n
  centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + (z / n) ** 2 / 4)
  # Rounding may push a limit past the estimate when that is exactly 0 or 1.
  lower = np.minimum(np.maximum(centre - half, 0.0), p)
  upper = np.maximum(np.minimum(centre + half, 1.0), p)
  return lower, upper


def expected_calibration_error(
  labels: ArrayLike, scores: ArrayLike, bins: int = 15
) -> float:
  """Gap between confidence and accuracy, sum_m |B_m|/n |acc_m - conf_m|.

  B_m holds the images whose largest probability is in ((m-1)/bins, m/bins].

  Args:
    labels: int[n], true classes.
    scores: f32[n, C], logits.
    bins: number of bins of equal width.

  Returns:
    A fraction in [0, 1]; NaN without images.

  Source: Guo et al., "On calibration of modern neural networks", ICML 2017,
  eq. (3).
  """
  labels, scores = np.asarray(labels), np.asarray(scores)
  if not labels.size:
    return float("nan")
  correct = scores.argmax(axis=1) == labels
  _, hits, confident = calibration_bins(confidence(scores), correct, bins)
  return float(np.abs(hits - confident).sum() / labels.size)


def confidence(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
  """Largest probability f64[n] of each row of logits f32[n, C]."""

  def largest(rows: np.ndarray) -> np.ndarray:
    logits = rows.astype(np.float64) / temperature
    return special.softmax(logits, axis=1).max(axis=1)

  return in_blocks(largest, scores)


def calibration_bins(
  confidence: np.ndarray, correct: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Bins images by confidence f64[n]; `correct` is bool[n].

  Returns the sums [bins] of images, of correct ones and of confidence.
  """
  bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  count, hits, confident = (
    np.bincount(bin_of, weights, bins)
    for weights in (None, correct, confidence)
  )
  return count, hits, confident


def mean_class_interval(
  confusion: Confusion, confidence: float = 0.95
) -> tuple[float, float] | None:
  """Interval for mean-class accuracy, the mean of independent proportions.

  The distances from each class's recall to its Wilson limits take the place of
  its standard error and add in quadrature. Unlike a bootstrap within classes,
  the interval does not shrink to a point for a small class with recall 0 or 1.
  It covers the sampling of test images only, not the variation between seeds.

  Args:
    confusion: int[C, C], dense or sparse, rows are the truth; classes without
      images are left out, as in `summarise`.
    confidence: two-sided confidence level.

  Returns:
    (lower, upper) in [0, 1], or None without images.

  Source: Zou, Huang and Zhang, "A note on confidence interval estimation for a
  linear function of binomial proportions", CSDA 53, 2009.
  """
  correct, count = correct_and_count(confusion)
  return _mean_interval(correct[count > 0], count[count > 0], confidence)


def _mean_interval(
  correct: np.ndarray, count: np.ndarray, confidence: float = 0.95
) -> tuple[float, float] | None:
  """See `mean_class_interval`; takes int[C] of classes with images."""
  if not count.size:
    return None
  recall = correct / count
  lower, upper = wilson_interval(correct, count, confidence)
  mean = recall.mean()
  below = np.sqrt(np.square(recall - lower).sum()) / recall.size
  above = np.sqrt(np.square(upper - recall).sum()) / recall.size
  return float(max(mean - below, 0.0)), float(min(mean + above, 1.0))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, and 0 where whole is 0."""
  return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
