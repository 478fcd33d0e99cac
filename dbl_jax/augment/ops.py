"""Image operations: deterministic functions, and random ones based on them.

Conventions:

* `image` is f32[H, W, 3], one RGB image with values in [0, 1], and so is the
  result, of the same shape unless stated otherwise. For a batch use `jax.vmap`,
  which allows different factors for each image.
* Pixel (i, j) covers the square [i, i + 1] x [j, j + 1]; positions and sizes
  are in pixels, not necessarily whole.
* Results are not clipped, so that `views.augment` can combine operations into
  one. Clip once, at the end.
* `random_*` takes a typed key, samples as torchvision unless stated otherwise,
  and applies the deterministic function.
* Luma is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), Pillow's convert('L').
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Number = Array | float
Box = tuple[Number, Number, Number, Number]
Range = tuple[float, float]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# FCC NTSC; its rows are luma, I and Q.
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
# Projections of RGB onto luma and chroma, and chroma rotated by 90 degrees.
_GREY = np.tile(LUMA, (3, 1))
_CHROMA = np.float32(_RGB[:, 1:] @ _YIQ[1:])
_TURNED = np.float32(_RGB[:, 1:] @ [[0, 1], [-1, 0]] @ _YIQ[1:])
# Full float32 on accelerators too, where the default precision is lower.
_EXACT = jax.lax.Precision.HIGHEST


def resize_matrix(
  start: Number, size: Number, in_size: int, out_size: int
) -> Array:
  """Antialiased bilinear resizing of one axis, as a matrix.

  Row i holds the weights of the input pixels in output pixel i: a triangle
  around c = start + (i + 1/2) size / out_size, of half-width
  max(1, size / out_size), scaled to the sum 1. As in Pillow's
  `resize(..., box=...)`, pixels just outside the interval contribute.

  Args:
    start: start of the interval to resize, in pixels, 0 <= start.
    size: its length in pixels, start + size <= in_size.
    in_size: pixels of the input.
    out_size: pixels of the output.

  Returns:
    f32[out_size, in_size], rows sum to 1.
  """
  step = size / out_size
  centre = start + (jnp.arange(out_size) + 0.5) * step
  distance = jnp.abs((jnp.arange(in_size) + 0.5)[None, :] - centre[:, None])
  weights = jnp.maximum(0.0, 1 - distance / jnp.maximum(step, 1.0))
  return weights / weights.sum(axis=1, keepdims=True)


def blur_matrix(sigma: Number, size: int, radius: int) -> Array:
  """Gaussian blur of one axis, f32[size, size]: see `gaussian_blur`."""
  distance = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
  # A sigma of 0 would give 0 / 0; 0.01 already is the identity in float32.
  scaled = distance / jnp.maximum(sigma, 0.01)
  weights = jnp.where(
    jnp.abs(distance) <= radius, jnp.exp(-0.5 * scaled * scaled), 0.0
  )
  return weights / weights.sum(axis=1, keepdims=True)


def resized_crop(image: Array, box: Box, out_size: int) -> Array:
  """Crops a box and resizes it to out_size x out_size; see `resize_matrix`.

  The box is (y, x, height, width) in pixels, within the image.
  """
  y, x, height, width = box
  return _apply_to_axes(
    image,
    resize_matrix(y, height, image.shape[0], out_size),
    resize_matrix(x, width, image.shape[1], out_size),
  )


def sample_box(
  key: Array,
  height: int,
  width: int,
  scale: Range,
  ratio: Range,
  tries: int = 10,
) -> Box:
  """Samples a box with uniform area and log-uniform ratio (SimCLR).

  As torchvision, samples until the box fits into the image, up to `tries`
  times. If none fits, the sides of the first are cut. The box is not aligned
  with pixels.

  Args:
    key: typed key.
    height: H of the image.
    width: W of the image.
    scale: range of the area, as a fraction of the image, within (0, 1].
    ratio: range of width / height.
    tries: number of samples, static; 1 cuts every box that does not fit, which
      makes crops larger on average.

  Returns:
    (y, x, height, width) in pixels, four f32[].
  """
  area, aspect, y, x = jax.random.uniform(key, (tries, 4)).T
  area = height * width * _between(area, *scale)
  aspect = jnp.exp(_between(aspect, *map(math.log, ratio)))
  box_height, box_width = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
  first = jnp.argmax((box_height <= height) & (box_width <= width))
  box_height = jnp.minimum(box_height[first], height)
  box_width = jnp.minimum(box_width[first], width)
  return (
    y[first] * (height - box_height),
    x[first] * (width - box_width),
    box_height,
    box_width,
  )


def random_resized_crop(
  key: Array,
  image: Array,
  out_size: int,
  scale: Range = (0.08, 1.0),
  ratio: Range = (3 / 4, 4 / 3),
) -> Array:
  """`resized_crop` to a box from `sample_box`."""
  height, width, _ = image.shape
  return resized_crop(
    image, sample_box(key, height, width, scale, ratio), out_size
  )


def flip(image: Array) -> Array:
  """Mirrors an image horizontally."""
  return image[:, ::-1]


def random_flip(key: Array, image: Array, probability: float = 0.5) -> Array:
  """`flip` with a probability."""
  return jnp.where(jax.random.bernoulli(key, probability), flip(image), image)


def rotate(image: Array, degrees: Number) -> Array:
  """Rotates an image about its centre, anticlockwise, to the same size.

  Bilinear. Corners repeat the nearest edge pixel: black corners would reveal
  the angle to the encoder.
  """
  height, width, _ = image.shape
  angle = jnp.deg2rad(degrees)
  y = (jnp.arange(height) - (height - 1) / 2)[:, None]
  x = (jnp.arange(width) - (width - 1) / 2)[None, :]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  source_y = jnp.clip(sin * x + cos * y + (height - 1) / 2, 0, height - 1)
  source_x = jnp.clip(cos * x - sin * y + (width - 1) / 2, 0, width - 1)
  top = jnp.floor(source_y).astype(jnp.int32)
  left = jnp.floor(source_x).astype(jnp.int32)
  down, right = (source_y - top)[..., None], (source_x - left)[..., None]
  below = jnp.minimum(top + 1, height - 1)
  beside = jnp.minimum(left + 1, width - 1)
  upper = image[top, left] * (1 - right) + image[top, beside] * right
  lower = image[below, left] * (1 - right) + image[below, beside] * right
  return upper * (1 - down) + lower * down


def random_rotate(key: Array, image: Array, max_degrees: float) -> Array:
  """`rotate` by an angle uniform in [-max_degrees, max_degrees]."""
  return rotate(
    image, jax.random.uniform(key, minval=-max_degrees, maxval=max_degrees)
  )


def gaussian_blur(image: Array, sigma: Number, radius: int) -> Array:
  """Blurs with a Gaussian of weights exp(-d^2 / 2 sigma^2), |d| <= radius.

  At the border the remaining weights are scaled to the sum 1 (torchvision
  mirrors the image instead). Sigma is in pixels; 0 is the identity. The radius,
  in pixels, is static; 3 sigma holds 99.7 % of the weight.
  """
  height, width, _ = image.shape
  return _apply_to_axes(
    image, blur_matrix(sigma, height, radius), blur_matrix(sigma, width, radius)
  )


def random_gaussian_blur(
  key: Array, image: Array, sigma: Range, radius: int
) -> Array:
  """`gaussian_blur` with sigma uniform in a range, in pixels."""
  drawn = jax.random.uniform(key, minval=sigma[0], maxval=sigma[1])
  return gaussian_blur(image, drawn, radius)


def brightness(image: Array, factor: Number) -> Array:
  """factor x image: 0 is black, 1 the image."""
  return factor * image


def contrast(image: Array, factor: Number) -> Array:
  """factor x image + (1 - factor) x its mean luma: 0 is one flat grey."""
  mean = jnp.vdot(image.mean(axis=(0, 1)), LUMA, precision=_EXACT)
  return factor * image + (1 - factor) * mean


def saturation_matrix(factor: Number) -> Array:
  """`saturation` as f32[3, 3], for columns of RGB."""
  return factor * jnp.eye(3) + (1 - factor) * _GREY


def hue_matrix(turns: Number) -> Array:
  """`hue` as f32[3, 3], for columns of RGB."""
  angle = 2 * jnp.pi * turns
  return jnp.add(_GREY, jnp.cos(angle) * _CHROMA) + jnp.sin(angle) * _TURNED


def saturation(image: Array, factor: Number) -> Array:
  """factor x image + (1 - factor) x luma of each pixel: 0 is grey."""
  return _mix_channels(image, saturation_matrix(factor))


def grey(image: Array) -> Array:
  """Luma in all three channels."""
  return saturation(image, 0.0)


def random_grey(key: Array, image: Array, probability: float = 0.2) -> Array:
  """`grey` with a probability."""
  return jnp.where(jax.random.bernoulli(key, probability), grey(image), image)


def hue(image: Array, turns: Number) -> Array:
  """Rotates colours about the grey axis, red towards green.

  A rotation by 2 pi turns in the I-Q plane of YIQ (FCC NTSC). It is linear, so
  it combines with other colour changes, and it preserves luma. Torchvision and
  tf.image shift H of HSV instead, which preserves max(R, G, B) and stays in
  [0, 1]. Both rotate in the same direction; saturated colours differ most.
  `turns` is a fraction of the colour circle, in [-0.5, 0.5].
  """
  return _mix_channels(image, hue_matrix(turns))


def sample_jitter(
  key: Array, strength: float
) -> tuple[Array, Array, Array, Array]:
  """Random factors of SimCLR's colour jitter (Chen et al. 2020, appendix A).

  They use strength s = 1 for ImageNet and 0.5 for CIFAR-10.

  Returns:
    Brightness, contrast and saturation factors, each uniform in
    [max(0, 1 - 0.8 s), 1 + 0.8 s], and hue in turns, uniform in
    [-0.2 s, 0.2 s]: four f32[].
  """
  *factors, turns = jax.random.uniform(key, (4,))
  low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
  light, spread, colour = (_between(u, low, high) for u in factors)
  return light, spread, colour, _between(turns, -0.2 * strength, 0.2 * strength)


def random_jitter(key: Array, image: Array, strength: float) -> Array:
  """Brightness, contrast, saturation and hue by `sample_jitter`.

  Always in this order, as one affine map; torchvision shuffles the four.
  """
  light, spread, colour, turns = sample_jitter(key, strength)
  image = contrast(brightness(image, light), spread)
  return hue(saturation(image, colour), turns)


def _between(uniform: Array, low: float, high: float) -> Array:
  """Maps [0, 1) to [low, high)."""
  return low + (high - low) * uniform


def _apply_to_axes(image: Array, vertical: Array, horizontal: Array) -> Array:
  """Multiplies rows by [h, H] and columns by [w, W]: f32[h, w, 3]."""
  return jnp.einsum(
    "hH,wW,HWc->hwc", vertical, horizontal, image, precision=_EXACT
  )


def _mix_channels(image: Array, matrix: Array) -> Array:
  """Multiplies the RGB column of each pixel by f32[3, 3]."""
  return jnp.einsum("hwc,dc->hwd", image, matrix, precision=_EXACT)
