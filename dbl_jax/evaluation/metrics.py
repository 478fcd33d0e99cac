"""Metrics for imbalanced classes, computed from a confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dbl_jax.errors import UserError


def confusion_matrix(
  labels: ArrayLike, predictions: ArrayLike, num_classes: int
) -> np.ndarray:
  """Counts predictions of each class for images of each class.

  Args:
    labels: int[n], true classes, 0 to num_classes - 1.
    predictions: int[n], predicted classes, 0 to num_classes - 1.
    num_classes: C, the number of classes.

  Returns:
    int64[C, C]: entry [i, j] counts images of class i predicted as class j
    (rows are the truth, as in scikit-learn and the paper's fig. 3).

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
      f"found {pair[0].size} labels but {pair[1].size} predictions; "
      "expected one prediction for each label"
    )
  truth, guess = (values.astype(np.int64) for values in pair)
  cells = np.bincount(truth * num_classes + guess, minlength=num_classes**2)
  return cells.reshape(num_classes, num_classes).astype(np.int64)


def summarise(
  confusion: ArrayLike, class_names: Sequence[str]
) -> dict[str, Any]:
  """Derives every reported metric from a confusion matrix.

  Mean-class accuracy (the paper's "average accuracy", section 5.1) is the
  plain mean of recall over the classes that occur in the truth: a class
  without images has no recall and is left out of the mean.

  Args:
    confusion: int[C, C], rows are the truth.
    class_names: C different names, in index order.

  Returns:
    A dict that JSON can hold, all fractions in [0, 1]: `images`,
    `overall_accuracy` and `mean_class_accuracy` (None without images),
    `per_class` (name -> `recall`, None for a class that does not occur;
    `precision`, 0 for a class never predicted; `f1`, 0 where undefined;
    `count`, images of that class), `confusion_matrix` (list of lists) and
    `class_names`.

  Raises:
    UserError: two classes share a name.
    ValueError: the matrix is not [C, C] for C names.
  """
  confusion = np.asarray(confusion, np.int64)
  names = [str(name) for name in class_names]
  if confusion.shape != (len(names), len(names)):
    raise ValueError(
      f"found {len(names)} class names for a confusion matrix "
      f"{list(confusion.shape)}; expected a row and a column for each"
    )
  repeated = [name for name, n in Counter(names).items() if n > 1]
  if repeated:
    raise UserError(
      f"found the class name {repeated[0]!r} more than once in {names}; "
      "expected different names: rename one of the classes"
    )
  correct, count = np.diagonal(confusion), confusion.sum(axis=1)
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
  return {
    "images": images,
    "overall_accuracy": float(correct.sum() / images) if images else None,
    "mean_class_accuracy": float(recall[count > 0].mean()) if images else None,
    "per_class": per_class,
    "confusion_matrix": confusion.tolist(),
    "class_names": names,
  }


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


def mean_class_interval(
  confusion: ArrayLike, confidence: float = 0.95
) -> tuple[float, float] | None:
  """Interval for mean-class accuracy, the mean of independent proportions.

  The distances from each class's recall to its Wilson limits take the place of
  its standard error and add in quadrature. Unlike a bootstrap within classes,
  the interval does not shrink to a point for a small class with recall 0 or 1.
  It covers the sampling of test images only, not the variation between seeds.

  Args:
    confusion: int[C, C], rows are the truth; classes without images are left
      out, as in `summarise`.
    confidence: two-sided confidence level.

  Returns:
    (lower, upper) in [0, 1], or None without images.

  Source: Zou, Huang and Zhang, "A note on confidence interval estimation for a
  linear function of binomial proportions", CSDA 53, 2009.
  """
  count = np.sum(confusion, axis=1)
  correct, count = np.diagonal(confusion)[count > 0], count[count > 0]
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
