"""Terms: how a config's losses add up, and that none is ever not a number."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_inputs, run

from dbl_jax.losses import terms
from dbl_jax.losses.terms import TERMS

pytestmark = pytest.mark.usefixtures("debug_nans")

C = 6
COUNTS = np.array([30.0, 10, 5, 1, 7, 2])
PROTOTYPES = np.random.default_rng(1).normal(size=(C, C))
RANDOM = np.random.default_rng(0).normal(size=(6, 2, C))
ONES = np.ones((6, 2, C))
SOME = [0, 1, 0, 2, 0, 1]
# Name -> rows f[B, 2, C], which are features, embeddings and logits at once,
# labels, and the prototypes.
HARD = {
  "random": (RANDOM, SOME, PROTOTYPES),
  "batch of 1": (RANDOM[:1], [0], PROTOTYPES),
  "batch of 2": (RANDOM[:2], [0, 1], PROTOTYPES),
  "equal": (ONES, SOME, np.ones((C, C))),
  "zero": (0 * ONES, SOME, 0 * PROTOTYPES),
  "a row of zeros": (RANDOM * (RANDOM[3, 1] != RANDOM), SOME, PROTOTYPES),
  "opposite": (ONES * np.array([[[1.0], [-1.0]]]), SOME, -np.ones((C, C))),
  "one class": (RANDOM, [2] * 6, PROTOTYPES),
  "one image of each class": (RANDOM, range(6), PROTOTYPES),
  "tiny": (1e-13 * RANDOM, SOME, 1e-13 * PROTOTYPES),
  "huge": (1e6 * RANDOM, SOME, 1e6 * PROTOTYPES),
}


def options_of(name):
  parameters = inspect.signature(TERMS[name].loss).parameters
  return {"temperature": 0.01} if "temperature" in parameters else {}


def batch(case="random", **changes):
  values, labels, prototypes = HARD[case]
  given = {"counts": COUNTS, "head": {"prototypes": prototypes}} | changes
  return make_inputs(values, list(labels), **given)


@functools.cache
def term(name, **options):
  """The term as a loss without state, at a low temperature."""
  config = {name: options_of(name) | options}
  return lambda given: terms.weighted_sum(config, given, state_of(config))[:2]


def state_of(config):
  return terms.start_loss_state(config, C, lambda: C)


def summed(config, given, state):
  """`weighted_sum`, compiled."""
  return jax.jit(functools.partial(terms.weighted_sum, config))(given, state)


# As far as a config's check lets options go.
UTMOST = [
  ("balanced_contrastive", {"temperature": 1e-3}),
  ("balanced_softmax", {"strength": 10.0}),
  ("center", {"rate": 1.0}),
  ("cross_entropy", {"weighting": "inverse"}),
  ("cross_entropy", {"weighting": "effective", "beta": 0.0}),
  ("cross_entropy", {"weighting": "effective", "beta": 1 - 1e-7}),
  ("label_aware_smoothing", {"head": 0.99, "tail": 0.0}),
  ("label_aware_smoothing", {"head": 0.0, "tail": 0.99}),
  ("ldam", {"margin": 10.0, "scale": 1e3, "after": 0.0, "beta": 1 - 1e-7}),
  ("locality_preserving", {"neighbours": 1}),
  ("nt_xent", {"temperature": 1e-3}),
  ("sup_con", {"temperature": 1e-3}),
]


def test_each_term_is_taken_to_the_utmost():
  assert {name for name, _ in UTMOST} == set(TERMS)


@pytest.mark.parametrize(("name", "options"), UTMOST)
def test_loss_and_gradients_are_finite_at_the_utmost_options(name, options):
  batches = {case: batch(case) for case in HARD}
  batches["a class without images"] = batch(counts=[30.0, 10, 5, 0, 7, 2])
  for case, given in batches.items():
    for leaf in jax.tree.leaves(run(term(name, **options), given)):
      assert np.isfinite(leaf).all(), case


@pytest.mark.parametrize("name", TERMS)
def test_a_term_mixes_if_it_says_so(name):
  mixed = batch(targets=np.roll(np.eye(C)[SOME], 1, axis=0))
  values = [run(term(name), given)[0] for given in (batch(), mixed)]
  assert (values[0] != values[1]) == TERMS[name].mixes


def test_weighted_sum_adds_terms_by_weight():
  config = {"cross_entropy": {"weight": 2.0}, "nt_xent": {"temperature": 1.0}}
  loss, metrics, after = summed(config, batch(), {})
  np.testing.assert_allclose(
    loss, 2 * metrics["cross_entropy"] + metrics["nt_xent"], rtol=1e-6
  )
  np.testing.assert_array_equal(metrics["loss"], loss)
  names = {"loss", *config, "accuracy", "contrastive_accuracy"}
  assert metrics.keys() == names
  assert after == {}


def test_a_term_alone_is_the_loss_and_gets_its_options():
  options = {"weighting": "inverse"}
  given = batch()
  loss, metrics, _ = summed({"cross_entropy": options}, given, {})
  assert metrics.keys() == {"loss", "accuracy"}
  expected, _, _ = run(TERMS["cross_entropy"].loss, given, **options)
  plain, _, _ = run(TERMS["cross_entropy"].loss, given)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert abs(loss - plain) > 0.01


CENTER = {"cross_entropy": {}, "center": {"weight": 0.5, "rate": 0.25}}


def test_state_is_updated_after_the_loss():
  given, state = batch(), state_of(CENTER)
  assert jax.tree.map(jnp.shape, state) == {"center": (C, C)}
  center = TERMS["center"]
  for _ in range(2):
    _, metrics, after = summed(CENTER, given, state)
    expected, _ = center.loss(given, state["center"])
    np.testing.assert_allclose(metrics["center"], expected, rtol=1e-6)
    assert after.keys() == {"center"}
    moved = center.update(given, state["center"], rate=0.25)
    np.testing.assert_allclose(after["center"], moved, rtol=1e-5, atol=1e-7)
    state = after


def test_no_gradient_flows_through_the_state():
  given, state = batch(), state_of(CENTER)

  @jax.jit
  @jax.grad
  def slope(features):
    inputs = given._replace(features=features)
    return terms.weighted_sum(CENTER, inputs, state)[2]["center"].sum()

  np.testing.assert_array_equal(slope(given.features), 0)


def test_a_joint_head_gives_each_loss_its_part():
  rng = np.random.default_rng(5)
  embeddings = rng.normal(size=(6, 2, 8))
  logits = rng.normal(size=(6, 2, 3))
  labels = np.array([0, 1, 2, 0, 0, 1])
  counts = [9, 5, 2]
  both = make_inputs(
    np.concatenate([embeddings, logits], axis=-1), labels, counts=counts
  )._replace(head={"projection": {}})
  together, metrics, _ = terms.weighted_sum(
    {"balanced_softmax": {}, "sup_con": {"temperature": 0.3, "weight": 0.5}},
    both,
    {},
  )
  of_logits = make_inputs(logits, labels, counts=counts)
  of_embeddings = make_inputs(embeddings, labels, counts=counts)
  alone, _, _ = terms.weighted_sum({"balanced_softmax": {}}, of_logits, {})
  apart, _, _ = terms.weighted_sum(
    {"sup_con": {"temperature": 0.3}}, of_embeddings, {}
  )
  np.testing.assert_allclose(together, alone + 0.5 * apart, rtol=1e-6)
  np.testing.assert_allclose(metrics["balanced_softmax"], alone, rtol=1e-6)
