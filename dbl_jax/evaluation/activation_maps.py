"""Class activation maps: where in an image the evidence for a class is.

Zhou et al., "Learning deep features for discriminative localization", CVPR
2016, apply a linear classifier on averages of a map to each of its pixels. With
the gradient in place of the classifier's weights this works for any head
(Selvaraju et al., "Grad-CAM", ICCV 2017), and for any pooling if each pixel has
its own gradient (Draelos and Carin 2020, "HiResCAM", arXiv 2011.08891).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
from dbl_jax.models.model import Model

_SIDE = 0.95  # of an image, in inches
# RGB colour of the largest value of a map.
_HOT = 255 * np.array(to_rgb(ORANGE), np.float32)


def class_activation_maps(
  model: Model,
  variables: Mapping[str, Any],
  images: jax.Array,
  classes: jax.Array,
) -> jax.Array | None:
  """Computes sum_k g_k(x, y) f_k(x, y) over the channels k of the last map f.

  g is the gradient of the class's logit with respect to f (HiResCAM, eq. (3)).
  If features are averages of f, this is Grad-CAM without its ReLU; if the
  classifier is linear too, it is the map of Zhou et al. over the number of
  pixels, and it adds up to the logit minus the bias.

  Args:
    model: its last outputs are logits. Its encoder sows 'maps' and perturbs
      them (`flax.linen.Module.perturb`).
    variables: 'params' and 'batch_stats'.
    images: f32[n, S, S, 3] from 0 to 1.
    classes: int[n], the class to explain for each image.

  Returns:
    f32[n, h, w]; None if the encoder sows no map, or one of fewer than four
    pixels, which shows nothing.
  """

  def run(added: Any) -> tuple[jax.Array, Any]:
    (_, outputs), sown = model.apply(
      {**variables, **added}, images, train=False, mutable="intermediates"
    )
    maps = sown.get("intermediates", {}).get("encoder", {}).get("maps", [None])
    kept = outputs.shape[1] - model.head.num_classes
    logits = jnp.take_along_axis(outputs, kept + classes[:, None], axis=1)
    return logits.sum(), maps[0]

  maps = jax.eval_shape(lambda: run({})[1])
  if maps is None or maps.shape[1] * maps.shape[2] < 4:
    return None
  zeros = {"encoder": {"maps": jnp.zeros(maps.shape, maps.dtype)}}
  found, maps = jax.grad(run, has_aux=True)({"perturbations": zeros})
  gradient = found["perturbations"]["encoder"]["maps"]
  return jnp.sum(jnp.float32(gradient) * jnp.float32(maps), axis=-1)


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
