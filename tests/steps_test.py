"""Steps: what they change, what they leave, and that devices do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from dbl_jax import sharding
from dbl_jax.data import pipeline, sources
from dbl_jax.trainer import make_trainer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return tiny.get_resolved(cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def dataset(config):
  return sources.load(config.data)


def encoder_of(trainer):
  return {
    "params": trainer.state.params["encoder"],
    "batch_stats": trainer.state.batch_stats["encoder"],
  }


def run(trainer, steps):
  state, rows = trainer.state, []
  for batch in pipeline.batches(trainer.feed, 0, steps):
    state, figures = trainer.step(
      state, trainer.feed.resident, batch, trainer.key
    )
    rows.append(jax.device_get(figures))
  return state, rows


def start(config, dataset, phase, devices=None, encoder=None):
  mesh = sharding.make_mesh(devices)
  return make_trainer(config, phase, dataset, mesh, encoder)


def host(tree):
  return jax.tree.map(np.asarray, tree)


@pytest.fixture
def some_encoder(config, dataset):
  return host(encoder_of(start(config, dataset, "pretrain")))


def test_pretraining_moves_everything(config, dataset):
  trainer = start(config, dataset, "pretrain")
  before = host(trainer.state.model())
  state, rows = run(trainer, 3)
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(state.model()), strict=True
  ):
    assert (old != np.asarray(new)).any()
  assert int(state.step) == 3
  assert all(np.isfinite(row["loss"]) for row in rows)


def test_the_two_views_of_one_image_are_the_positives(config, dataset):
  plain = config.copy_and_resolve_references()
  plain.pretrain.augment.update(
    crop_scale=None, flip=0.0, jitter_prob=0.0, grey=0.0, blur=0.0, rotation=0.0
  )
  _, rows = run(start(plain, dataset, "pretrain"), 1)
  assert rows[0]["contrastive_accuracy"] == 1


def test_phase_2_leaves_the_encoder_bit_for_bit(config, dataset, some_encoder):
  trainer = start(config, dataset, "classify", encoder=some_encoder)
  head = host(trainer.state.params["head"])
  state, _ = run(trainer, 3)
  after = {
    "params": state.params["encoder"],
    "batch_stats": state.batch_stats["encoder"],
  }
  jax.tree.map(np.testing.assert_array_equal, some_encoder, host(after))
  for old, new in zip(
    jax.tree.leaves(head), jax.tree.leaves(state.params["head"]), strict=True
  ):
    assert (old != np.asarray(new)).any()


def test_phase_2_has_no_optimizer_state_for_the_encoder(
  config, dataset, some_encoder
):
  trainer = start(config, dataset, "classify", encoder=some_encoder)
  head = trainer.state.params["head"]
  in_head = {leaf.shape for leaf in jax.tree.leaves(head)}
  shapes = {leaf.shape for leaf in jax.tree.leaves(trainer.state.opt_state)}
  assert shapes <= in_head | {()}


def flops(trainer):
  batch = next(pipeline.batches(trainer.feed, 0, 1))
  compiled = trainer.step.lower(
    trainer.state, trainer.feed.resident, batch, trainer.key
  ).compile()
  return compiled.cost_analysis()["flops"]


def test_phase_2_has_no_backward_pass_through_the_encoder(
  config, dataset, some_encoder
):
  frozen = start(config, dataset, "classify", encoder=some_encoder)
  whole = config.copy_and_resolve_references()
  whole.classify.trained = ("encoder", "head")
  trained = start(whole, dataset, "classify", encoder=some_encoder)
  kernel = some_encoder["params"]["conv"]["kernel"]
  # The kernel's gradient costs what the convolution does: 2 FLOP a product.
  convolution = 2 * 32 * 4 * 4 * kernel.size / 8
  assert flops(trained) - flops(frozen) > 0.9 * convolution


@pytest.mark.parametrize("phase", ["pretrain", "classify"])
def test_one_and_eight_devices_train_alike(
  config, dataset, some_encoder, phase
):
  # Adam would turn rounding of a gradient that is zero into a whole step.
  config = config.copy_and_resolve_references()
  config[phase].optimizer.update(name="sgd", learning_rate=0.1)
  states, losses = [], []
  for devices in (jax.devices()[:1], jax.devices()):
    trainer = start(config, dataset, phase, devices, some_encoder)
    state, rows = run(trainer, 3)
    states.append(host(state.model()))
    losses.append([row["loss"] for row in rows])
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-4),
    *states,
  )


def test_streamed_images_train_alike(config, dataset):
  streamed = config.copy_and_resolve_references()
  streamed.data.input = "tf_data"
  a, _ = run(start(config, dataset, "pretrain"), 3)
  b, _ = run(start(streamed, dataset, "pretrain"), 3)
  jax.tree.map(np.testing.assert_array_equal, host(a.model()), host(b.model()))


def test_seeds_differ_and_repeat(config, dataset):
  other = config.copy_and_resolve_references()
  other.seed = 1
  first, again, second = (
    run(start(c, dataset, "pretrain"), 2)[1][-1]["loss"]
    for c in (config, config, other)
  )
  assert first == again
  assert first != second


def test_bfloat16_keeps_parameters_and_statistics_in_float32(config, dataset):
  half = config.copy_and_resolve_references()
  half.model.update(name="resnet18", dtype="bfloat16")
  trainer = start(half, dataset, "pretrain")
  for leaf in jax.tree.leaves(trainer.state.model()):
    assert leaf.dtype == jnp.float32
