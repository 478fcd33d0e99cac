"""Random views: folded as op by op, and a function of key and image alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dbl_jax.augment import ops, views
from dbl_jax.runtime.distributed import batched, make_mesh, replicated

pytestmark = pytest.mark.usefixtures("debug_nans")

SIDE, OUT, BATCH = 30, 24, 16
# Often enough of everything that a batch of 16 has each kind.
FAMILY = {
  "out_size": OUT,
  "jitter_prob": 0.7,
  "grey": 0.3,
  "blur_sigma": (2.0, 16.0),
  "rotation": 20.0,
}
OFF = {
  "crop_scale": None,
  "flip": 0.0,
  "jitter_prob": 0.0,
  "grey": 0.0,
  "blur": 0.0,
}


def make_images(n=BATCH, side=SIDE):
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
  rows = [Image.fromarray(image).resize((side, side)) for image in coarse]
  return np.stack([np.asarray(row) for row in rows])


def make_keys(n=BATCH, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def jitted(**options):
  return jax.jit(functools.partial(views.augment, **options))


# One compilation for all the tests that want the same shapes.
augment_family = jitted(**FAMILY)
two_views = jax.jit(functools.partial(views.make_views, num_views=2, **FAMILY))


def slow_view(key, image):
  """The operations one after another, with the keys that `augment` uses."""
  keys = views.split_key(key)
  image = image.astype(jnp.float32) / 255
  image = ops.random_rotate(keys["rotation"], image, 20.0)
  image = ops.random_resized_crop(keys["crop"], image, OUT)
  image = ops.random_flip(keys["flip"], image)
  sigma = (2.0 * OUT / 224, 16.0 * OUT / 224)
  blurred = ops.random_gaussian_blur(keys["sigma"], image, sigma, radius=7)
  image = jnp.where(jax.random.bernoulli(keys["blur"]), blurred, image)
  jittered = ops.random_jitter(keys["factors"], image, 0.5)
  image = jnp.where(jax.random.bernoulli(keys["jitter"], 0.7), jittered, image)
  return jnp.clip(ops.random_grey(keys["grey"], image, 0.3), 0, 1)


def test_view_equals_the_operations_one_after_another():
  images = make_images()
  expected = jax.jit(jax.vmap(slow_view))(make_keys(), images)
  found = augment_family(make_keys(), images)
  assert found.shape == (BATCH, OUT, OUT, 3)
  assert found.dtype == jnp.float32
  assert 0 <= found.min() < 0.1 < 0.9 < found.max() <= 1
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_view_depends_on_its_own_key_and_image_only():
  images = make_images()
  whole = np.asarray(augment_family(make_keys(), images))
  order = np.random.default_rng(1).permutation(BATCH)
  permuted = augment_family(make_keys()[order], images[order])
  np.testing.assert_allclose(permuted, whole[order], atol=1e-6)
  # Other neighbours: examples 3 to 6, four times over.
  some = np.tile(np.arange(3, 7), BATCH // 4)
  alone = augment_family(make_keys()[some], images[some])
  np.testing.assert_allclose(alone, whole[some], atol=1e-6)


def test_views_follow_step_id_and_number_of_the_view():
  images, ids = make_images(), np.arange(100, 100 + BATCH, dtype=np.int32)
  step = jax.random.key(5)
  found = two_views(step, ids, images)
  assert found.shape == (2, BATCH, OUT, OUT, 3)
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step, ids)
  for view in (0, 1):
    expected = augment_family(fold(keys, view), images)
    np.testing.assert_allclose(found[view], expected, atol=1e-6)
  other = two_views(jax.random.key(6), ids, images)
  assert (
    min(np.abs(found[0] - found[1]).mean(), np.abs(found - other).mean()) > 0.02
  )


def test_views_are_the_same_on_one_device_and_on_eight():
  images, ids = make_images(), np.arange(BATCH, dtype=np.int32)
  step = jax.random.key(5)
  one = two_views(step, ids, images)
  mesh = make_mesh(jax.devices())
  eight = two_views(
    jax.device_put(step, replicated(mesh)),
    jax.device_put(ids, batched(mesh)),
    jax.device_put(images, batched(mesh)),
  )
  np.testing.assert_allclose(eight, one, atol=1e-6)
  # Each device makes the views of its own examples.
  assert eight.addressable_shards[0].data.shape[1] == BATCH // 8


@pytest.mark.parametrize(
  ("option", "probability"),
  [
    ({"flip": 0.3}, 0.3),
    ({"grey": 0.3}, 0.3),
    ({"blur": 0.3, "blur_sigma": (20.0, 30.0)}, 0.3),
    ({"jitter_prob": 0.3}, 0.3),
    ({"jitter_prob": 0.3, "jitter_strength": 0.0}, 0.0),
    ({"rotation": 30.0}, 1.0),
    ({"crop_scale": (0.2, 0.5)}, 1.0),
  ],
)
def test_each_option_alone_happens_as_often_as_told(option, probability):
  image = make_images(1, side=8)
  images = np.repeat(image, 1000, axis=0)
  found = jitted(out_size=8, **OFF | option)(make_keys(1000), images)
  changed = np.abs(found - image / 255).max(axis=(1, 2, 3)) > 1e-4
  np.testing.assert_allclose(changed.mean(), probability, atol=0.045)


def test_turning_one_option_off_leaves_the_others_as_they_were():
  images = make_images(4)
  options = OFF | {"out_size": OUT, "crop_scale": (0.2, 1.0)}
  mirrored = jitted(**options | {"flip": 1.0})(make_keys(4), images)
  found = jitted(**options | {"flip": 0.0})(make_keys(4), images)
  np.testing.assert_allclose(mirrored[:, :, ::-1], found, atol=1e-6)


def test_geometry_has_no_borders():
  flat = np.full((64, SIDE, SIDE, 3), 204, np.uint8)
  options = {"jitter_prob": 0.0, "rotation": 180.0, "blur": 1.0}
  found = jitted(out_size=OUT, **options)(make_keys(64), flat)
  np.testing.assert_allclose(found, 0.8, atol=1e-5)


def test_blur_is_in_pixels_of_a_view_of_224():
  side, sigma = 56, 0.5
  images = make_images(1, side=side)
  options = OFF | {"blur": 1.0, "blur_sigma": (2.0, 2.0)}
  found = jitted(out_size=side, **options)(make_keys(1), images)
  expected = ops.gaussian_blur(
    jnp.asarray(images[0], jnp.float32) / 255, sigma, radius=8
  )
  np.testing.assert_allclose(found[0], expected, atol=2e-4)


def test_plain_resizes_as_pillow_and_only_if_it_must():
  images = make_images(2)
  same = views.plain(images, SIDE)
  np.testing.assert_array_equal(same, np.float32(images) / np.float32(255))
  for side in (20, 45):
    expected = [
      Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
      for image in images
    ]
    expected = np.stack([np.asarray(picture) for picture in expected]) / 255
    np.testing.assert_allclose(
      views.plain(images, side), expected, atol=1.5 / 255
    )
