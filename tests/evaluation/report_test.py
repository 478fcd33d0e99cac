"""What an evaluation leaves behind, as a reader or a script finds it."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image

from dbl_jax.evaluation import metrics, plots, report

NAMES = ["surprise", "<script>alert('x')</script>", "$x_1^ & co", "absent"]
CONFUSION = np.array(
  [[80, 15, 5, 0], [6, 4, 0, 0], [10, 0, 30, 0], [0, 0, 0, 0]]
)
HISTORY = [
  {"phase": "pretrain", "step": 0, "epoch": 0.0, "loss": 4.5},
  {"phase": "pretrain", "step": 9, "epoch": 1.0, "loss": float("nan")},
  {
    "phase": "pretrain",
    "step": 9,
    "epoch": 1.0,
    "knn_mean_class_accuracy": 0.3,
    "knn_overall_accuracy": 0.4,
  },
  {
    "phase": "classify",
    "step": 12,
    "epoch": 1.0,
    "val_loss": 1.5,
    "val_overall_accuracy": 0.5,
    "val_mean_class_accuracy": 0.4,
  },
]


class _Page(HTMLParser):
  """Tags with their attributes, and the text outside tags."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data

  def find(self, tag):
    return [attrs for name, attrs in self.tags if name == tag]


def _metrics():
  return {
    "dataset": "raf_db",
    "split": "test",
    **metrics.summarise(CONFUSION, NAMES),
    "checkpoint_step": 12345,
    "predictor": "knn",
    "config": {"seed": 0, "note": "</pre><script>", "sizes": (1, 2)},
  }


def _write(folder, **changes):
  options = {"train_counts": None, "history": [], "view_pairs": None}
  results = {**_metrics(), **changes.pop("metrics", {})}
  report.write(folder, results, **{**options, "title": "A run", **changes})
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


def _size(png):
  image = Image.open(io.BytesIO(png))
  image.load()
  return image.size


def test_metrics_json_returns_what_was_given(folder):
  text = (folder / "metrics.json").read_text()
  expected = _metrics()
  expected["config"]["sizes"] = [1, 2]
  assert json.loads(text) == expected
  assert list(json.loads(text)) == list(expected)


def test_metrics_json_has_no_word_that_is_not_json(tmp_path):
  config = {"loss": float("nan"), "rate": np.float32("inf"), "n": np.arange(2)}
  _write(tmp_path, metrics={"config": config})

  def refuse(word):
    raise AssertionError(word)

  text = (tmp_path / "metrics.json").read_text()
  result = json.loads(text, parse_constant=refuse)
  assert result["config"] == {"loss": None, "rate": None, "n": [0, 1]}


def test_writing_again_replaces_and_leaves_no_scraps(tmp_path):
  _write(tmp_path)
  _write(tmp_path, metrics={"checkpoint_step": 2})
  numbers = json.loads((tmp_path / "metrics.json").read_text())
  assert numbers["checkpoint_step"] == 2
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"confusion_matrix.png", "metrics.json", "report.html"}


def test_a_write_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
  _write(tmp_path)
  before = (tmp_path / "metrics.json").read_bytes()

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(report.files.os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    _write(tmp_path, metrics={"checkpoint_step": 2})
  assert (tmp_path / "metrics.json").read_bytes() == before
  assert len(list(tmp_path.iterdir())) == 3


def test_confusion_matrix_picture_is_large_enough(folder):
  width, height = _size((folder / "confusion_matrix.png").read_bytes())
  assert width >= 400
  assert height >= 400


def test_page_shows_the_numbers(page):
  text = _Page(page).text
  for fact in ("raf_db", "test split", "150 images", "step 12,345", "by knn"):
    assert fact in text
  # Recalls .8, .4 and .75 of the three classes that occur; 114 of 150.
  for number in ("65.0%", "76.0%", "chance: 25.0%", "always “surprise”: 66.7%"):
    assert number in text
  lower, upper = metrics.mean_class_interval(CONFUSION)
  assert f"95% interval: {100 * lower:.1f} to {100 * upper:.1f}" in text
  assert text.index("65.0%") < text.index("76.0%")
  assert "4 of 10 images" in text


def test_page_escapes_names_and_config(page):
  tags = _Page(page)
  assert not tags.find("script")
  assert NAMES[1] in tags.text
  assert '"note": "</pre><script>"' in tags.text
  assert "<script" not in page


def test_title_is_escaped(tmp_path):
  page = _write(tmp_path, title='<b>"A" & B</b>')
  assert not _Page(page).find("b")


def test_page_loads_nothing(page):
  tags = _Page(page)
  for tag in ("script", "link", "iframe", "a", "object"):
    assert not tags.find(tag)
  assert all(
    attrs["src"].startswith("data:image/png;base64,")
    for attrs in tags.find("img")
  )
  assert "http" not in re.sub(r"base64,[^\"]*", "", page)
  assert "url(" not in page
  assert "@import" not in page


def test_every_picture_has_a_text(page):
  pictures = _Page(page).find("img")
  assert len(pictures) == 5
  assert all(attrs["alt"] for attrs in pictures)


def test_undefined_recall_is_a_dash(page):
  row = re.search(r'<th scope="row">absent</th>(.*?)</tr>', page).group(1)
  cells = re.findall("<td>(.*?)</td>", row)
  assert cells == ["–", "–", "0.0%", "0.0%", "0", "50", "5.0%"]
  assert "not in the mean: absent." in page


def test_classes_are_sorted_by_training_share(page):
  shares = re.findall(r"([\d.]+)%</td></tr>", page)
  assert shares == ["70.0", "20.0", "5.0", "5.0"]


def test_missing_pieces_leave_their_section_out(tmp_path):
  bare = metrics.summarise(CONFUSION, NAMES)
  report.write(
    tmp_path, bare, train_counts=None, history=[], view_pairs=None, title="Bare"
  )
  tags = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
  assert len(tags.find("img")) == 2
  for absent in ("Learning curves", "views", "Config", "Training", "step"):
    assert absent not in tags.text
  assert "65.0%" in tags.text


def test_split_without_images_is_reported(tmp_path):
  empty = metrics.summarise(np.zeros((2, 2), int), ["a", "b"])
  page = _write(tmp_path, metrics=empty)
  assert "This split has no images." in page
  assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 0


def test_wrong_number_of_training_counts_is_refused(tmp_path):
  with pytest.raises(ValueError, match="2 training counts for 4 classes"):
    _write(tmp_path, train_counts=[1, 2])


@pytest.mark.parametrize("num_classes", [2, 16])
def test_figures_grow_with_the_classes(num_classes):
  rng = np.random.default_rng(0)
  confusion = rng.integers(0, 50, (num_classes, num_classes))
  names = [f"$x_^{i}_$ 表情, a long unkind name" for i in range(num_classes)]
  matrix = _size(plots.confusion_matrix_figure(confusion, names, "$x_^$"))
  # 0.4 inch for a cell is the least that holds three legible digits.
  assert min(matrix) >= 0.4 * num_classes * plots.DPI
  bars = _size(plots.class_recall_figure(confusion, names, None))
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


def test_learning_curves_need_something_finite():
  rows = [{"phase": "p", "step": 1, "epoch": 1.0, "loss": float("nan")}]
  assert plots.learning_curves_figure(rows, "p") is None
  assert plots.learning_curves_figure([], "p") is None
  rows += [{"phase": "p", "step": 2, "epoch": 2.0, "loss": np.float32(1)}]
  assert plots.learning_curves_figure(rows, "p") is not None
  assert plots.learning_curves_figure(rows, "q") is None


def test_learning_curves_let_the_resumed_run_stand():
  first = {"phase": "p", "step": 1, "epoch": 1.0, "loss": 9.0}
  resumed = {"phase": "p", "step": 1, "epoch": 1.0, "loss": 2.0}
  assert plots.learning_curves_figure(
    [first, resumed], "p"
  ) == plots.learning_curves_figure([resumed], "p")


def test_views_strip_shows_no_more_than_fits():
  images = np.zeros((40, 8, 8, 3), np.uint8)
  views = np.zeros((40, 8, 8, 3), np.float32)
  limit = plots.MAX_VIEW_PAIRS
  full = _size(plots.view_pairs_figure(images, views, views))
  cut = _size(
    plots.view_pairs_figure(images[:limit], views[:limit], views[:limit])
  )
  assert full == cut


def test_views_strip_puts_each_image_above_its_views():
  red, green, blue = np.eye(3, dtype=np.float32)[:, None, None, None]
  one = np.ones((1, 8, 8, 3), np.float32)
  png = plots.view_pairs_figure(
    (255 * one * red).astype(np.uint8), one * green, one * blue
  )
  picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
  height, width, _ = picture.shape
  column = picture[:, 2 * width // 3]
  assert column[height // 6].tolist() == [255, 0, 0]
  assert column[height // 2].tolist() == [0, 255, 0]
  assert column[5 * height // 6].tolist() == [0, 0, 255]
