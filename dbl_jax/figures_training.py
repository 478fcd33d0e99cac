"""Pictures of a training run: learning curves, and augmented views."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dbl_jax.figures import BLUE, FAINT, GRID, INK, ORANGE, to_png

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
