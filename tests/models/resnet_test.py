"""ResNet-18: its published size, and the network on both convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbl_jax.models import cpu_conv, layers
from dbl_jax.models.resnet import (
  PaddedBlock,
  ResidualBlock,
  ResNet18,
  ResNet32,
)

pytestmark = pytest.mark.usefixtures("debug_nans")

IMAGES = jax.random.normal(jax.random.key(0), (6, 32, 32, 3))


def shapes(model, images=IMAGES):
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )


def initialise(model, images):
  return jax.jit(model.init, static_argnames="train")(
    jax.random.key(1), images, train=False
  )


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_resnet_32_has_the_size_of_its_paper_and_shortcuts_without_weights():
  # He et al. 2016, table 6: 0.46 M with the layer of 10 classes.
  params = shapes(ResNet32())["params"]
  assert count(params) == 464_154 - 64 * 10 - 10
  assert not any("shortcut" in block for block in params.values())
  model = PaddedBlock(8, strides=2, zero_init_residual=True)
  images = jax.random.uniform(jax.random.key(0), (3, 6, 6, 4))
  out = model.apply(initialise(model, images), images, False)
  np.testing.assert_array_equal(out[..., :4], images[:, ::2, ::2])
  np.testing.assert_array_equal(out[..., 4:], 0)


def make_step(model):
  """(variables, images) -> output, gradients by parameters, statistics."""

  def step(variables, images):
    def loss(params):
      output, updated = model.apply(
        variables | {"params": params}, images, True, mutable=["batch_stats"]
      )
      weights = jnp.cos(jnp.arange(output.size)).reshape(output.shape)
      return jnp.sum(output * weights), (output, updated["batch_stats"])

    gradients, (output, statistics) = jax.grad(loss, has_aux=True)(
      variables["params"]
    )
    return output, gradients, statistics

  return step


def assert_trees_close(actual, expected, tolerance):
  """Errors are measured against the norm of each leaf."""

  def check(path, ours, reference):
    error = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
    assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error:.1e}"

  jax.tree.map_with_path(check, actual, expected)


@pytest.mark.parametrize(
  ("stem", "parameters", "side"),
  [
    ("imagenet", 11_176_512, 2),
    ("medium", 11_168_832, 4),
    ("small", 11_168_832, 8),
  ],
)
def test_parameters_and_last_map_of_each_stem(stem, parameters, side):
  # torchvision: 11,689,512 with the 513,000 of its 1000-class layer.
  model, images = ResNet18(stem=stem), IMAGES[:1].repeat(2, 1).repeat(2, 2)
  variables = shapes(model)
  assert count(variables["params"]) == parameters
  assert count(variables["batch_stats"]) == 9600
  features, sown = jax.eval_shape(
    lambda v: model.apply(v, images, False, mutable=["intermediates"]),
    variables,
  )
  assert features.shape == (1, 512)
  assert sown["intermediates"]["maps"][0].shape == (1, side, side, 512)


def test_parameters_have_stable_names():
  params = shapes(ResNet18())["params"]
  blocks = [f"stage{i}_block{j}" for i in range(1, 5) for j in (1, 2)]
  assert sorted(params) == sorted(["stem", "stem_norm", *blocks])
  convolutions = {"conv1", "norm1", "conv2", "norm2"}
  assert set(params["stage1_block1"]) == convolutions
  shortcut = {"shortcut_conv", "shortcut_norm"}
  assert set(params["stage2_block1"]) == convolutions | shortcut
  assert params["stem"]["kernel"].shape == (7, 7, 3, 64)


def test_network_is_the_same_on_both_convolutions(monkeypatch):
  monkeypatch.setattr(ResNet18, "blocks", (1, 1))  # compiles sooner
  model = ResNet18()
  variables = initialise(model, IMAGES)
  with monkeypatch.context() as patch:
    patch.setattr(cpu_conv, "images_per_chunk", lambda *_: 4)
    fast = jax.jit(make_step(model))(variables, IMAGES)
  with monkeypatch.context() as patch:
    patch.setattr(layers, "conv2d", layers._lax_conv)
    plain = jax.jit(make_step(model))(variables, IMAGES)
  assert fast[0].shape == (6, 128)
  assert_trees_close(fast, plain, 2e-3)


def test_frozen_modules_keep_their_statistics_in_training(monkeypatch):
  monkeypatch.setattr(ResNet18, "blocks", (1, 1))  # compiles sooner
  frozen = ("stem", "stem_norm", "stage1_block1")
  model = ResNet18(frozen=frozen)
  variables = initialise(model, IMAGES)
  _, updated = jax.jit(
    lambda v: model.apply(v, IMAGES, True, mutable=["batch_stats"])
  )(variables)
  before, after = variables["batch_stats"], updated["batch_stats"]
  for name, old in before.items():
    same = jax.tree.map(lambda a, b: bool((a == b).all()), old, after[name])
    assert set(jax.tree.leaves(same)) == {name in frozen}, name


def test_zero_init_residual_starts_as_the_shortcut():
  model = ResidualBlock(4, zero_init_residual=True)
  images = jax.random.uniform(jax.random.key(0), (3, 6, 6, 4))
  variables = initialise(model, images)
  np.testing.assert_array_equal(model.apply(variables, images, False), images)
  params = shapes(ResNet18(zero_init_residual=True))["params"]
  assert count(params) == 11_176_512
