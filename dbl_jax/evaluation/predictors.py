"""Predictors: how features and logits of a trained model become class scores.

A predictor is fitted on the training and validation splits and then scores any
images. Its hyper-parameter is selected by validation mean-class accuracy.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize
from scipy.special import logsumexp

from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics
from dbl_jax.runtime.rows import Array

# rows of a split -> features f32[n, F], outputs f32[n, K]
Forward = Callable[[Array], tuple[np.ndarray, np.ndarray]]
# features f32[n, F], outputs f32[n, K] -> scores f32[n, C]
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]

STRENGTHS = tuple(np.arange(21) / 10)
_SVM_COSTS = (0.01, 0.1, 1.0)
_FITTED = 2**25  # scores for fitting a temperature, which takes about 20 s
_BLOCK = 8192  # images with outputs in memory at once


class FitContext:
  """What a predictor is fitted on; never the split it is evaluated on.

  Attributes:
    forward: compiled forward pass over rows of a split.
    variables: variables of the model.
    labels: int32[n], training labels.
    validation_labels: int32[m], validation labels.
    num_classes: C.
  """

  def __init__(
    self,
    forward: Forward,
    variables: Mapping[str, Any],
    parts: Mapping[str, Split],
    num_classes: int,
  ):
    self.forward, self.variables = forward, variables
    self.num_classes = num_classes
    self._parts = parts
    self.labels = parts["train"].labels
    self.validation_labels = parts["validation"].labels

  @functools.cached_property
  def train_features(self) -> np.ndarray:
    """f32[n, F], features of the training split."""
    images = self._parts["train"].images
    # With thousands of classes the outputs would take more than the images.
    starts = range(0, len(images), _BLOCK)
    return np.concatenate(
      [self.forward(images[i : i + _BLOCK])[0] for i in starts]
    )

  @functools.cached_property
  def validation(self) -> tuple[np.ndarray, np.ndarray]:
    """Features and outputs of the validation split."""
    return self.forward(self._parts["validation"].images)

  def best(
    self, candidates: Iterable[tuple[float, Scores]]
  ) -> "FittedPredictor":
    """Selects by validation mean-class accuracy; the first of equal values."""

    labels = self.validation_labels
    count = np.bincount(labels)

    def accuracy(scores: Scores) -> float:
      hits = _predict(scores, *self.validation) == labels
      recall = np.bincount(labels, hits)[count > 0] / count[count > 0]
      return float(recall.mean())

    tried = [(accuracy(scores), value, scores) for value, scores in candidates]
    _, value, scores = max(tried, key=lambda one: one[0])
    return FittedPredictor(scores, float(value))


class FittedPredictor(NamedTuple):
  """A predictor that can score images.

  Attributes:
    scores: features, outputs -> f32[n, C]; the argmax of a row is predicted.
    chosen: the selected hyper-parameter, or None.
    name: key in `PREDICTORS`.
  """

  scores: Scores
  chosen: float | None = None
  name: str = ""


def _predict(scores: Scores, *model_outputs: np.ndarray) -> np.ndarray:
  """Classes int[n] with the greatest scores."""
  return metrics.in_blocks(
    lambda *rows: scores(*rows).argmax(axis=1), *model_outputs
  )


def logits(num_classes: int) -> FittedPredictor:
  """Logits of the classifier head, which are the last of its outputs."""
  return FittedPredictor(
    lambda features, outputs: outputs[:, -num_classes:], name="head"
  )


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
  """Fits the temperature that calibrates a softmax.

  It minimises the negative log-likelihood of softmax(scores / temperature)
  (Guo et al. 2017, section 4.2). At most 2^25 scores are used, of evenly
  spaced images: 4,000 images with 8,142 classes.

  Args:
    scores: f32[n, C], logits of validation images.
    labels: int32[n].

  Returns:
    The temperature, between 1/20 and 20.
  """
  step = -(-scores.size // _FITTED) or 1
  scores, labels = scores[::step], labels[::step]

  def loss(log_temperature: float) -> float:
    def of_rows(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
      logits = scores.astype(np.float64) / np.exp(log_temperature)
      return logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]

    return float(metrics.in_blocks(of_rows, scores, labels).mean())

  limit = float(np.log(20))
  found = optimize.minimize_scalar(loss, bounds=(-limit, limit))
  return round(float(np.exp(found.x)), 4)


def knn(
  context: FitContext, neighbours: int = 20, temperature: float = 0.1
) -> FittedPredictor:
  """A weighted kNN probe on the encoder's features.

  Each of the k nearest training images by cosine similarity s votes for its
  class with exp(s / temperature) (Wu et al. 2018, section 3.4).

  Args:
    context: the training split is the bank.
    neighbours: k; at most the size of the training split is used.
    temperature: temperature of the votes, which are the scores.
  """

  def scores(features: np.ndarray, _: np.ndarray) -> np.ndarray:
    bank, features = _unit(context.train_features), _unit(features)
    k = min(neighbours, len(bank))
    votes = np.zeros((len(features), context.num_classes), np.float32)
    for start in range(0, len(features), 1024):
      rows = slice(start, start + 1024)
      similar = features[rows] @ bank.T
      nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
      weights = np.exp(np.take_along_axis(similar, nearest, 1) / temperature)
      images = np.arange(start, start + len(nearest))[:, None]
      np.add.at(votes, (images, context.labels[nearest]), weights)
    return votes

  return FittedPredictor(scores)


def nearest_class_mean(context: FitContext) -> FittedPredictor:
  """Cosine to each class's mean feature (NCM; Kang et al. 2020, section 4.1).

  Features are centred on the training mean and scaled to unit length.
  """
  features = context.train_features
  centre = features.mean(axis=0)
  unit = _unit(features - centre)
  sums = np.zeros((context.num_classes, features.shape[1]), np.float32)
  np.add.at(sums, context.labels, unit)
  means = _unit(sums)
  return FittedPredictor(
    lambda features, outputs: _unit(features - centre) @ means.T
  )


def tau_normalised(context: FitContext) -> FittedPredictor:
  """Class weights divided by a power of their norm, without bias.

  Kang et al. 2020, eq. (2): w_j / |w_j|^tau, for a linear head. Tau, `chosen`,
  is selected from 0 to 2 on validation.
  """
  kernel = np.asarray(context.variables["params"]["head"]["logits"]["kernel"])
  lengths = np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)

  def scores(tau: float) -> Scores:
    return lambda features, outputs: features @ (kernel / lengths**tau)

  return context.best((tau, scores(tau)) for tau in STRENGTHS)


def logit_adjusted(context: FitContext) -> FittedPredictor:
  """Logits minus a multiple of the log of the class prior in training.

  Menon et al. 2021, eq. (9), post hoc. The multiple, `chosen`, is selected from
  0 to 2 on validation.
  """
  counts = np.bincount(context.labels, minlength=context.num_classes)
  prior = np.log(np.maximum(counts, 1) / len(context.labels)).astype(np.float32)

  def scores(strength: float) -> Scores:
    shift = np.float32(strength) * prior
    return lambda features, outputs: outputs[:, -len(shift) :] - shift

  return context.best((value, scores(value)) for value in STRENGTHS)


def svm(context: FitContext) -> FittedPredictor:
  """Linear one-versus-rest support vector machine on the features.

  Li and Deng 2019, section 5. Features are standardised; scores are signed
  distances. The cost is a multiple, `chosen` on validation, of one over the
  number of features, because the squared norm of a row grows with that number.
  """
  from sklearn.svm import LinearSVC

  features = context.train_features
  centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6

  def scores(cost: float) -> Scores:
    # At these costs liblinear is faster in the dual for many features.
    machine = LinearSVC(C=cost / features.shape[1], dual=True, random_state=0)
    machine.fit((features - centre) / spread, context.labels)

    def distances(features: np.ndarray, _: np.ndarray) -> np.ndarray:
      found = machine.decision_function((features - centre) / spread)
      # For two classes scikit-learn returns the distance of the second only,
      # and it lacks a column for a class without training images.
      found = np.stack([-found, found], 1) if found.ndim == 1 else found
      every = np.full((len(found), context.num_classes), -np.inf)
      every[:, machine.classes_] = found
      return every

    return distances

  return context.best((cost, scores(cost)) for cost in _SVM_COSTS)


def _unit(features: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norms, 1e-12)


PREDICTORS: dict[str, Callable[[FitContext], FittedPredictor]] = {
  "head": lambda context: logits(context.num_classes),
  "knn": knn,
  "logit_adjusted": logit_adjusted,
  "nearest_class_mean": nearest_class_mean,
  "svm": svm,
  "tau_normalised": tau_normalised,
}
# Predictors that read the head's logits.
READS_LOGITS = frozenset({"head", "logit_adjusted", "tau_normalised"})
# Predictors whose softmax is a distribution over the classes. That of
# adjusted logits is for a balanced prior, not for the data's.
CALIBRATED = frozenset({"head"})


def check(name: str, head: Mapping[str, Any]) -> None:
  """Checks that a predictor fits a head and that its library is installed.

  `head` has its parameters, or their shapes.

  Raises:
    UserError: if the predictor needs another head or a missing library.
  """
  if name == "tau_normalised" and set(head) != {"logits"}:
    raise UserError(
      "predictor='tau_normalised' needs a linear head, but this one has"
      f" {', '.join(sorted(head))}. Set head.hidden=(), head.scaled=False."
    )
  if name == "svm" and importlib.util.find_spec("sklearn") is None:
    raise UserError(
      "predictor='svm' needs scikit-learn: pip install scikit-learn."
    )


def fit(name: str, context: FitContext) -> FittedPredictor:
  """Fits the predictor of that name; raises UserError as `check` does."""
  check(name, context.variables["params"]["head"])
  return PREDICTORS[name](context)._replace(name=name)
