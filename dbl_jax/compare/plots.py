"""Pictures of a comparison: confusion matrices, and the two accuracies.

As in `dbl_jax.figures`, names are strangers' text and never TeX.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dbl_jax.compare import statistics
from dbl_jax.compare.records import (
  PAPER,
  TITLES,
  Record,
  by_system,
  confusion,
  summary,
  title,
)
from dbl_jax.evaluation import plots
from dbl_jax.evaluation.plots import (
  BLUE,
  FAINT,
  GREY,
  GRID,
  INK,
  ORANGE,
  one_line,
)

# Of the palette in `dbl_jax.figures`.
GREEN = "#009e73"
# x, y, text and colour.
_Label = tuple[float, float, str, str]
# More classes than this leave no room for numbers in the cells.
MAX_NUMBERED = 16
# Strengths of logit adjustment along the curve, and those with their number.
STRENGTHS = tuple(i / 20 for i in range(31))
MARKED = (0.0, 0.5, 1.0)


def confusion_matrices(records: Sequence[Record]) -> bytes:
  """Draws a confusion matrix for each system, summed over its seeds.

  Args:
    records: finished runs on one data set.

  Returns:
    A PNG file: per cent of each true class (as the paper's fig. 3), a panel
    for each system in Table 1's order. The row of a class without test images
    is grey with dashes.

  Raises:
    UserError: the records cannot be compared, see `records.by_system`.
  """
  groups = by_system(records)
  names = [one_line(name, 18) for name in records[0].class_names]
  columns = min(len(groups), 3 if len(groups) <= 9 else 4)
  lines = math.ceil(len(groups) / columns)
  side = min(max(0.36 * len(names), 1.2), 7)
  # Inches: 0.2 and 0.4 are the gaps between panels.
  width = side * columns + 0.2 * (columns - 1)
  height = side * lines + 0.4 * (lines - 1)
  figure = Figure(figsize=(width, height))
  grid = figure.subplots(lines, columns, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.2 / side, hspace=0.4 / side)
  for axes in grid.flat[len(groups) :]:
    axes.set_axis_off()
  for i, (system, group) in enumerate(groups.items()):
    axes = grid.flat[i]
    _matrix(axes, confusion(group), side / len(names))
    axes.set_title(
      one_line(title(system)), size=10, color=INK, parse_math=False
    )
    if i % columns == 0:
      axes.set_yticks(range(len(names)))
      axes.set_yticklabels(names, parse_math=False)
    if i + columns >= len(groups):
      axes.set_xticks(range(len(names)))
      axes.set_xticklabels(
        names,
        rotation=45,
        ha="right",
        va="top",
        rotation_mode="anchor",
        parse_math=False,
      )
  figure.text(
    0,
    1 + 0.3 / height,
    "Rows: true class. Columns: predicted class. Per cent of the true class.",
    size=9,
    color=FAINT,
    va="bottom",
  )
  return plots.to_png(figure)


def accuracies(
  records: Sequence[Record],
  reference: str = "basic",
  strengths: ArrayLike = STRENGTHS,
  *,
  paper_points: bool = False,
) -> bytes:
  """Draws mean-class against overall accuracy, a point for each system.

  Args:
    records: finished runs on one data set.
    reference: system whose logit-adjustment frontier is drawn, averaged over
      its seeds; none where it has no run or its scores give no probability.
    strengths: of logit adjustment, f64[k].
    paper_points: whether to draw the paper's accuracies too, faintly.

  Returns:
    A PNG file. Bars are standard deviations over seeds.

  Raises:
    UserError: the records cannot be compared, see `records.by_system`.
  """
  groups = by_system(records)
  figure = Figure(figsize=(7.6, 5.6))
  axes = figure.add_axes((0, 0, 1, 1))
  labels: list[_Label] = []
  for is_paper, colour, kind in (
    (True, BLUE, "systems of Table 1"),
    (False, ORANGE, "systems beyond the paper"),
  ):
    chosen = [system for system in groups if (system in TITLES) == is_paper]
    for system in chosen:
      x, y = _accuracies(groups[system])
      assert x.mean is not None  # there are runs
      assert y.mean is not None
      axes.errorbar(
        x.mean,
        y.mean,
        xerr=x.sd,
        yerr=y.sd,
        fmt="o",
        color=colour,
        ms=6.5,
        mec="white",
        elinewidth=1,
        zorder=3,
        label=kind if system == chosen[0] else None,
      )
      labels.append((x.mean, y.mean, one_line(title(system)), INK))
  labels += _frontier(axes, groups.get(reference, ()), strengths)
  if paper_points:
    labels += _paper(axes)
  _dress(axes)
  _write_labels(figure, axes, labels)
  return plots.to_png(figure)


def _matrix(axes: Axes, counts: np.ndarray, cell: float) -> None:
  """One panel, its cells `cell` inches wide."""
  images = counts.sum(axis=1)
  share = 100 * counts / np.maximum(images, 1)[:, None]
  colours = colormaps["Blues"](share / 100)
  colours[images == 0] = (0.95, 0.95, 0.95, 1)
  axes.imshow(colours, interpolation="nearest")
  for (i, j), value in np.ndenumerate(share):
    if len(counts) > MAX_NUMBERED:
      break
    text = f"{value:.0f}" if images[i] else "–"
    ink = "white" if value > 62 else INK
    axes.text(
      j,
      i,
      text,
      color=FAINT if text in "0–" else ink,
      size=min(8.5, 26 * cell),
      weight="bold" if i == j and images[i] else "normal",
      ha="center",
      va="center",
    )
  axes.set_xticks([])
  axes.set_yticks([])
  if len(counts) <= MAX_NUMBERED:
    edges = np.arange(1, len(counts)) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
  font = min(8.5, 58 * cell)
  axes.tick_params(which="both", length=0, labelcolor=INK, labelsize=font)
  axes.spines[:].set_visible(False)


def _accuracies(
  group: Sequence[Record],
) -> tuple[statistics.Mean, statistics.Mean]:
  """Overall and mean-class accuracy in per cent."""
  each = [summary(record) for record in group]
  return (
    statistics.over_seeds([100 * e["overall_accuracy"] for e in each]),
    statistics.over_seeds([100 * e["mean_class_accuracy"] for e in each]),
  )


def _frontier(
  axes: Axes, group: Sequence[Record], strengths: ArrayLike
) -> list[_Label]:
  """The reference's curve; returns the labels of its marked strengths."""
  if not group or not all(record.probabilities_ok for record in group):
    return []

  def at(values: ArrayLike) -> np.ndarray:
    """f64[2, k]: overall, then mean-class accuracy in per cent."""
    each = [
      statistics.logit_adjustment_frontier(
        record.labels, record.scores, record.train_counts, values
      )
      for record in group
    ]
    return 100 * np.mean(each, axis=0)[::-1]

  name = one_line(title(group[0].system))
  axes.plot(
    *at(strengths),
    color=GREEN,
    lw=1.5,
    zorder=1,
    label=f"{name}, logit adjustment by strength",
  )
  low, high = np.min(strengths), np.max(strengths)
  marked = [strength for strength in MARKED if low <= strength <= high]
  points = at(marked)
  axes.scatter(points[0], points[1], marker="D", color=GREEN, s=16, zorder=2)
  return [
    (x, y, f"{strength:g}", GREEN)
    for (x, y), strength in zip(points.T, marked, strict=True)
  ]


def _paper(axes: Axes) -> list[_Label]:
  """The paper's points; returns their labels."""
  points = [
    (overall, average, TITLES[system], FAINT)
    for system, (average, overall) in PAPER.items()
    if average is not None and overall is not None
  ]
  x, y, *_ = zip(*points, strict=True)
  axes.scatter(
    x, y, marker="x", color=GREY, s=24, zorder=1, label="the paper, RAF-DB"
  )
  return points


def _dress(axes: Axes) -> None:
  """Axes, grid and legend."""
  low, high = np.array(axes.dataLim.min), np.array(axes.dataLim.max)
  # Room for labels; and noise must not look like a landslide.
  room = np.maximum(0.1 * (high - low), 0.5)
  axes.set_xlim(low[0] - room[0], high[0] + room[0])
  axes.set_ylim(low[1] - room[1], high[1] + room[1])
  axes.set_xlabel("Overall accuracy (%)", size=10, color=INK)
  axes.set_ylabel("Mean-class accuracy (%)", size=10, color=INK)
  axes.grid(color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(FAINT)
  legend = axes.legend(
    loc="lower left",
    bbox_to_anchor=(0, 1),
    ncols=2,
    fontsize=9,
    frameon=False,
    labelcolor=INK,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)


def _write_labels(figure: Figure, axes: Axes, labels: Sequence[_Label]) -> None:
  """Writes each label where it covers least, with a line to its point."""
  texts = [
    axes.text(x, y, text, color=colour, size=9, parse_math=False, zorder=5)
    for x, y, text, colour in labels
  ]
  renderer = FigureCanvasAgg(figure).get_renderer()
  extents = [text.get_window_extent(renderer).size for text in texts]
  points = axes.transData.transform([label[:2] for label in labels])
  half = np.array(extents) / 2 + 1
  frame = np.array(axes.get_window_extent().extents)
  centres = _place(points, half, _ink(axes), frame)
  to_data = axes.transData.inverted()
  for text, point, centre, size in zip(
    texts, points, centres, half, strict=True
  ):
    text.set(position=to_data.transform(centre), ha="center", va="center")
    line = _leaders(point, centre[None], size)[0]
    if np.hypot(*(line[-1] - line[0])) > 9:
      axes.plot(*to_data.transform(line).T, color=INK, lw=0.6, zorder=4)


def _place(
  points: np.ndarray, half: np.ndarray, ink: np.ndarray, frame: np.ndarray
) -> np.ndarray:
  """Centres f64[k, 2] for labels of half sizes f64[k, 2], all in pixels.

  Places are tried in rings around the point. Each label is placed in turn and
  then again in sight of all others, which settles in a few rounds.

  Args:
    points: f64[k, 2] that are labelled.
    half: f64[k, 2], half the width and height of each label.
    ink: f64[m, 2] that labels had better not cover.
    frame: left, bottom, right and top limits.
  """
  # Not placed is far away; the prices below are pixels of distance.
  centres = np.full(points.shape, 1e9)
  ink = np.concatenate([ink, np.repeat(points, 6, axis=0)])
  for _, i in itertools.product(range(4), range(len(points))):
    others = np.arange(len(points)) != i
    places, cost = _rings(points[i], half[i])
    gap = np.abs(places[:, None] - centres[others]) - half[others]
    cost += 1000 * (gap < half[i] + 1).all(axis=2).sum(axis=1)
    cost += 500 * (places - half[i] < frame[:2]).any(axis=1)
    cost += 500 * (places + half[i] > frame[2:]).any(axis=1)
    lines = _leaders(points[others], centres[others], half[others])
    marks = np.concatenate([ink, lines[:, 1:].reshape(-1, 2)])
    covered = np.abs(places[:, None] - marks) < half[i] + 3
    cost += 10 * covered.all(axis=2).sum(axis=1)
    own = _leaders(points[i], places, half[i])[:, 1:, None]
    crossed = np.abs(own - centres[others]) < half[others] + 1
    cost += 100 * crossed.all(axis=3).any(axis=1).sum(axis=1)
    through = np.abs(own - points[others]) < 5
    cost += 40 * through.all(axis=3).any(axis=1).sum(axis=1)
    centres[i] = places[cost.argmin()]
  return centres


def _rings(
  point: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Places f64[r, 2] around a point, and how far f64[r] each is from it."""
  angles = np.arange(24) * np.pi / 12
  radii = np.array([7, 12, 18, 26, 36, 48, 62, 80, 100, 130])
  towards = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  # The label's nearest edge, not its centre, is on the ring.
  places = radii[:, None, None] * towards + half * np.clip(1.5 * towards, -1, 1)
  return point + places.reshape(-1, 2), np.repeat(radii, len(angles)) * 1.0


def _leaders(
  points: np.ndarray, centres: np.ndarray, half: np.ndarray
) -> np.ndarray:
  """f64[k, 12, 2]: steps from points to the nearest edge of their labels."""
  ends = np.clip(points, centres - half, centres + half)
  steps = np.linspace(0, 1, 12)[:, None]
  start = np.broadcast_to(points, ends.shape)[:, None]
  return start + steps * (ends[:, None] - start)


def _ink(axes: Axes) -> np.ndarray:
  """Points f64[m, 2] in pixels along all that is drawn as lines or marks."""
  paths = [np.asarray(line.get_xydata()) for line in axes.lines]
  for one in axes.collections:
    if isinstance(one, LineCollection):
      paths += map(np.asarray, one.get_segments())
  steps = np.linspace(0, 1, 8)[:, None, None]
  joined = [path[:-1] + steps * np.diff(path, axis=0) for path in paths]
  drawn = np.concatenate([path.reshape(-1, 2) for path in (*paths, *joined)])
  return axes.transData.transform(drawn)
