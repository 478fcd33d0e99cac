"""Files of an evaluation: metrics.json, confusion_matrix.png, report.html."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from dbl_jax.evaluation import page, plots
from dbl_jax.evaluation.metrics import (
  confusion_of,
  correct_and_count,
  mean_class_interval,
  wilson_interval,
)
from dbl_jax.runtime import files

DASH = "–"
_MAX_LISTED = 20  # names in a sentence
# The line under the title.
_FACTS = (
  "{dataset}",
  "{split} split",
  "{images:,} images",
  "checkpoint at step {checkpoint_step:,}",
  "predictor: {predictor}",
)
# Fields of metrics.json that are shown with the config.
_PROVENANCE = (
  "made_by",
  "data_fingerprint",
  "skipped_steps",
  "better_checkpoint_lost",
)
_MATRICES = ("confusion_matrix", "confusion_cells")  # one of them is there
_TIERS = {
  "many": "classes with more than 100 training images",
  "medium": "classes with 20 to 100 training images",
  "few": "classes with fewer than 20 training images",
}
_RECALL_NOTE = (
  "Mean-class accuracy is the mean of recall over classes, so each class has"
  " the same weight however rare it is. Intervals cover the sampling of test"
  " images only: train with several seeds to measure how much runs differ."
  " Click on a heading to sort."
)
_HEAT_MAP_NOTE = (
  "Classes are sorted by frequency: errors left of the diagonal are images of"
  " rarer classes taken for more frequent ones. Of more than 400 classes,"
  " neighbours share a cell."
)
_ACTIVATION_NOTE = (
  "Evidence for the predicted class by location (Zhou et al. 2016), from grey"
  " (least) to orange (most). For each class the first correct and the first"
  " wrong images; with many classes, for a sample of them."
)
_VIEWS_NOTE = (
  "The network's input in training: two random views of each image. If the"
  " class can no longer be recognised, the augmentation is too strong."
)


def write(
  out_dir: Path,
  metrics: Mapping[str, Any],
  *,
  train_counts: Sequence[int],
  history: Sequence[Mapping[str, Any]],
  view_pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
  activation: bytes | None = None,
  extra: Sequence[str] = (),
  title: str,
) -> None:
  """Writes `metrics.json`, `confusion_matrix.png` and `report.html`.

  Each file is written atomically, metrics.json first. The page loads no other
  file. Time and memory are linear in the numbers of classes and images.

  Args:
    out_dir: folder, created if missing.
    metrics: the result of `metrics.summarise` with `dataset`, `split`,
      `checkpoint_step`, `predictor`, `config` and, each optional,
      `top5_accuracy`, `tiers` (see `metrics.by_tier`), `made_by`,
      `data_fingerprint`, `skipped_steps` and `better_checkpoint_lost`. Written
      in the order given, with null for numbers that are not finite.
    train_counts: C training images per class.
    history: rows of `metrics.jsonl`; may be empty.
    view_pairs: originals uint8[k, H, W, 3], and first and second views
      f32[k, S, S, 3] in [0, 1].
    activation: plot of class activation maps, PNG, or None.
    extra: HTML of further sections, see `pictures.sections`.
    title: heading of the page, plain text.
  """
  confusion = confusion_of(metrics)
  matrices = {key: metrics[key] for key in _MATRICES if metrics.get(key)}
  results = _to_json({**metrics, **{key: [] for key in matrices}})
  names = results["class_names"]
  out_dir.mkdir(parents=True, exist_ok=True)
  content = _metrics_json(results, matrices)
  files.write(out_dir / "metrics.json", content.encode())
  matrix = plots.confusion_figure([(title, confusion)], names, train_counts)
  files.write(out_dir / "confusion_matrix.png", matrix)
  shown = {name: results[name] for name in _PROVENANCE if results.get(name)}
  listing = json.dumps(shown | results["config"], indent=2, ensure_ascii=False)
  sections = (
    _headline(results, confusion),
    _per_class(results, confusion, train_counts),
    page.figure(
      "Confusion matrix",
      matrix,
      f"Confusion matrix of {len(names):,} classes; the table has the recalls",
      "Per cent of the images of each true class; rows add up to 100.",
      _HEAT_MAP_NOTE if len(names) > plots.MAX_CLASSES else "",
    ),
    page.figure(
      "Class activation maps",
      activation,
      "Images next to their class activation maps",
      _ACTIVATION_NOTE,
    ),
    *extra,
    _curves(history),
    page.figure(
      "Augmented views",
      plots.view_pairs_figure(*view_pairs),
      "Images, each above two augmented views of it",
      _VIEWS_NOTE,
    ),
    page.details("Config", listing),
  )
  facts = [fact.format_map(results) for fact in _FACTS]
  html = page.page(title, facts, sections)
  files.write(
    out_dir / "report.html", html.encode("utf-8", "xmlcharrefreplace")
  )


def _metrics_json(
  results: Mapping[str, Any], matrices: Mapping[str, Sequence[Sequence[int]]]
) -> str:
  """Formats JSON with each row of a matrix on a line."""
  text = json.dumps(results, indent=2, allow_nan=False)
  for name, rows in matrices.items():
    # JSON escapes quotes and newlines, so this is found at the top level only.
    key = f'\n  "{name}": ['
    before, _, after = text.partition(key)
    lines = ",".join(f"\n    {json.dumps(row)}" for row in rows)
    text = f"{before}{key}{lines}\n  {after}"
  return f"{text}\n"


def _headline(results: Mapping[str, Any], confusion: sparse.csr_array) -> str:
  """Mean-class accuracy, overall accuracy and the lowest recall."""
  interval = mean_class_interval(confusion)
  if interval is None:
    return page.section("Accuracy", page.note("This split has no images."))
  names = results["class_names"]
  correct, count = correct_and_count(confusion)
  total = int(count.sum())
  recall = np.where(count > 0, correct / np.maximum(count, 1), np.inf)
  frequent, weakest = int(count.argmax()), int(recall.argmin())
  lower, upper = wilson_interval(int(correct.sum()), total)
  many = len(names) > plots.MAX_CLASSES
  digits = 3 if many else 1
  chance = f"chance: {_percent(1 / len(count), digits)}"
  share = _percent(count[frequent] / total, digits)
  majority = f"always “{names[frequent]}”: {share}"
  hits = [f"{correct[weakest]:,} of {count[weakest]:,} images"]
  if others := int((recall == recall[weakest]).sum()) - 1:
    hits.append(f"the same for {others:,} more")
  mean_class, overall, top5 = (
    _percent(results.get(f"{name}_accuracy"))
    for name in ("mean_class", "overall", "top5")
  )
  about = [_interval(lower, upper), majority]
  if many:
    about.append(f"class among the five most likely: {top5}")
  return page.tiles(
    [
      ("Mean-class accuracy", mean_class, (_interval(*interval), chance)),
      ("Overall accuracy", overall, about),
      ("Lowest recall", _percent(recall[weakest]), (names[weakest], *hits)),
      *_tiers(results),
    ]
  )


def _tiers(results: Mapping[str, Any]) -> list[tuple[str, str, Sequence[str]]]:
  """Tiles with the accuracy of tiers, unless all classes are in one."""
  rows: list[tuple[str, str, Sequence[str]]] = [
    (
      f"{name.title()}-shot accuracy",
      _percent(tier["accuracy"]),
      (_interval(*tier["interval"]), f"{tier['classes']:,} {_TIERS[name]}"),
    )
    for name, tier in results.get("tiers", {}).items()
    if tier["classes"]
  ]
  return rows if len(rows) > 1 else []


def _per_class(
  results: Mapping[str, Any],
  confusion: sparse.csr_array,
  train_counts: Sequence[int],
) -> str:
  """Recall per class: plots, then a table of all classes."""
  names = results["class_names"]
  correct, count = correct_and_count(confusion)
  many = len(names) > plots.MAX_CLASSES
  lower, upper = wilson_interval(correct, count)
  head = ["Class", "Recall", "95% interval", "Precision", "F1", "Images"]
  head += ["Training images", "Training share"]
  rows, total = [], max(sum(train_counts), 1)
  for i in plots.frequency_order(train_counts):
    row = results["per_class"][names[i]]
    rows.append(
      [
        names[i],
        _percent(row["recall"]),
        f"{100 * lower[i]:.1f} to {100 * upper[i]:.1f}" if count[i] else DASH,
        _percent(row["precision"]),
        _percent(row["f1"]),
        f"{count[i]:,}",
        f"{train_counts[i]:,}",
        _percent(train_counts[i] / total, 3 if many else 1),
      ]
    )
  absent = [names[i] for i in np.flatnonzero(count == 0)]
  if more := absent[_MAX_LISTED:]:
    absent[_MAX_LISTED:] = [f"{len(more):,} more"]
  left_out = f"Not in this split, so not in the mean: {', '.join(absent)}."
  bars = plots.class_recall_figure(confusion, names, train_counts)
  if many and count.any():
    alt = "Histogram of recall over classes, and recall by number of images"
    heading = "The ten highest and the ten lowest"
    png = plots.recall_distribution_figure(confusion, train_counts)
    pictures = [
      page.picture(png, alt),
      page.picture(bars, f"{heading} recalls as bars", caption=heading),
    ]
  else:
    alt = "Bars of each class's recall; the table below has the numbers"
    pictures = [page.picture(bars, alt)]
  return page.section(
    "Recall by class, most frequent first",
    *pictures,
    page.table(head, rows),
    page.note(_RECALL_NOTE, left_out if absent else ""),
  )


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
  """Learning curves, a column for each phase."""
  drawn = []
  for phase in dict.fromkeys(row["phase"] for row in history):
    if png := plots.learning_curves_figure(history, phase):
      alt = f"Learning curves by epoch of the phase {phase}"
      drawn.append(page.picture(png, alt, caption=phase))
  pictures = f'<div class="pictures">{"".join(drawn)}</div>'
  return page.section("Learning curves", pictures) if drawn else ""


def _percent(fraction: float | None, digits: int = 1) -> str:
  return DASH if fraction is None else f"{100 * fraction:.{digits}f}%"


def _interval(lower: Any, upper: Any) -> str:
  return f"95% interval: {100 * lower:.1f} to {100 * upper:.1f}"


def _to_json(value: Any) -> Any:
  """Converts nested dicts, sequences, arrays and scalars to JSON's types."""
  if isinstance(value, Mapping):
    return {str(key): _to_json(item) for key, item in value.items()}
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_to_json(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
