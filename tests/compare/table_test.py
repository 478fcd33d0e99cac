"""The table in Markdown, CSV and HTML."""

import csv
import io
import re

import numpy as np
import pytest
from pages import Page

from dbl_jax.compare import table
from dbl_jax.compare.statistics import run_result
from dbl_jax.compare.table import facts, make_rows
from dbl_jax.errors import UserError
from dbl_jax.evaluation.predictions import Predictions

ABOUT = {
  "dataset": "RAF-DB",
  "image_size": 48,
  "command": "make_table.py --out=a|b <c>",
}
LABELS = np.repeat([0, 1], [10, 4])
NAMES = ("joy", "fear")
NAN = float("nan")
FIELDS = {"seconds", "fingerprint", "hardware"}


def _record(system, seed, hits, **changes):
  """A run with the first hits[c] images of class c right."""
  right = np.concatenate([np.arange(10) < hits[0], np.arange(4) < hits[1]])
  scores = np.eye(2)[np.where(right, LABELS, 1 - LABELS)] * 3
  scores, counts = scores.astype(np.float32), np.array([500, 30])
  run = Predictions(NAMES, counts, LABELS, scores, LABELS, scores, True)
  about = {"seconds": 60.0 * (seed + 1), "hardware": ("an H100 & 16 cores",)}
  about |= {name: changes.pop(name) for name in FIELDS & changes.keys()}
  return run_result(system, seed, run._replace(**changes), **about)


def _records():
  return [
    _record("mixup", 0, (10, 1)),
    _record("dbl", 1, (9, 4)),
    _record("dbl", 0, (7, 4)),
    _record("basic", 0, (9, 1)),
    _record("basic", 1, (9, 1)),
  ]


def _tables(markdown):
  """heading -> rows of cells of the table below it."""
  found = {}
  for part in markdown.split("\n## ")[1:]:
    heading, *lines = part.splitlines()
    found[heading] = [
      [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
      for line in lines
      if line.startswith("|")
    ]
  return found


def _made(records, missing=(), form=table.as_markdown):
  made_by = facts(records, **ABOUT)
  return form(make_rows(records, cuts=(100, 20)), made_by, missing)


def test_rows_follow_table_1_and_then_the_order_they_came():
  extra = [_record("ldam_drw", 0, (1, 1)), *_records()]
  rows = [(row["system"], row["seeds"]) for row in make_rows(extra)]
  known = [("basic", "0 1"), ("dbl", "0 1")]
  assert rows == [*known, ("ldam_drw", "0"), ("mixup", "0")]
  printed = [row[:3] for row in _tables(_made(extra))["Accuracy (%)"][2:]]
  assert printed[0] == ["Basic", "70.35", "81.68"]
  assert printed[2] == [r"ldam\_drw", "–", "–"]


def test_a_row_by_hand():
  row = make_rows(_records(), cuts=(100, 20))[1]
  # Mean-class (.7 + 1)/2 and (.9 + 1)/2, overall 11/14 and 13/14.
  confidence = 1 / (1 + np.exp(-3))
  expected = {
    "mean_class_accuracy_percent": 90,
    "mean_class_accuracy_sd_percent": 10 / 2**0.5,
    "overall_accuracy_percent": 1200 / 14,
    "overall_accuracy_sd_percent": 200 / 14 / 2**0.5,
    "recall_percent: joy": 80,
    "recall_sd_percent: joy": 20 / 2**0.5,
    "recall_percent: fear": 100,
    "recall_sd_percent: fear": 0,
    "many_recall_percent": 80,
    "medium_recall_percent": 100,
    "few_recall_percent": NAN,
    "training_seconds": 90,
    "expected_calibration_error_percent": 50
    * (abs(11 / 14 - confidence) + abs(13 / 14 - confidence)),
  }
  for key, value in expected.items():
    assert row[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key


def test_differences_are_to_the_reference():
  gain = "mean_class_difference_points"
  basic, dbl, mixup = make_rows(_records())
  assert np.isnan(basic[gain])
  assert dbl[gain] == pytest.approx(90 - 57.5)
  assert mixup["overall_difference_points"] == pytest.approx(100 / 14, abs=1e-6)
  basic, dbl, _ = make_rows(_records(), reference="dbl")
  assert np.isnan(dbl[gain])
  assert basic[gain] == pytest.approx(57.5 - 90)
  records = [record for record in _records() if record.system != "basic"]
  assert all(np.isnan(row[gain]) for row in make_rows(records))
  assert "Difference" not in _made(records)


def test_what_is_not_known_is_a_dash():
  pair = [_record("basic", 0, (9, 1)), _record("basic", 1, (9, 1))]
  (row,) = make_rows([pair[0], pair[1]._replace(calibration_error=NAN)])
  assert np.isnan(row["expected_calibration_error_percent"])
  # One seed, no probabilities, no cost, and a class without test images.
  labels, scores = np.zeros(14, int), np.eye(2)[[0] * 7 + [1] * 7]
  changes = {"labels": labels, "scores": scores, "calibrated": False}
  records = [_record("basic", 0, (9, 1), seconds=None, **changes)]
  (row,) = make_rows(records)
  assert np.isnan(row["mean_class_accuracy_sd_percent"])
  assert np.isnan(row["recall_percent: fear"])
  assert row["mean_class_accuracy_percent"] == 50
  printed = _tables(_made(records))
  assert printed["Accuracy (%)"][2][3:5] == ["50.00", "50.00"]
  assert printed["Recall by class (%)"][2][1:] == ["50.0", "–"]
  assert printed["Calibration and cost"][2][1:] == ["–", "–"]


def test_markdown_table_with_the_best_in_bold():
  tables = _tables(_made(_records()))
  basic, dbl, mixup = tables["Accuracy (%)"][2:]
  assert basic == [
    "Basic", "70.35", "81.68", "57.50 ± 0.00", "71.43 ± 0.00", "0, 1"
  ]  # fmt: skip
  assert dbl[1:4] == ["**75.87**", "**83.21**", "**90.00 ± 7.07**"]
  assert mixup[1:5] == ["–", "–", "62.50", "78.57"]
  minutes = [row[2] for row in tables["Calibration and cost"][2:]]
  assert minutes == ["1.5", "1.5", "**1.0**"]
  basic, dbl, _ = tables["Difference to Basic (points)"][2:]
  assert basic[1:] == ["reference", "–", "reference", "–"]
  assert re.fullmatch(r"\*\*\+32\.50 \([\d.]+ to [\d.]+\)\*\*", dbl[1]), dbl
  assert all(
    len(row) == len(rows[0]) for rows in tables.values() for row in rows
  )


def test_a_loss_has_a_minus_sign_and_is_not_best():
  records = [_record("basic", 0, (9, 3)), _record("dbl", 0, (9, 1))]
  basic, dbl = _tables(_made(records))["Difference to Basic (points)"][2:]
  assert basic[1] == "**reference**"
  # Values that print alike are equally good.
  rows = _tables(_made(records))["Recall by class (%)"][2:]
  assert [row[1] for row in rows] == ["**90.0**", "**90.0**"]
  # One seed has no interval and no p.
  assert dbl[1:3] == ["−25.00", "–"]


@pytest.mark.parametrize("form", [table.as_markdown, table.as_html])
def test_every_page_has_the_provenance(form):
  text = _made(_records(), ["decoupling: seeds 1, 2"], form)
  if form is table.as_html:
    page = Page(text)
    assert "90.00 ± 7.07" in page.bold
    assert "57.50 ± 0.00" not in page.bold
    assert not [attrs for _, attrs in page.tags if "src" in attrs]
    text = page.text
  for fact in (
    "RAF-DB",
    "48 × 48 pixels",
    "14",
    "0 joy (500 / 10); 1 fear (30 / 4)",
    "0, 1",
    "each run was evaluated on the test images once",
    "decoupling: seeds 1, 2",
    ABOUT["command"],
  ):
    assert fact in text


def test_csv_columns_keep_their_names_and_order():
  header = _made(_records(), form=table.as_csv).splitlines()[0]
  assert header == (
    "system,title,seeds,paper_average_percent,paper_overall_percent,"
    "mean_class_accuracy_percent,mean_class_accuracy_sd_percent,"
    "overall_accuracy_percent,overall_accuracy_sd_percent,"
    "mean_class_difference_points,mean_class_lower_points,"
    "mean_class_upper_points,mean_class_p,overall_difference_points,"
    "overall_lower_points,overall_upper_points,overall_p,many_recall_percent,"
    "medium_recall_percent,few_recall_percent,"
    "expected_calibration_error_percent,training_seconds,recall_percent: joy,"
    "recall_sd_percent: joy,recall_percent: fear,recall_sd_percent: fear,"
    "data_set,image_size,test_images,class_order_training_test_images,tiers,"
    "encoder_epochs,choice_of_checkpoints,hardware,command,missing"
  )


def test_csv_is_read_back_whole():
  records = _records()
  missing = ["decoupling: no run", 'x, "y"']
  rows = list(
    csv.DictReader(io.StringIO(_made(records, missing, table.as_csv)))
  )
  assert [row["system"] for row in rows] == ["basic", "dbl", "mixup"]
  assert [row["seeds"] for row in rows] == ["0 1", "0 1", "0"]
  dbl = rows[1]
  assert float(dbl["mean_class_accuracy_percent"]) == pytest.approx(90)
  assert float(dbl["recall_percent: joy"]) == pytest.approx(80)
  assert dbl["few_recall_percent"] == rows[0]["mean_class_p"] == ""
  assert 0 < float(dbl["mean_class_p"]) <= 1
  assert rows[2]["mean_class_difference_points"]
  assert rows[2]["mean_class_lower_points"] == rows[2]["mean_class_p"] == ""
  assert dbl["command"] == ABOUT["command"]
  assert dbl["test_images"] == "14"
  assert dbl["class_order_training_test_images"].startswith("0 joy (500 / 10)")
  assert dbl["missing"] == 'decoupling: no run; x, "y"'


def test_untrusted_names_are_escaped_everywhere():
  names = ("<script>alert(1)</script>", "a|b *c* `d`\n[e](f) $g$")
  records = [
    _record("basic", 0, (9, 1), class_names=names),
    _record("<img src=x>|_y_\nz", 0, (8, 2), class_names=names),
  ]
  page = Page(_made(records, ["<b>z</b>"], table.as_html))
  assert not page.find("img") + page.find("b")
  assert len(page.find("script")) == 1  # the page's own
  for text in ("<script>alert(1)</script>", "<img src=x>|_y_", "<b>z</b>"):
    assert text in page.text
  tables = _tables(_made(records, ["<b>z</b>"]))
  recall = tables["Recall by class (%)"]
  assert all(len(row) == 3 for row in recall)
  assert recall[0][1:] == [
    r"\<script\>alert(1)\</script\>",
    r"a\|b \*c\* \`d\` \[e\](f) \$g\$",
  ]
  assert recall[3][0] == r"\<img src=x\>\|\_y\_ z"
  (row, _) = csv.DictReader(io.StringIO(_made(records, (), table.as_csv)))
  assert f"recall_percent: {names[1]}" in row


def test_of_many_classes_the_csv_alone_has_all():
  labels = np.repeat(np.arange(40), 2)
  scores = np.eye(40, dtype=np.float32)[(labels + labels % 2) % 40]
  scores[:3] = np.arange(40)
  changes = {"class_names": tuple(f"c{i}" for i in range(40))}
  changes |= {"labels": labels, "scores": scores, "train_counts": labels[::2]}
  runs = [_record("basic", seed, (0, 0), **changes) for seed in (0, 1)]
  printed = _made(runs)
  tables = _tables(printed)
  assert "Recall by class (%)" not in tables
  head, _, row = tables["Accuracy (%)"]
  # 38 first images, and by ties the second ones of classes 1 to 3.
  assert row[head.index("Top 5")] == f"{100 * 41 / 80:.2f} ± 0.00"
  assert "29 c29 (29 / 2); and 10 more" in printed
  (line,) = csv.DictReader(io.StringIO(_made(runs, (), table.as_csv)))
  assert line["recall_percent: c39"] == "0.0"
  assert line["recall_percent: c38"] == "100.0"


def test_a_command_cannot_leave_its_code_block():
  made_by = facts(_records(), **(ABOUT | {"command": "a\n```\nb"}))
  text = table.as_markdown(make_rows(_records()), made_by)
  assert text.endswith("````sh\na\n```\nb\n````\n")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"class_names": ("joy", "awe")}, "The classes of 'dbl'"),
    ({"train_counts": np.array([1, 2])}, "The training counts of"),
    ({"labels": 1 - LABELS}, "The test labels of"),
    ({"fingerprint": "other"}, "The images of"),
  ],
)
def test_records_that_cannot_be_compared_are_refused(changes, message):
  records = _records()
  records[1] = records[1]._replace(**changes)
  with pytest.raises(UserError, match=message):
    make_rows(records)
  with pytest.raises(UserError, match="No finished run"):
    make_rows([])


@pytest.mark.parametrize(
  ("of_each_run", "shown"),
  [((("A", "B"), ("B",)), "A; B"), (((), ()), "not known")],
)
def test_every_machine_is_named_once(of_each_run, shown):
  runs = [_record("basic", 0, (9, 1), hardware=x) for x in of_each_run]
  assert facts(runs, **ABOUT)["Hardware"] == shown


def test_write_leaves_five_whole_files_or_the_old_ones(
  tmp_path, monkeypatch, drawn
):
  out = tmp_path / "deep" / "er"
  records = _records()
  # A lone surrogate, which no file can hold.
  records[0] = records[0]._replace(system="mix\udc80")
  table.write(out, records, ["mixup: seed 1"], **ABOUT)
  old = {path.name: path.read_bytes() for path in out.iterdir()}
  assert sorted(old) == [
    "accuracies.png",
    "confusion_matrices.png",
    "table.csv",
    "table.html",
    "table.md",
  ]
  page = Page(old["table.html"].decode())
  assert len(page.find("img")) == 2
  assert all(attrs["src"].startswith("data:") for attrs in page.find("img"))
  assert "mixup: seed 1" in old["table.md"].decode()
  assert "mix?" in old["table.md"].decode()
  legend = [text.get_text() for text in drawn[0].axes[0].get_legend().texts]
  assert legend[1:] == ["1  Basic", "2  DBL", "3  mix?"]
  point = drawn[0].axes[0].containers[1][0].get_xydata()[0]
  assert point == pytest.approx((1200 / 14, 90))
  assert [a.get_title() for a in drawn[1].axes][:2] == ["Basic", "DBL"]
  with pytest.raises(UserError):
    table.write(
      out, [*records, _record("x", 0, (1, 1), fingerprint="y")], [], **ABOUT
    )

  def full(*_):
    raise OSError("disk full")

  monkeypatch.setattr(table.files.os, "replace", full)
  with pytest.raises(OSError, match="disk full"):
    table.write(out, records[1:], [], **ABOUT)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == old


@pytest.mark.parametrize(
  ("records", "paper", "expected"),
  [
    ([_record("basic", 0, (9, 1))], True, ["Logit", "the paper", "1  Basic"]),
    ([_record("dbl", 0, (9, 1))], False, ["1  DBL"]),
    ([_record("basic", 0, (9, 1), calibrated=False)], False, ["1  Basic"]),
  ],
)
def test_frontier_and_paper_points_are_drawn_where_there_are(
  tmp_path, drawn, records, paper, expected
):
  table.write(tmp_path, records, [], paper_points=paper, **ABOUT)
  axes = drawn[0].axes[0]
  legend = [text.get_text() for text in axes.get_legend().texts]
  for text, start in zip(legend, expected, strict=True):
    assert text.startswith(start)
  names = [text.get_text() for text in axes.texts]
  # Of Table 1, Lian et al. have one accuracy only.
  assert ("DLP-CNN" in names) == paper
  assert "Lian et al." not in names
  if expected[0] == "Logit":  # starts at the reference
    point = axes.containers[0][0].get_xydata()[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata()[0], point)
