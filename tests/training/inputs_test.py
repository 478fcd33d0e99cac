"""Inputs: which views a phase draws, and mixup."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dbl_jax.augment import views
from dbl_jax.training import inputs

pytestmark = pytest.mark.usefixtures("debug_nans")

NO_AUGMENTATION = {
  "crop_scale": None, "flip": 0.0, "jitter_prob": 0.0, "grey": 0.0,
  "blur": 0.0, "rotation": 0.0,
}  # fmt: skip
IDS = jnp.arange(5) * 7
TARGETS = jnp.eye(5)  # no neighbour has an example's class
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(5, 1, 3)).astype(np.float32)


def make_key():
  """The one key of these tests, which draw from it more than once."""
  return jax.random.key(3)


FLIP = NO_AUGMENTATION | {"flip": 0.5}


def of_images(mixup, augment=NO_AUGMENTATION):
  phase = {"views": 2, "mixup": mixup, "augment": augment}
  return inputs.of_images(phase, 8, "trained")


def of_features(mixup):
  return inputs.of_features({"views": 2, "mixup": mixup})


def test_without_mixup_views_and_targets_are_as_they_were():
  draw = jax.jit(of_images(0.0, FLIP).draw)
  drawn, targets = draw(make_key(), IDS, IMAGES, TARGETS)
  make = functools.partial(views.make_views, num_views=2, out_size=8, **FLIP)
  np.testing.assert_allclose(
    drawn, jax.jit(make)(make_key(), IDS, IMAGES), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("kind", ["images", "features"])
def test_views_and_targets_are_mixed_alike_with_a_neighbour(kind):
  made, rows, own = {
    "images": (of_images(0.4), IMAGES, IMAGES / 255),
    "features": (of_features(0.4), FEATURES, FEATURES[:, 0]),
  }[kind]
  drawn, targets = jax.jit(made.draw)(make_key(), IDS, rows, TARGETS)
  targets = np.asarray(targets)
  np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
  assert drawn.shape == (2, *own.shape)
  shares = np.diag(targets)
  assert len(set(shares)) == 5
  for i, share in enumerate(shares):
    others = set(np.flatnonzero(targets[i])) - {i}
    assert len(others) == 1
    expected = share * own[i] + (1 - share) * own[others.pop()]
    for view in drawn[:, i]:
      np.testing.assert_allclose(view, expected, rtol=1e-4, atol=1e-5)


def test_images_are_augmented_before_they_are_mixed():
  draw = jax.jit(of_images(0.4, FLIP).draw)
  drawn, _ = draw(make_key(), IDS, IMAGES, TARGETS)
  assert (drawn[0] != drawn[1]).any()


@functools.partial(jax.jit, static_argnums=0)
def shares_of(alpha, key, ids):
  """The share of each example, known as half of them are 1 and half 0."""
  one = jnp.arange(len(ids)) % 2
  targets = jax.nn.one_hot(one, 2)
  rows = one[:, None, None].astype(jnp.float32)
  _, targets = of_features(alpha).draw(key, ids, rows, targets)
  return jnp.where(one == 1, targets[:, 1], targets[:, 0])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution(alpha):
  shares = shares_of(alpha, make_key(), jnp.arange(4000))
  test = stats.kstest(np.asarray(shares, float), stats.beta(alpha, alpha).cdf)
  assert test.pvalue > 0.01


def test_a_share_depends_on_the_key_and_the_id_alone():
  ids = jnp.arange(4000)
  first = np.asarray(shares_of(0.2, make_key(), ids))
  np.testing.assert_array_equal(
    shares_of(0.2, make_key(), ids[::-1]), first[::-1]
  )
  again = shares_of(0.2, make_key(), ids)
  np.testing.assert_array_equal(again, first)
  other = shares_of(0.2, jax.random.key(4), ids)
  assert np.mean(np.asarray(other) == first) < 0.5


def test_evaluation_is_never_mixed():
  np.testing.assert_array_equal(
    of_features(0.4).plain(FEATURES), FEATURES[:, 0]
  )
  np.testing.assert_allclose(
    of_images(0.4).plain(jnp.asarray(IMAGES)), IMAGES / 255, atol=1e-6
  )


def test_cached_views_are_drawn_among_an_examples_own():
  rows = jnp.arange(5 * 4, dtype=jnp.float32).reshape(5, 4, 1)
  drawn, targets = of_features(0.0).draw(make_key(), IDS, rows, TARGETS)
  assert drawn.shape == (2, 5, 1)
  np.testing.assert_array_equal(drawn[:, :, 0] // 4, [range(5)] * 2)
  np.testing.assert_array_equal(targets, TARGETS)
