"""Class activation maps: where in an image a class finds its evidence.

Zhou et al. 2016, "Learning Deep Features for Discriminative Localization". A
linear classifier on features that are averages over a map may as well be
applied to each pixel of the map.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dbl_jax.evaluation.plots import BLUE, INK, ORANGE, one_line, to_png

_FACE = 0.95  # inches, height and width
# What the largest value of a map is painted in, red, green and blue.
_HOT = 255 * np.array(to_rgb(ORANGE), np.float32)


def class_activation_maps(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """M_c(x, y) = sum_k w_kc f_k(x, y), Zhou et al. 2016, eq. (1) and (2).

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
  """Chooses images to show: of each class some right and some wrong.

  Half of a class's are right (the larger half of an odd number), the first
  there are; where too few are right, or wrong, there are fewer in all.

  Args:
    labels: int[n], the truth.
    predictions: int[n].
    num_classes: C.
    per_class: most images of a class.

  Returns:
    int64[k] indices, k <= C * per_class, by class, right before wrong.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  right = labels == predictions
  chosen = [np.zeros(0, np.int64)]
  for label in range(num_classes):
    mine = labels == label
    chosen.append(np.flatnonzero(mine & right)[: (per_class + 1) // 2])
    chosen.append(np.flatnonzero(mine & ~right)[: per_class // 2])
  return np.concatenate(chosen)


def activation_figure(
  images: np.ndarray,
  maps: np.ndarray,
  truth: np.ndarray,
  predictions: np.ndarray,
  class_names: Sequence[str],
  title: str,
) -> bytes:
  """Draws faces, each beside itself with its class activation map over it.

  A row for each class that occurs in `truth`, in the order of the classes:
  the right ones on the left, the wrong ones on the right.

  Args:
    images: uint8[k, S, S, 3], k at least 1.
    maps: f32[k, h, w], of the predicted class. Each is drawn from its own
      smallest value, without colour, to its largest, orange.
    truth: int[k] classes.
    predictions: int[k] classes.
    class_names: C names.
    title: text above the faces; may be empty.

  Returns:
    A PNG file.
  """
  truth, predictions = np.asarray(truth), np.asarray(predictions)
  cells = _cells(truth, predictions)
  rows, columns = (1 + max(place) for place in zip(*cells, strict=True))
  figure = Figure(figsize=(2.35 * _FACE * columns, 1.24 * _FACE * rows))
  grid = figure.subplots(rows, columns, squeeze=False)
  figure.subplots_adjust(0, 0, 1, 1, wspace=0.1, hspace=0.2)
  for axes in grid.flat:
    axes.set_axis_off()
  for place, index in cells.items():
    _draw_pair(grid[place], images[index], maps[index])
    name, taken = (class_names[row[index]] for row in (truth, predictions))
    _name_pair(grid[place], name, taken, truth[index] == predictions[index])
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
  """Lays an activation map over an image in grey.

  Args:
    image: uint8[S, S, 3].
    activation: f32[h, w]; enlarged bilinearly to the image's size. Its
      smallest value leaves the grey as it is, its largest turns it orange; a
      map of one value leaves it all.

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
  right = truth == predictions
  labels = np.unique(truth)
  first_wrong = max(np.sum(right & (truth == label)) for label in labels)
  cells = {}
  for row, label in enumerate(labels):
    mine = truth == label
    for group, start in ((mine & right, 0), (mine & ~right, first_wrong)):
      for column, index in enumerate(np.flatnonzero(group), int(start)):
        cells[row, column] = int(index)
  return cells


def _draw_pair(axes: Axes, image: np.ndarray, activation: np.ndarray) -> None:
  gap = np.full((len(image), max(1, len(image) // 24), 3), 255, np.uint8)
  pair = np.concatenate([image, gap, overlay(image, activation)], axis=1)
  axes.imshow(pair, interpolation="bilinear")


def _name_pair(axes: Axes, truth: str, prediction: str, right: bool) -> None:
  text = one_line(truth, 14)
  if not right:
    text += f", taken for {one_line(prediction, 14)}"
  axes.set_title(
    text,
    size=7.5,
    color=BLUE if right else ORANGE,
    loc="left",
    pad=2.5,
    parse_math=False,
  )
