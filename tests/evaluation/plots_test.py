"""Plots: what is drawn, that it can be read, and how they grow."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from pages import size
from PIL import Image

from dbl_jax.evaluation import plots

pytestmark = pytest.mark.usefixtures("rendered")

NAN = float("nan")
STEP = {"phase": "p", "step": 1, "epoch": 1.0}


def texts(found):
  return [text.get_text() for text in found]


def test_confusion_is_in_per_cent_of_the_row(drawn):
  confusion = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 0]])
  plots.confusion_figure([("DBL", confusion)] * 2, ("a", "b", "$x_1^"), [1] * 3)
  for axes in drawn[0].axes:
    assert texts(axes.texts)[:6] == ["75.0", "25.0", "0", "25.0", "75.0", "0"]
    assert texts(axes.texts)[6:] == ["–"] * 3
    assert axes.get_title() == "DBL"
    assert texts(axes.get_xticklabels()) == ["a", "b", "$x_1^"]


def test_each_system_has_a_panel_with_its_name(drawn):
  names = [f"system {i}" for i in range(13)]
  png = plots.confusion_figure([(n, np.eye(7)) for n in names], "abcdefg", [1])
  panels = [axes for axes in drawn[0].axes if axes.axison]
  assert texts(axes.title for axes in panels) == names
  assert texts(panels[0].texts)[:2] == ["100", "0"]
  assert all(100 < length < 8000 for length in size(png))


def test_forty_classes_are_heat_maps_by_frequency(drawn):
  names = [f"class {i}" for i in range(40)]
  matrices = [("Basic", np.eye(40)), ("DBL", np.eye(40)[::-1])]
  plots.confusion_figure(matrices, names, range(40))
  for axes, (_, matrix) in zip(drawn[0].axes, matrices, strict=False):
    assert not axes.texts
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares, 100 * matrix[::-1, ::-1])


def test_a_thousand_classes_share_the_cells_of_a_heat_map():
  axes = plots.Figure().add_subplot()
  confusion = np.eye(1000, dtype=int)
  confusion[0] = [1] * 2 + [0] * 998
  plots.draw_heat_map(axes, confusion, np.arange(1000))
  shares = axes.images[0].get_array()
  assert shares.shape == (400, 400)
  np.testing.assert_allclose(shares.sum(axis=1), 100)
  np.testing.assert_allclose(np.diagonal(shares), 100)


def test_of_many_classes_the_extremes_are_drawn(drawn):
  # Of ten images of a class, 0 to 9 are right, the others taken for class 0.
  correct = np.arange(300) % 10
  confusion = np.diag(correct)
  confusion[:, 0] += 10 - correct
  confusion[-1] = 0
  confusion[7] = 10**6 * np.eye(300, dtype=int)[7]
  plots.class_recall_figure(
    confusion, [f"class {i}" for i in range(300)], correct
  )
  labels = texts(drawn[0].axes[0].get_yticklabels())
  assert labels[0] == "class 7  100.0"
  assert len(labels) == 20
  assert all(label.endswith("0  0.0") for label in labels[10:])
  size(plots.recall_distribution_figure(confusion, correct))


@pytest.mark.parametrize("num_classes", [2, 16])
def test_plots_grow_with_the_classes(num_classes):
  confusion = np.random.default_rng(0).integers(0, 50, (num_classes,) * 2)
  names = [f"$x_^{i}_$ 表情, a long unkind name" for i in range(num_classes)]
  counts = [5] * num_classes
  matrix = size(plots.confusion_figure([("$x_^$", confusion)], names, counts))
  # 0.4 inch for a cell is the least that holds three legible digits.
  assert min(matrix) >= 0.4 * num_classes * plots.DPI
  bars = size(plots.class_recall_figure(confusion, names, counts))
  assert bars[1] >= 0.3 * num_classes * plots.DPI


def test_cell_text_is_readable_on_every_colour():
  def luminance(rgb):
    rgb = np.asarray(rgb)
    low, high = rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    return np.where(rgb <= 0.04045, low, high) @ [0.2126, 0.7152, 0.0722]

  for share in np.linspace(0, 1, 101):
    ink = to_rgb("white" if share > plots.WHITE_TEXT else plots.INK)
    colours = (colormaps["Blues"](share)[:3], ink)
    low, high = sorted(map(luminance, colours))
    assert (high + 0.05) / (low + 0.05) >= 3.5, share


def test_learning_curves_show_finite_values_and_the_resumed_run():
  rows = [{**STEP, "loss": NAN}]
  assert plots.learning_curves_figure(rows, "p") is None
  rows += [{**STEP, "loss": 9.0}, {**STEP, "loss": np.float32(2)}]
  png = plots.learning_curves_figure(rows, "p")
  assert png == plots.learning_curves_figure(rows[2:], "p")
  assert plots.learning_curves_figure(rows, "q") is None


def test_view_pairs_are_columns_and_no_more_than_fit():
  red, green, blue = np.eye(3, dtype=np.float32)[:, None, None, None]
  many = np.ones((40, 8, 8, 3), np.float32)
  views = (255 * many * red).astype(np.uint8), many * green, many * blue
  png = plots.view_pairs_figure(*views)
  cut = (images[: plots.MAX_VIEW_PAIRS] for images in views)
  assert png == plots.view_pairs_figure(*cut)
  picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
  height, width, _ = picture.shape
  column = picture[:, int(0.97 * width)]
  for part, colour in zip((1, 3, 5), np.eye(3), strict=True):
    assert column[part * height // 6].tolist() == (255 * colour).tolist()


def test_activation_maps_are_in_rows_of_classes_correct_first(drawn):
  truth, predictions = np.array([2, 0, 1, 2]), np.array([1, 0, 2, 2])
  pairs = np.zeros((4, 8, 16, 3), np.uint8)
  names = ("surprise", "$x_1^$ & {co", "a very long name for any class at all")
  size(plots.activation_figure(pairs, truth, predictions, names))
  assert [axes.get_title("left") for axes in drawn[0].axes] == [
    "surprise",
    "",
    "$x_1^$ & {co, predicted a very long n…",
    "",
    "a very long n…",
    "a very long n…, predicted $x_1^$ & {co",
  ]


def test_points_have_bars_of_deviations_and_numbers_in_the_legend(drawn):
  names = ["$\\frac{$", "x" * 200, *(f"a system {i}" for i in range(12))]
  points = [(name, 60.0, 50.0, 2.0, 1.0) for name in names]
  points[1] = ("one seed", 61.0, 51.0, NAN, NAN)
  curve = ("frontier", np.full(31, 60), np.full(31, 50), np.arange(31) / 20)
  paper = {"DBL": (83.0, 75.0)}
  assert size(plots.accuracies_figure(points, curve, paper))[0] < 3000
  (axes,) = drawn[0].axes
  assert [text for text in texts(axes.texts) if "." in text] == ["0.5", "1.5"]
  legend = axes.get_legend().get_texts()
  numbers = [text.split("  ")[0] for text in texts(legend)[2:]]
  assert numbers == [str(i) for i in range(1, 15)]
  renderer = FigureCanvasAgg(drawn[0]).get_renderer()
  boxes = [text.get_window_extent(renderer) for text in legend]
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    assert box.x0 > axes.bbox.x1
  point, _, bars = axes.containers[0]
  assert point.get_xydata().tolist() == [[60, 50]]
  across, along = (bar.get_segments()[0] for bar in bars)
  assert across.tolist() == [[59, 50], [61, 50]]
  assert along.tolist() == [[60, 48], [60, 52]]
  assert not axes.containers[1][2]
