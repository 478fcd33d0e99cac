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
  predictions first, then wrong ones.

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
  labels, counts = np.unique(truth, return_counts=True)
  size = (2.35 * _SIDE * counts.max(), 1.24 * _SIDE * len(labels))
  figure = Figure(figsize=size)
  grid = figure.subplots(len(labels), counts.max(), squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.1, hspace=0.2)
  for axes in grid.flat:
    axes.set_axis_off()
  for label, line in zip(labels, grid, strict=True):
    own = np.flatnonzero(truth == label)
    # Correct ones first; unused places stay empty.
    own = own[np.argsort(predictions[own] != label, kind="stable")]
    for i, axes in zip(own, line, strict=False):
      gap = np.full(
        (len(images[i]), 1 + len(images[i]) // 24, 3), 255, np.uint8
      )
      pair = np.concatenate(
        [images[i], gap, overlay(images[i], maps[i])], axis=1
      )
      axes.imshow(pair, interpolation="bilinear")
      text, colour = one_line(class_names[label], 14), BLUE
      if predictions[i] != label:
        text += f", predicted {one_line(class_names[predictions[i]], 14)}"
        colour = ORANGE
      axes.set_title(
        text, size=7.5, color=colour, loc="left", pad=2.5, parse_math=False
      )
  if title:
    y, text = 1 + 0.25 / size[1], one_line(title, 80)
    figure.text(0, y, text, size=11, color=INK, parse_math=False)
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
