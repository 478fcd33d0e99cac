"""Predictors: what they score, what they choose and what they may not see."""

import numpy as np
import pytest

from dbl_jax.data.datasets import Split
from dbl_jax.evaluation import predictors
from dbl_jax.evaluation.predictors import PREDICTORS, FitContext

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(6, 3)).astype(np.float32)
BIAS = np.array([3.0, -3.0, 0.5], np.float32)
LINEAR = {"logits": {"kernel": KERNEL, "bias": BIAS}}


def some_part(n, seed, spread=1.0):
  """Noisy points around a point of each of 3 skewed classes."""
  rng = np.random.default_rng(seed)
  labels = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(np.int32)
  points = np.random.default_rng(7).normal(size=(3, 6))
  features = points[labels] + spread * rng.normal(size=(n, 6))
  return Split(features.astype(np.float32), labels)


def forward(rows):
  """Its features are the rows themselves."""
  return rows, rows @ KERNEL + BIAS


def known_of(train=None, validation=None, head=LINEAR, forward=forward, c=3):
  parts = {
    "train": some_part(60, 1) if train is None else train,
    "validation": some_part(40, 2) if validation is None else validation,
  }
  return FitContext(forward, variables(head), parts, c)


def variables(head):
  return {"params": {"head": head}}


def mean_class_accuracy(scores, labels):
  found = scores.argmax(axis=1)
  return np.mean([np.mean(found[labels == c] == c) for c in set(labels)])


def test_head_scores_are_its_logits():
  features, outputs = forward(some_part(5, 3).images)
  known = known_of()
  fitted = PREDICTORS["head"](known)
  np.testing.assert_array_equal(fitted.scores(features, outputs), outputs)
  # Of a joint head, embeddings come first.
  joint = np.concatenate([features, outputs], axis=1)
  np.testing.assert_array_equal(
    fitted.scores(features, joint), outputs[:, -known.num_classes :]
  )
  assert fitted.chosen is None


@pytest.mark.parametrize("k", [1, 5, 60, 99])  # 60 is the whole bank
def test_knn_votes_as_written(k):
  train, asked = some_part(60, 1), some_part(2100, 3)  # more than two blocks
  found = predictors.knn(known_of(train), k, 0.1).scores(*forward(asked.images))
  assert found.shape == (2100, 3)
  for i in (0, 1023, 1024, 2048, 2099):
    feature = asked.images[i].astype(float)
    similar = [
      feature @ other / np.linalg.norm(feature) / np.linalg.norm(other)
      for other in train.images.astype(float)
    ]
    expected = np.zeros(3)
    for j in np.argsort(similar)[::-1][:k]:
      expected[train.labels[j]] += np.exp(similar[j] / 0.1)
    np.testing.assert_allclose(found[i], expected, rtol=1e-3)


def test_nearest_class_mean_equals_a_literal_loop():
  train, asked = some_part(60, 1), some_part(10, 3)
  centre = train.images.mean(axis=0)

  def unit(x):
    return x / np.linalg.norm(x)

  def mean_of(c):
    own = [x for x, y in zip(*train, strict=True) if y == c]
    return np.mean([unit(x - centre) for x in own], axis=0)

  expected = [
    [unit(x - centre) @ unit(mean_of(c)) for c in range(3)]
    for x in asked.images
  ]
  found = predictors.nearest_class_mean(known_of(train))
  np.testing.assert_allclose(
    found.scores(*forward(asked.images)), expected, rtol=1e-4, atol=1e-5
  )
  assert found.chosen is None


def candidate_scores(name, train, features, strength):
  """What a strength makes of a linear head, literally."""
  if name == "tau_normalised":  # Kang et al. 2020, eq. (2)
    lengths = [np.linalg.norm(KERNEL[:, j]) for j in range(3)]
    weights = [KERNEL[:, j] / lengths[j] ** strength for j in range(3)]
    return np.stack([features @ w for w in weights], axis=1)
  shares = [np.mean(train.labels == c) for c in range(3)]  # Menon et al., (9)
  return features @ KERNEL + BIAS - strength * np.log(shares)[None]


@pytest.mark.parametrize("name", ["tau_normalised", "logit_adjusted"])
@pytest.mark.parametrize("seed", range(4))
def test_the_strength_is_the_first_best_on_validation(name, seed):
  train, validation = some_part(60, 1), some_part(150, 10 + seed, 2.0)
  fitted = PREDICTORS[name](known_of(train, validation))
  strengths = [step / 10 for step in range(21)]
  accuracies = [
    mean_class_accuracy(
      candidate_scores(name, train, validation.images, strength),
      validation.labels,
    )
    for strength in strengths
  ]
  best = strengths[int(np.argmax(accuracies))]
  assert fitted.chosen == pytest.approx(best)
  asked = some_part(20, 3).images
  np.testing.assert_allclose(
    fitted.scores(*forward(asked)),
    candidate_scores(name, train, asked, best),
    rtol=1e-4,
    atol=1e-5,
  )


class Unseen(dict):
  """Parts of which the test part must not be touched."""

  def __getitem__(self, name):
    assert name != "test"
    return super().__getitem__(name)


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_predictor_looks_at_training_and_validation_alone(name):
  if name == "svm":
    pytest.importorskip("sklearn")
  found = []
  for seed in (20, 21):
    test = some_part(30, seed, 5.0)
    parts = Unseen(
      train=some_part(60, 1), validation=some_part(40, 2, 2.0), test=test
    )
    asked_of = []

    def watched(rows, asked_of=asked_of):
      asked_of.append(len(rows))
      return forward(rows)

    fitted = PREDICTORS[name](FitContext(watched, variables(LINEAR), parts, 3))
    assert set(asked_of) <= {60, 40}
    found.append((fitted.chosen, fitted.scores(*forward(test.images[:1]))))
  assert found[0][0] == found[1][0]
  assert found[0][1].shape == (1, 3)


def test_features_are_extracted_once_and_only_if_asked_for():
  asked_of = []

  def watched(rows):
    asked_of.append(len(rows))
    return forward(rows)

  known = known_of(forward=watched)
  PREDICTORS["head"](known)
  assert asked_of == []
  predictors.logit_adjusted(known)
  predictors.tau_normalised(known)
  assert asked_of == [40]
  for _ in range(2):
    predictors.nearest_class_mean(known)
  assert asked_of == [40, 60]


def test_the_best_is_by_mean_class_accuracy_and_the_first_of_equals():
  # Three of class 0 and one of class 1: most images against most classes.
  validation = Split(np.zeros((4, 6), np.float32), np.array([0, 0, 0, 1]))

  def guessing(*classes):
    return lambda features, outputs: np.eye(3)[list(classes)]

  known = known_of(validation=validation)
  most_images = (1.0, guessing(0, 0, 0, 0))
  most_classes = (2.0, guessing(0, 0, 1, 1))
  equal = (3.0, guessing(0, 1, 0, 1))
  assert known.best([most_images, most_classes]).chosen == 2
  assert known.best([most_classes, equal]).chosen == 2
  assert known.best([equal, most_classes]).chosen == 3
  assert known.best([equal, most_classes]).scores is equal[1]


@pytest.mark.parametrize("classes", [2, 3])
def test_svm_tells_classes_apart_and_chooses_on_validation(classes):
  svm = pytest.importorskip("sklearn.svm")

  def few(n, seed):
    features, labels = some_part(n, seed, 0.8)
    kept = labels < classes
    # Of very different spread, so that standardising matters.
    return Split(
      features[kept] * np.logspace(-2, 2, 6, dtype="f"), labels[kept]
    )

  train, validation, test = few(120, 1), few(100, 2), few(200, 3)
  fitted = predictors.svm(known_of(train, validation, c=classes))
  scores = fitted.scores(*forward(test.images))
  assert scores.shape == (len(test.labels), classes)
  assert mean_class_accuracy(scores, test.labels) > 0.7

  def standard(features):
    centre, spread = train.images.mean(axis=0), train.images.std(axis=0)
    return (features - centre) / spread

  accuracies = {}
  for cost in (0.01, 0.1, 1.0):
    machine = svm.LinearSVC(C=cost / 6, dual=False)  # of 6 features
    machine.fit(standard(train.images), train.labels)
    found = np.eye(classes)[machine.predict(standard(validation.images))]
    accuracies[cost] = mean_class_accuracy(found, validation.labels)
  assert fitted.chosen == max(accuracies, key=accuracies.get)


def test_the_temperature_makes_logits_calibrated():
  # Labels are drawn from softmax(logits), so 2.5 * logits are overconfident.
  logits = 2 * RNG.normal(size=(20_000, 3))
  noise = RNG.gumbel(size=logits.shape)
  labels = (logits + noise).argmax(axis=1)
  found = predictors.fit_temperature(2.5 * logits.astype(np.float32), labels)
  assert found == pytest.approx(2.5, rel=0.03)
  # Separable data would be given certainty: the temperature is bounded.
  certain = 10 * np.eye(3, dtype=np.float32)
  assert predictors.fit_temperature(certain, np.arange(3)) >= 0.05
