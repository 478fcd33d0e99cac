"""Image operations against Pillow, scipy and plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageEnhance

from dbl_jax.augment import ops

pytestmark = pytest.mark.usefixtures("debug_nans")

HEIGHT, WIDTH = 30, 26
PIL_STEP = 1.5 / 255  # Pillow rounds to whole levels, here and there twice.


def smooth_image(seed):
  """Random colours that change slowly enough to interpolate, f32 levels."""
  pixels = np.random.default_rng(seed).random((HEIGHT, WIDTH, 3))
  pixels = scipy.ndimage.gaussian_filter(pixels, (1, 1, 0), mode="wrap")
  low, high = pixels.min(), pixels.max()
  levels = np.round(255 * (pixels - low) / (high - low))
  return np.float32(levels / 255)


def to_pil(image):
  return Image.fromarray(np.uint8(np.round(255 * image)))


def from_pil(picture):
  return np.asarray(picture, np.float32) / 255


def pil_resized_crop(image, box, out_size):
  y, x, height, width = box
  channels = [
    Image.fromarray(np.ascontiguousarray(image[..., c]), "F").resize(
      (out_size, out_size),
      Image.Resampling.BILINEAR,
      box=(x, y, x + width, y + height),
    )
    for c in range(3)
  ]
  return np.stack([np.asarray(c) for c in channels], axis=-1)


def scipy_rotate(image, degrees):
  return scipy.ndimage.rotate(
    image, degrees, axes=(1, 0), reshape=False, order=1, mode="nearest"
  )


def scipy_blur(image, sigma, radius):
  blur = functools.partial(
    scipy.ndimage.gaussian_filter,
    sigma=(sigma, sigma, 0),
    radius=(radius, radius, 0),
    mode="constant",
  )
  return blur(image) / blur(np.ones_like(image))


def numpy_hue(image, turns):
  """Pixel by pixel through YIQ, as the definition reads."""
  to_yiq = np.array(
    [
      [0.299, 0.587, 0.114],
      [0.5959, -0.2746, -0.3213],
      [0.2115, -0.5227, 0.3112],
    ]
  )
  out = np.empty_like(image)
  for place in np.ndindex(image.shape[:2]):
    luma, i, q = to_yiq @ image[place]
    turned = (i + 1j * q) * np.exp(-2j * np.pi * turns)
    out[place] = np.linalg.solve(to_yiq, [luma, turned.real, turned.imag])
  return out


def enhance(kind):
  return lambda image, factor: from_pil(kind(to_pil(image)).enhance(factor))


def pil_grey(image):
  return from_pil(to_pil(image).convert("L").convert("RGB"))


CROPS = {
  "enlarge": ((3.3, 5.1, 9.2, 8.7), 24),
  "shrink": ((0.0, 0.0, 30.0, 26.0), 11),
  "squeeze": ((1.5, 20.0, 28.0, 6.0), 16),
  "corner": ((22.5, 18.25, 7.5, 7.75), 16),
}
LEVELS = {
  "darker": (ops.brightness, ImageEnhance.Brightness, 0.6),
  "lighter": (ops.brightness, ImageEnhance.Brightness, 1.4),
  "flatter": (ops.contrast, ImageEnhance.Contrast, 0.4),
  "steeper": (ops.contrast, ImageEnhance.Contrast, 1.6),
  "paler": (ops.saturation, ImageEnhance.Color, 0.3),
  "richer": (ops.saturation, ImageEnhance.Color, 1.7),
}
# Name -> function of the image, reference, its arguments, tolerance.
CASES = {
  "flip": (ops.flip, np.fliplr, (), 0.0),
  "turn left": (ops.rotate, scipy_rotate, (20.0,), 1e-5),
  "turn right": (ops.rotate, scipy_rotate, (-63.0,), 1e-5),
  "weak blur": (ops.gaussian_blur, scipy_blur, (0.6, 3), 1e-5),
  "strong blur": (ops.gaussian_blur, scipy_blur, (2.5, 6), 1e-5),
  "grey": (ops.grey, pil_grey, (), PIL_STEP),
  "hue up": (ops.hue, numpy_hue, (0.1,), 1e-5),
  "hue down": (ops.hue, numpy_hue, (-0.4,), 1e-5),
}
CASES |= {
  name: (ops.resized_crop, pil_resized_crop, arguments, 1e-5)
  for name, arguments in CROPS.items()
}
CASES |= {
  name: (function, enhance(kind), (factor,), PIL_STEP)
  for name, (function, kind, factor) in LEVELS.items()
}


@pytest.mark.parametrize("transform", ["plain", "vmap"])
@pytest.mark.parametrize("name", CASES)
def test_operation_equals_its_reference(name, transform):
  function, reference, arguments, tolerance = CASES[name]
  images = np.stack([smooth_image(seed) for seed in (0, 1)])
  run = lambda image: function(image, *arguments)  # noqa: E731
  if transform == "vmap":
    found = jax.jit(jax.vmap(run))(images)
  else:
    found = np.stack([run(jnp.asarray(image)) for image in images])
  expected = np.stack([reference(image, *arguments) for image in images])
  assert found.dtype == np.float32
  if reference is not numpy_hue:  # the others stay in [0, 1], or clip
    found = np.clip(found, 0, 1)
  np.testing.assert_allclose(found, expected, rtol=0, atol=max(tolerance, 1e-7))


def draw(function, *arguments, n=4000):
  keys = jax.random.split(jax.random.key(7), n)
  drawn = jax.jit(jax.vmap(lambda key: function(key, *arguments)))(keys)
  return jax.tree.map(np.asarray, drawn)


def test_boxes_lie_in_the_image_with_uniform_area_and_log_uniform_ratio():
  scale, ratio = (0.1, 0.5), (3 / 4, 4 / 3)
  y, x, height, width = draw(ops.sample_box, 100, 100, scale, ratio)
  assert min(y.min(), x.min()) >= 0
  assert max((y + height).max(), (x + width).max()) <= 100 + 1e-3
  area = height * width / 100**2
  log_ratio = np.log(width / height) / np.log(4 / 3)
  for uniform in ((area - 0.1) / 0.4, (log_ratio + 1) / 2):
    shares = np.histogram(uniform, bins=5, range=(0, 1))[0] / 4000
    np.testing.assert_allclose(shares, 0.2, atol=0.03)
  for place in (y / (100 - height), x / (100 - width)):
    np.testing.assert_allclose(place.mean(), 0.5, atol=0.03)


# Mean areas of torchvision's RandomResizedCrop over 100,000 samples, and with
# the long side cut instead of another sample.
@pytest.mark.parametrize(
  ("scale", "tries", "area"),
  [
    ((0.2, 1.0), 10, 0.544),
    ((0.6, 1.0), 10, 0.748),
    ((0.2, 1.0), 1, 0.593),
    ((0.6, 1.0), 1, 0.786),
  ],
)
def test_boxes_are_as_large_as_torchvisions(scale, tries, area):
  drawn = draw(ops.sample_box, 48, 48, scale, (3 / 4, 4 / 3), tries)
  np.testing.assert_allclose(
    np.mean(drawn[2] * drawn[3]) / 48**2, area, atol=0.01
  )


def test_boxes_that_never_fit_are_cut():
  _, x, height, width = draw(ops.sample_box, 20, 40, (0.9, 1.0), (1.0, 1.0))
  np.testing.assert_allclose(height, 20, rtol=1e-6)
  assert np.all(width < 30)
  assert np.all(x + width <= 40 + 1e-4)


def test_jitter_has_the_ranges_of_simclr():
  light, spread, colour, turns = draw(ops.sample_jitter, 0.5)
  for factor in (light, spread, colour):
    np.testing.assert_allclose(factor.min(), 0.6, atol=0.01)
    np.testing.assert_allclose(factor.max(), 1.4, atol=0.01)
    np.testing.assert_allclose(factor.mean(), 1.0, atol=0.02)
  np.testing.assert_allclose((turns.min(), turns.max()), (-0.1, 0.1), atol=0.01)
  assert abs(np.corrcoef(light, spread)[0, 1]) < 0.05
  assert draw(ops.sample_jitter, 2.0)[0].min() >= 0


def test_random_rotation_is_as_far_to_both_sides():
  image, key = jnp.asarray(smooth_image(9)), jax.random.key(3)
  found = jax.jit(ops.random_rotate, static_argnums=2)(key, image, 10.0)
  again = jax.random.clone(key)
  degrees = jax.random.uniform(again, minval=-10.0, maxval=10.0)
  np.testing.assert_allclose(found, scipy_rotate(image, degrees), atol=1e-5)
