"""Plots of an evaluation, each returned as a PNG file.

Figures use matplotlib's object interface, which has no global state and needs
no display. Class names are untrusted input: every text that may hold one is
drawn with `parse_math=False`, so that a dollar sign is not read as TeX.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from dbl_jax.evaluation import metrics

# Twice the 96 pixels per inch of CSS: sharp on dense screens.
DPI = 192
# Okabe and Ito's palette, which is safe for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#a3a9b1"
INK, FAINT, GRID = "#24292f", "#6e7781", "#dfe3e8"
# With more classes, plots show a summary in place of every class.
MAX_CLASSES = 30
MAX_VIEW_PAIRS = 8
_HEAT_MAP_CELLS = 400  # in a row, at most

# Panel, factor, key in metrics.jsonl, label, colour and line style.
_ACCURACY = ("Validation accuracy (%)", 100)
_CURVES = (
  ("Loss", 1, "loss", "training", BLUE, "-"),
  ("Loss", 1, "val_loss", "validation", ORANGE, "-"),
  (*_ACCURACY, "val_mean_class_accuracy", "mean-class", BLUE, "-"),
  (*_ACCURACY, "val_overall_accuracy", "overall", ORANGE, "-"),
  (*_ACCURACY, "knn_mean_class_accuracy", "mean-class, kNN", BLUE, "--"),
  (*_ACCURACY, "knn_overall_accuracy", "overall, kNN", ORANGE, "--"),
)


def frequency_order(counts: ArrayLike) -> np.ndarray:
  """Class indices int[C] from most to least frequent, ties in index order."""
  return np.argsort(-np.asarray(counts), kind="stable")


def confusion_matrix_figure(
  confusion: ArrayLike,
  class_names: Sequence[str],
  title: str,
  train_counts: Sequence[int] | None = None,
) -> bytes:
  """Draws a confusion matrix in per cent of each row (the paper's fig. 3).

  Args:
    confusion: int[C, C], rows are the true classes.
    class_names: C names.
    title: text above the matrix; may be empty.
    train_counts: C training images per class, which order the classes of a
      heat map; None orders them by the images of the evaluated split.

  Returns:
    A PNG file: numbers in cells up to `MAX_CLASSES` classes, a heat map beyond.
    The row of a class without images is grey, with dashes for numbers.
  """
  confusion = np.asarray(confusion)
  size, count = len(confusion), confusion.sum(axis=1)
  cell = 0.7 if size <= 8 else max(0.4, 5.6 / size)
  side = cell * size if size <= MAX_CLASSES else 7.0
  figure = Figure(figsize=(side, side))
  axes = figure.add_axes((0, 0, 1, 1))
  if size <= MAX_CLASSES:
    draw_confusion(axes, confusion, cell, digits=1 if size <= 12 else 0)
    names = [one_line(name) for name in class_names]
    rows = [f"{name}  ({n:,})" for name, n in zip(names, count, strict=True)]
    tilt = max(map(len, names)) * 0.073 > cell
    name_classes(axes, rows, names, 40 if tilt else 0)
    axes.set_xlabel("Predicted class", size=10, color=INK, labelpad=8)
    axes.set_ylabel("True class (images)", size=10, color=INK, labelpad=8)
  else:
    order = frequency_order(count if train_counts is None else train_counts)
    image = draw_heat_map(axes, confusion, order)
    axes.set_xlabel("Predicted class, by frequency rank", size=10, color=INK)
    axes.set_ylabel("True class, by frequency rank", size=10, color=INK)
    bar = figure.colorbar(image, cax=figure.add_axes((1.03, 0, 0.025, 1)))
    bar.set_ticks([0, 1, 5, 20, 50, 100])
    bar.set_label("Per cent of the true class", size=10, color=INK)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
    bar.outline.set_visible(False)
  if title:
    axes.set_title(one_line(title, 80), size=11, color=INK, parse_math=False)
  return to_png(figure)


def draw_confusion(
  axes: Axes, confusion: np.ndarray, cell: float, digits: int = 0
) -> None:
  """Draws int[C, C] in per cent of each row, with a number in every cell.

  Args:
    axes: the panel.
    confusion: int[C, C], rows are the true classes.
    cell: width of a cell in inches.
    digits: decimal places.
  """
  count = confusion.sum(axis=1)
  share = confusion / np.maximum(count, 1)[:, None]
  colours = colormaps["Blues"](share)
  colours[count == 0] = (0.95, 0.95, 0.95, 1)
  axes.imshow(colours, interpolation="nearest")
  font: Any = {"size": min(9, 26 * cell), "ha": "center", "va": "center"}
  for (i, j), value in np.ndenumerate(share):
    text = f"{100 * value:.{digits if value else 0}f}" if count[i] else "–"
    colour = FAINT if text in "0–" else _ink_on(colours[i, j])
    weight = "bold" if i == j and count[i] else "normal"
    axes.text(j, i, text, color=colour, weight=weight, **font)
  name_classes(axes)
  edges = np.arange(1, len(confusion)) - 0.5
  axes.set_xticks(edges, minor=True)
  axes.set_yticks(edges, minor=True)
  axes.grid(which="minor", color="white", linewidth=1.5)
  axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=9)
  axes.spines[:].set_visible(False)


def draw_heat_map(
  axes: Axes, confusion: np.ndarray, order: np.ndarray
) -> AxesImage:
  """Draws int[C, C] in per cent of each row, classes as in `order`.

  Neighbouring classes share a cell where there are more than 400. Colours
  follow the square root, which shows confusions of a few per cent.
  """
  size = len(confusion)
  side = min(size, _HEAT_MAP_CELLS)
  cell_of = np.empty(size, np.int64)
  cell_of[order] = np.arange(size) * side // size
  true, predicted = np.nonzero(confusion)
  pooled = np.zeros((side, side))
  np.add.at(
    pooled, (cell_of[true], cell_of[predicted]), confusion[true, predicted]
  )
  count = pooled.sum(axis=1, keepdims=True)
  share = np.where(count > 0, 100 * pooled / np.maximum(count, 1), np.nan)
  limits = (0.5, size + 0.5)
  axes.set_facecolor("#f2f2f2")  # classes without images
  axes.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
  axes.spines[:].set_visible(False)
  return axes.imshow(
    share,
    cmap="Blues",
    norm=PowerNorm(0.5, 0, 100),
    extent=(*limits, *limits[::-1]),
    interpolation="antialiased",
    interpolation_stage="rgba",
  )


def name_classes(
  axes: Axes,
  rows: Sequence[str] = (),
  columns: Sequence[str] = (),
  rotation: float = 0,
) -> None:
  """Writes class names to the left of a plot, and below it at an angle."""
  axes.set_yticks(range(len(rows)), rows, parse_math=False)
  axes.set_xticks(
    range(len(columns)),
    columns,
    rotation=rotation,
    ha="right" if rotation else "center",
    va="top",
    rotation_mode="anchor",
    parse_math=False,
  )


def class_recall_figure(
  confusion: ArrayLike,
  class_names: Sequence[str],
  train_counts: Sequence[int] | None,
) -> bytes:
  """Draws recall per class next to the number of training images.

  Args:
    confusion: int[C, C], rows are the true classes.
    class_names: C names.
    train_counts: C training images per class; None leaves that panel out and
      sorts by the images of the evaluated split.

  Returns:
    A PNG file; most frequent class on top, whiskers for 95% Wilson intervals.
    Of more than `MAX_CLASSES` classes, the ten whose interval has the highest
    lower limit, then the ten whose interval has the lowest upper limit.
  """
  correct, count, recall = _recall(confusion)
  order = frequency_order(count if train_counts is None else train_counts)
  lower, upper = (100 * x for x in metrics.wilson_interval(correct, count))
  if len(order) > MAX_CLASSES:
    known = order[count[order] > 0]
    best = known[np.argsort(-lower[known], kind="stable")[:10]]
    worst = known[np.argsort(upper[known], kind="stable")[:10][::-1]]
    order = np.array(list(dict.fromkeys([*best, *worst])), np.int64)
  places = np.arange(len(order))
  figure = Figure(figsize=(8.2, 0.34 * len(order) + 0.5))
  left = figure.add_axes((0, 0, 0.58, 1))
  left.barh(places, recall[order], height=0.62, color=BLUE)
  # A white edge keeps the whisker visible on the bar.
  for colour, width in (("white", 4), (INK, 1.6)):
    left.hlines(places, lower[order], upper[order], colour, lw=width)
  if count.any():
    mean = np.nanmean(recall)
    left.axvline(mean, color=ORANGE, lw=1.2, ls="--", zorder=0)
  left.set_xlim(0, 112)
  texts = [(112, f"{x:.1f}" if x >= 0 else "–") for x in recall[order]]
  _label_bars(left, texts, "Recall (%), 95% interval; dashed: mean", "right")
  name_classes(left, [one_line(class_names[i]) for i in order])
  if train_counts is not None:
    right = figure.add_axes((0.64, 0, 0.36, 1))
    images = np.asarray(train_counts)[order]
    right.barh(places, images, height=0.62, color=GREY)
    right.set_xlim(0, 1.18 * max(images.max(initial=0), 1))
    texts = [(x + 0.02 * images.max(), f"{x:,}") for x in images]
    _label_bars(right, texts, "Training images", "left")
  return to_png(figure)


def recall_distribution_figure(
  confusion: ArrayLike, train_counts: Sequence[int] | None
) -> bytes:
  """Draws how recall is distributed over many classes.

  Args:
    confusion: int[C, C], rows are the true classes, at least one with images.
    train_counts: C training images per class; None: those of the split.

  Returns:
    A PNG file: a histogram, and recall against the number of images.
  """
  _, count, recall = _recall(confusion)
  basis = count if train_counts is None else np.asarray(train_counts)
  images, recall = np.maximum(basis, 1)[count > 0], recall[count > 0]
  figure = Figure(figsize=(8.2, 2.8))
  left = figure.add_axes((0, 0, 0.42, 1))
  left.hist(recall, bins=20, range=(0, 100), color=BLUE, rwidth=0.92)
  left.axvline(recall.mean(), color=ORANGE, lw=1.2, ls="--")
  _style(left, "Number of classes by recall (%); dashed: mean")
  right = figure.add_axes((0.52, 0, 0.48, 1))
  right.scatter(images, recall, s=12, color=BLUE, alpha=0.35, lw=0)
  groups = np.array_split(np.argsort(images, kind="stable"), 10)
  means = [[x[i].mean() for i in groups if i.size] for x in (images, recall)]
  right.plot(*means, color=ORANGE, marker="o", ms=3.5)
  right.set_xscale("log")
  kind = "images of this split" if train_counts is None else "training images"
  _style(right, f"Recall (%) by {kind}; orange: mean of each tenth")
  return to_png(figure)


def learning_curves_figure(
  history: Sequence[Mapping[str, Any]], phase: str
) -> bytes | None:
  """Draws a phase's loss, and its accuracies where they were measured.

  Args:
    history: rows of metrics.jsonl of any phase. Where a resumed run logged a
      step twice, the later row counts.
    phase: the phase to draw.

  Returns:
    A PNG file, or None when the phase logged nothing that can be drawn.
  """
  rows = [row for row in history if row.get("phase") == phase]
  panels: dict[str, list[tuple[str, str, str, np.ndarray]]] = {}
  for heading, scale, key, label, colour, dash in _CURVES:
    points = {
      row.get("step", row["epoch"]): (row["epoch"], scale * row[key])
      for row in rows
      if _is_finite(row.get("epoch")) and _is_finite(row.get(key))
    }
    if points:
      line = np.array(sorted(points.values()))
      panels.setdefault(heading, []).append((label, colour, dash, line))
  if not panels:
    return None
  figure = Figure(figsize=(4.5, 2.2 * len(panels)))
  grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
  figure.subplots_adjust(0, 0, 1, 1, hspace=0.3)
  for axes, (heading, curves) in zip(grid, panels.items(), strict=True):
    for label, colour, dash, line in curves:
      marker = "o" if len(line) <= 30 else None
      axes.plot(
        *line.T, dash, color=colour, marker=marker, ms=3, lw=1.5, label=label
      )
    _style(axes, heading)
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)
  grid[-1].set_xlabel("Epoch", size=9.5, color=INK)
  return to_png(figure)


def view_pairs_figure(
  originals: np.ndarray, first: np.ndarray, second: np.ndarray
) -> bytes:
  """Draws images above the two augmented views that training makes of them.

  Args:
    originals: uint8[k, H, W, 3].
    first: f32[k, S, S, 3] in [0, 1].
    second: f32[k, S, S, 3] in [0, 1].

  Returns:
    A PNG file with a column for each of the first `MAX_VIEW_PAIRS` images.
  """
  columns = min(len(originals), MAX_VIEW_PAIRS)
  rows = {"Image": originals, "View 1": first, "View 2": second}
  figure = Figure(figsize=(1.08 * columns, 3.24))
  grid = figure.subplots(3, columns, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.04, hspace=0.04)
  for line, (label, images) in zip(grid, rows.items(), strict=True):
    line[0].set_ylabel(label, size=9.5, color=INK)
    for axes, image in zip(line, images[:columns], strict=True):
      image = np.asarray(image)
      if image.dtype != np.uint8:
        image = np.clip(image.astype(np.float32), 0, 1)
      axes.imshow(image, aspect="auto")
      axes.set_xticks([])
      axes.set_yticks([])
      axes.spines[:].set_visible(False)
  return to_png(figure)


def one_line(name: object, limit: int = 26) -> str:
  """Makes of any name one printable line of at most `limit` characters."""
  line = " ".join(str(name).encode("utf-8", "replace").decode().split())
  return line if len(line) <= limit else line[: limit - 1] + "…"


def to_png(figure: Figure) -> bytes:
  """Renders a figure on white, cropped to its content."""
  FigureCanvasAgg(figure)
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    # The font draws boxes for a script it lacks; the page has the name.
    warnings.filterwarnings("ignore", message="Glyph")
    figure.savefig(
      buffer,
      format="png",
      dpi=DPI,
      bbox_inches="tight",
      pad_inches=0.06,
      facecolor="white",
      metadata={"Software": None},
    )
  return buffer.getvalue()


def _recall(confusion: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Correct int[C], count int[C], recall f64[C] in per cent (NaN for 0/0)."""
  correct, count = np.diagonal(confusion), np.asarray(confusion).sum(axis=1)
  return correct, count, 100 * correct / np.where(count > 0, count, np.nan)


def _label_bars(
  axes: Axes, texts: Sequence[tuple[float, str]], title: str, align: str
) -> None:
  """Writes a text at its x position on each bar, the first bar on top."""
  for y, (x, text) in enumerate(texts):
    axes.text(x, y, text, va="center", ha=align, size=9, color=INK)
  axes.set_title(title, size=10, color=INK, loc="left")
  name_classes(axes)
  axes.set_ylim(len(texts) - 0.4, -0.6)
  axes.tick_params(axis="y", length=0, labelsize=9.5, labelcolor=INK)
  axes.spines[["top", "right", "bottom"]].set_visible(False)
  axes.spines["left"].set_color(FAINT)


def _style(axes: Axes, title: str) -> None:
  """Sets a title, a light grid and the bottom axis line only."""
  axes.set_title(title, size=10, color=INK, loc="left")
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(which="both", length=0, labelsize=8.5, labelcolor=FAINT)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.spines["bottom"].set_color(FAINT)


def _ink_on(colour: np.ndarray) -> str:
  """White or dark, whichever contrasts more with an RGBA colour in [0, 1]."""
  linear = np.asarray(colour[:3]) ** 2.2
  luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
  # Where the WCAG contrast with white equals that with INK.
  return "white" if luminance < 0.22 else INK


def _is_finite(value: object) -> bool:
  return isinstance(value, Real) and math.isfinite(value)
