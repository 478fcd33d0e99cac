"""Plots of evaluations and comparisons, each returned as a PNG file.

Figures use matplotlib's object interface, which has no global state and needs
no display. Class and system names are untrusted input: `text.parse_math` is
off, so that a dollar sign is not read as TeX.

Of C classes, `confusion` is int[C, C], dense or sparse, rows are the true
classes; `class_names` has C names and `train_counts` is int[C], the training
images of each class.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from scipy import sparse

from dbl_jax.evaluation import metrics
from dbl_jax.evaluation.metrics import Confusion

# Twice the 96 pixels per inch of CSS: sharp on dense screens.
DPI = 192
# Okabe and Ito's palette, which is safe for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#a3a9b1"
INK, FAINT, GRID = "#24292f", "#6e7781", "#dfe3e8"
# With more classes, plots show a summary in place of every class.
MAX_CLASSES = 30
MAX_VIEW_PAIRS = 8
_HEAT_MAP_CELLS = 400  # in a row, at most
WHITE_TEXT = 0.67  # text is white on cells of a greater share
_STYLE: dict[str, Any] = {
  "axes.axisbelow": True,
  "axes.edgecolor": FAINT,
  "axes.labelcolor": INK,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 10,
  "font.size": 9,
  "grid.color": GRID,
  "legend.frameon": False,
  "savefig.bbox": "tight",
  "savefig.dpi": DPI,
  "savefig.pad_inches": 0.06,
  "text.color": INK,
  "text.parse_math": False,
  "xtick.labelcolor": FAINT,
  "xtick.major.size": 0,
  "xtick.minor.size": 0,
  "ytick.labelcolor": FAINT,
  "ytick.major.size": 0,
  "ytick.minor.size": 0,
}
# Independent of the user's matplotlibrc.
styled = style.context(["default", _STYLE])

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


@styled
def confusion_figure(
  matrices: Sequence[tuple[str, Confusion]],
  class_names: Sequence[str],
  train_counts: ArrayLike,
) -> bytes:
  """Draws confusion matrices in per cent of each row.

  Each matrix, given with its title, has a panel: numbers in cells up to
  `MAX_CLASSES` classes; beyond, a heat map of classes by `train_counts`. The
  row of a class without images is grey.
  """
  names = [one_line(name, 18) for name in class_names]
  many, one = len(names) > MAX_CLASSES, len(matrices) == 1
  if many:
    side = 7.0 if one else 4.0
  elif one:  # 0.4 inch for a cell holds three legible digits
    side = len(names) * max(0.4, min(0.7, 5.6 / len(names)))
  else:
    side = min(max(0.36 * len(names), 1.8), 7)
  columns = min(len(matrices), 3 if len(matrices) <= 9 else 4)
  lines = math.ceil(len(matrices) / columns)
  figure, grid = _panels(lines, columns, (side, side), 0.4)
  kind = "class, by frequency rank" if many else "class"
  for i, (title, confusion) in enumerate(matrices):
    axes = grid.flat[i]
    axes.set_title(one_line(title, 80 if one else 26), loc="center")
    axes.set_facecolor("#f2f2f2")  # classes without images
    if many:
      image = draw_heat_map(axes, confusion, frequency_order(train_counts))
    else:
      _draw_cells(axes, confusion, names, side / len(names))
    lowest, leftmost = i + columns >= len(matrices), i % columns == 0
    axes.tick_params(labelbottom=lowest, labelleft=leftmost)
    axes.set_xlabel(f"Predicted {kind} (% of row)" if lowest else "")
    axes.set_ylabel(f"True {kind}" if leftmost else "")
  for axes in grid.flat[len(matrices) :]:
    axes.set_axis_off()
  if many:
    left = 1 + 0.2 / figure.get_figwidth()
    bar = figure.colorbar(image, cax=figure.add_axes((left, 0, 0.025, 1)))
    bar.set_ticks([0, 1, 5, 20, 50, 100])
  return to_png(figure)


def _draw_cells(
  axes: Axes, confusion: Confusion, names: Sequence[str], cell: float
) -> None:
  """Draws int[C, C] in per cent of each row, cells `cell` inches wide."""
  images = sparse.csr_array(confusion).toarray()
  count = images.sum(axis=1, keepdims=True)
  share = np.where(count > 0, images / np.maximum(count, 1), np.nan)
  axes.imshow(share, "Blues", vmin=0, vmax=1)
  for (i, j), value in np.ndenumerate(share):
    digits = 1 if cell > 0.45 and value else 0
    text = f"{100 * value:.{digits}f}" if value >= 0 else "–"
    colour = INK if value > 0 else FAINT
    axes.text(
      j,
      i,
      text,
      color="white" if value > WHITE_TEXT else colour,
      weight="bold" if i == j else "normal",
      size=min(9, 26 * cell),
      ha="center",
      va="center",
    )
  tilted = max(map(len, names)) * 0.073 > cell
  aligned: dict[str, Any] = {"rotation": 45, "ha": "right"} if tilted else {}
  places = np.arange(len(names))
  axes.set_yticks(places, names, color=INK)
  axes.set_xticks(places, names, color=INK, rotation_mode="anchor", **aligned)
  for draw_lines in (axes.hlines, axes.vlines):
    draw_lines(places[1:] - 0.5, -0.5, len(names) - 0.5, "white", lw=1.5)
  axes.spines[:].set_visible(False)


def draw_heat_map(
  axes: Axes, confusion: Confusion, order: np.ndarray
) -> AxesImage:
  """Draws int[C, C] in per cent of each row, classes as in `order`.

  Neighbouring classes share a cell where there are more than 400. Colours
  follow the square root, which shows confusions of a few per cent.
  """
  cells, size = sparse.coo_array(confusion), len(order)
  side = min(size, _HEAT_MAP_CELLS)
  cell_of = np.empty(size, np.int64)
  cell_of[order] = np.arange(size) * side // size
  pooled = np.zeros((side, side))
  np.add.at(pooled, (cell_of[cells.row], cell_of[cells.col]), cells.data)
  count = pooled.sum(axis=1, keepdims=True)
  share = np.where(count > 0, 100 * pooled / np.maximum(count, 1), np.nan)
  return axes.imshow(
    share,
    cmap="Blues",
    norm=PowerNorm(0.5, 0, 100),
    extent=(0.5, size + 0.5, size + 0.5, 0.5),
    interpolation="antialiased",
    interpolation_stage="rgba",
  )


@styled
def class_recall_figure(
  confusion: Confusion, class_names: Sequence[str], train_counts: ArrayLike
) -> bytes:
  """Draws recall per class next to the number of training images.

  The most frequent class is on top; whiskers are 95% Wilson intervals. Of more
  than `MAX_CLASSES` classes it draws the ten whose interval has the highest
  lower limit, then the ten whose interval has the lowest upper limit.
  """
  correct, count, recall = _recall(confusion)
  order = frequency_order(train_counts)
  lower, upper = (100 * x for x in metrics.wilson_interval(correct, count))
  if len(order) > MAX_CLASSES:
    known = order[count[order] > 0]
    best = known[np.argsort(-lower[known], kind="stable")[:10]]
    worst = known[np.argsort(upper[known], kind="stable")[:10][::-1]]
    order = np.array(list(dict.fromkeys([*best, *worst])), np.int64)
  places = np.arange(len(order))
  figure, ((left, right),) = _panels(1, 2, (4.2, 0.34 * len(order) + 0.5), 0.4)
  left.barh(places, recall[order], height=0.62, color=BLUE)
  # A white edge keeps the whisker visible on the bar.
  for colour, width in (("white", 4), (INK, 1.6)):
    left.hlines(places, lower[order], upper[order], colour, lw=width)
  if count.any():
    left.axvline(np.nanmean(recall), color=ORANGE, lw=1.2, ls="--", zorder=0)
  left.set(xlim=(0, 100), title="Recall (%), 95% interval; dashed: mean")
  bars = right.barh(
    places, np.asarray(train_counts)[order], height=0.62, color=GREY
  )
  right.bar_label(bars, fmt="{:,.0f}", padding=3)
  right.set_title("Training images")
  names = [
    f"{one_line(class_names[i])}  {f'{recall[i]:.1f}' if count[i] else '–'}"
    for i in order
  ]
  for axes, labels in ((left, names), (right, [""] * len(names))):
    axes.set_yticks(places, labels, color=INK)
    axes.set(ylim=(len(order) - 0.4, -0.6), xticks=())
    axes.spines["bottom"].set_visible(False)
  return to_png(figure)


@styled
def recall_distribution_figure(
  confusion: Confusion, train_counts: ArrayLike
) -> bytes:
  """Draws a histogram of recall, and recall against the number of images.

  At least one of the classes has test images.
  """
  _, count, recall = _recall(confusion)
  images = np.maximum(train_counts, 1)[count > 0]
  recall = recall[count > 0]
  figure, ((left, right),) = _panels(1, 2, (3.7, 2.8), 0.8)
  left.hist(recall, bins=20, range=(0, 100), color=BLUE, rwidth=0.92)
  left.axvline(recall.mean(), color=ORANGE, lw=1.2, ls="--")
  left.set_title("Number of classes by recall (%); dashed: mean")
  right.scatter(images, recall, s=12, color=BLUE, alpha=0.35, lw=0)
  groups = np.array_split(np.argsort(images, kind="stable"), 10)
  means = [[x[i].mean() for i in groups if i.size] for x in (images, recall)]
  right.plot(*means, color=ORANGE, marker="o", ms=3.5)
  right.set_xscale("log")
  right.xaxis.set(major_formatter="{x:,.0f}", minor_formatter="")
  right.set_title("Recall (%) by training images; orange: mean of each tenth")
  for axes in (left, right):
    axes.grid()
  return to_png(figure)


@styled
def learning_curves_figure(
  history: Sequence[Mapping[str, Any]], phase: str
) -> bytes | None:
  """Draws a phase's loss, and its accuracies where they were measured.

  `history` has the rows of metrics.jsonl. Of rows with equal steps, which a
  resumed run can write, the last is drawn. Returns None without any.
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
  figure, grid = _panels(len(panels), 1, (4.5, 1.9), 0.6, sharex=True)
  for axes, (heading, curves) in zip(grid[:, 0], panels.items(), strict=True):
    for label, colour, dash, line in curves:
      marker = "o" if len(line) <= 30 else None
      axes.plot(*line.T, dash, color=colour, marker=marker, ms=3, label=label)
    axes.set_title(heading)
    axes.grid()
    axes.legend()
  axes.set_xlabel("Epoch")
  return to_png(figure)


@styled
def view_pairs_figure(
  originals: np.ndarray, first: np.ndarray, second: np.ndarray
) -> bytes:
  """Draws the first `MAX_VIEW_PAIRS` images above two views of each.

  Images are uint8[k, H, W, 3] and views f32[k, S, S, 3] in [0, 1].
  """
  columns = min(len(originals), MAX_VIEW_PAIRS)
  figure, grid = _panels(3, columns, (1.05, 1.05), 0.04)
  rows = {"Image": originals, "View 1": first, "View 2": second}
  for line, (label, images) in zip(grid, rows.items(), strict=True):
    line[0].set_ylabel(label)
    for axes, image in zip(line, images[:columns], strict=True):
      image = np.asarray(image)
      if image.dtype != np.uint8:
        image = np.clip(image.astype(np.float32), 0, 1)
      axes.imshow(image, aspect="auto")
      axes.set(xticks=(), yticks=())
      axes.spines[:].set_visible(False)
  return to_png(figure)


@styled
def activation_figure(
  pairs: np.ndarray,
  truth: np.ndarray,
  predictions: np.ndarray,
  class_names: Sequence[str],
) -> bytes:
  """Draws images next to their class activation maps.

  Args:
    pairs: uint8[k, S, W, 3], pictures of an image and its map; k > 0.
    truth: int[k] classes.
    predictions: int[k] classes, to which the maps belong.

  Returns:
    A PNG file with a row for each class in `truth`, correct predictions first.
  """
  labels, counts = np.unique(truth, return_counts=True)
  figure, grid = _panels(len(labels), counts.max(), (2.0, 1.0), 0.25)
  for label, line in zip(labels, grid, strict=True):
    order = np.flatnonzero(truth == label)
    order = order[np.argsort(predictions[order] != label, kind="stable")]
    for i, axes in zip(order, line, strict=False):
      axes.imshow(pairs[i], interpolation="bilinear")
      text, colour = one_line(class_names[label], 14), BLUE
      if predictions[i] != label:
        text += f", predicted {one_line(class_names[predictions[i]], 14)}"
        colour = ORANGE
      axes.set_title(text, size=7.5, color=colour, pad=2.5)
    for axes in line:
      axes.set_axis_off()
  return to_png(figure)


@styled
def accuracies_figure(
  points: Sequence[tuple[str, float, float, float, float]],
  frontier: tuple[str, np.ndarray, np.ndarray, np.ndarray] | None = None,
  published: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
  """Draws mean-class against overall accuracy, a numbered point per system.

  Args:
    points: name, overall accuracy, mean-class accuracy, and the standard
      deviations of the second and the first, in per cent; NaN draws no bar.
    frontier: a curve's name, its overall and mean-class accuracies f64[k] and
      the strengths f64[k], every tenth of them labelled; or None.
    published: name -> published overall and mean-class accuracy; or None.

  Returns:
    A PNG file; the legend has the systems' names.
  """
  figure, ((axes,),) = _panels(1, 1, (6.2, 5.2), 0)
  small: dict[str, Any] = {"textcoords": "offset points", "size": 8.5}
  if frontier:
    label, x, y, strengths = frontier
    axes.plot(x, y, "D-", markevery=10, color=GREEN, ms=4, label=label)
    for i in range(0, len(x), 10):
      text = f"{strengths[i]:g}"
      axes.annotate(text, (x[i], y[i]), (7, -11), color=GREEN, **small)
  if published:
    x, y = np.transpose([*published.values()])
    axes.plot(x, y, "x", color=GREY, ms=5, label="the paper, on RAF-DB")
    for name, point in published.items():
      axes.annotate(name, point, (5, 4), color=FAINT, **small)
  style: dict[str, Any] = {"fmt": "o", "ms": 12, "mec": "white"}
  for number, (name, *place, y_sd, x_sd) in enumerate(points, 1):
    bars = (None if math.isnan(sd) else sd for sd in (y_sd, x_sd))
    label = f"{number}  {one_line(name)}"
    axes.errorbar(*place, *bars, color=BLUE, label=label, **style)
    axes.annotate(
      f"{number}", place, color="white", size=7.5, ha="center", va="center"
    )
  # At least half a point of room, which keeps noise from filling the axes.
  room = np.maximum(0.1 * axes.dataLim.size, 0.5)[:, None] * (-1, 1)
  axes.set(
    xlim=axes.dataLim.intervalx + room[0],
    ylim=axes.dataLim.intervaly + room[1],
    xlabel="Overall accuracy (%)",
    ylabel="Mean-class accuracy (%)",
  )
  axes.grid()
  axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), markerscale=0.6)
  return to_png(figure)


def one_line(name: object, limit: int = 26) -> str:
  """Converts any name to one printable line of at most `limit` characters."""
  line = " ".join(str(name).encode("utf-8", "replace").decode().split())
  return line if len(line) <= limit else line[: limit - 1] + "…"


def to_png(figure: Figure) -> bytes:
  """Renders a figure, cropped to its content."""
  FigureCanvasAgg(figure)
  buffer = io.BytesIO()
  with warnings.catch_warnings():
    # The font draws boxes for a script it lacks; the page has the name.
    warnings.filterwarnings("ignore", message="Glyph")
    figure.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _panels(
  lines: int,
  columns: int,
  side: tuple[float, float],
  gap: float,
  **options: Any,
) -> tuple[Figure, np.ndarray]:
  """A figure, and its axes [lines, columns] of a fixed side and gap in inches.

  `options` are those of `Figure.subplots`.
  """
  width, height = side
  size = (columns * (width + gap) - gap, lines * (height + gap) - gap)
  figure = Figure(size)
  figure.subplots_adjust(0, 0, 1, 1, gap / width, gap / height)
  return figure, figure.subplots(lines, columns, squeeze=False, **options)


def _recall(confusion: Confusion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Correct int[C], count int[C], recall f64[C] in per cent (NaN for 0/0)."""
  correct, count = metrics.correct_and_count(confusion)
  return correct, count, 100 * correct / np.where(count > 0, count, np.nan)


def _is_finite(value: object) -> bool:
  return isinstance(value, Real) and math.isfinite(value)
