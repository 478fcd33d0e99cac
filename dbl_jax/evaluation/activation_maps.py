"""Class activation maps: where in an image the evidence for a class is.

A linear classifier on features averaged over a map can be applied to each pixel
of the map instead.

Source: Zhou et al., "Learning deep features for discriminative localization",
CVPR 2016.
"""

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from dbl_jax.evaluation.plots import MAX_CLASSES, ORANGE


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
  return np.moveaxis(np.asarray(maps, np.float32) @ kernel, -1, 1)


def examples(
  labels: np.ndarray, predictions: np.ndarray, max_classes: int = MAX_CLASSES
) -> np.ndarray:
  """Chooses for each class the first two correct and the first two wrong.

  Args:
    labels: int[n], true classes.
    predictions: int[n].
    max_classes: of more classes with images, that many are taken, evenly
      spaced in index order.

  Returns:
    int64[k] indices by class, correct before wrong.
  """
  classes = np.unique(labels)
  if len(classes) > max_classes:
    spread = np.linspace(0, len(classes) - 1, max_classes)
    classes = classes[spread.round().astype(int)]
  right = labels == predictions
  chosen = [
    np.flatnonzero((labels == c) & (right == hit))[:2]
    for c in classes
    for hit in (True, False)
  ]
  return np.concatenate([np.zeros(0, np.int64), *chosen])


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
  activation = activation - activation.min()
  activation /= max(float(activation.max()), 1e-12)
  heat = Image.fromarray(activation).resize(
    (width, height), Image.Resampling.BILINEAR
  )
  grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
  share = 0.75 * np.asarray(heat)[..., None]
  mixed = (1 - share) * grey[..., None] + share * 255 * np.array(to_rgb(ORANGE))
  return np.rint(mixed).astype(np.uint8)
