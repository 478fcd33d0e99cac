"""Class activation maps: where in an image the evidence for a class is.

Zhou et al., "Learning deep features for discriminative localization", CVPR
2016, apply a linear classifier on averages of a map to each of its pixels. With
the gradient in place of the classifier's weights this works for any head
(Selvaraju et al., "Grad-CAM", ICCV 2017), and with a gradient for each pixel
for any pooling (Draelos and Carin 2020, "HiResCAM", arXiv 2011.08891).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from dbl_jax.evaluation.plots import MAX_CLASSES, ORANGE
from dbl_jax.models.model import Model


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
      them (`flax.linen.Module.perturb`). `model.mirror` is ignored.
    variables: 'params' and 'batch_stats'.
    images: f32[n, S, S, 3] from 0 to 1.
    classes: int[n], the class to explain for each image.

  Returns:
    f32[n, h, w]; None if the encoder does not sow a map, or its map has fewer
      than four pixels.
  """
  model = model.clone(mirror=False)

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


def examples(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
  """Chooses for each class the first two correct and the first two wrong.

  From more than `plots.MAX_CLASSES` classes with images ten are chosen, evenly
  spaced in index order.

  Returns int64[k] indices by class, correct before wrong. Labels and
  predictions are int[n].
  """
  classes = np.unique(labels)
  if len(classes) > MAX_CLASSES:
    spread = np.linspace(0, len(classes) - 1, 10)
    classes = classes[spread.round().astype(int)]
  right = labels == predictions
  chosen = [
    np.flatnonzero((labels == c) & (right == hit))[:2]
    for c in classes
    for hit in (True, False)
  ]
  return np.concatenate([np.zeros(0, np.int64), *chosen])


def overlay(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
  """Blends a map f32[h, w] into the grey of an image uint8[S, S, 3].

  The map is resized bilinearly. Its smallest value stays grey, its largest
  becomes orange; a constant map leaves the image grey.
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
