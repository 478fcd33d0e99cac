"""Families of augmentation: random views of a batch, inside a jitted step.

Crop, resize, flip and blur are linear along each axis, and colour jitter and
grey are affine in each pixel's RGB. So a view is

  clip(M (Y image X^T) + b, 0, 1),

one matrix Y, X [out_size, side] for each axis, one matrix M [3, 3] and one
grey level b: a few small matrix products for each view instead of nine passes
over its pixels. It equals the operations of `ops` one after another, without
clipping in between.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dbl_jax.augment import ops
from dbl_jax.errors import UserError

# A key of its own for each decision: to turn one off does not change others.
_DRAWS = (
  "rotation",
  "crop",
  "flip",
  "blur",
  "sigma",
  "jitter",
  "factors",
  "grey",
)
# The side of the view that SimCLR states its blur for.
_BLUR_SIDE = 224


def split_key(key: jax.Array) -> dict[str, jax.Array]:
  """One key for each random decision about a view, by name."""
  return dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))


def augment(
  keys: jax.Array,
  images: jax.Array,
  *,
  out_size: int,
  crop_scale: tuple[float, float] | None = (0.08, 1.0),
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
  jitter_prob: float = 0.8,
  jitter_strength: float = 0.5,
  grey: float = 0.2,
  blur: float = 0.5,
  blur_sigma: tuple[float, float] = (0.1, 2.0),
  rotation: float = 0.0,
) -> jax.Array:
  """A random view of each image: SimCLR's family, and rotation.

  In this order: rotation, crop and resize, flip, blur, colour jitter, grey
  (Chen et al. 2020, appendix A, has blur last: the same, but for the mean that
  contrast refers to). The view of example i depends on keys[i] and images[i]
  alone. An option that is 0 (or None) costs nothing.

  Args:
    keys: typed keys [B].
    images: uint8[B, H, W, 3].
    out_size: side of the views in pixels.
    crop_scale: range of the crop's area as a fraction of the image; None keeps
      the whole image.
    crop_ratio: range of the crop's width / height.
    flip: probability of mirroring.
    jitter_prob: probability of colour jitter.
    jitter_strength: its strength s, see `ops.sample_jitter`.
    grey: probability of losing the colour.
    blur: probability of Gaussian blur.
    blur_sigma: range of its sigma, in pixels of a view of 224, and scaled by
      out_size / 224: SimCLR states 0.1 to 2 at 224, and its kernel as a share
      of the side. So all sizes lose the same details of a face; at 48 pixels
      2.0 would wipe out a mouth.
    rotation: greatest angle in degrees, uniform to both sides.

  Returns:
    f32[B, out_size, out_size, 3] in [0, 1].

  Raises:
    UserError: a probability or a range makes no sense.
  """
  _check_probabilities(flip=flip, jitter_prob=jitter_prob, grey=grey, blur=blur)
  _check_ranges(
    crop_scale=crop_scale or (1.0, 1.0),
    crop_ratio=crop_ratio,
    blur_sigma=blur_sigma,
  )
  _, height, width, _ = images.shape
  sigma = tuple(s * out_size / _BLUR_SIDE for s in blur_sigma)

  def view(key: jax.Array, image: jax.Array) -> jax.Array:
    keys = split_key(key)
    image = image.astype(jnp.float32)
    if rotation:
      image = ops.random_rotate(keys["rotation"], image, rotation)
    box = (0.0, 0.0, height, width)
    if crop_scale:
      box = ops.sample_box(keys["crop"], height, width, crop_scale, crop_ratio)
    vertical, horizontal = _axes(keys, image, box, out_size, flip, blur, sigma)
    pixels = _apply_to_axes(image, vertical / 255, horizontal)
    if (jitter_prob and jitter_strength) or grey:
      pixels = _colour(keys, pixels, jitter_prob, jitter_strength, grey)
    return jnp.clip(pixels.transpose(0, 2, 1), 0.0, 1.0)

  return jax.vmap(view)(keys, images)


def make_views(
  step_key: jax.Array,
  ids: jax.Array,
  images: jax.Array,
  *,
  num_views: int,
  out_size: int,
  **family: Any,
) -> jax.Array:
  """Several random views of each example of a batch.

  The key of view v of example i is fold_in(fold_in(step_key, ids[i]), v), so
  that a view depends neither on the example's place in the batch nor on the
  number of devices.

  Args:
    step_key: typed key of this training step.
    ids: int32[B], the examples' numbers; different within a batch, or the
      same example gets the same views twice.
    images: uint8[B, H, W, 3].
    num_views: V, views of each example.
    out_size: side of the views in pixels.
    **family: further options of `augment`.

  Returns:
    f32[V, B, out_size, out_size, 3] in [0, 1].

  Raises:
    UserError: as `augment`.
  """
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, ids)

  def one(view: jax.Array) -> jax.Array:
    own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, view)
    return augment(own, images, out_size=out_size, **family)

  return jax.vmap(one)(jnp.arange(num_views))


def plain(images: jax.Array, out_size: int) -> jax.Array:
  """The images as they are, for evaluation; resized only if they must be.

  Args:
    images: uint8[B, H, W, 3].
    out_size: side of the result in pixels.

  Returns:
    f32[B, out_size, out_size, 3] in [0, 1].
  """
  _, height, width, _ = images.shape
  images = images.astype(jnp.float32) / 255
  if (height, width) == (out_size, out_size):
    return images
  whole = (0.0, 0.0, height, width)
  return jax.vmap(lambda image: ops.resized_crop(image, whole, out_size))(
    images
  )


def _axes(
  keys: dict[str, jax.Array],
  image: jax.Array,
  box: ops.Box,
  out_size: int,
  flip: float,
  blur: float,
  sigma: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
  """Crop, resize, flip and blur of each axis, f32[out_size, H] and [.., W]."""
  y, x, box_height, box_width = box
  vertical = ops.resize_matrix(y, box_height, image.shape[0], out_size)
  horizontal = ops.resize_matrix(x, box_width, image.shape[1], out_size)
  if flip:
    flipped = jax.random.bernoulli(keys["flip"], flip)
    horizontal = jnp.where(flipped, horizontal[::-1], horizontal)
  if blur:
    blurred = jax.random.bernoulli(keys["blur"], blur)
    drawn = jax.random.uniform(keys["sigma"], minval=sigma[0], maxval=sigma[1])
    kernel = ops.blur_matrix(
      jnp.where(blurred, drawn, 0.0), out_size, blur_radius(sigma)
    )
    vertical, horizontal = (
      _matmul(kernel, vertical),
      _matmul(kernel, horizontal),
    )
  return vertical, horizontal


def _apply_to_axes(
  image: jax.Array, vertical: jax.Array, horizontal: jax.Array
) -> jax.Array:
  """`ops.apply_to_axes` as two plain products, f32[out, 3, out] (y, RGB, x)."""
  height, width, _ = image.shape
  rows = image.transpose(0, 2, 1).reshape(height, 3 * width)
  rows = _matmul(vertical, rows).reshape(-1, width)
  return _matmul(rows, horizontal.T).reshape(-1, 3, len(horizontal))


def _colour(
  keys: dict[str, jax.Array],
  pixels: jax.Array,
  jitter_prob: float,
  jitter_strength: float,
  grey: float,
) -> jax.Array:
  """Jitter and grey as one affine map of f32[y, RGB, x]."""
  jittered = jax.random.bernoulli(keys["jitter"], jitter_prob)
  light, spread, colour, turns = ops.sample_jitter(
    keys["factors"], jitter_strength
  )
  light, spread, colour = (
    jnp.where(jittered, factor, 1.0) for factor in (light, spread, colour)
  )
  turns = jnp.where(jittered, turns, 0.0)
  greyed = jax.random.bernoulli(keys["grey"], grey)
  last = ops.saturation_matrix(jnp.where(greyed, 0.0, 1.0))
  matrix = _matmul(
    last, _matmul(ops.hue_matrix(turns), ops.saturation_matrix(colour))
  )
  # Saturation, hue and grey keep greys as they are, so contrast's stays b.
  mean = light * jnp.vdot(pixels.mean(axis=(0, 2)), ops.LUMA)
  matrix, offset = light * spread * matrix, (1 - spread) * mean
  red, green, blue = pixels[:, 0], pixels[:, 1], pixels[:, 2]
  # Written out: XLA's product with a 3 x 3 matrix is slow on CPU.
  return jnp.stack(
    [m[0] * red + m[1] * green + m[2] * blue + offset for m in matrix], axis=1
  )


def blur_radius(sigma: tuple[float, float]) -> int:
  """Radius of the kernel, 4 times the greatest sigma, in pixels."""
  return max(1, math.ceil(4 * sigma[1]))


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  """In full float32 on accelerators too, where the default is fewer bits."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _check_probabilities(**options: float) -> None:
  for name, value in options.items():
    if not 0 <= value <= 1:
      raise UserError(
        f"Augmentation option {name}={value} is no probability: set it to a"
        " number from 0 (off) to 1 (always)."
      )


def _check_ranges(**options: tuple[float, float]) -> None:
  for name, (low, high) in options.items():
    if not 0 < low <= high or (name == "crop_scale" and high > 1):
      raise UserError(
        f"Augmentation option {name}={(low, high)} is no range: give (low,"
        " high) with 0 < low <= high"
        + (" <= 1." if name == "crop_scale" else ".")
      )
