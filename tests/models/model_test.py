"""Projection and classifier heads, and the model they are part of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbl_jax.models.model import (
  JointHead,
  MLPHead,
  ProjectionHead,
  make_model,
)

pytestmark = pytest.mark.usefixtures("debug_nans")

FEATURES = jax.random.normal(jax.random.key(0), (32, 20)) + 1


def started(head, features=FEATURES):
  """Outputs and variables."""
  return head.init_with_output(jax.random.key(1), features, train=False)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_projection_is_dense_norm_relu_dense_norm():
  head = ProjectionHead(hidden=16, out=8)
  _, variables = started(head)
  params = variables["params"]
  assert jax.tree.map(jnp.shape, params) == {
    "dense1": {"kernel": (20, 16)},
    "norm1": {"scale": (16,), "bias": (16,)},
    "dense2": {"kernel": (16, 8)},
    "norm2": {"scale": (8,)},
  }
  z, _ = head.apply(variables, FEATURES, train=True, mutable=["batch_stats"])

  def normalise(h):
    return (h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)

  h = nn.relu(normalise(FEATURES @ params["dense1"]["kernel"]))
  expected = normalise(h @ params["dense2"]["kernel"])
  np.testing.assert_allclose(z, expected, atol=1e-3)


@pytest.mark.parametrize(
  ("head", "parameters"),
  [
    (ProjectionHead(layers=1), 20 * 128 + 128),
    (ProjectionHead(layers=3), 20 * 512 + 512 * 640 + 4 * 512 + 128),
    (MLPHead(7, hidden=(16, 12)), 21 * 16 + 17 * 12 + 13 * 7),
  ],
  ids=str,
)
def test_heads_have_their_layers_and_compute_in_float32(head, parameters):
  features = FEATURES.astype(jnp.bfloat16)
  outputs, variables = jax.eval_shape(lambda: started(head, features))
  assert outputs.dtype == jnp.float32
  assert count(variables["params"]) == parameters


def test_mlp_is_linear_without_hidden_layers():
  head = MLPHead(7, hidden=())
  _, variables = started(head)
  params = variables["params"]["logits"]
  expected = FEATURES @ params["kernel"] + params["bias"][None]
  logits = head.apply(variables, FEATURES, train=True)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_dropout_drops_in_training_alone():
  head = MLPHead(7, dropout=0.5)
  evaluated, variables = started(head)
  trained = [
    head.apply(
      variables, FEATURES, train=True, rngs={"dropout": jax.random.key(seed)}
    )
    for seed in (2, 3)
  ]
  assert (evaluated != trained[0]).any()
  assert (trained[0] != trained[1]).any()


def test_cosine_logits_are_the_scale_times_the_cosine():
  head = MLPHead(7, hidden=(), cosine=30.0)
  _, variables = started(head)
  params = variables["params"]
  assert jax.tree.map(jnp.shape, params) == {"logits": {"kernel": (20, 7)}}
  logits = head.apply(variables, FEATURES, train=True)
  kernel = params["logits"]["kernel"]
  lengths = jnp.linalg.norm(FEATURES, axis=1, keepdims=True) * jnp.linalg.norm(
    kernel, axis=0, keepdims=True
  )
  np.testing.assert_allclose(
    logits, 30 * (FEATURES @ kernel) / lengths, rtol=1e-4, atol=1e-4
  )
  assert jnp.abs(logits).max() <= 30


def test_cosine_logits_of_nothing_have_a_finite_gradient():
  head = MLPHead(7, hidden=(), cosine=30.0)
  _, variables = started(head)
  total = jax.jit(lambda h: head.apply(variables, h, train=False).sum())
  slopes = jax.grad(total)(jnp.zeros((2, 20)))
  assert np.isfinite(slopes).all()


@pytest.mark.parametrize("cosine", [0.0, 30.0])
def test_scaled_starts_as_it_would_be_and_scales_each_class(cosine):
  plain = MLPHead(7, hidden=(), cosine=cosine)
  scaled = MLPHead(7, hidden=(), cosine=cosine, scaled=True)
  expected, before = started(plain)
  found, variables = started(scaled)
  np.testing.assert_array_equal(found, expected)
  params = variables["params"]
  np.testing.assert_array_equal(params.pop("scale"), np.ones((1, 7)))
  jax.tree.map(np.testing.assert_array_equal, params, before["params"])
  scale = jnp.arange(7.0)[None]
  found = scaled.apply(
    {"params": params | {"scale": scale}}, FEATURES, train=False
  )
  np.testing.assert_allclose(found, expected * scale, rtol=1e-6)


def test_prototypes_are_one_embedding_per_class():
  plain = ProjectionHead(hidden=16, out=8)
  head = ProjectionHead(hidden=16, out=8, prototypes=True, num_classes=7)
  expected, before = started(plain)
  found, variables = started(head)
  prototypes = variables["params"].pop("prototypes")
  assert prototypes.shape == (7, 8)
  assert (jnp.linalg.norm(prototypes, axis=1) > 0.5).all()
  assert len(np.unique(prototypes)) == 56
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, before)
  assert found.shape == expected.shape


def test_the_joint_head_is_a_projection_and_a_classifier():
  features = jax.random.normal(jax.random.key(0), (5, 16))
  head = JointHead(num_classes=3, hidden=8, out=4, prototypes=True)
  outputs, variables = started(head, features)
  assert outputs.shape == (5, 7)
  assert variables["params"]["projection"]["prototypes"].shape == (3, 4)
  logits = variables["params"]["classifier"]["logits"]
  np.testing.assert_allclose(
    outputs[:, 4:],
    features @ logits["kernel"] + logits["bias"][None],
    rtol=1e-5,
    atol=1e-6,
  )


def test_with_mirror_an_image_and_its_mirror_image_have_the_same_features():
  encoder = {"name": "dcnn", "dtype": "float32", "mirror": True}
  network = make_model(encoder, {"name": "mlp"}, 7)
  images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
  variables = network.init(jax.random.key(1), images, train=False)
  run = jax.jit(functools.partial(network.apply, variables, train=False))
  plain = jax.jit(
    functools.partial(network.clone(mirror=False).apply, variables, train=False)
  )
  features, outputs = run(images)
  np.testing.assert_allclose(run(images[:, :, ::-1])[1], outputs, rtol=1e-5)
  both = plain(images)[0], plain(images[:, :, ::-1])[0]
  np.testing.assert_allclose(features, sum(both) / 2, rtol=1e-5)
  assert not np.allclose(*both, rtol=1e-2)  # the network is not symmetric
