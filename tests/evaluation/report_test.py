"""Files of an evaluation, as a reader or a script finds them."""

import io
import json
import re
import time

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from pages import Page, size
from PIL import Image

from dbl_jax.evaluation import metrics, plots, report

NAMES = ["surprise", "<script>alert('x')</script>", "$x_1^ & co", "absent"]
CONFUSION = np.array(
  [[80, 15, 5, 0], [6, 4, 0, 0], [10, 0, 30, 0], [0, 0, 0, 0]]
)
STEP = {"phase": "p", "step": 1, "epoch": 1.0}
HISTORY = [
  {"phase": "pretrain", "step": 0, "epoch": 0.0, "loss": 4.5},
  {"phase": "pretrain", "step": 9, "epoch": 1.0, "loss": float("nan")},
  {"phase": "pretrain", "step": 9, "epoch": 1.0, "knn_overall_accuracy": 0.4},
  {"phase": "classify", "step": 12, "epoch": 1.0, "val_loss": 1.5},
]


def _results():
  return {
    "dataset": "raf_db",
    "split": "test",
    **metrics.summarise(CONFUSION, NAMES),
    "checkpoint_step": 12345,
    "predictor": "knn",
    "config": {"seed": 0, "note": "</pre><script>", "sizes": (1, 2)},
  }


def _write(folder, results=(), **changes):
  options = {"train_counts": None, "history": [], "view_pairs": None}
  report.write(
    folder,
    {**_results(), **dict(results)},
    **{**options, "title": "A run", **changes},
  )
  return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "new" / "report"
  views = np.random.default_rng(0).random((3, 20, 20, 3), np.float32)
  _write(
    path,
    train_counts=[700, 50, 200, 50],
    history=HISTORY,
    view_pairs=(np.zeros((3, 24, 24, 3), np.uint8), views, 1.2 * views),
  )
  return path


@pytest.fixture(scope="module")
def page(folder):
  return (folder / "report.html").read_text(encoding="utf-8")


def test_metrics_json_is_what_was_given_in_its_order(folder):
  found = json.loads((folder / "metrics.json").read_text())
  expected = _results()
  expected["config"]["sizes"] = [1, 2]
  assert found == expected
  assert list(found) == list(expected)


def test_metrics_json_has_no_constant_outside_the_standard(tmp_path):
  config = {
    "loss": float("nan"),
    "rate": np.float32("inf"),
    "n": np.arange(2),
    'x\n  "confusion_matrix": []': {"confusion_matrix": []},
  }
  _write(tmp_path, {"config": config, "confusion_matrix": CONFUSION})
  result = json.loads(
    (tmp_path / "metrics.json").read_text(),
    parse_constant=lambda word: pytest.fail(word),
  )
  config |= {"loss": None, "rate": None, "n": [0, 1]}
  assert result["config"] == config
  assert result["confusion_matrix"] == CONFUSION.tolist()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  _write(tmp_path)
  before = (tmp_path / "metrics.json").read_bytes()

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(report.files.os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    _write(tmp_path, {"checkpoint_step": 2})
  assert (tmp_path / "metrics.json").read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 3


def test_page_has_the_numbers(page):
  text = Page(page).text
  for fact in ("raf_db", "test split", "150 images", "step 12,345", "by knn"):
    assert fact in text
  # Recalls .8, .4 and .75 of the three classes that occur; 114 of 150.
  for number in ("65.0%", "76.0%", "chance: 25.0%", "always “surprise”: 66.7%"):
    assert number in text
  lower, upper = metrics.mean_class_interval(CONFUSION)
  assert f"95% interval: {100 * lower:.1f} to {100 * upper:.1f}" in text
  assert text.index("65.0%") < text.index("76.0%")
  assert "4 of 10 images" in text


def test_untrusted_text_is_escaped(page, tmp_path):
  found = Page(page)
  assert len(found.find("script")) == 1  # the page's own
  assert NAMES[1] in found.text
  assert '"note": "</pre><script>"' in found.text
  assert page.count("<script") == 1
  assert not Page(_write(tmp_path, title='<b>"A" & B</b>')).find("b")


def test_page_loads_nothing(page):
  found = Page(page)
  for tag in ("link", "iframe", "a", "object"):
    assert not found.find(tag)
  assert not any("src" in attrs for attrs in found.find("script"))
  pictures = found.find("img")
  assert len(pictures) == 5
  for attrs in pictures:
    assert attrs["src"].startswith("data:image/png;base64,")
    assert attrs["alt"]
  rest = re.sub(r"base64,[^\"]*", "", page)
  for loader in ("http", "url(", "@import", "fetch", "import("):
    assert loader not in rest


def test_table_has_dashes_for_undefined_recall_and_is_sorted(page):
  row = re.search(r'<th scope="row">absent</th>(.*?)</tr>', page).group(1)
  cells = re.findall("<td>(.*?)</td>", row)
  assert cells == ["–", "–", "0.0%", "0.0%", "0", "50", "5.0%"]
  assert "not in the mean: absent." in page
  shares = re.findall(r"([\d.]+)%</td></tr>", page)
  assert shares == ["70.0", "20.0", "5.0", "5.0"]


def test_missing_inputs_leave_their_section_out(tmp_path):
  bare = metrics.summarise(CONFUSION, NAMES)
  report.write(
    tmp_path, bare, train_counts=None, history=[], view_pairs=None, title="Bare"
  )
  found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
  assert len(found.find("img")) == 2
  for absent in ("Learning curves", "views", "Config", "Training", "step"):
    assert absent not in re.sub(r"(?s)const .*", "", found.text)
  assert "65.0%" in found.text


def test_a_split_without_images_and_wrong_counts(tmp_path):
  empty = metrics.summarise(np.zeros((2, 2), int), ["a", "b"])
  assert "This split has no images." in _write(tmp_path, empty)
  assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 0
  with pytest.raises(ValueError, match="2 training counts for 4 classes"):
    _write(tmp_path, train_counts=[1, 2])


@pytest.mark.parametrize("trained", [True, False])
def test_many_classes_are_summarised_in_seconds(tmp_path, monkeypatch, trained):
  many = 300
  names = [f"class {i}" for i in range(many)]
  confusion = np.zeros((many, many), int)
  # Of ten images of a class, 0 to 9 are right, the others taken for class 0.
  confusion[:, 0] = 10 - np.arange(many) % 10
  np.fill_diagonal(confusion, np.arange(many) % 10)
  confusion[-1] = 0
  confusion[7] = 0
  confusion[7, 7] = 10**6
  drawn, real = [], plots.to_png
  monkeypatch.setattr(
    plots, "to_png", lambda figure: (drawn.append(figure), real(figure))[1]
  )
  start = time.monotonic()
  page = _write(
    tmp_path,
    metrics.summarise(confusion, names),
    train_counts=[*range(many)] if trained else None,
  )
  assert time.monotonic() - start < 60  # quadratic drawing took 20 minutes
  found = Page(page)
  assert len(found.find("img")) == 3
  assert all(f'scope="row">{name}<' in page for name in names)
  assert len(page) < 2e6
  recall = next(f for f in drawn if "95%" in f.axes[0].get_title("left"))
  labels = [text.get_text() for text in recall.axes[0].get_yticklabels()]
  assert labels[0] == "class 7"
  assert len(labels) == 20
  assert all(int(label.split()[1]) % 10 == 0 for label in labels[10:])
  shares = drawn[0].axes[0].images[0].get_array()
  assert shares.shape == (many, many)
  assert not drawn[0].axes[0].texts
  order = plots.frequency_order(
    range(many) if trained else confusion.sum(axis=1)
  ).tolist()
  row, column = order.index(5), order.index(0)
  assert shares[row, row] == shares[row, column] == 50
  assert shares[row].sum() == 100
  assert np.isnan(shares[order.index(many - 1)].filled(np.nan)).all()


def test_a_thousand_classes_share_the_cells_of_a_heat_map():
  axes = plots.Figure().add_subplot()
  confusion = np.eye(1000, dtype=int)
  confusion[0] = [1] * 2 + [0] * 998
  plots.draw_heat_map(axes, confusion, np.arange(1000))
  shares = axes.images[0].get_array()
  assert shares.shape == (400, 400)
  np.testing.assert_allclose(shares.sum(axis=1), 100)
  np.testing.assert_allclose(np.diagonal(shares), 100)


@pytest.mark.parametrize("num_classes", [2, 16])
def test_plots_grow_with_the_classes(num_classes):
  rng = np.random.default_rng(0)
  confusion = rng.integers(0, 50, (num_classes, num_classes))
  names = [f"$x_^{i}_$ 表情, a long unkind name" for i in range(num_classes)]
  matrix = size(plots.confusion_matrix_figure(confusion, names, "$x_^$"))
  # 0.4 inch for a cell is the least that holds three legible digits.
  assert min(matrix) >= 0.4 * num_classes * plots.DPI
  bars = size(plots.class_recall_figure(confusion, names, None))
  assert bars[1] >= 0.3 * num_classes * plots.DPI


def test_cell_ink_is_readable_on_every_colour():
  for share in np.linspace(0, 1, 101):
    colour = colormaps["Blues"](share)[:3]
    ink = plots._ink_on(colour)
    levels = sorted(_luminance(rgb) for rgb in (colour, to_rgb(ink)))
    assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 3.5


def _luminance(rgb):
  rgb = np.asarray(rgb)
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  return linear @ np.array([0.2126, 0.7152, 0.0722])


def test_learning_curves_show_finite_values_and_the_resumed_run():
  rows = [{**STEP, "loss": float("nan")}]
  assert plots.learning_curves_figure(rows, "p") is None
  assert plots.learning_curves_figure([], "p") is None
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
  assert column[height // 6].tolist() == [255, 0, 0]
  assert column[height // 2].tolist() == [0, 255, 0]
  assert column[5 * height // 6].tolist() == [0, 0, 255]
