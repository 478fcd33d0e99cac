"""NT-Xent by row blocks: the plain form's values, in a fraction of memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dbl_jax.losses import contrastive
from dbl_jax.runtime import sharding

pytestmark = pytest.mark.usefixtures("debug_nans")

TAU = 0.1


def plain(z, temperature):
  """The same, with the whole matrix of similarities."""
  z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  rows = z.reshape(-1, z.shape[-1])
  similarities = jnp.matmul(rows, rows.T, precision="highest") / temperature
  itself = jnp.eye(len(rows), dtype=bool)
  similarities = jnp.where(itself, -jnp.inf, similarities)
  positives = similarities[jnp.arange(len(rows)), jnp.arange(len(rows)) ^ 1]
  losses = jax.nn.logsumexp(similarities, axis=-1) - positives
  nearest = jnp.argmax(similarities, axis=-1)
  hits = nearest == jnp.arange(len(rows)) ^ 1
  return losses.mean(), hits.astype(jnp.float32).mean()


def embeddings(n, dim=16, seed=0):
  """Two noisy views of each point, so that some positives are the nearest."""
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(n, 1, dim)) + 0.8 * rng.normal(size=(n, 2, dim))
  return jnp.asarray(z, jnp.float32)


jitted = jax.jit(contrastive.loss_and_accuracy)


def with_gradient(function, temperature=TAU):
  return jax.jit(
    jax.value_and_grad(lambda z: function(z, temperature), has_aux=True)
  )


def assert_equal(found, expected):
  (loss, accuracy), gradient = found
  (expected_loss, expected_accuracy), expected_gradient = expected
  np.testing.assert_allclose(loss, expected_loss, rtol=2e-6, atol=2e-6)
  np.testing.assert_allclose(accuracy, expected_accuracy, atol=1e-6)
  scale = np.abs(expected_gradient).max()
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * scale)


@pytest.mark.parametrize(
  ("n", "block"),
  [(1, 8), (3, 8), (4, 8), (16, 8), (17, 8), (19, 5), (300, None)],
)
def test_blocks_equal_the_plain_form(monkeypatch, n, block):
  if block:
    monkeypatch.setattr(contrastive, "_BLOCK", block)
  z = embeddings(n)
  found = with_gradient(contrastive.loss_and_accuracy)(z)
  assert_equal(found, with_gradient(plain)(z))
  assert n < 16 or 0 < found[0][1] < 1


def test_the_gradient_scales_and_reaches_the_temperature():
  z, h = embeddings(5), 1e-3

  @jax.jit
  @jax.grad
  def slope(temperature):
    return 3 * contrastive.loss_and_accuracy(z, temperature)[0]

  above, below = (with_gradient(plain, 0.5 + step)(z)[0][0] for step in (h, -h))
  np.testing.assert_allclose(slope(0.5), 3 * (above - below) / (2 * h), 1e-3)


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (300, 130)])
def test_collapsed_embeddings_score_nothing(n, dim):
  z = jnp.broadcast_to(embeddings(1, dim)[:, :1], (n, 2, dim))
  loss, accuracy = jitted(z, TAU)
  np.testing.assert_allclose(loss, np.log(2 * n - 1), rtol=1e-5)
  assert accuracy == 0


def test_a_positive_as_near_as_another_view_is_no_hit():
  east, north = jnp.eye(4)[:2]
  z = jnp.array([[east, east], [east, north], [-east, -east]])
  _, accuracy = jitted(z, TAU)
  assert accuracy == pytest.approx(2 / 6)  # only the last pair


def test_bfloat16_is_computed_in_float32():
  z = embeddings(9).astype(jnp.bfloat16)
  (loss, _), gradient = with_gradient(contrastive.loss_and_accuracy)(z)
  assert gradient.dtype == jnp.bfloat16
  (expected, _), _ = with_gradient(plain)(z.astype(jnp.float32))
  np.testing.assert_allclose(loss, expected, 1e-6)


def test_other_than_two_views_are_refused():
  with pytest.raises(ValueError, match="two views"):
    contrastive.loss_and_accuracy(jnp.ones((4, 3, 8)), TAU)


def test_memory_is_a_twentieth_of_the_plain_form():
  z = jax.ShapeDtypeStruct((8192, 2, 128), jnp.float32)
  blocks, whole = (
    with_gradient(f).lower(z).compile().memory_analysis().temp_size_in_bytes
    for f in (contrastive.loss_and_accuracy, plain)
  )
  assert blocks < whole / 20


@pytest.mark.parametrize(
  ("n", "block"), [(8, 8), (40, 3), (33, 8), (512, None)]
)
def test_eight_devices_give_what_one_gives(monkeypatch, n, block):
  if block:
    monkeypatch.setattr(contrastive, "_BLOCK", block)
  z = embeddings(n)
  expected = with_gradient(plain)(z)
  mesh = sharding.make_mesh(jax.devices())
  assert mesh.size == 8
  if n % 8 == 0:  # else a batch cannot be split
    z = jax.device_put(z, sharding.batched(mesh))
  with jax.set_mesh(mesh):
    found = with_gradient(contrastive.loss_and_accuracy)(z)
  assert_equal(found, expected)
  assert n % 8 or found[1].sharding == sharding.batched(mesh)
  # Without the context mesh the compiler splits the work as it likes.
  assert_equal(with_gradient(contrastive.loss_and_accuracy)(z), expected)


def test_devices_exchange_embeddings_and_logsumexps_only():
  n, dim = 1024, 32
  mesh = sharding.make_mesh(jax.devices())
  z = jax.ShapeDtypeStruct(
    (n, 2, dim), jnp.float32, sharding=sharding.batched(mesh)
  )
  with jax.set_mesh(mesh):
    compiled = with_gradient(contrastive.loss_and_accuracy).lower(z).compile()
  text = compiled.as_text()
  gathers = re.findall(r"= (\S+?)\{[^ ]* all-gather(?:-start)?\(", text)
  assert sorted(gathers) == [f"f32[{2 * n},{dim}]", f"f32[{2 * n}]"]
  for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
    assert set(re.findall(r"\[(.*?)\]", shapes)) == {""}  # scalars
  other = r"reduce-scatter|collective-permute|all-to-all|collective-broadcast"
  assert not re.search(rf" (?:{other})(?:-start)?\(", text)
  sizes = {
    int(np.prod([int(side) for side in shape.split(",")]))
    for shape in re.findall(r"\w\d+\[([\d,]+)\]", text)
  }
  assert max(sizes) == contrastive._BLOCK * 2 * n


def test_inside_a_mapped_function_each_device_is_on_its_own():
  mesh, z = sharding.make_mesh(jax.devices()), embeddings(64)

  def local(z):
    return contrastive.loss_and_accuracy(z, TAU)[0][None]

  split = PartitionSpec("data")
  with jax.set_mesh(mesh):
    spread = jax.jit(jax.shard_map(local, in_specs=split, out_specs=split))
    found = spread(z)
  one = with_gradient(plain)
  expected = [one(part)[0][0] for part in jnp.split(z, 8)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
