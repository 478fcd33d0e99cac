"""Files of an evaluation, as a reader or a script finds them."""

import json
import re
import time

import numpy as np
import pytest
from pages import Page

from dbl_jax.evaluation import metrics, report

NAN = float("nan")
NAMES = ["surprise", "<script>alert('x')</script>", "$x_1^ & co", "absent"]
CONFUSION = np.array(
  [[80, 15, 5, 0], [6, 4, 0, 0], [10, 0, 30, 0], [0, 0, 0, 0]]
)
HISTORY = [
  {"phase": "pretrain", "step": 0, "epoch": 0.0, "loss": 4.5},
  {"phase": "pretrain", "step": 9, "epoch": 1.0, "loss": NAN},
  {"phase": "pretrain", "step": 9, "epoch": 1.0, "knn_overall_accuracy": 0.4},
  {"phase": "classify", "step": 12, "epoch": 1.0, "val_loss": 1.5},
]
CONFIG = {
  "seed": 0,
  "note": "</pre><script>",
  "sizes": (1, 2),
  "loss": NAN,
  "rate": np.float32("inf"),
  "n": np.arange(2),
  'x\n  "confusion_matrix": []': {"confusion_matrix": []},
}
RESULTS = {
  "dataset": "raf_db",
  "split": "test",
  **metrics.summarise(CONFUSION, NAMES),
  "checkpoint_step": 12345,
  "predictor": "knn",
  "config": CONFIG,
}
VIEWS = np.random.default_rng(0).random((3, 20, 20, 3), np.float32)


def write(folder, results=RESULTS, **changes):
  options = {
    "train_counts": [700, 50, 200, 50],
    "history": [],
    "view_pairs": (np.zeros((3, 24, 24, 3), np.uint8), VIEWS, 1.2 * VIEWS),
    "title": '<b>"A" & B</b>',
  }
  report.write(folder, RESULTS | results, **options | changes)
  return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "new" / "report"
  write(path, history=HISTORY)
  return path


@pytest.fixture(scope="module")
def page(folder):
  return (folder / "report.html").read_text(encoding="utf-8")


def test_metrics_json_is_what_was_given_in_its_order(folder):
  found = json.loads(
    (folder / "metrics.json").read_text(),
    parse_constant=lambda word: pytest.fail(f"{word} is not standard JSON"),
  )
  config = CONFIG | {"sizes": [1, 2], "loss": None, "rate": None, "n": [0, 1]}
  assert found == RESULTS | {"config": config}
  assert list(found) == list(RESULTS)


def test_page_has_the_numbers(page):
  text = Page(page).text
  lower, upper = metrics.mean_class_interval(CONFUSION)
  for fact in (
    "raf_db",
    "test split",
    "150 images",
    "step 12,345",
    "predictor: knn",
    # Recalls .8, .4 and .75 of the three classes that occur; 114 of 150.
    "65.0%",
    "76.0%",
    "chance: 25.0%",
    "always “surprise”: 66.7%",
    f"95% interval: {100 * lower:.1f} to {100 * upper:.1f}",
    "4 of 10 images",
    "not in the mean: absent.",
  ):
    assert fact in text
  assert text.index("65.0%") < text.index("76.0%")
  row = re.search(r'<th scope="row">absent</th>(.*?)</tr>', page).group(1)
  cells = re.findall("<td>(.*?)</td>", row)
  assert cells == ["–", "–", "0.0%", "0.0%", "0", "50", "5.0%"]
  shares = re.findall(r"([\d.]+)%</td></tr>", page)
  assert shares == ["70.0", "20.0", "5.0", "5.0"]


def test_untrusted_text_is_escaped_and_the_page_loads_nothing(page):
  found = Page(page)
  assert NAMES[1] in found.text
  assert '"note": "</pre><script>"' in found.text
  assert page.count("<script") == 1  # the page's own
  for tag in ("link", "iframe", "a", "object", "b"):
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


def test_a_split_without_images_and_a_run_without_history(tmp_path):
  empty = metrics.summarise(np.zeros((2, 2), int), ["a", "b"])
  page = write(tmp_path, empty, train_counts=[5, 2])
  assert "This split has no images." in page
  assert "Learning curves" not in page
  assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 0


def test_many_classes_are_summarised_in_seconds(tmp_path):
  many = 1500
  names = [f"class {i}" for i in range(many)]
  labels = np.repeat(np.arange(many), 10)
  wrong = np.tile(np.arange(10), many) >= labels % 10
  confusion = metrics.confusion_matrix(labels, np.where(wrong, 0, labels), many)
  counts = np.arange(many)
  results = metrics.summarise(confusion, names)
  results |= {
    "top5_accuracy": 0.613,
    "tiers": metrics.by_tier(confusion, counts),
  }
  start = time.monotonic()
  page = write(tmp_path, results, train_counts=counts.tolist())
  assert time.monotonic() - start < 60  # quadratic drawing took 20 minutes
  assert len(Page(page).find("img")) == 4
  assert all(f'scope="row">{name}<' in page for name in names)
  text = Page(page).text
  for fact in ("five most likely: 61.3%", "Few-shot accuracy", "20 classes"):
    assert fact in text
  assert len(page) < 2e6
  found = json.loads((tmp_path / "metrics.json").read_text())
  assert found["confusion_matrix"] is None
  assert found["confusion_cells"] == results["confusion_cells"]


def test_classes_of_one_tier_have_no_tiers(tmp_path):
  tiers = metrics.by_tier(CONFUSION, [700, 150, 200, 150])
  assert "shot accuracy" not in write(tmp_path, {"tiers": tiers})
