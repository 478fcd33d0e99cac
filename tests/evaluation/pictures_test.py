"""Pictures of single images in the report."""

import sys

import numpy as np
import pytest
from pages import size

from dbl_jax.data.datasets import Split
from dbl_jax.evaluation import pictures

pytestmark = pytest.mark.usefixtures("rendered")

RNG = np.random.default_rng(0)
NAMES = ("surprise", "$x_1^$ & {co", "a very long name for any class at all")


def made(n=40, num_classes=3, width=8):
  labels = np.arange(n) % num_classes
  images = np.broadcast_to(
    (labels * 9).astype(np.uint8)[:, None, None, None], (n, 12, 12, 3)
  )
  scores = RNG.standard_normal((n, num_classes)).astype(np.float32)
  features = RNG.standard_normal((n, width)).astype(np.float32)
  return Split(images, labels.astype(np.int32)), features, scores


@pytest.mark.parametrize(
  ("calibrated", "mistakes", "expected"),
  [
    (True, True, ["Calibration", "Embedding", "Most confident mistakes"]),
    (True, False, ["Calibration", "Embedding"]),
    (False, False, ["Embedding"]),
  ],
)
def test_mistakes_are_shown_only_when_asked_for(
  calibrated, mistakes, expected, drawn
):
  found = pictures.sections(*made(), 1.0, NAMES, calibrated, mistakes)
  headings = [part.split("<h2>")[1].split("</h2>")[0] for part in found if part]
  assert headings == expected
  assert len(drawn) == len(expected)


def test_a_split_without_images_or_without_mistakes():
  part, features, scores = made()
  none = Split(part.images[:0], part.labels[:0])
  empty = (none, features[:0], scores[:0])
  assert pictures.sections(*empty, 1.0, NAMES, True, True) == []
  perfect = np.eye(3, dtype=np.float32)[part.labels]
  found = pictures.sections(part, features, perfect, 1.0, NAMES, True, True)
  assert [bool(text) for text in found] == [True, True, False]


def test_reliability_is_by_hand(drawn):
  confidence = np.array([0.99, 0.98, 0.97, 0.96, 0.45])
  correct = np.array([True, True, False, False, True])
  size(pictures.reliability_figure(confidence, correct))
  upper, lower = drawn[0].axes
  assert [bar.get_height() for bar in upper.patches] == [100, 50]
  assert [bar.get_height() for bar in lower.patches] == pytest.approx([20, 80])
  # (|1 - .45| + |2 - 3.9|) / 5
  assert upper.get_title("left") == "Expected calibration error 49.0%"


def test_embedding_is_pca_with_wrong_predictions_as_crosses(drawn):
  part, features, _ = made()
  features[:, 0] *= 100  # the first component
  wrong = np.arange(40) < 4
  size(pictures.embedding_figure(features, part.labels, wrong, NAMES))
  (axes,) = drawn[0].axes
  assert "PCA: 100% and 0%" in axes.get_title("left")
  counts = [len(group.get_offsets()) for group in axes.collections]
  assert counts == [12, 2, 12, 1, 12, 1]
  first = axes.collections[0].get_offsets()[:, 0]
  expected = features[(part.labels == 0) & ~wrong, 0] - features[:, 0].mean()
  np.testing.assert_allclose(np.abs(first), np.abs(expected), rtol=0.01)
  assert [t.get_text() for t in axes.get_legend().get_texts()][:2] == [
    *NAMES[:2]
  ]


@pytest.mark.parametrize("installed", [True, False])
def test_tsne_where_scikit_learn_is_installed(drawn, monkeypatch, installed):
  if not installed:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
  monkeypatch.setattr(pictures, "_MAX_POINTS", 100)
  part, features, _ = made(200, num_classes=40)
  names = [f"class {i}" for i in range(40)]
  size(
    pictures.embedding_figure(features, part.labels, part.labels > 90, names)
  )
  assert len(drawn[0].axes) == 1 + installed
  for axes in drawn[0].axes:
    shown = sum(len(group.get_offsets()) for group in axes.collections)
    assert shown == 100
  legend = [t.get_text() for t in axes.get_legend().get_texts()]
  assert len(legend) == 11
  assert legend[0] == "other classes"


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf])
def test_a_collapsed_encoder_has_no_embedding(value):
  part, features, _ = made(120)
  features[:] = value
  with np.errstate(invalid="ignore"):
    found = pictures.embedding_figure(
      features, part.labels, part.labels > 0, NAMES
    )
  assert found is None


def test_mistakes_are_the_most_confident_ones(drawn):
  part, _, _ = made()
  shares = np.full((40, 3), 0.1, np.float32)
  shares[np.arange(40), part.labels] = 0.8
  shares[5] = [0.05, 0.95, 0]  # class 2 taken for 1
  shares[7] = [0.01, 0, 0.99]  # class 1 taken for 2
  highest = shares.argmax(axis=1), shares.max(axis=1)
  size(pictures.mistakes_figure(*part, *highest, NAMES, True))
  titles = [axes.get_title("left") for axes in drawn[0].axes]
  assert titles == [
    "$x_1^$ & {co\n→ a very long na… 99%",
    "a very long na…\n→ $x_1^$ & {co 95%",
  ]
  assert drawn[0].axes[0].images[0].get_array()[0, 0, 0] == 9
