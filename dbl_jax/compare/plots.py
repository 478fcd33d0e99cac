"""Plots of a comparison: confusion matrices, and the two accuracies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dbl_jax.compare import statistics
from dbl_jax.compare.records import (
  TABLE_1,
  RunResult,
  by_system,
  confusion,
  title,
)
from dbl_jax.evaluation import plots
from dbl_jax.evaluation.plots import (
  BLUE,
  FAINT,
  GREEN,
  GREY,
  GRID,
  INK,
  ORANGE,
  one_line,
)

# Strengths of logit adjustment along the curve, and those written next to it.
STRENGTHS = tuple(i / 20 for i in range(31))
MARKED = (0.0, 0.5, 1.0)


def confusion_matrices(results: Sequence[RunResult]) -> bytes:
  """Draws a confusion matrix for each system, summed over its seeds.

  Args:
    results: finished runs on one data set.

  Returns:
    A PNG file: per cent of each true class (as the paper's fig. 3), a panel
    for each system in Table 1's order; heat maps beyond `plots.MAX_CLASSES`
    classes. The row of a class without test images is grey.

  Raises:
    UserError: the runs cannot be compared, see `records.by_system`.
  """
  groups = by_system(results)
  run = results[0].predictions
  names = [one_line(name, 18) for name in run.class_names]
  many = len(names) > plots.MAX_CLASSES
  columns = min(len(groups), 3 if len(groups) <= 9 else 4)
  lines = math.ceil(len(groups) / columns)
  side = 4.0 if many else min(max(0.36 * len(names), 1.2), 7)
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
    axes.set_title(
      one_line(title(system)), size=10, color=INK, parse_math=False
    )
    if many:
      order = plots.frequency_order(run.train_counts)
      plots.draw_heat_map(axes, confusion(group), order)
    else:
      plots.draw_confusion(axes, confusion(group), side / len(names))
      plots.name_classes(axes, names, names, 45)
    lowest = i + columns >= len(groups)
    axes.tick_params(labelleft=i % columns == 0, labelbottom=lowest)
  kind = "class, by frequency rank" if many else "class"
  figure.text(
    0,
    1 + 0.3 / height,
    f"Rows: true {kind}. Columns: predicted {kind}. Per cent of each row.",
    size=9,
    color=FAINT,
    va="bottom",
  )
  return plots.to_png(figure)


def accuracies(
  rows: Sequence[Mapping[str, Any]],
  reference: Sequence[RunResult] = (),
  strengths: ArrayLike = STRENGTHS,
  *,
  paper_points: bool = False,
) -> bytes:
  """Draws mean-class against overall accuracy, a numbered point per system.

  Args:
    rows: as returned by `table.make_rows`.
    reference: runs of a system whose logit-adjustment frontier is drawn,
      averaged over its seeds; not drawn without probabilities.
    strengths: of logit adjustment, f64[k].
    paper_points: whether to draw the paper's accuracies too.

  Returns:
    A PNG file. Bars are standard deviations over seeds; the legend has the
    systems' names.
  """
  figure = Figure(figsize=(6.2, 5.2))
  axes = figure.add_axes((0, 0, 1, 1))
  _frontier(axes, reference, strengths)
  if paper_points:
    _paper(axes)
  for number, row in enumerate(rows, 1):
    x, y, x_sd, y_sd = (
      row[f"{name}_accuracy_{kind}"]
      for kind in ("percent", "sd_percent")
      for name in ("overall", "mean_class")
    )
    axes.errorbar(
      x,
      y,
      xerr=x_sd,
      yerr=y_sd,
      fmt="o",
      color=BLUE if row["system"] in TABLE_1 else ORANGE,
      ms=12,
      mec="white",
      elinewidth=1,
      zorder=2,
      label=f"{number}  {one_line(row['title'])}",
    )
    axes.text(
      x, y, str(number), color="white", size=7.5, ha="center", va="center"
    )
  low, high = np.array(axes.dataLim.min), np.array(axes.dataLim.max)
  # At least half a point of room, which keeps noise from filling the axes.
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
    loc="upper left",
    bbox_to_anchor=(1.02, 1),
    fontsize=9,
    frameon=False,
    labelcolor=INK,
    title="Blue: Table 1; orange: others",
    title_fontsize=9,
    markerscale=0.6,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return plots.to_png(figure)


def _frontier(
  axes: Axes, group: Sequence[RunResult], strengths: ArrayLike
) -> None:
  """Draws the reference's curve, and writes the marked strengths next to it."""
  runs = [result.predictions for result in group]
  if not runs or not all(run.calibrated for run in runs):
    return
  strengths = np.asarray(strengths)
  each = [
    statistics.logit_adjustment_frontier(
      run.labels, run.scores, run.train_counts, strengths
    )
    for run in runs
  ]
  y, x = 100 * np.mean(each, axis=0)
  marks = [int(i) for i in np.flatnonzero(np.isin(strengths, MARKED))]
  axes.plot(
    x,
    y,
    "D-",
    markevery=marks,
    color=GREEN,
    lw=1.5,
    ms=4,
    zorder=1,
    label="Logit adjustment of "
    f"{one_line(title(group[0].system))}, by strength",
  )
  for i in marks:
    axes.annotate(
      f"{strengths[i]:g}",
      (x[i], y[i]),
      (7, -11),
      textcoords="offset points",
      color=GREEN,
      size=8.5,
    )


def _paper(axes: Axes) -> None:
  """Draws the paper's points with their names."""
  for name, average, overall in TABLE_1.values():
    if average is None or overall is None:
      continue
    axes.plot(overall, average, "x", color=GREY, ms=5, zorder=1)
    axes.annotate(
      name,
      (overall, average),
      (5, 4),
      textcoords="offset points",
      color=FAINT,
      size=8,
    )
  axes.plot([], [], "x", color=GREY, label="the paper, on RAF-DB")
