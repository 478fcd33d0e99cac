"""Steps: what they change, what they leave, and that devices do not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tiny
from dbl_jax.augment import views
from dbl_jax.data import pipeline, sources
from dbl_jax.evaluation.predictions import make_forward
from dbl_jax.runtime import distributed
from dbl_jax.training import steps
from dbl_jax.training.loop import compile_phase
from dbl_jax.training.phase import make_phase

pytestmark = pytest.mark.usefixtures("debug_nans")

NO_AUGMENTATION = {
  "crop_scale": None, "flip": 0.0, "jitter_prob": 0.0, "grey": 0.0,
  "blur": 0.0, "rotation": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(cache):
  return tiny.get_resolved(cache_dir=cache)


@pytest.fixture(scope="module")
def dataset(config):
  return sources.load(config.data)


def run(compiled, num_steps):
  """The state after a number of steps, and the metrics of each step."""
  *_, (state, _) = parts = list(tiny.steps_of(compiled, num_steps))
  return state, [row for _, rows in parts for row in rows]


def start(config, dataset, phase, devices=None, given=None):
  made = make_phase(config, phase, dataset, given)
  mesh = distributed.make_mesh(*[devices] if devices else [])
  return compile_phase(made, dataset.splits, mesh, config)


def host(tree):
  return jax.tree.map(np.asarray, tree)


def facts_of(compiled):
  """What differs by seed: weights, the order of images, the views' key."""
  kernel = compiled.state.params["encoder"]["conv"]["kernel"]
  key = jax.random.key_data(compiled.phase.key)
  return host((kernel, first_batches(compiled)["id"], key))


@pytest.fixture(scope="module")
def pretrained(config, dataset):
  """The model before and after three steps, their metrics, and its facts."""
  compiled = start(config, dataset, "pretrain")
  before, facts = host(compiled.state.model()), facts_of(compiled)
  state, rows = run(compiled, 3)
  return before, state.model(), rows, facts


@pytest.fixture
def some_model(pretrained):
  return pretrained[0]


def test_pretraining_moves_everything(pretrained):
  before, after, rows, _ = pretrained
  for old, new in zip(*map(jax.tree.leaves, (before, after)), strict=True):
    assert (old != new).any()
  assert all(np.isfinite(row["loss"]) for row in rows)


def test_the_two_views_of_one_image_are_the_positives(config, dataset):
  plain = config.copy_and_resolve_references()
  plain.pretrain.augment.update(NO_AUGMENTATION)
  _, rows = run(start(plain, dataset, "pretrain"), 1)
  assert rows[0]["contrastive_accuracy"] == 1


@pytest.mark.parametrize("cached", [0, 2])
def test_phase_2_leaves_the_encoder_bit_for_bit(
  config, dataset, some_model, cached
):
  config = config.copy_and_resolve_references()
  config.classify.cached_views = cached
  compiled = start(config, dataset, "classify", given=some_model)
  head = host(compiled.state.params["head"])
  state, _ = run(compiled, 3)
  for kind in ("params", "batch_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      some_model[kind]["encoder"],
      host(state.model()[kind]["encoder"]),
    )
  for old, new in zip(
    jax.tree.leaves(head), jax.tree.leaves(state.params["head"]), strict=True
  ):
    assert (old != np.asarray(new)).any()


def first_batches(compiled):
  most = compiled.max_steps_per_dispatch
  return pipeline.batch_reader(compiled.pipeline, 0, 1, most)(1)


def flops(compiled):
  return (
    compiled.train_steps.lower(
      compiled.state,
      compiled.pipeline.resident,
      first_batches(compiled),
      compiled.phase.key,
      1,
    )
    .compile()
    .cost_analysis()["flops"]
  )


def test_phase_2_has_no_backward_pass_through_the_encoder(
  config, dataset, some_model
):
  plain = config.copy_and_resolve_references()
  plain.classify.cached_views = 0
  frozen = start(plain, dataset, "classify", given=some_model)
  whole = plain.copy_and_resolve_references()
  whole.classify.trained = ("encoder", "head")
  trained = start(whole, dataset, "classify", given=some_model)
  kernel = some_model["params"]["encoder"]["conv"]["kernel"]
  # The kernel's gradient costs what the convolution does: 2 FLOP a product.
  convolution = 2 * 32 * 4 * 4 * kernel.size / 8
  assert flops(trained) - flops(frozen) > 0.9 * convolution


@pytest.mark.parametrize(
  ("phase", "cached"), [("pretrain", 0), ("classify", 3)]
)
def test_one_and_eight_devices_train_alike(
  config, dataset, some_model, phase, cached
):
  # Adam would turn rounding of a gradient that is zero into a whole step.
  config = config.copy_and_resolve_references()
  config[phase].optimizer.update(name="sgd", learning_rate=0.1)
  config[phase].cached_views = cached
  states, losses = [], []
  for devices in (jax.devices()[:1], jax.devices()):
    compiled = start(config, dataset, phase, devices, some_model)
    state, rows = run(compiled, 3)
    states.append(state.model())
    losses.append([row["loss"] for row in rows])
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-4),
    *states,
  )


def test_several_steps_in_one_dispatch_train_alike(config, dataset):
  # Adam would turn rounding of a gradient that is zero into a whole step.
  config = config.copy_and_resolve_references()
  config.pretrain.optimizer.update(name="sgd", learning_rate=0.1)
  states, losses = [], []
  for most in (1, 3):
    several = config.copy_and_resolve_references()
    several.steps_per_dispatch = most
    state, rows = run(start(several, dataset, "pretrain"), 5)
    states.append(state.model())
    losses.append([row["loss"] for row in rows])
  np.testing.assert_allclose(*losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states
  )


def test_cached_features_train_the_head_that_images_train(
  config, dataset, some_model
):
  heads = []
  for cached in (0, 1):
    form = config.copy_and_resolve_references()
    form.classify.augment.update(NO_AUGMENTATION)
    form.classify.cached_views = cached
    compiled = start(form, dataset, "classify", given=some_model)
    state, _ = run(compiled, 4)
    heads.append(state.params["head"])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *heads
  )


def test_cached_views_are_the_plain_image_and_random_ones(
  config, dataset, some_model
):
  several = config.copy_and_resolve_references()
  several.classify.cached_views = 3
  compiled = start(several, dataset, "classify", given=some_model)
  cached = compiled.splits["train"].images
  plain, *others = np.moveaxis(cached, 1, 0)
  phase, mesh = compiled.phase, distributed.make_mesh()
  predict_step = steps.make_eval_step(phase.model, phase.images, mesh)
  forward = make_forward(predict_step, compiled.state.model(), mesh)
  images = dataset.splits["train"].images
  np.testing.assert_allclose(plain, forward(images)[0], atol=1e-6)
  for other in others:
    assert (np.abs(other - plain).max(axis=1) > 1e-4).mean() > 0.9
  assert np.abs(others[0] - others[1]).max() > 1e-4


def test_each_step_draws_among_an_image_s_own_cached_views():
  features = jnp.arange(64 * 5.0).reshape(64, 5, 1)
  keys = jax.random.split(jax.random.key(0), 4)
  draw = feature_inputs(0.0).draw
  drawn = [draw(key, jnp.arange(64), features, None)[0] for key in keys]
  drawn = np.stack(drawn)[..., 0]
  assert drawn.shape == (4, 2, 64)
  np.testing.assert_array_equal(drawn // 5, np.tile(np.arange(64), (4, 2, 1)))
  drawn %= 5
  assert {*drawn.ravel()} == {0.0, 1.0, 2.0, 3.0, 4.0}
  assert len(np.unique(drawn[:, 0], axis=0)) == 4  # each step another choice
  assert (drawn[0, 0] != drawn[0, 1]).any()  # each view too


def test_streamed_images_train_alike(config, dataset, pretrained):
  """And the same seed trains the same model."""
  streamed = config.copy_and_resolve_references()
  streamed.data.input = "tf_data"
  compiled = start(streamed, dataset, "pretrain")
  jax.tree.map(np.testing.assert_array_equal, facts_of(compiled), pretrained[3])
  state, rows = run(compiled, 3)
  assert [row["loss"] for row in rows] == [row["loss"] for row in pretrained[2]]
  jax.tree.map(np.testing.assert_array_equal, state.model(), pretrained[1])


def test_seeds_differ(config, dataset, pretrained):
  other = config.copy_and_resolve_references()
  other.seed = 1
  another = facts_of(start(other, dataset, "pretrain"))
  for one, two in zip(pretrained[3], another, strict=True):
    assert (one != two).any()


def test_a_step_in_bfloat16_is_nearly_that_in_float32(config, dataset):
  losses, updates = [], []
  for dtype in ("float32", "bfloat16"):
    half = config.copy_and_resolve_references()
    half.model.dtype = dtype
    half.pretrain.optimizer.update(
      name="sgd", learning_rate=1.0, warmup=0.0, weight_decay=0.0
    )
    compiled = start(half, dataset, "pretrain")
    before = host(compiled.state.params)
    state, rows = run(compiled, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model())} == {
      jnp.dtype("float32")
    }
    moved = jax.tree.map(np.subtract, state.params, before)
    updates.append(np.concatenate([x.ravel() for x in jax.tree.leaves(moved)]))
    losses.append(rows[0]["loss"])
  assert losses[0] != losses[1]
  np.testing.assert_allclose(*losses, rtol=0.02)
  one, other = updates
  cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
  assert cosine > 0.8


IDS = jnp.arange(5) * 7
TARGETS = jnp.eye(5)  # no neighbour has an example's class
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
FEATURES = np.random.default_rng(1).normal(size=(5, 1, 3)).astype(np.float32)


def make_key():
  """The one key of these tests, which draw from it more than once."""
  return jax.random.key(3)


FLIP = NO_AUGMENTATION | {"flip": 0.5}


def image_inputs(mixup, augment=NO_AUGMENTATION):
  phase = {"views": 2, "mixup": mixup, "augment": augment}
  return steps.image_inputs(phase, 8, "trained")


def feature_inputs(mixup):
  return steps.feature_inputs({"views": 2, "mixup": mixup})


def test_without_mixup_views_and_targets_are_as_they_were():
  draw = jax.jit(image_inputs(0.0, FLIP).draw)
  drawn, targets = draw(make_key(), IDS, IMAGES, TARGETS)
  make = functools.partial(views.make_views, num_views=2, out_size=8, **FLIP)
  np.testing.assert_allclose(
    drawn, jax.jit(make)(make_key(), IDS, IMAGES), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(targets, TARGETS)


@pytest.mark.parametrize("kind", ["images", "features"])
def test_views_and_targets_are_mixed_alike_with_a_neighbour(kind):
  made, rows, own = {
    "images": (image_inputs(0.4), IMAGES, IMAGES / 255),
    "features": (feature_inputs(0.4), FEATURES, FEATURES[:, 0]),
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
  draw = jax.jit(image_inputs(0.4, FLIP).draw)
  drawn, _ = draw(make_key(), IDS, IMAGES, TARGETS)
  assert (drawn[0] != drawn[1]).any()


@functools.partial(jax.jit, static_argnums=0)
def shares_of(alpha, key, ids):
  """The share of each example, known as half of them are 1 and half 0."""
  one = jnp.arange(len(ids)) % 2
  targets = jax.nn.one_hot(one, 2)
  rows = one[:, None, None].astype(jnp.float32)
  _, targets = feature_inputs(alpha).draw(key, ids, rows, targets)
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
    feature_inputs(0.4).plain(FEATURES), FEATURES[:, 0]
  )
  np.testing.assert_allclose(
    image_inputs(0.4).plain(jnp.asarray(IMAGES)), IMAGES / 255, atol=1e-6
  )
