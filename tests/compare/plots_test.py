"""Pictures of a comparison: what is drawn, and that it can be read."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dbl_jax.compare import plots
from dbl_jax.compare.records import Record
from dbl_jax.evaluation import plots as base

COUNTS = np.array([60, 25, 15])


def _record(system, seed, lift=0.0, names=("joy", "fear", "$x_1^"), **changes):
  rng = np.random.default_rng([seed, *system.encode()])
  labels = np.repeat(np.arange(3), COUNTS)
  scores = rng.normal(0, 1, (100, 3)) + (1.5 + lift) * np.eye(3)[labels]
  scores += 0.8 * np.log(COUNTS)
  made = Record(
    system, seed, names, COUNTS * 10, labels, scores, True, None, labels, scores
  )
  return made._replace(**changes)


def _many(systems, seeds=2):
  return [_record(name, seed) for name in systems for seed in range(seeds)]


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


def _size(png):
  with Image.open(io.BytesIO(png)) as image:
    image.load()
    return image.size


def _boxes(axes):
  renderer = FigureCanvasAgg(axes.figure).get_renderer()
  return [text.get_window_extent(renderer) for text in axes.texts]


def test_confusion_matrices_are_summed_over_seeds_in_per_cent(drawn):
  labels = np.array([0, 0, 1, 1])
  seeds = [
    _record(
      "dbl",
      seed,
      names=("a", "b", "absent"),
      labels=labels,
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
  width, height = _size(plots.confusion_matrices(_many(names, 1)))
  panels = [axes for axes in drawn[0].axes if axes.axison]
  assert [axes.get_title() for axes in panels] == names
  assert 100 < width < 8000
  assert 100 < height < 8000
  lowest = panels[-1].get_xticklabels()
  assert [text.get_text() for text in lowest] == ["joy", "fear", "$x_1^"]


def test_forty_classes_are_drawn_without_numbers(drawn):
  labels = np.arange(40)
  one = _record(
    "basic",
    0,
    names=tuple(f"class {i}" for i in range(40)),
    train_counts=np.ones(40, int),
    labels=labels,
    scores=np.eye(40),
  )
  plots.confusion_matrices([one])
  assert not _texts(drawn[0].axes[0])


def test_points_are_means_and_bars_deviations_in_per_cent(drawn):
  records = _many(["basic", "dbl"], 3)
  plots.accuracies(records)
  found = drawn[0].axes[0].containers
  for container, system in zip(found, ("basic", "dbl"), strict=True):
    overall, mean_class = [], []
    for record in (r for r in records if r.system == system):
      right = record.scores.argmax(axis=1) == record.labels
      overall.append(100 * right.mean())
      mean_class.append(
        100 * np.mean([right[record.labels == c].mean() for c in range(3)])
      )
    point, _, bars = container
    assert point.get_xydata()[0] == pytest.approx(
      (np.mean(overall), np.mean(mean_class))
    )
    across, along = (bar.get_segments()[0] for bar in bars)
    assert np.ptp(across[:, 0]) == pytest.approx(2 * np.std(overall, ddof=1))
    assert np.ptp(along[:, 1]) == pytest.approx(2 * np.std(mean_class, ddof=1))


def test_one_seed_has_no_bars(drawn):
  plots.accuracies(_many(["dbl"], 1))
  assert not drawn[0].axes[0].collections


def test_frontier_starts_at_the_reference_and_is_marked(drawn):
  plots.accuracies(_many(["basic", "dbl"]), strengths=(0, 0.5, 1, 1.5))
  axes = drawn[0].axes[0]
  assert {"0", "0.5", "1", "Basic", "DBL"} == set(_texts(axes))
  (curve,) = (
    line for line in axes.lines if "adjustment" in str(line.get_label())
  )
  assert len(curve.get_xydata()) == 4
  point = axes.containers[0][0].get_xydata()[0]
  np.testing.assert_allclose(curve.get_xydata()[0], point)


@pytest.mark.parametrize(
  "records",
  [
    [_record("dbl", 0)],
    [_record("basic", 0, probabilities_ok=False), _record("dbl", 0)],
  ],
)
def test_no_frontier_without_the_reference_or_its_probabilities(drawn, records):
  plots.accuracies(records)
  assert not {"0", "0.5", "1"} & set(_texts(drawn[0].axes[0]))


def test_paper_points_are_drawn_on_request_only(drawn):
  records = [_record("basic", 0)]
  plots.accuracies(records)
  plots.accuracies(records, paper_points=True)
  plain, paper = (_texts(figure.axes[0]) for figure in drawn)
  assert "DLP-CNN" not in plain
  # The eight of Table 1 with both accuracies; Lian et al. have one.
  assert len(paper) == len(plain) + 8
  assert "Lian et al." not in paper


@pytest.mark.parametrize("spread", [0, 0.02, 1])
def test_labels_do_not_overlap_and_stay_inside(drawn, spread):
  # Thirteen systems, at one point in the worst case.
  records = [
    _record(f"{'basic' if not i else f'a system {i}'}", 0) for i in range(13)
  ]
  shift = spread * np.linspace(0, 2, 13)
  base_scores = records[0].scores
  truth = np.eye(3)[records[0].labels]
  records = [
    record._replace(scores=base_scores + s * truth)
    for record, s in zip(records, shift, strict=True)
  ]
  plots.accuracies(records)
  axes = drawn[0].axes[0]
  boxes = _boxes(axes)
  assert len(boxes) == 16
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
    assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1


def test_labels_far_from_their_point_have_a_line_to_it(drawn):
  names = ["basic", *(f"a system {i}" for i in range(12))]
  same = _record("basic", 0)
  plots.accuracies([same._replace(system=name) for name in names])
  axes = drawn[0].axes[0]
  point = axes.containers[0][0].get_xydata()[0]
  lines = [
    line.get_xydata()
    for line in axes.lines
    if len(line.get_xydata()) > 1 and line.get_linewidth() < 1
  ]
  assert len(lines) >= 5
  starts = [line[0] for line in lines]
  np.testing.assert_allclose(starts, [point] * len(lines), atol=1e-6)


def test_strange_names_are_drawn_as_they_are():
  names = ("$\\frac{$", "b$^$", "表情")
  records = [
    _record("$\\frac{$", 0, names=names),
    _record("x" * 200, 0, names=names),
  ]
  width, _ = _size(plots.accuracies(records, reference="$\\frac{$"))
  assert width < 3000
  width, _ = _size(plots.confusion_matrices(records))
  assert width < 3000
