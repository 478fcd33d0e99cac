"""Class activation maps: the formula, the choice of examples, the overlay."""

import numpy as np
import pytest
from PIL import Image

from dbl_jax.evaluation import activation_maps

pytestmark = pytest.mark.usefixtures("debug_nans")

RNG = np.random.default_rng(0)


def test_maps_are_the_formula_and_average_to_the_logit():
  maps = RNG.standard_normal((5, 4, 3, 8)).astype(np.float32)
  kernel = RNG.standard_normal((8, 7)).astype(np.float32)
  activation = activation_maps.class_activation_maps(maps, kernel)
  assert activation.shape == (5, 7, 4, 3)
  assert activation.dtype == np.float32
  np.testing.assert_allclose(
    activation.mean((2, 3)), maps.mean((1, 2)) @ kernel, rtol=1e-5, atol=1e-5
  )
  for n, c, y, x in np.ndindex(2, 7, 4, 3):
    expected = sum(kernel[k, c] * maps[n, y, x, k] for k in range(8))
    assert activation[n, c, y, x] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
  ("labels", "predictions", "expected"),
  [
    # Classes 1 and 2 are all correct.
    (
      [2, 0, 0, 1, 1, 0, 0, 2],
      [2, 1, 0, 1, 1, 0, 2, 2],
      [2, 5, 1, 6, 3, 4, 0, 7],
    ),
    ([0] * 9, [1, 0] * 4 + [1], [1, 3, 0, 2]),
    ([], [], []),
  ],
)
def test_examples_are_the_first_of_each_class(labels, predictions, expected):
  labels, predictions = np.array(labels, int), np.array(predictions, int)
  chosen = activation_maps.examples(labels, predictions)
  assert chosen.tolist() == expected
  assert np.issubdtype(chosen.dtype, np.integer)


def test_examples_of_many_classes_are_a_sample_of_those_with_images():
  labels = np.repeat(np.arange(0, 8000, 2), 3)
  found = labels[activation_maps.examples(labels, labels)]
  assert len(set(found)) == len(found) / 2 == 30
  assert (found.min(), found.max()) == (0, 7998)


def test_overlay_is_orange_where_the_map_is_largest():
  image = np.full((40, 40, 3), 120, np.uint8)
  activation = np.zeros((4, 4), np.float32)
  activation[3, 0] = 5
  before = activation.copy()
  shown = activation_maps.overlay(image, activation).astype(int)
  np.testing.assert_array_equal(activation, before)
  assert shown.shape == image.shape
  red, green, blue = shown[-1, 0]
  assert red > green + 60 > blue + 100
  assert shown[0, -1].tolist() == [120, 120, 120]


@pytest.mark.parametrize("value", [0.0, -3.0, np.nan])
def test_overlay_of_a_flat_map_is_the_face_in_grey(value):
  image = RNG.integers(0, 256, (12, 12, 3), np.uint8)
  shown = activation_maps.overlay(image, np.full((3, 3), value, np.float32))
  grey = np.asarray(Image.fromarray(image).convert("L"))
  np.testing.assert_array_equal(shown, np.repeat(grey[..., None], 3, axis=2))
