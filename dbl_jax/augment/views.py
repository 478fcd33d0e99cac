"""Augmentation: random views of a batch, inside a jitted step.

Crop, resize, flip and blur are linear along each axis, and colour jitter and
grey are affine in each pixel's RGB. So a view is

  clip(M (Y image X^T) + b, 0, 1),

with matrices Y, X [out_size, side] for the axes, a matrix M [3, 3] and a grey
level b: a few small matrix products per view instead of nine passes over its
pixels. The result equals the operations of `ops` in sequence, without clipping
in between.
"""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.augment import ops
from dbl_jax.runtime.options import integer, interval, number

# Each decision has its own key, so that disabling one leaves the others.
_DRAWS = (
  "rotation", "crop", "flip", "blur", "sigma", "jitter", "factors", "grey",
)  # fmt: skip
# The side of the views for which SimCLR states its blur, in pixels.
_BLUR_SIDE = 224
# Full float32 on accelerators too, where the default precision is lower.
_EXACT = jax.lax.Precision.HIGHEST

Amount = Annotated[float, number(0, 1)]


def split_key(key: Array) -> dict[str, Array]:
  """One key for each random decision about a view, by name."""
  return dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))


def augment(
  keys: Array,
  images: Array,
  *,
  out_size: int,
  crop_scale: Annotated[ops.Range | None, interval(0.01, 1, optional=True)] = (
    0.08,
    1.0,
  ),
  crop_ratio: Annotated[ops.Range, interval(0.1, 10)] = (3 / 4, 4 / 3),
  crop_tries: Annotated[int, integer(1, 100)] = 10,
  flip: Amount = 0.5,
  jitter_prob: Amount = 0.8,
  jitter_strength: Amount = 0.5,
  grey: Amount = 0.2,
  blur: Amount = 0.5,
  blur_sigma: Annotated[ops.Range, interval(0.01, 112)] = (0.1, 2.0),
  rotation: Annotated[float, number(0, 180)] = 0.0,
) -> Array:
  """Makes a random view of each image: SimCLR's augmentation, and rotation.

  The order is rotation, crop and resize, flip, blur, colour jitter, grey. Chen
  et al. 2020 (appendix A) blur last; this matters only for the mean that
  contrast uses. The view of example i depends on keys[i] and images[i] only.
  Options that are 0 (or None) are skipped.

  Args:
    keys: typed keys [B].
    images: uint8[B, H, W, 3].
    out_size: side of the views in pixels.
    crop_scale: range of the crop's area as a fraction of the image; None is
      the whole image.
    crop_ratio: range of the crop's width / height.
    crop_tries: crops sampled until one fits into the image.
    flip: probability of mirroring.
    jitter_prob: probability of colour jitter.
    jitter_strength: strength s of the jitter, see `ops.sample_jitter`.
    grey: probability of conversion to grey.
    blur: probability of Gaussian blur.
    blur_sigma: range of the blur's sigma in pixels of a view of 224, scaled by
      out_size / 224 so that all sizes lose the same details; at 48 pixels an
      unscaled 2.0 would erase a mouth.
    rotation: largest angle in degrees; angles are uniform in both directions.

  Returns:
    f32[B, out_size, out_size, 3] in [0, 1].
  """
  _, height, width, _ = images.shape

  def view(key: Array, image: Array) -> Array:
    keys = split_key(key)
    image = image.astype(jnp.float32)
    if rotation:
      image = ops.random_rotate(keys["rotation"], image, rotation)
    box: ops.Box = (0.0, 0.0, height, width)
    if crop_scale:
      box = ops.sample_box(
        keys["crop"], height, width, crop_scale, crop_ratio, crop_tries
      )
    vertical = ops.resize_matrix(box[0], box[2], height, out_size)
    horizontal = ops.resize_matrix(box[1], box[3], width, out_size)
    if flip:
      mirrored = jax.random.bernoulli(keys["flip"], flip)
      horizontal = jnp.where(mirrored, horizontal[::-1], horizontal)
    if blur:
      kernel = _kernel(keys, out_size, blur, blur_sigma)
      vertical = _matmul(kernel, vertical)
      horizontal = _matmul(kernel, horizontal)
    pixels = _apply_to_axes(image, vertical / 255, horizontal)
    pixels = _colour(keys, pixels, jitter_prob, jitter_strength, grey)
    return jnp.clip(pixels.transpose(0, 2, 1), 0.0, 1.0)

  return jax.vmap(view)(keys, images)


def make_views(
  step_key: Array,
  ids: Array,
  images: Array,
  *,
  num_views: int,
  **options: Any,
) -> Array:
  """Makes V random views of each example of a batch; see `augment`.

  The key of view v of example i is fold_in(fold_in(step_key, ids[i]), v), so
  that a view depends neither on the position in the batch nor on the number of
  devices.

  Args:
    step_key: typed key of this training step.
    ids: int32[B], numbers of the examples; equal ids get equal views.
    images: uint8[B, H, W, 3].
    num_views: V.
    **options: of `augment`.

  Returns:
    f32[V, B, out_size, out_size, 3] in [0, 1].
  """
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, ids)

  def one(view: Array) -> Array:
    view_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, view)
    return augment(view_keys, images, **options)

  return jax.vmap(one)(jnp.arange(num_views))


def plain(images: Array, out_size: int) -> Array:
  """Converts images without augmentation; resizes them if necessary.

  From uint8[B, H, W, 3] to f32[B, out_size, out_size, 3] in [0, 1].
  """
  _, height, width, _ = images.shape
  images = images.astype(jnp.float32) / 255
  if (height, width) == (out_size, out_size):
    return images
  whole = (0.0, 0.0, height, width)
  return jax.vmap(lambda image: ops.resized_crop(image, whole, out_size))(
    images
  )


def _kernel(
  keys: dict[str, Array], out_size: int, blur: float, blur_sigma: ops.Range
) -> Array:
  """Blur of one axis, or the identity, f32[out_size, out_size]."""
  low, high = (sigma * out_size / _BLUR_SIDE for sigma in blur_sigma)
  blurred = jax.random.bernoulli(keys["blur"], blur)
  sigma = jax.random.uniform(keys["sigma"], minval=low, maxval=high)
  sigma = jnp.where(blurred, sigma, 0.0)
  return ops.blur_matrix(sigma, out_size, radius=math.ceil(4 * high))


def _apply_to_axes(image: Array, vertical: Array, horizontal: Array) -> Array:
  """Both axes as two matrix products: f32[H, W, 3] -> f32[out, RGB, out]."""
  height, width, _ = image.shape
  rows = image.transpose(0, 2, 1).reshape(height, 3 * width)
  rows = _matmul(vertical, rows).reshape(-1, width)
  return _matmul(rows, horizontal.T).reshape(-1, 3, len(horizontal))


def _colour(
  keys: dict[str, Array],
  pixels: Array,
  jitter_prob: float,
  jitter_strength: float,
  grey: float,
) -> Array:
  """Jitter and grey as one affine map of f32[y, RGB, x]."""
  matrix = jnp.eye(3)
  offset: ops.Number = 0.0
  if jitter_prob and jitter_strength:
    jittered = jax.random.bernoulli(keys["jitter"], jitter_prob)
    factors = ops.sample_jitter(keys["factors"], jitter_strength)
    light, spread, colour, turns = (
      jnp.where(jittered, factor, neutral)
      for factor, neutral in zip(factors, (1.0, 1.0, 1.0, 0.0), strict=True)
    )
    matrix = _matmul(ops.hue_matrix(turns), ops.saturation_matrix(colour))
    matrix = light * spread * matrix
    # Saturation, hue and grey do not change the grey level of contrast.
    mean = jnp.vdot(pixels.mean(axis=(0, 2)), ops.LUMA, precision=_EXACT)
    offset = (1 - spread) * light * mean
  if grey:
    greyed = jax.random.bernoulli(keys["grey"], grey)
    last = ops.saturation_matrix(jnp.where(greyed, 0.0, 1.0))
    matrix = _matmul(last, matrix)
  red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
  # Written out: XLA's product with a 3 x 3 matrix is slow on CPU.
  return jnp.stack(
    [m[0] * red + m[1] * green + m[2] * blue + offset for m in matrix], axis=1
  )


def _matmul(a: Array, b: Array) -> Array:
  return jnp.matmul(a, b, precision=_EXACT)
