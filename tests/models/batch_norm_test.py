"""Batch norm by hand against flax's, whose gradients come by themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbl_jax.models.layers import BatchNorm
from dbl_jax.runtime import distributed

pytestmark = pytest.mark.usefixtures("debug_nans")

KEYS = jax.random.split(jax.random.key(0), 4)
X = 3 * jax.random.normal(KEYS[0], (6, 5, 4, 7)) + 1
DY = jax.random.normal(KEYS[1], X.shape)
PARAMS = {
  "scale": jax.random.normal(KEYS[2], (7,)),
  "bias": jax.random.normal(KEYS[3], (7,)),
}
STATISTICS = {"mean": jnp.full(7, 0.5), "var": jnp.full(7, 2.0)}


def results(module, x=X, relu=False):
  """Output, gradients by x and parameters, next statistics."""

  def forward(x, params):
    y, updated = module.apply(
      {"params": params, "batch_stats": STATISTICS}, x, mutable=["batch_stats"]
    )
    return nn.relu(y) if relu else y, updated["batch_stats"]

  @jax.jit
  def run(x):
    y, pull_back, statistics = jax.vjp(forward, x, PARAMS, has_aux=True)
    return y, pull_back(DY.astype(y.dtype)), statistics

  return run(x)


def assert_close(actual, expected, tolerance=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
    actual,
    expected,
  )


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_everything_equals_flax(running, relu):
  ours = results(BatchNorm(running, relu=relu))
  theirs = nn.BatchNorm(running, momentum=0.9, epsilon=1e-5)
  assert_close(ours, results(theirs, relu=relu))


def test_bfloat16_is_rounded_at_the_end_alone():
  exact = results(BatchNorm(False), X.astype(jnp.bfloat16).astype("f4"))
  rounded = results(
    BatchNorm(False, dtype=jnp.bfloat16), X.astype(jnp.bfloat16)
  )
  assert rounded[0].dtype == rounded[1][0].dtype == jnp.bfloat16
  assert_close(rounded[2], exact[2], 1e-5)
  assert_close(rounded[0].astype("f4"), exact[0], 0.03)


def test_a_constant_channel_stays_finite():
  x = jnp.full((4, 2, 2, 7), 100.1)
  y, pull_back = jax.vjp(
    lambda x: BatchNorm(False).apply(
      {"params": PARAMS, "batch_stats": STATISTICS}, x, mutable=["batch_stats"]
    )[0],
    x,
  )
  np.testing.assert_allclose(y, jnp.broadcast_to(PARAMS["bias"], y.shape), 0.1)
  assert np.isfinite(pull_back(jnp.ones_like(y))[0]).all()


def test_statistics_are_of_the_whole_batch_on_several_devices():
  x = jnp.concatenate([X, X[:2] + 5])
  module = BatchNorm(False)
  variables = {"params": PARAMS, "batch_stats": STATISTICS}
  run = jax.jit(lambda x: module.apply(variables, x, mutable=["batch_stats"]))
  split = distributed.put(
    x, distributed.batched(distributed.make_mesh(jax.devices()))
  )
  assert_close(run(split), run(x))
