"""Optimizers: schedules, what is decayed, what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbl_jax.runtime.options import defaults
from dbl_jax.training import optim

pytestmark = pytest.mark.usefixtures("debug_nans")

PARAMS = {
  "encoder": {
    "conv": {"kernel": jnp.ones((3, 3))},
    "bn": {"bias": jnp.ones(3)},
  },
  "head": {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}},
}
GRADS = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), PARAMS)


def options(**changes):
  plain = {"name": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
  plain |= {"warmup": 0.0, "scaling": "linear"}
  return defaults(optim.OptimizerFields) | plain | changes


def one_update(trained, **changes):
  mask = optim.trained_mask(PARAMS, trained)
  optimizer = optim.make_optimizer(options(**changes), lambda _: 0.1, mask)
  state = optimizer.init(PARAMS)
  updates, state = optimizer.update(GRADS, state, PARAMS)
  return optax.apply_updates(PARAMS, updates), state


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_frozen_leaves_stay_and_cost_no_state(name):
  params, state = one_update(("head",), name=name, weight_decay=0.1)
  for old, new in zip(
    jax.tree.leaves(PARAMS["encoder"]),
    jax.tree.leaves(params["encoder"]),
    strict=True,
  ):
    np.testing.assert_array_equal(old, new)
  for leaf in jax.tree.leaves(params["head"]):
    assert (leaf < 1).all()
  shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
  assert shapes <= {(), (3, 2), (2,)}


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_decay_is_for_matrices_alone(name):
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  mask = optim.trained_mask(PARAMS, (".*",))
  optimizer = optim.make_optimizer(
    options(name=name, weight_decay=0.5), lambda _: 0.1, mask
  )
  updates, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
  assert (updates["head"]["dense"]["kernel"] < 0).all()
  assert (updates["head"]["dense"]["bias"] == 0).all()
  assert (updates["encoder"]["bn"]["bias"] == 0).all()


def test_the_encoder_may_have_a_rate_of_its_own():
  (plain, _), (scaled, _) = (
    one_update((".*",), encoder_rate=rate) for rate in (1.0, 0.25)
  )
  np.testing.assert_array_equal(
    plain["head"]["dense"]["kernel"], scaled["head"]["dense"]["kernel"]
  )
  np.testing.assert_allclose(
    (1 - scaled["encoder"]["conv"]["kernel"]) * 4,
    1 - plain["encoder"]["conv"]["kernel"],
    rtol=1e-5,
  )


def test_clipping_sees_trained_leaves_alone():
  clipped, _ = one_update(("head",), clip_norm=1e-3)
  step = 1 - np.asarray(clipped["head"]["dense"]["kernel"])
  np.testing.assert_allclose(np.sqrt(8) * step, 0.1 * 1.9 * 1e-3, rtol=1e-2)


@pytest.mark.parametrize(
  ("scaling", "peak"), [("linear", 0.2), ("sqrt", 0.08**0.5), ("none", 0.4)]
)
def test_schedule_warms_up_to_the_scaled_peak_and_ends_at_zero(scaling, peak):
  schedule = optim.make_schedule(
    options(learning_rate=0.4, warmup=0.1, scaling=scaling), 100, batch_size=128
  )
  values = np.array([schedule(step) for step in range(101)])
  assert values[0] == 0
  assert values.argmax() == 10
  np.testing.assert_allclose(values[10], peak, rtol=1e-6)
  assert (np.diff(values[:11]) > 0).all()
  assert (np.diff(values[10:]) < 0).all()
  np.testing.assert_allclose(values[100], 0, atol=1e-8)


def test_a_schedule_of_one_step_is_possible():
  assert np.isfinite(optim.make_schedule(options(warmup=0.9), 1, 128)(0))
