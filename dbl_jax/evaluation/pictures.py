"""Pictures of single images in the report: features, confidence, mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dbl_jax.data.datasets import Split
from dbl_jax.evaluation import metrics, page, plots
from dbl_jax.evaluation.plots import (
  BLUE,
  FAINT,
  GREY,
  INK,
  ORANGE,
  one_line,
  styled,
  to_png,
)
from dbl_jax.runtime.rows import Array

_MAX_POINTS = 1000  # images in the embedding; t-SNE takes 5 s for them
_MIN_TSNE = 100  # images; neighbourhoods of fewer show little
_MAX_COLOURS = 10  # classes that a reader can tell apart
_BINS = 15  # as in Guo et al. 2017
_MAX_MISTAKES, _MISTAKES_IN_ROW = 16, 8

_EMBEDDING_NOTE = (
  "The encoder's features of at most 1,000 images; crosses are wrong"
  " predictions. PCA keeps distances as far as a plane can. t-SNE shows"
  " neighbours; ignore the sizes of its groups and the distances between them."
)
_RELIABILITY_NOTE = (
  "Images in bins of their largest probability (Guo et al. 2017), calibrated by"
  " a temperature that was fitted on validation images. Bars below"
  " the diagonal: the model is more confident than it is accurate. The error is"
  " the mean gap, weighted by the images of each bin."
)
_MISTAKES_NOTE = (
  "Mistakes with the highest probability: true class, predicted class. Labels"
  " may be wrong too."
)


def sections(
  part: Split,
  features: np.ndarray,
  scores: np.ndarray,
  temperature: float,
  class_names: Sequence[str],
  calibrated: bool,
  mistakes: bool,
) -> list[str]:
  """Sections of the report on single images of a split.

  Args:
    part: images uint8[n, S, S, 3] and labels int[n].
    features: f32[n, F], of the encoder.
    scores: f32[n, C].
    temperature: divisor of the scores.
    class_names: C names.
    calibrated: whether the softmax of scores is a class distribution.
    mistakes: whether to show the most confident mistakes.

  Returns:
    HTML of each section; empty for pictures that cannot be drawn.
  """
  if not len(part.labels):
    return []
  predicted = scores.argmax(axis=1)
  wrong = predicted != part.labels
  share = metrics.confidence(scores, temperature)
  reliability = strip = None
  if calibrated:
    reliability = reliability_figure(share, ~wrong)
  if mistakes and wrong.any():
    strip = mistakes_figure(*part, predicted, share, class_names, calibrated)
  embedding = embedding_figure(features, part.labels, wrong, class_names)
  return [
    page.figure(
      "Calibration",
      reliability,
      "Accuracy by predicted probability",
      _RELIABILITY_NOTE,
    ),
    page.figure(
      "Embedding",
      embedding,
      "Features of the images in two dimensions, coloured by true class",
      _EMBEDDING_NOTE,
    ),
    page.figure(
      "Most confident mistakes", strip, "Misclassified images", _MISTAKES_NOTE
    ),
  ]


@styled
def reliability_figure(confidence: np.ndarray, correct: np.ndarray) -> bytes:
  """Draws a reliability diagram over the distribution of confidence.

  Its title has the expected calibration error; arguments are those of
  `metrics.calibration_bins` for at least one image.
  """
  count, hits, confident = metrics.calibration_bins(confidence, correct, _BINS)
  error = np.abs(hits - confident).sum() / len(confidence)
  shown = np.flatnonzero(count)
  places = 100 * (shown + 0.5) / _BINS
  figure = Figure(figsize=(4.2, 4.4))
  upper = figure.add_axes((0, 0.3, 1, 0.7))
  lower = figure.add_axes((0, 0, 1, 0.22), sharex=upper)
  accuracy, mean = (100 * x[shown] / count[shown] for x in (hits, confident))
  upper.bar(places, accuracy, 92 / _BINS, color=BLUE)
  # From the mean probability of a bin, where the diagonal would be met.
  upper.plot(places, mean, "_", color=ORANGE, ms=13, mew=2)
  upper.plot([0, 100], [0, 100], color=FAINT, lw=1, ls="--")
  lower.bar(places, 100 * count[shown] / count.sum(), 92 / _BINS, color=GREY)
  upper.set_xlim(0, 100)
  upper.set_ylim(0, 100)
  title = f"Expected calibration error {100 * error:.1f}%"
  for axes, text in ((upper, title), (lower, "Images (%)")):
    axes.set_title(text, size=10, color=INK, loc="left")
    axes.tick_params(length=0, labelsize=8.5, labelcolor=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(FAINT)
  upper.tick_params(labelbottom=False)
  upper.set_ylabel("Accuracy (%); orange: expected", size=9, color=INK)
  lower.set_xlabel("Probability of the predicted class (%)", size=9, color=INK)
  return to_png(figure)


@styled
def embedding_figure(
  features: np.ndarray,
  labels: np.ndarray,
  wrong: np.ndarray,
  class_names: Sequence[str],
) -> bytes | None:
  """Draws features in the plane: by PCA, and by t-SNE with scikit-learn.

  Args:
    features: f32[n, F]; at most 1,000 rows are drawn, evenly spaced.
    labels: int[n], shown as colours. Of more than ten classes, ten evenly
      spaced by frequency have one, and up to half of the rows; the others are
      grey.
    wrong: bool[n], drawn as crosses.
    class_names: C names.

  Returns:
    A PNG file; None if the features are constant or not finite.
  """
  order = plots.frequency_order(np.bincount(labels, minlength=len(class_names)))
  spread = np.linspace(0, len(order) - 1, min(len(order), _MAX_COLOURS))
  coloured = order[spread.round().astype(int)]
  shown = _chosen(np.isin(labels, coloured))
  features, labels, wrong = (x[shown] for x in (features, labels, wrong))
  centred = np.asarray(features, np.float64) - features.mean(axis=0)
  if min(centred.shape) < 2 or not np.isfinite(centred).all():
    return None
  left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
  if not lengths[0] > 1e-6 * max(1, np.abs(features).max()):
    return None
  first, second = (lengths**2 / (lengths**2).sum())[:2]
  components = left * lengths
  maps = [(f"PCA: {first:.0%} and {second:.0%} of variance", components[:, :2])]
  if (tsne := _tsne(components[:, :50])) is not None:
    maps.append(("t-SNE", tsne))
  figure = Figure(figsize=(4.1 * len(maps), 4))
  grid = figure.subplots(1, len(maps), squeeze=False)[0]
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.06)
  for axes, (title, points) in zip(grid, maps, strict=True):
    _scatter(axes, points, labels, wrong, coloured, class_names)
    axes.set_title(title, size=10, color=INK, loc="left")
  legend = grid[-1].legend(
    loc="upper left",
    bbox_to_anchor=(1.01, 1),
    fontsize=9,
    frameon=False,
    labelcolor=INK,
    handletextpad=0.1,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return to_png(figure)


def _chosen(preferred: np.ndarray) -> np.ndarray:
  """Sorted indices of at most `_MAX_POINTS` rows, evenly spaced.

  Args:
    preferred: bool[n], rows that get at least half of the places.
  """
  first, rest = np.flatnonzero(preferred), np.flatnonzero(~preferred)
  places = max(_MAX_POINTS // 2, _MAX_POINTS - rest.size)
  first = first[:: -(-first.size // places) or 1]
  rest = rest[:: -(-rest.size // (_MAX_POINTS - first.size or 1)) or 1]
  return np.sort(np.concatenate([first, rest]))


def _tsne(components: np.ndarray) -> np.ndarray | None:
  """t-SNE (van der Maaten and Hinton 2008) of f64[n, k]: f32[n, 2]."""
  if len(components) < _MIN_TSNE:
    return None
  try:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits
  except ImportError:
    return None
  # OpenMP's threads wait for each other: many are slow on a busy machine.
  with threadpool_limits(1):
    return TSNE(init="pca", random_state=0).fit_transform(components)


def _scatter(
  axes: Axes,
  points: np.ndarray,
  labels: np.ndarray,
  wrong: np.ndarray,
  coloured: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Draws points f[n, 2], those of classes without a colour first."""
  palette: list[Any] = [colormaps["tab10"](i) for i in range(len(coloured))]
  groups = [
    (labels == c, colour, one_line(class_names[c], 20))
    for c, colour in zip(coloured, palette, strict=True)
  ]
  others = ~np.isin(labels, coloured)
  if others.any():
    groups.insert(0, (others, GREY, "other classes"))
  for members, colour, name in groups:
    drawn: list[tuple[Any, Any, int, str | None]] = [
      (members & ~wrong, "o", 9, name),
      (members & wrong, "x", 16, None),
    ]
    for chosen, marker, size, label in drawn:
      x, y = points[chosen].T
      axes.scatter(
        x, y, s=size, color=colour, marker=marker, lw=0.8, label=label
      )
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_color(GREY)


@styled
def mistakes_figure(
  images: Array,
  labels: np.ndarray,
  predicted: np.ndarray,
  share: np.ndarray,
  class_names: Sequence[str],
  calibrated: bool,
) -> bytes:
  """Draws the misclassified images with the highest share of a class.

  Args:
    images: uint8[n, S, S, 3], at least one of them misclassified.
    labels: int[n].
    predicted: int[n] classes.
    share: f32[n], softmax of the scores, of the predicted class.
    class_names: C names.
    calibrated: whether shares are probabilities; if so, titles show them.
  """
  confidence = np.where(predicted == labels, -1, share)
  chosen = np.argsort(-confidence, kind="stable")[:_MAX_MISTAKES]
  chosen = chosen[confidence[chosen] >= 0]
  columns = min(len(chosen), _MISTAKES_IN_ROW)
  rows = -(-len(chosen) // columns)
  figure = Figure(figsize=(1.2 * columns, 1.55 * rows))
  grid = figure.subplots(rows, columns, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.12, hspace=0.35)
  for axes in grid.flat:
    axes.set_axis_off()
  for axes, i in zip(grid.flat, chosen, strict=False):
    axes.imshow(images[i], interpolation="bilinear")
    truth, guess = (
      one_line(class_names[c], 15) for c in (labels[i], predicted[i])
    )
    certainty = f" {share[i]:.0%}" if calibrated else ""
    axes.set_title(
      f"{truth}\n→ {guess}{certainty}",
      size=7.5,
      color=INK,
      loc="left",
      pad=2.5,
      parse_math=False,
    )
  return to_png(figure)
