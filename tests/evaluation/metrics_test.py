"""Metrics against hand-worked examples, scikit-learn and simulation."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from dbl_jax.errors import UserError
from dbl_jax.evaluation import metrics


def _random_case(seed, num_classes=6, absent=(), never_predicted=()):
  """Labels and predictions that agree about half the time."""
  rng = np.random.default_rng(seed)
  labels = rng.choice(
    [c for c in range(num_classes) if c not in absent], size=200
  )
  guesses = rng.choice(
    [c for c in range(num_classes) if c not in never_predicted], size=200
  )
  keep = (rng.random(200) < 0.5) & ~np.isin(labels, never_predicted)
  return labels, np.where(keep, labels, guesses)


@pytest.mark.parametrize(
  ("labels", "predictions", "expected"),
  [
    ([0, 0, 1, 2, 2], [0, 2, 1, 0, 0], [[1, 0, 1], [0, 1, 0], [2, 0, 0]]),
    ([], [], [[0, 0], [0, 0]]),
    # 16 classes squared do not fit into a byte.
    (*np.full((2, 300), 15, np.int8), 300 * np.diag([0] * 15 + [1])),
  ],
)
def test_confusion_matrix_has_the_truth_in_rows(labels, predictions, expected):
  found = metrics.confusion_matrix(labels, predictions, len(expected))
  np.testing.assert_array_equal(found.toarray(), expected)
  assert found.dtype == np.int64


@pytest.mark.parametrize(
  ("labels", "predictions", "message"),
  [
    ([0, 1], [0], "2 labels but 1 predictions"),
    ([0, 3], [0, 1], "labels run from 0 to 3; expected 0 to 2"),
    ([0, 1], [0, -1], "predictions run from -1 to 0"),
    ([0.0, 1.0], [0, 1], "expected integers"),
    ([[0, 1]], [0, 1], "expected integers"),
  ],
)
def test_confusion_matrix_refuses_what_it_would_miscount(
  labels, predictions, message
):
  with pytest.raises(ValueError, match=message):
    metrics.confusion_matrix(labels, predictions, 3)


def test_summary_by_hand():
  # Class a: 8 of 10 found; b: 1 of 2, and 2 false alarms; c does not occur.
  summary = metrics.summarise([[8, 2, 0], [0, 1, 1], [0, 0, 0]], list("abc"))
  assert summary["images"] == 12
  assert summary["overall_accuracy"] == pytest.approx(9 / 12)
  assert summary["mean_class_accuracy"] == pytest.approx((0.8 + 0.5) / 2)
  assert summary["per_class"]["a"] == {
    "recall": pytest.approx(0.8),
    "precision": 1.0,
    "f1": pytest.approx(16 / 18),
    "count": 10,
  }
  assert summary["per_class"]["b"]["precision"] == pytest.approx(1 / 3)
  assert summary["per_class"]["c"] == {
    "recall": None,
    "precision": 0.0,
    "f1": 0.0,
    "count": 0,
  }
  assert list(summary["per_class"]) == summary["class_names"] == list("abc")
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary
  none = metrics.summarise(np.zeros((2, 2), int), ["a", "b"])
  assert none["overall_accuracy"] is none["mean_class_accuracy"] is None
  assert metrics.mean_class_interval(np.zeros((2, 2), int)) is None


@pytest.mark.parametrize(
  ("absent", "never_predicted"),
  [((), ()), ((2,), ()), ((), (0, 5)), ((1, 3), (3, 4))],
)
@pytest.mark.parametrize("seed", range(3))
def test_summary_agrees_with_scikit_learn(seed, absent, never_predicted):
  labels, predictions = _random_case(seed, 6, absent, never_predicted)
  every = list(range(6))
  confusion = metrics.confusion_matrix(labels, predictions, 6)
  np.testing.assert_array_equal(
    confusion.toarray(),
    sklearn_metrics.confusion_matrix(labels, predictions, labels=every),
  )
  summary = metrics.summarise(confusion, [str(c) for c in every])
  precision, recall, f1, count = (
    sklearn_metrics.precision_recall_fscore_support(
      labels, predictions, labels=every, zero_division=0
    )
  )
  rows = list(summary["per_class"].values())
  assert [row["count"] for row in rows] == count.tolist()
  np.testing.assert_allclose([row["precision"] for row in rows], precision)
  np.testing.assert_allclose([row["f1"] for row in rows], f1)
  for c in every:
    assert rows[c]["recall"] == (
      None if c in absent else pytest.approx(recall[c])
    )
  assert summary["overall_accuracy"] == pytest.approx(
    sklearn_metrics.accuracy_score(labels, predictions)
  )
  assert summary["mean_class_accuracy"] == pytest.approx(
    sklearn_metrics.recall_score(
      labels,
      predictions,
      labels=np.unique(labels),
      average="macro",
      zero_division=0,
    )
  )


def test_many_classes_are_listed_by_cells():
  labels, predictions = np.array([1, 1, 1, 8141]), np.array([1, 8141, 1, 0])
  confusion = metrics.confusion_matrix(labels, predictions, 8142)
  summary = metrics.summarise(confusion, [str(c) for c in range(8142)])
  assert summary["confusion_matrix"] is None
  assert summary["confusion_cells"] == [[1, 1, 2], [1, 8141, 1], [8141, 0, 1]]
  assert summary["mean_class_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
  stored = json.loads(json.dumps(summary))
  assert stored == summary
  assert (metrics.confusion_of(stored) != confusion).nnz == 0
  assert metrics.confusion_of(stored).shape == (8142, 8142)


def test_tiers_by_hand():
  # Recall 1, .5, .25 and none; the cuts themselves are medium.
  confusion = [[4, 0, 0, 0], [2, 2, 0, 0], [3, 0, 1, 0], [0, 0, 0, 0]]
  found = metrics.by_tier(confusion, [101, 100, 20, 19])
  medium = metrics.mean_class_interval([[0] * 3, [2, 2, 0], [3, 0, 1]])
  assert found["many"]["accuracy"] == 1
  assert found["medium"]["accuracy"] == pytest.approx((0.5 + 0.25) / 2)
  assert found["few"] == {"classes": 0, "accuracy": None, "interval": None}
  assert [tier["classes"] for tier in found.values()] == [1, 2, 0]
  assert found["medium"]["interval"] == medium
  found = metrics.tiers([1290, 281, 717], (1000, 300))
  assert [inside.tolist().index(True) for inside in found.values()] == [0, 2, 1]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_a_stable_sort(monkeypatch, k):
  monkeypatch.setattr(metrics, "_BLOCK", 30)  # blocks of five rows
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (57, 6)).astype(np.float32)  # with ties
  scores[0] = -np.inf
  labels = rng.integers(0, 6, 57)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  expected = np.mean((order == labels[:, None]).any(axis=1))
  assert metrics.top_k_accuracy(scores, labels, k) == expected
  if k == 1:
    assert expected == np.mean(scores.argmax(axis=1) == labels)


@pytest.mark.parametrize(
  ("names", "error", "message"),
  [
    (["joy", "fear", "joy"], UserError, "Duplicate class name 'joy'"),
    (["joy", "fear"], ValueError, "2 class names"),
  ],
)
def test_summary_refuses_names_that_do_not_fit(names, error, message):
  with pytest.raises(error, match=message):
    metrics.summarise(np.eye(3, dtype=int), names)


def test_wilson_interval_by_hand():
  # Newcombe, "Two-sided confidence intervals for the single proportion",
  # Statistics in Medicine 17, 1998, table I, method 3.
  lower, upper = metrics.wilson_interval([81, 15, 0, 1], [263, 148, 20, 29])
  np.testing.assert_allclose(lower, [0.2553, 0.0624, 0, 0.0061], atol=5e-5)
  np.testing.assert_allclose(upper, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


def test_intervals_without_trials_and_of_one_class():
  lower, upper = metrics.wilson_interval([0, 5, 7], [0, 5, 10])
  assert np.isnan([lower[0], upper[0]]).all()
  assert 0.5 < lower[1] < upper[1] == 1
  found = metrics.mean_class_interval([[7, 3], [0, 0]])
  assert found == pytest.approx((lower[2], upper[2]))


@pytest.mark.parametrize("count", [(1185, 478, 74), (500, 20, 5), (6, 6, 6)])
def test_mean_class_interval_covers_the_truth(count):
  recall = np.array([0.95, 0.6, 0.4])
  rng = np.random.default_rng(0)
  hits = 0
  for correct in rng.binomial(count, recall, (1000, 3)):
    confusion = np.diag(correct)
    confusion[:, 0] += count - correct
    confusion[0, 0] = correct[0]
    confusion[0, 1] = count[0] - correct[0]
    lower, upper = metrics.mean_class_interval(confusion)
    hits += lower <= recall.mean() <= upper
  assert 0.93 <= hits / 1000 <= 0.99
