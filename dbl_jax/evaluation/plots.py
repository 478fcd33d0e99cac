"""Pictures of an evaluation: the confusion matrix, and recall per class.

Figures are built through matplotlib's object interface, which shares no state
between calls and needs no display. Names come from strangers' data sets, so
every text that may hold one is drawn with `parse_math=False`: dollar signs are
then dollar signs and not broken TeX.
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
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dbl_jax.evaluation import metrics

# Twice the 96 pixels per inch of CSS: sharp on dense screens.
DPI = 192
# From Okabe and Ito's palette, told apart by people with any colour vision.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#a3a9b1"
INK, FAINT, GRID = "#24292f", "#6e7781", "#dfe3e8"


def frequency_order(counts: ArrayLike) -> np.ndarray:
  """Class indices int[C] from most to least frequent, ties in index order."""
  return np.argsort(-np.asarray(counts), kind="stable")


def confusion_matrix_figure(
  confusion: ArrayLike, class_names: Sequence[str], title: str
) -> bytes:
  """Draws a confusion matrix in per cent of each row (the paper's fig. 3).

  Args:
    confusion: int[C, C], rows are the truth.
    class_names: C names.
    title: text above the matrix; may be empty.

  Returns:
    A PNG file. The row of a class without images is grey with dashes.
  """
  confusion = np.asarray(confusion, np.int64)
  size = len(confusion)
  count = confusion.sum(axis=1)
  share = 100 * confusion / np.maximum(count, 1)[:, None]
  cell = 0.7 if size <= 8 else max(0.4, 5.6 / size)
  font = 9 if size <= 8 else 8 if size <= 12 else 7
  figure = Figure(figsize=(cell * size, cell * size))
  axes = figure.add_axes((0, 0, 1, 1))
  colours = colormaps["Blues"](share / 100)
  colours[count == 0] = (0.95, 0.95, 0.95, 1)
  axes.imshow(colours, interpolation="nearest")
  for (i, j), value in np.ndenumerate(share):
    text = "–" if not count[i] else _cell_text(value, size)
    ink = FAINT if text in "0–" else _ink_on(colours[i, j])
    weight = "bold" if i == j and count[i] else "normal"
    axes.text(
      j, i, text, color=ink, size=font, weight=weight, ha="center", va="center"
    )
  _name_cells(axes, [one_line(name) for name in class_names], count, cell)
  axes.tick_params(labelsize=max(font, 8))
  if title:
    axes.set_title(one_line(title, 80), size=11, color=INK, parse_math=False)
  return to_png(figure)


def class_recall_figure(
  confusion: ArrayLike,
  class_names: Sequence[str],
  train_counts: Sequence[int] | None,
) -> bytes:
  """Draws recall per class beside the class's share of the training data.

  Args:
    confusion: int[C, C], rows are the truth.
    class_names: C names.
    train_counts: C training images per class; None leaves that panel out and
      sorts by the images of the evaluated split.

  Returns:
    A PNG file; most frequent class on top, whiskers for 95% Wilson intervals.
  """
  confusion = np.asarray(confusion, np.int64)
  correct, count = np.diagonal(confusion), confusion.sum(axis=1)
  basis = count if train_counts is None else np.asarray(train_counts)
  order = frequency_order(basis)
  correct, count, basis = correct[order], count[order], basis[order]
  height = 0.34 * len(order) + 0.5
  figure = Figure(figsize=(8.2, height))
  panels = [figure.add_axes((0, 0, 0.58, 1))]
  _recall_panel(panels[0], correct, count)
  if train_counts is not None:
    panels.append(figure.add_axes((0.64, 0, 0.36, 1)))
    _share_panel(panels[1], 100 * basis / max(basis.sum(), 1))
  for axes in panels:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=9.5, labelcolor=INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)
  names = [one_line(class_names[i]) for i in order]
  panels[0].set_yticks(range(len(order)))
  panels[0].set_yticklabels(names, parse_math=False)
  return to_png(figure)


def _name_cells(
  axes: Axes, names: Sequence[str], count: np.ndarray, cell: float
) -> None:
  """Names the rows and columns of a matrix with cells of `cell` inches."""
  size = len(names)
  rows = [f"{name}  ({n:,})" for name, n in zip(names, count, strict=True)]
  tilt = max(map(len, names)) * 0.073 > cell
  axes.set_xticks(range(size))
  axes.set_xticklabels(
    names,
    rotation=40 if tilt else 0,
    ha="right" if tilt else "center",
    rotation_mode="anchor",
    va="top",
    parse_math=False,
  )
  axes.set_yticks(range(size))
  axes.set_yticklabels(rows, parse_math=False)
  axes.set_xlabel("Predicted class", size=10, color=INK, labelpad=8)
  axes.set_ylabel("True class (images)", size=10, color=INK, labelpad=8)
  axes.tick_params(length=0, labelcolor=INK)
  axes.set_xticks(np.arange(1, size) - 0.5, minor=True)
  axes.set_yticks(np.arange(1, size) - 0.5, minor=True)
  axes.grid(which="minor", color="white", linewidth=1.5)
  axes.tick_params(which="minor", length=0)
  axes.spines[:].set_visible(False)


def _share_panel(axes: Axes, share: np.ndarray) -> None:
  """Bars of each class's share of the training data, f64[C] in per cent."""
  axes.barh(range(len(share)), share, height=0.62, color=GREY)
  for y, value in enumerate(share):
    x = value + 0.02 * share.max()
    axes.text(x, y, f"{value:.1f}", va="center", size=9, color=INK)
  axes.set_xlim(0, 1.18 * max(share.max(), 1))
  axes.set_title("Share of training images (%)", size=10, color=INK, loc="left")


def _recall_panel(axes: Axes, correct: np.ndarray, count: np.ndarray) -> None:
  """Bars of recall from hits int[C] of count int[C], with intervals."""
  occurs = count > 0
  recall = np.where(occurs, 100 * correct / np.maximum(count, 1), 0)
  lower, upper = (100 * x for x in metrics.wilson_interval(correct, count))
  axes.barh(range(len(count)), recall, height=0.62, color=BLUE)
  for y, value in enumerate(recall):
    if not occurs[y]:
      axes.text(1, y, "– not in this split", va="center", size=9, color=FAINT)
      continue
    limits = (lower[y], upper[y])
    # A white edge keeps the whisker visible where it lies on the bar.
    axes.plot(limits, (y, y), color="white", lw=4, solid_capstyle="butt")
    axes.plot(limits, (y, y), color=INK, lw=1.6, solid_capstyle="butt")
    axes.text(
      112, y, f"{value:.1f}", va="center", ha="right", size=9, color=INK
    )
  if occurs.any():
    mean = recall[occurs].mean()
    axes.axvline(mean, color=ORANGE, linewidth=1.2, linestyle="--", zorder=0)
  axes.set_xlim(0, 112)
  axes.set_title(
    "Recall (%), 95% interval; dashed: mean", size=10, color=INK, loc="left"
  )


def _ink_on(colour: np.ndarray) -> str:
  """White or dark, whichever contrasts more with an RGBA colour in [0, 1]."""
  linear = np.asarray(colour[:3]) ** 2.2
  luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
  # Where the WCAG contrast with white equals that with INK.
  return "white" if luminance < 0.22 else INK


def _cell_text(value: float, num_classes: int) -> str:
  if value == 0:
    return "0"
  return f"{value:.1f}" if num_classes <= 12 else f"{value:.0f}"


def one_line(name: object, limit: int = 26) -> str:
  """Makes of any name one printable line of at most `limit` characters."""
  line = " ".join(str(name).encode("utf-8", "replace").decode().split())
  return line if len(line) <= limit else line[: limit - 1] + "…"


def to_png(figure: Figure) -> bytes:
  """Renders a figure, cropped to what is drawn, on white."""
  FigureCanvasAgg(figure)
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    # A name in a script the font lacks is drawn as boxes; the page beside the
    # picture spells it out.
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


MAX_VIEW_PAIRS = 8


def learning_curves_figure(
  history: Sequence[Mapping[str, Any]], phase: str
) -> bytes | None:
  """Draws a phase's loss, and its accuracies where they were measured.

  Args:
    history: rows of metrics.jsonl; rows of other phases are passed over. Where
      a resumed run logged a step twice, the later row stands.
    phase: which phase to draw.

  Returns:
    A PNG file, or None when the phase logged nothing that can be drawn.
  """
  rows = [row for row in history if row.get("phase") == phase]
  losses = [("loss", "training", BLUE, "-")]
  losses += [("val_loss", "validation", ORANGE, "-")]
  accuracies = [
    ("val_mean_class_accuracy", "mean-class", BLUE, "-"),
    ("val_overall_accuracy", "overall", ORANGE, "-"),
    ("knn_mean_class_accuracy", "mean-class, kNN", BLUE, "--"),
    ("knn_overall_accuracy", "overall, kNN", ORANGE, "--"),
  ]
  panels = [("Loss", losses, 1), ("Validation accuracy (%)", accuracies, 100)]
  drawn = [
    (heading, curves)
    for heading, keys, scale in panels
    if (curves := _curves(rows, keys, scale))
  ]
  if not drawn:
    return None
  figure = Figure(figsize=(4.5, 2.2 * len(drawn)))
  grid = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
  figure.subplots_adjust(0, 0, 1, 1, hspace=0.3)
  for axes, (heading, curves) in zip(grid, drawn, strict=True):
    for label, colour, dash, points in curves:
      marker = "o" if len(points) <= 30 else None
      axes.plot(
        *points.T, dash, color=colour, marker=marker, ms=3, lw=1.5, label=label
      )
    axes.set_title(heading, size=10, color=INK, loc="left")
    axes.grid(color=GRID, linewidth=0.8)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
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


def _curves(
  rows: Sequence[Mapping[str, Any]],
  keys: Sequence[tuple[str, str, str, str]],
  scale: float,
) -> list[tuple[str, str, str, np.ndarray]]:
  """(label, colour, dash, f64[n, 2] of epoch and value) of what was logged."""
  curves = []
  for key, label, colour, dash in keys:
    points = {
      row.get("step", row["epoch"]): (row["epoch"], scale * row[key])
      for row in rows
      if _finite(row.get("epoch")) and _finite(row.get(key))
    }
    if points:
      curves.append((label, colour, dash, np.array(sorted(points.values()))))
  return curves


def _finite(value: object) -> bool:
  return isinstance(value, Real) and math.isfinite(value)
