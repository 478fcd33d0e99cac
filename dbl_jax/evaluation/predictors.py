"""From features and logits to scores: how a trained model classifies.

A predictor is fitted on what it may know (the model, the training and the
validation part) and then scores any images. What it chooses, it chooses on
validation mean-class accuracy.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError

# rows of a part -> features f32[n, F], outputs f32[n, K]
Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# features f32[n, F], outputs f32[n, K] -> scores f32[n, C]
Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]

STRENGTHS = tuple(np.arange(21) / 10)
_SVM_COSTS = (0.01, 0.1, 1.0)


class FitContext:
  """What a predictor may look at: never the part it is judged on.

  Attributes:
    variables: of the model.
    labels: int32[n], of the training part.
    validation_labels: int32[m].
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
  def train(self) -> tuple[np.ndarray, np.ndarray]:
    """Features and outputs of the training part."""
    return self.forward(self._parts["train"].images)

  @functools.cached_property
  def validation(self) -> tuple[np.ndarray, np.ndarray]:
    """Features and outputs of the validation part."""
    return self.forward(self._parts["validation"].images)

  def best(
    self, candidates: Iterable[tuple[float, Scores]]
  ) -> "FittedPredictor":
    """The candidate best on validation, the first of equal ones."""

    def accuracy(scores: Scores) -> float:
      labels = self.validation_labels
      hits = scores(*self.validation).argmax(axis=1) == labels
      return np.mean([hits[labels == c].mean() for c in np.unique(labels)])

    tried = [(accuracy(scores), value, scores) for value, scores in candidates]
    _, value, scores = max(tried, key=lambda one: one[0])
    return FittedPredictor(scores, float(value))


class FittedPredictor(NamedTuple):
  """A predictor ready to score.

  Attributes:
    scores: features, outputs -> f32[n, C], the greatest of a row predicted.
    chosen: what was chosen on validation, or None.
    name: in `PREDICTORS`.
  """

  scores: Scores
  chosen: float | None = None
  name: str = ""


def head(known: FitContext) -> FittedPredictor:
  """The classifier head: its logits, the last of its outputs."""
  return FittedPredictor(
    lambda features, outputs: outputs[:, -known.num_classes :]
  )


def knn(
  known: FitContext, neighbours: int = 20, temperature: float = 0.1
) -> FittedPredictor:
  """A weighted kNN probe on the encoder's features.

  Each of the k nearest training images by cosine similarity s votes for its
  class with exp(s / temperature) (Wu et al. 2018, section 3.4).

  Args:
    known: its training part is the bank.
    neighbours: k, at most the size of the training part.
    temperature: of the votes.

  Returns:
    The votes.
  """

  def scores(features: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    del outputs
    bank, features = _unit(known.train[0]), _unit(features)
    k = min(neighbours, len(bank))
    votes = np.zeros((len(features), known.num_classes), np.float32)
    for start in range(0, len(features), 1024):
      rows = slice(start, start + 1024)
      similar = features[rows] @ bank.T
      nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
      weights = np.exp(np.take_along_axis(similar, nearest, 1) / temperature)
      ballot = known.labels[nearest][:, :, None] == np.arange(known.num_classes)
      votes[rows] = (weights[:, :, None] * ballot).sum(axis=1)
    return votes

  return FittedPredictor(scores)


def nearest_class_mean(known: FitContext) -> FittedPredictor:
  """Cosine to each class's mean feature (NCM; Kang et al. 2020, section 4.1).

  Features are centred on the training part's mean and brought to length 1.
  """
  features = known.train[0]
  centre = features.mean(axis=0)
  unit = _unit(features - centre)
  sums = np.zeros((known.num_classes, features.shape[1]), np.float32)
  np.add.at(sums, known.labels, unit)
  means = _unit(sums)
  return FittedPredictor(
    lambda features, outputs: _unit(features - centre) @ means.T
  )


def tau_normalised(known: FitContext) -> FittedPredictor:
  """Class weights divided by a power of their length, no bias.

  Kang et al. 2020, eq. (2): w_j / |w_j|^tau, tau from 0 to 2 chosen on
  validation.

  Args:
    known: its head is linear.

  Returns:
    The scores; `chosen` is tau.
  """
  kernel = np.asarray(known.variables["params"]["head"]["logits"]["kernel"])
  lengths = np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)

  def scores(tau: float) -> Scores:
    return lambda features, outputs: features @ (kernel / lengths**tau)

  return known.best((tau, scores(tau)) for tau in STRENGTHS)


def logit_adjusted(known: FitContext) -> FittedPredictor:
  """Logits less a multiple of the log of the class's share in training.

  Menon et al. 2021, eq. (9), post hoc: the multiple, from 0 to 2, is chosen
  on validation.

  Args:
    known: outputs are logits.

  Returns:
    The scores; `chosen` is the multiple.
  """
  counts = np.bincount(known.labels, minlength=known.num_classes)
  prior = np.log(np.maximum(counts, 1) / len(known.labels)).astype(np.float32)

  def scores(strength: float) -> Scores:
    shift = np.float32(strength) * prior
    return lambda features, outputs: outputs[:, -len(shift) :] - shift

  return known.best((value, scores(value)) for value in STRENGTHS)


def svm(known: FitContext) -> FittedPredictor:
  """A linear support vector machine on the features, one class against rest.

  Li and Deng 2019, section 5. Features are standardised; the cost is chosen
  on validation among multiples of one over their number, since a row's squared
  length grows with it.

  Args:
    known: what it is fitted on.

  Returns:
    Distances to the margins; `chosen` is the multiple.
  """
  from sklearn.svm import LinearSVC

  features = known.train[0]
  centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6

  def scores(cost: float) -> Scores:
    # In the dual liblinear is quick on many features at such costs.
    machine = LinearSVC(C=cost / features.shape[1], dual=True, random_state=0)
    machine.fit((features - centre) / spread, known.labels)

    def distances(features: np.ndarray, outputs: np.ndarray) -> np.ndarray:
      del outputs
      found = machine.decision_function((features - centre) / spread)
      # Of two classes scikit-learn gives the second one's distance alone, and
      # of a class without training images nothing.
      found = np.stack([-found, found], 1) if found.ndim == 1 else found
      every = np.full((len(found), known.num_classes), -np.inf)
      every[:, machine.classes_] = found
      return every

    return distances

  return known.best((cost, scores(cost)) for cost in _SVM_COSTS)


def _unit(features: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norms, 1e-12)


PREDICTORS: dict[str, Callable[[FitContext], FittedPredictor]] = {
  "head": head,
  "knn": knn,
  "logit_adjusted": logit_adjusted,
  "nearest_class_mean": nearest_class_mean,
  "svm": svm,
  "tau_normalised": tau_normalised,
}
# Those that read the head's logits.
OF_LOGITS = frozenset({"head", "logit_adjusted", "tau_normalised"})
# Whose softmax is a distribution over the classes.
CALIBRATED = frozenset({"head", "logit_adjusted"})


def check(name: str, head: Mapping[str, Any]) -> None:
  """Sees that a model can be classified by this predictor, and here.

  Args:
    name: in `PREDICTORS`.
    head: the head's parameters, or their shapes.

  Raises:
    UserError: if the predictor needs another head, or what is not installed.
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


def fit(name: str, known: FitContext) -> FittedPredictor:
  """The predictor of this name, fitted on what it may know.

  Args:
    name: in `PREDICTORS`.
    known: what it may know.

  Returns:
    It.

  Raises:
    UserError: see `check`.
  """
  check(name, known.variables["params"]["head"])
  return PREDICTORS[name](known)._replace(name=name)
