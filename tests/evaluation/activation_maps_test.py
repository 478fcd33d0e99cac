"""Class activation maps: the formula, the choice of examples, the overlay."""

import jax
import numpy as np
import pytest
from PIL import Image

from dbl_jax.evaluation import activation_maps
from dbl_jax.models import model, resnet
from dbl_jax.training import steps

pytestmark = pytest.mark.usefixtures("debug_nans")

RNG = np.random.default_rng(0)


AVERAGE = {"name": "dcnn", "pooling": "average", "dtype": "float32"}
LINEAR = {"name": "mlp", "hidden": ()}


@pytest.mark.parametrize(
  ("encoder", "head"),
  [
    (AVERAGE, LINEAR),
    (AVERAGE, {"name": "joint"}),
    (AVERAGE, {"name": "mlp", "hidden": (9, 8)}),
    (AVERAGE | {"pooling": "flatten", "width": 30}, LINEAR),
    ({"name": "resnet18", "stem": "small", "dtype": "float32"}, LINEAR),
  ],
)
@pytest.mark.usefixtures("lax_conv")
def test_a_map_adds_up_to_the_logit(encoder, head, monkeypatch):
  """As biases after the map are initially zero, for any pooling and head."""
  monkeypatch.setattr(resnet.ResNet18, "blocks", (1,))
  made = model.make_model(encoder, head, 7)
  images = RNG.random((2, 16, 16, 3), np.float32)
  variables = steps.init_variables(made, jax.random.key(0), 16)
  classes = np.array([1, 6])

  @jax.jit
  def run():
    found = activation_maps.class_activation_maps(
      made, variables, images, classes
    )
    (_, outputs), sown = made.apply(
      variables, images, train=False, mutable="intermediates"
    )
    return found, outputs, sown["intermediates"]["encoder"]["maps"][0]

  found, outputs, maps = run()
  assert found.shape == maps.shape[:3]
  logits = outputs[:, -7:][np.arange(2), classes]
  np.testing.assert_allclose(found.sum((1, 2)), logits, atol=1e-5)
  if encoder.get("pooling") != "flatten" and head == LINEAR:
    # Zhou et al., eq. (1) and (2).
    kernel = variables["params"]["head"]["logits"]["kernel"]
    expected = np.einsum("nhwk,kn->nhw", maps, kernel[:, classes])
    pixels = maps.shape[1] * maps.shape[2]
    np.testing.assert_allclose(found, expected / pixels, atol=1e-5)


def test_a_map_of_one_pixel_is_none():
  made = model.make_model(AVERAGE | {"last_pool": True}, LINEAR, 7)
  images = np.zeros((1, 16, 16, 3), np.float32)
  variables = steps.init_variables(made, jax.random.key(0), 16)
  assert None is activation_maps.class_activation_maps(
    made, variables, images, np.array([0])
  )


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
  assert len(set(found)) == len(found) / 2 == 10
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
