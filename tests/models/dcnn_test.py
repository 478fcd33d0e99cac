"""The base DCNN against a literal one, and its size."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dbl_jax.models.dcnn import DCNN

pytestmark = pytest.mark.usefixtures("debug_nans")


def make(pooling, size, dtype=jnp.float32, last_pool=False):
  """A network, its parameters, biases too at random, and two images."""
  model = DCNN(width=20, pooling=pooling, last_pool=last_pool, dtype=dtype)
  rng = np.random.default_rng(0)

  def draw(leaf):
    deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if leaf.ndim > 1 else 0.2
    return jnp.array(deviation * rng.standard_normal(leaf.shape), leaf.dtype)

  params = jax.tree.map(draw, shapes(model, size)["params"])
  images = rng.standard_normal((2, size, size, 3)).astype(np.float32)
  return model, params, jnp.array(images)


def shapes(model, size):
  return jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
    )
  )


def literal(params, x, pooling, last_pool=False):
  """Line by line from the paper's table; the last map and the features."""
  pooled = {1, 2, 4, 6} if last_pool else {1, 2, 4}
  for layer in range(1, 7):
    weights = params[f"conv{layer}"]
    x = lax.conv_general_dilated(
      x,
      weights["conv"]["kernel"],
      (1, 1),
      ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = jnp.maximum(x + weights["bias"].reshape(1, 1, 1, -1), 0)
    if layer in pooled:
      x = nn.max_pool(x, (2, 2), (2, 2))
  if pooling == "average":
    return x, x.mean((1, 2))
  dense = params["dense"]
  flat = x.reshape(len(x), -1)
  return x, jnp.maximum(flat @ dense["kernel"] + dense["bias"][None], 0)


def count(model, size):
  variables = shapes(model, size)
  assert list(variables) == ["params"]
  return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("size", [32, 33, 100])
def test_parameter_count_is_that_of_a_hand_count(size):
  channels = [3, 64, 96, 128, 128, 256, 256]
  convolutions = sum(
    3 * 3 * before * after + after
    for before, after in itertools.pairwise(channels)
  )
  last = {32: 4, 33: 4, 100: 12}[size]  # 100, 50, 25, 12
  assert convolutions == 1_200_736
  assert count(DCNN(pooling="average"), size) == convolutions
  # The totals of the docstring; the first is that of public implementations.
  totals = {32: (9_394_736, 3_250_736), 100: (74_930_736, 19_634_736)}
  for i, pixels in enumerate((last**2, (last // 2) ** 2)):
    total = convolutions + pixels * 256 * 2000 + 2000
    assert count(DCNN(last_pool=bool(i)), size) == total
    assert size not in totals or totals[size][i] == total


def outputs_of(model, params, images):
  """The last map and the features."""
  features, sown = model.apply(
    {"params": params}, images, False, mutable=["intermediates"]
  )
  return sown["intermediates"]["maps"][0], features


def assert_trees_close(actual, expected, tolerance):
  """Errors are measured against the norm of each leaf."""

  def check(path, ours, reference):
    assert np.isfinite(ours).all()
    assert np.any(ours)
    error = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
    assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error:.1e}"

  jax.tree.map_with_path(check, actual, expected)


@pytest.mark.parametrize(
  ("pooling", "last_pool", "size"),
  [
    ("flatten", False, 33),
    ("flatten", True, 33),
    ("average", False, 33),
    ("flatten", True, 100),
  ],
)
@pytest.mark.usefixtures("lax_conv")
def test_values_and_gradients_equal_a_literal_network(pooling, last_pool, size):
  model, params, images = make(pooling, size, last_pool=last_pool)

  def gradients(network):
    def loss(params, images):
      outputs = network(params, images)
      weights = jnp.cos(jnp.arange(outputs[1].size))
      return jnp.sum(outputs[1] * weights.reshape(outputs[1].shape)), outputs

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, images)

  actual = gradients(functools.partial(outputs_of, model))
  expected = gradients(lambda p, x: literal(p, x, pooling, last_pool))
  assert actual[1][1].shape == (2, 20 if pooling == "flatten" else 256)
  assert_trees_close(actual, expected, 1e-4)


@pytest.mark.usefixtures("lax_conv")
def test_bfloat16_is_close_and_keeps_parameters_and_output_float32():
  model, params, images = make("flatten", 16, dtype=jnp.bfloat16)
  features = jax.jit(model.apply, static_argnums=2)(
    {"params": params}, images, True
  )
  _, expected = jax.jit(literal, static_argnums=2)(params, images, "flatten")
  for leaf in jax.tree.leaves((params, features)):
    assert leaf.dtype == jnp.float32
  error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
  assert 0 < error < 3e-2
