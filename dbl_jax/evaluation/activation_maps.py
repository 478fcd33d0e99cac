"""Class activation maps: where in an image the evidence for a class is.

A linear classifier on features averaged over a map can be applied to each pixel
of the map instead.

Source: Zhou et al., "Learning deep features for discriminative localization",
CVPR 2016.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dbl_jax.evaluation.plots import (
  BLUE,
  INK,
  MAX_CLASSES,
  ORANGE,
  one_line,
  to_png,
)

_SIDE = 0.95  # of an image, in inches
# RGB colour of the largest value of a map.
_HOT = 255 * np.array(to_rgb(ORANGE), np.float32)


def class_activation_maps(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Computes M_c(x, y) = sum_k w_kc f_k(x, y), eq. (1) and (2) of the paper.

  Args:
    maps: f32[n, h, w, F], f, whose averages over h and w are the features.
    kernel: f32[F, C], w, of a linear classifier on the features (an `MLPHead`
      with `hidden` ()).

  Returns:
    f32[n, C, h, w]. The mean of a map plus the classifier's bias is the logit
    of its class (the paper's features are sums; averages only scale).
  """
  maps = np.asarray(maps, np.float32)
  activation = maps @ np.asarray(kernel, np.float32)
  return np.moveaxis(activation, -1, 1)


def examples(
  labels: np.ndarray,
  predictions: np.ndarray,
  num_classes: int,
  per_class: int = 2,
) -> np.ndarray:
  """Chooses images to show: for each class some correct and some wrong.

  Takes the first of each, half of them correct (the larger half of an odd
  number), and fewer where there are too few. Of more than `plots.MAX_CLASSES`
  classes with images, that many are taken, evenly spaced in index order.

  Args:
    labels: int[n], true classes.
    predictions: int[n].
    num_classes: C.
    per_class: maximum number of images of a class.

  Returns:
    int64[k] indices, k <= C * per_class, by class, correct before wrong.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  classes = np.flatnonzero(np.bincount(labels, minlength=num_classes))
  if len(classes) > MAX_CLASSES:
    spread = np.linspace(0, len(classes) - 1, MAX_CLASSES)
    classes = classes[spread.round().astype(int)]
  correct = labels == predictions
  chosen = [np.zeros(0, np.int64)]
  for label in classes:
    members = labels == label
    chosen.append(np.flatnonzero(members & correct)[: (per_class + 1) // 2])
    chosen.append(np.flatnonzero(members & ~correct)[: per_class // 2])
  return np.concatenate(chosen)


def activation_figure(
  images: np.ndarray,
  maps: np.ndarray,
  truth: np.ndarray,
  predictions: np.ndarray,
  class_names: Sequence[str],
  title: str,
) -> bytes:
  """Draws images, each next to itself under its class activation map.

  One row for each class that occurs in `truth`, in index order: correct
  predictions on the left, wrong ones on the right.

  Args:
    images: uint8[k, S, S, 3], k at least 1.
    maps: f32[k, h, w], of the predicted class. Each is drawn from its own
      smallest value, without colour, to its largest, orange.
    truth: int[k] classes.
    predictions: int[k] classes.
    class_names: C names.
    title: text above the images; may be empty.

  Returns:
    A PNG file.
  """
  truth, predictions = np.asarray(truth), np.asarray(predictions)
  cells = _cells(truth, predictions)
  rows, columns = (1 + max(place) for place in zip(*cells, strict=True))
  figure = Figure(figsize=(2.35 * _SIDE * columns, 1.24 * _SIDE * rows))
  grid = figure.subplots(rows, columns, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.1, hspace=0.2)
  for axes in grid.flat:
    axes.set_axis_off()
  for place, i in cells.items():
    image = images[i]
    gap = np.full((len(image), max(1, len(image) // 24), 3), 255, np.uint8)
    pair = np.concatenate([image, gap, overlay(image, maps[i])], axis=1)
    grid[place].imshow(pair, interpolation="bilinear")
    text, correct = (
      one_line(class_names[truth[i]], 14),
      truth[i] == predictions[i],
    )
    if not correct:
      text += f", predicted {one_line(class_names[predictions[i]], 14)}"
    grid[place].set_title(
      text,
      size=7.5,
      color=BLUE if correct else ORANGE,
      loc="left",
      pad=2.5,
      parse_math=False,
    )
  if title:
    figure.text(
      x=0,
      y=1 + 0.25 / figure.get_figheight(),
      s=one_line(title, 80),
      size=11,
      color=INK,
      parse_math=False,
    )
  return to_png(figure)


def overlay(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
  """Blends an activation map into an image in grey.

  Args:
    image: uint8[S, S, 3].
    activation: f32[h, w]; resized bilinearly to the image's size. Its
      smallest value keeps the grey, its largest becomes orange; a constant map
      changes nothing.

  Returns:
    uint8[S, S, 3].
  """
  height, width = image.shape[:2]
  activation = np.nan_to_num(np.asarray(activation, np.float32))
  activation -= activation.min()
  activation /= max(float(activation.max()), 1e-12)
  heat = Image.fromarray(activation).resize(
    (width, height), Image.Resampling.BILINEAR
  )
  grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
  share = 0.75 * np.asarray(heat)[..., None]
  mixed = (1 - share) * grey[..., None] + share * _HOT
  return np.rint(mixed).astype(np.uint8)


def _cells(
  truth: np.ndarray, predictions: np.ndarray
) -> dict[tuple[int, int], int]:
  """Row and column of the grid -> index of the example drawn there."""
  correct, labels = truth == predictions, np.unique(truth)
  first_wrong = max(np.sum(correct & (truth == label)) for label in labels)
  cells = {}
  for row, label in enumerate(labels):
    own = truth == label
    for group, start in ((own & correct, 0), (own & ~correct, first_wrong)):
      for column, index in enumerate(np.flatnonzero(group), int(start)):
        cells[row, column] = int(index)
  return cells
