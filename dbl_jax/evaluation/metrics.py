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
  truth = _classes("labels", labels, num_classes)
  guess = _classes("predictions", predictions, num_classes)
  if truth.shape != guess.shape:
    raise ValueError(
      f"found {truth.size} labels but {guess.size} predictions; "
      "expected one prediction for each label"
    )
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
  confusion = _square(confusion)
  names = [str(name) for name in class_names]
  if len(names) != len(confusion):
    raise ValueError(
      f"found {len(names)} class names for a confusion matrix of "
      f"{len(confusion)} classes"
    )
  repeated = [name for name, n in Counter(names).items() if n > 1]
  if repeated:
    raise UserError(
      f"found the class name {repeated[0]!r} more than once in {names}; "
      "expected different names: rename one of the classes"
    )
  correct, count = np.diagonal(confusion), confusion.sum(axis=1)
  images = int(count.sum())
  recall = _ratio(correct, count)[count > 0]
  return {
    "images": images,
    "overall_accuracy": float(correct.sum() / images) if images else None,
    "mean_class_accuracy": float(recall.mean()) if images else None,
    "per_class": dict(zip(names, _per_class(confusion), strict=True)),
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
  its standard error and add in quadrature. For one class the result is Wilson's
  interval. Unlike a bootstrap within classes, it does not shrink to a point for
  a small class with recall 0 or 1.

  The interval covers the sampling of test images only, not the variation
  between training seeds.

  Args:
    confusion: int[C, C], rows are the truth; classes without images are left
      out, as in `summarise`.
    confidence: two-sided confidence level.

  Returns:
    (lower, upper) in [0, 1], or None without images.

  Source: Zou, Huang and Zhang, "A note on confidence interval estimation for a
  linear function of binomial proportions", CSDA 53, 2009.
  """
  confusion = _square(confusion)
  count = confusion.sum(axis=1)
  occurs = count > 0
  if not occurs.any():
    return None
  correct, count = np.diagonal(confusion)[occurs], count[occurs]
  recall = correct / count
  lower, upper = wilson_interval(correct, count, confidence)
  mean = recall.mean()
  below = np.sqrt(np.square(recall - lower).sum()) / recall.size
  above = np.sqrt(np.square(upper - recall).sum()) / recall.size
  return float(max(mean - below, 0.0)), float(min(mean + above, 1.0))


def _per_class(confusion: np.ndarray) -> list[dict[str, float | int | None]]:
  """The row of each class in `summarise`, in index order."""
  correct = np.diagonal(confusion)
  count, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  recall = _ratio(correct, count)
  precision = _ratio(correct, predicted)
  f1 = _ratio(2 * correct, count + predicted)
  return [
    {
      "recall": float(recall[i]) if count[i] else None,
      "precision": float(precision[i]),
      "f1": float(f1[i]),
      "count": int(count[i]),
    }
    for i in range(len(count))
  ]


def _classes(name: str, values: ArrayLike, num_classes: int) -> np.ndarray:
  """Returns int64[n] after checking that all are classes."""
  values = np.asarray(values)
  if values.ndim != 1:
    raise ValueError(f"{name} have shape {values.shape}; expected [n]")
  if values.size == 0:
    return np.zeros(0, np.int64)
  if not np.issubdtype(values.dtype, np.integer):
    raise ValueError(f"{name} are {values.dtype}; expected integers")
  low, high = int(values.min()), int(values.max())
  if low < 0 or high >= num_classes:
    raise ValueError(
      f"{name} run from {low} to {high}; expected 0 to {num_classes - 1}"
    )
  return values.astype(np.int64)


def _square(confusion: ArrayLike) -> np.ndarray:
  """Returns int64[C, C] after checking the shape."""
  confusion = np.asarray(confusion, np.int64)
  if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
    raise ValueError(
      f"the confusion matrix has shape {confusion.shape}; expected [C, C]"
    )
  return confusion


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, and 0 where whole is 0."""
  return np.divide(part, whole, out=np.zeros(whole.shape), where=whole > 0)
