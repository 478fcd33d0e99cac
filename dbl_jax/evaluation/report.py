"""Files that an evaluation leaves: numbers, a picture and a page to read."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.evaluation import page, plots
from dbl_jax.evaluation.metrics import mean_class_interval, wilson_interval
from dbl_jax.runtime import files

DASH = "–"
# Shown with the config.
_MADE_BY = (
  "made_by",
  "data_fingerprint",
  "skipped_steps",
  "better_checkpoint_lost",
)
ViewPairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def write(
  out_dir: str | os.PathLike[str],
  metrics: Mapping[str, Any],
  *,
  train_counts: Sequence[int] | None,
  history: Sequence[Mapping[str, Any]],
  view_pairs: ViewPairs | None,
  activation: bytes | None = None,
  title: str,
) -> None:
  """Writes `metrics.json`, `confusion_matrix.png` and `report.html`.

  Each file appears whole or not at all, the numbers first. The page stands
  alone: pictures and style are inside it, and it loads nothing.

  Args:
    out_dir: folder, made if missing.
    metrics: the result of `metrics.summarise` and, each optional, `dataset`,
      `split`, `checkpoint_step`, `predictor`, `config`, `made_by`,
      `data_fingerprint`, `skipped_steps` and `better_checkpoint_lost`. Written
      in the order given, with null for numbers that are not finite.
    train_counts: training images of each class, or None.
    history: rows of `metrics.jsonl`, possibly none.
    view_pairs: (originals uint8[k, H, W, 3], first views f32[k, S, S, 3],
      second views f32[k, S, S, 3] in [0, 1]), or None.
    activation: picture of class activation maps, PNG, or None.
    title: heading of the page, plain text.

  Raises:
    ValueError: `train_counts` does not match the classes.
  """
  plain = _plain(metrics)
  names = plain["class_names"]
  if train_counts is not None:
    train_counts = _counts(train_counts, len(names))
  out_dir = Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  numbers = json.dumps(plain, indent=2, allow_nan=False) + "\n"
  files.write(out_dir / "metrics.json", numbers.encode())
  matrix = plots.confusion_matrix_figure(
    plain["confusion_matrix"], names, title
  )
  files.write(out_dir / "confusion_matrix.png", matrix)
  sections = (
    _headline(plain),
    _per_class(plain, train_counts),
    _confusion(plain),
    _activation(activation),
    _curves(history),
    _views(view_pairs),
    _config(plain),
  )
  content = page.page(title, _facts(plain), sections)
  files.write(
    out_dir / "report.html", content.encode("utf-8", "xmlcharrefreplace")
  )


def _counts(train_counts: Sequence[int], num_classes: int) -> list[int]:
  """Training images of each class as Python's integers."""
  counts = [int(count) for count in train_counts]
  if len(counts) != num_classes:
    raise ValueError(
      f"found {len(counts)} training counts for {num_classes} classes"
    )
  return counts


def _facts(metrics: Mapping[str, Any]) -> list[str]:
  """The line under the title."""
  facts = []
  if metrics.get("dataset") is not None:
    facts.append(str(metrics["dataset"]))
  if metrics.get("split") is not None:
    facts.append(f"{metrics['split']} split")
  facts.append(f"{metrics['images']:,} images")
  if metrics.get("checkpoint_step") is not None:
    facts.append(f"checkpoint at step {metrics['checkpoint_step']:,}")
  if metrics.get("predictor") is not None:
    facts.append(f"classified by {metrics['predictor']}")
  return facts


def _headline(metrics: Mapping[str, Any]) -> str:
  """Mean-class accuracy, overall accuracy and the class found least often."""
  confusion = np.asarray(metrics["confusion_matrix"])
  count = confusion.sum(axis=1)
  total = int(count.sum())
  if not total:
    return page.section("Accuracy", page.note("This split has no images."))
  frequent = int(count.argmax())
  names = metrics["class_names"]
  recall = np.where(
    count > 0, np.diagonal(confusion) / np.maximum(count, 1), np.inf
  )
  weakest = int(recall.argmin())
  correct = int(np.trace(confusion))
  mean_limits = mean_class_interval(confusion)
  assert mean_limits is not None  # there are images
  lower, upper = wilson_interval(correct, total)
  return page.tiles(
    [
      (
        "Mean-class accuracy",
        _percent(metrics["mean_class_accuracy"]),
        (
          _interval(*mean_limits),
          f"chance: {_percent(1 / len(count))}",
        ),
      ),
      (
        "Overall accuracy",
        _percent(metrics["overall_accuracy"]),
        (
          _interval(float(lower), float(upper)),
          f"always “{names[frequent]}”: {_percent(count[frequent] / total)}",
        ),
      ),
      (
        "Lowest recall",
        _percent(recall[weakest]),
        (
          names[weakest],
          f"{confusion[weakest, weakest]:,} of {count[weakest]:,} images",
        ),
      ),
    ]
  )


def _per_class(
  metrics: Mapping[str, Any], train_counts: Sequence[int] | None
) -> str:
  """Recall beside training share: the picture, then the numbers."""
  names, confusion = metrics["class_names"], metrics["confusion_matrix"]
  per_class = metrics["per_class"]
  count = [per_class[name]["count"] for name in names]
  trained = train_counts or count
  order = plots.frequency_order(trained)
  head = ["Class", "Recall", "95% interval", "Precision", "F1", "Images"]
  if train_counts:
    head += ["Training images", "Training share"]
  lower, upper = wilson_interval(np.diagonal(confusion), count)
  rows = []
  for i in order:
    row = per_class[names[i]]
    cells = [
      names[i],
      _percent(row["recall"]),
      f"{100 * lower[i]:.1f} to {100 * upper[i]:.1f}" if count[i] else DASH,
      _percent(row["precision"]),
      _percent(row["f1"]),
      f"{count[i]:,}",
    ]
    if train_counts:
      share = train_counts[i] / max(sum(train_counts), 1)
      cells += [f"{train_counts[i]:,}", _percent(share)]
    rows.append(cells)
  png = plots.class_recall_figure(confusion, names, train_counts)
  alt = "Bars of each class's recall; the table below has the numbers"
  absent = [name for name in names if not per_class[name]["count"]]
  left_out = f"Not in this split, so not in the mean: {', '.join(absent)}."
  return page.section(
    "Recall by class, most frequent first",
    page.picture(png, alt),
    page.table(head, rows),
    page.note(
      "Mean-class accuracy is the mean of recall over classes, so each class "
      "counts the same however rare it is. Intervals cover the draw of the "
      "images only: train with several seeds to see how much runs differ.",
      left_out if absent else "",
    ),
  )


def _confusion(metrics: Mapping[str, Any]) -> str:
  """The confusion matrix; the page's heading makes a title superfluous."""
  png = plots.confusion_matrix_figure(
    metrics["confusion_matrix"], metrics["class_names"], ""
  )
  alt = "Confusion matrix in per cent of each true class: " + "; ".join(
    f"{name} {_percent(row['recall'])} right"
    for name, row in metrics["per_class"].items()
  )
  return page.section(
    "Confusion matrix",
    page.picture(png, alt),
    page.note("Per cent of the images of each true class; rows add up to 100."),
  )


def _activation(png: bytes | None) -> str:
  """Class activation maps."""
  if png is None:
    return ""
  return page.section(
    "Where it looks",
    page.picture(png, "Faces beside their class activation maps"),
    page.note(
      "Class activation maps of the predicted class (Zhou et al. 2016): the"
      " more orange, the more that place speaks for it. Of each class the"
      " first images that were right, and that were wrong."
    ),
  )


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
  """Learning curves, a column for each phase."""
  phases = dict.fromkeys(row["phase"] for row in history if "phase" in row)
  drawn = []
  for phase in phases:
    png = plots.learning_curves_figure(history, phase)
    if png:
      alt = f"Learning curves by epoch of the phase {phase}"
      drawn.append(page.picture(png, alt, caption=str(phase)))
  if not drawn:
    return ""
  return page.section("Learning curves", page.pictures(*drawn))


def _views(view_pairs: ViewPairs | None) -> str:
  """Augmented view pairs."""
  if view_pairs is None or not len(view_pairs[0]):
    return ""
  png = plots.view_pairs_figure(*view_pairs)
  alt = "Images, each above two augmented views of it"
  return page.section(
    "Augmented views",
    page.picture(png, alt),
    page.note(
      "What training sees: each image above two random views of it. Is the "
      "expression still there? Then the augmentation is not too strong."
    ),
  )


def _config(metrics: Mapping[str, Any]) -> str:
  """The config, and what else decides the numbers, folded."""
  if not metrics.get("config"):
    return ""
  shown = {name: metrics[name] for name in _MADE_BY if metrics.get(name)}
  listing = json.dumps(shown | metrics["config"], indent=2, ensure_ascii=False)
  return page.details("Config", listing)


def _percent(fraction: float | None) -> str:
  return DASH if fraction is None else f"{100 * fraction:.1f}%"


def _interval(lower: float, upper: float) -> str:
  return f"95% interval: {100 * lower:.1f} to {100 * upper:.1f}"


def _plain(value: Any) -> Any:
  """What JSON can hold of dicts, sequences, arrays, scalars and the rest."""
  if hasattr(value, "items"):
    return {str(key): _plain(item) for key, item in value.items()}
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, str | int):
    return value
  return str(value)
