"""Plots of a comparison: what is drawn, and that it can be read."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pages import size

from dbl_jax.compare import plots
from dbl_jax.compare.records import RunResult
from dbl_jax.compare.table import make_rows
from dbl_jax.evaluation import plots as base
from dbl_jax.evaluation.predictions import Predictions

COUNTS = np.array([60, 25, 15])


def _result(system, seed=0, **changes):
  rng = np.random.default_rng([seed, *system.encode()])
  labels = np.repeat(np.arange(3), COUNTS)
  scores = rng.normal(0, 1, (100, 3)) + 1.5 * np.eye(3)[labels]
  scores += 0.8 * np.log(COUNTS)
  names = ("joy", "fear", "$x_1^")
  run = Predictions(names, COUNTS * 10, labels, scores, labels, scores, True)
  return RunResult(system, seed, run._replace(**changes))


def _results(systems, seeds=2):
  return [_result(name, seed) for name in systems for seed in range(seeds)]


@pytest.fixture
def drawn(monkeypatch):
  """Lists figures as they are rendered."""
  kept = []
  render = base.to_png
  monkeypatch.setattr(
    base, "to_png", lambda figure: (kept.append(figure), render(figure))[1]
  )
  return kept


def _texts(axes):
  return [text.get_text() for text in axes.texts]


def _legend(axes):
  return [text.get_text() for text in axes.get_legend().get_texts()]


def test_confusion_matrices_are_summed_over_seeds_in_per_cent(drawn):
  seeds = [
    _result(
      "dbl",
      seed,
      class_names=("a", "b", "absent"),
      labels=np.array([0, 0, 1, 1]),
      scores=np.eye(3)[guesses],
    )
    for seed, guesses in enumerate(([0, 0, 1, 0], [0, 1, 1, 1]))
  ]
  plots.confusion_matrices(seeds)
  (axes,) = drawn[0].axes
  assert _texts(axes) == ["75", "25", "0", "25", "75", "0", "–", "–", "–"]
  assert axes.get_title() == "DBL"


@pytest.mark.parametrize("systems", [1, 9, 13])
def test_each_system_has_a_panel_with_its_name(drawn, systems):
  names = [f"system {i}" for i in range(systems)]
  width, height = size(plots.confusion_matrices(_results(names, 1)))
  panels = [axes for axes in drawn[0].axes if axes.axison]
  assert [axes.get_title() for axes in panels] == names
  assert 100 < width < 8000
  assert 100 < height < 8000
  lowest = panels[-1].get_xticklabels()
  assert [text.get_text() for text in lowest] == ["joy", "fear", "$x_1^"]


def test_forty_classes_are_a_heat_map(drawn):
  many = {
    "class_names": tuple(f"class {i}" for i in range(40)),
    "train_counts": np.ones(40, int),
    "labels": np.arange(40),
    "scores": np.eye(40),
  }
  plots.confusion_matrices([_result("basic", **many), _result("dbl", **many)])
  for axes in drawn[0].axes:
    assert not _texts(axes)
    np.testing.assert_allclose(axes.images[0].get_array(), 100 * np.eye(40))


def _draw(results, reference="basic", **options):
  base = [result for result in results if result.system == reference]
  return plots.accuracies(make_rows(results, draws=10), base, **options)


def test_points_are_means_and_bars_deviations_in_per_cent(drawn):
  results = _results(["basic", "dbl"], 3)
  _draw(results)
  axes = drawn[0].axes[0]
  assert [text.split("  ") for text in _legend(axes)[-2:]] == [
    ["1", "Basic"],
    ["2", "DBL"],
  ]
  for container, system in zip(axes.containers, ("basic", "dbl"), strict=True):
    overall, mean_class = [], []
    for run in (r.predictions for r in results if r.system == system):
      right = run.scores.argmax(axis=1) == run.labels
      overall.append(100 * right.mean())
      mean_class.append(
        100 * np.mean([right[run.labels == c].mean() for c in range(3)])
      )
    point, _, bars = container
    assert point.get_xydata()[0] == pytest.approx(
      (np.mean(overall), np.mean(mean_class))
    )
    across, along = (bar.get_segments()[0] for bar in bars)
    assert np.ptp(across[:, 0]) == pytest.approx(2 * np.std(overall, ddof=1))
    assert np.ptp(along[:, 1]) == pytest.approx(2 * np.std(mean_class, ddof=1))


def test_frontier_starts_at_the_reference_and_is_marked(drawn):
  _draw(_results(["basic", "dbl"], 1), strengths=(0, 0.5, 0.9, 1, 1.5))
  axes = drawn[0].axes[0]
  assert not axes.collections  # one seed, no bars
  assert _texts(axes) == ["0", "0.5", "1", "1", "2"]
  (curve,) = (
    line for line in axes.lines if "adjustment" in str(line.get_label())
  )
  assert len(curve.get_xydata()) == 5
  point = axes.containers[0][0].get_xydata()[0]
  np.testing.assert_allclose(curve.get_xydata()[0], point)


@pytest.mark.parametrize(
  "results",
  [
    [_result("dbl")],
    [_result("basic", calibrated=False), _result("dbl")],
  ],
)
def test_no_frontier_without_the_reference_or_its_probabilities(drawn, results):
  _draw(results)
  assert not any("adjustment" in text for text in _legend(drawn[0].axes[0]))


def test_paper_points_are_drawn_on_request_only(drawn):
  results = [_result("basic")]
  _draw(results)
  _draw(results, paper_points=True)
  plain, paper = (_texts(figure.axes[0]) for figure in drawn)
  assert "DLP-CNN" not in plain
  # The eight of Table 1 with both accuracies; Lian et al. have one.
  assert len(paper) == len(plain) + 8
  assert "Lian et al." not in paper


def test_systems_at_one_point_are_told_apart_by_the_legend(drawn):
  names = ["basic", *(f"a system {i}" for i in range(12))]
  same = _result("basic")
  _draw([same._replace(system=name) for name in names])
  axes = drawn[0].axes[0]
  numbers = [text.split("  ")[0] for text in _legend(axes)[1:]]
  assert numbers == [str(i) for i in range(1, 14)]
  renderer = FigureCanvasAgg(drawn[0]).get_renderer()
  boxes = [
    text.get_window_extent(renderer) for text in axes.get_legend().get_texts()
  ]
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert box.x0 > axes.bbox.x1


def test_untrusted_names_are_drawn_literally():
  names = ("$\\frac{$", "b$^$", "表情")
  results = [
    _result("$\\frac{$", class_names=names),
    _result("x" * 200, class_names=names),
  ]
  for png in (
    _draw(results, reference="$\\frac{$"),
    plots.confusion_matrices(results),
  ):
    assert size(png)[0] < 3000
