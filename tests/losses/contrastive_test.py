"""Contrastive losses against their papers' formulas.

NT-Xent by row blocks has the plain form's values, in a fraction of its memory.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import assert_gradient, make_inputs, rows, run, slopes
from jax.sharding import PartitionSpec

from dbl_jax.losses import metric_learning as losses
from dbl_jax.runtime import distributed

pytestmark = pytest.mark.usefixtures("debug_nans")

LABELS = np.array([0, 1, 0, 2, 0])  # class 3 is absent, 1 and 2 have one image
COUNTS = np.array([30.0, 10, 5, 2])


def cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def literal_nt_xent(z, temperature):
  """Eq. (1)-(3) as they are printed, in float64, with loops."""
  n = len(z)
  rows = {2 * k + 1 + view: z[k, view] for k in range(n) for view in (0, 1)}

  def pair_loss(i, j):  # eq. (1), with the cosine of eq. (2)
    others = [k for k in range(1, 2 * n + 1) if k != i]
    total = sum(np.exp(cosine(rows[i], rows[k]) / temperature) for k in others)
    return -np.log(np.exp(cosine(rows[i], rows[j]) / temperature) / total)

  return sum(  # eq. (3)
    pair_loss(2 * k - 1, 2 * k) + pair_loss(2 * k, 2 * k - 1)
    for k in range(1, n + 1)
  ) / (2 * n)


def literal_sup_con(z, labels, temperature):
  """Khosla et al. 2020, eq. (2)."""
  views = rows(z, labels)

  def near(i, a):
    return np.exp(cosine(views[i][0], views[a][0]) / temperature)

  values = []
  for i, (_, label) in enumerate(views):
    others = [a for a in range(len(views)) if a != i]
    positives = [p for p in others if views[p][1] == label]
    total = sum(near(i, a) for a in others)
    terms = [np.log(near(i, p) / total) for p in positives]
    values.append(-sum(terms) / len(positives))
  return np.mean(values)


def literal_balanced(z, labels, prototypes, temperature):
  """Zhu et al. 2022, eq. (5), with their code's sizes |B_j|."""
  views = rows(z, labels)
  members = views + [(row, j) for j, row in enumerate(prototypes)]

  def near(i, k):
    return np.exp(cosine(views[i][0], members[k][0]) / temperature)

  values = []
  for i, (_, label) in enumerate(views):
    total = 0
    for j in range(len(prototypes)):
      of_class = [k for k, m in enumerate(members) if m[1] == j and k != i]
      total += sum(near(i, k) for k in of_class) / len(of_class)
      if j == label:
        positives = of_class
    terms = [np.log(near(i, p) / total) for p in positives]
    values.append(-sum(terms) / len(positives))
  return np.mean(values)


def embeddings(n, dim=16, seed=0, views=2):
  return np.random.default_rng(seed).normal(size=(n, views, dim))


PROTOTYPES = np.random.default_rng(9).normal(size=(4, 4))


def batch(z, labels=LABELS, prototypes=PROTOTYPES):
  return make_inputs(z, labels, counts=COUNTS, head={"prototypes": prototypes})


def float32(values):
  return jnp.asarray(values, jnp.float32)


nt_xent = jax.jit(losses.nt_xent)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_nt_xent_equals_the_paper(n, temperature):
  z = embeddings(n)
  np.testing.assert_allclose(
    nt_xent(float32(z), temperature),
    literal_nt_xent(z, temperature),
    rtol=1e-5,
    atol=1e-5,
  )


def test_nt_xent_gradient_by_finite_differences():
  z = embeddings(3, dim=4)
  gradient = jax.jit(jax.grad(losses.nt_xent))(float32(z), 0.3)
  assert_gradient(gradient, slopes(lambda z: literal_nt_xent(z, 0.3), z))


def test_nt_xent_does_not_see_labels_and_counts_hits():
  # Both views of an image are alike, and unlike those of the others.
  z = np.repeat(embeddings(5)[:, :1], 2, axis=1)
  for labels in (LABELS, LABELS[::-1]):
    value, metrics, _ = run(
      losses.nt_xent_term, batch(z, labels), temperature=0.2
    )
    np.testing.assert_allclose(value, literal_nt_xent(z, 0.2), rtol=1e-5)
    assert metrics == {"contrastive_accuracy": 1}


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.07), (3, 0.5)])
def test_sup_con_and_its_gradient_equal_the_paper(views, temperature):
  z = embeddings(5, dim=4, views=views)

  def expected(z):
    return literal_sup_con(z, LABELS, temperature)

  value, _, gradients = run(losses.sup_con, batch(z), temperature=temperature)
  np.testing.assert_allclose(value, expected(z), rtol=1e-5)
  assert_gradient(gradients["outputs"], slopes(expected, z))


@pytest.mark.parametrize(("views", "temperature"), [(1, 0.5), (2, 0.07)])
def test_balanced_contrastive_and_its_gradients_equal_the_paper(
  views, temperature
):
  z = embeddings(5, dim=4, views=views)

  def expected(z, prototypes):
    return literal_balanced(z, LABELS, prototypes, temperature)

  value, _, gradients = run(
    losses.balanced_contrastive, batch(z), temperature=temperature
  )
  np.testing.assert_allclose(value, expected(z, PROTOTYPES), rtol=1e-5)
  by_rows = slopes(lambda z: expected(z, PROTOTYPES), z)
  assert_gradient(gradients["outputs"], by_rows)
  by_prototypes = slopes(lambda p: expected(z, p), PROTOTYPES)
  assert_gradient(gradients["head"]["prototypes"], by_prototypes)


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


def noisy(n, dim=16):
  """Two noisy views of each point, so that some positives are the nearest."""
  rng = np.random.default_rng(0)
  z = rng.normal(size=(n, 1, dim)) + 0.8 * rng.normal(size=(n, 2, dim))
  return jnp.asarray(z, jnp.float32)


jitted = jax.jit(losses.loss_and_accuracy)


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
    monkeypatch.setattr(losses, "_BLOCK", block)
  z = noisy(n)
  found = with_gradient(losses.loss_and_accuracy)(z)
  assert_equal(found, with_gradient(plain)(z))
  assert n < 16 or 0 < found[0][1] < 1


def test_the_gradient_scales_and_reaches_the_temperature():
  z, h = noisy(5), 1e-3

  @jax.jit
  @jax.grad
  def slope(temperature):
    return 3 * losses.loss_and_accuracy(z, temperature)[0]

  above, below = (with_gradient(plain, 0.5 + step)(z)[0][0] for step in (h, -h))
  np.testing.assert_allclose(slope(0.5), 3 * (above - below) / (2 * h), 1e-3)


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (300, 130)])
def test_collapsed_embeddings_score_nothing(n, dim):
  z = jnp.broadcast_to(noisy(1, dim)[:, :1], (n, 2, dim))
  loss, accuracy = jitted(z, TAU)
  np.testing.assert_allclose(loss, np.log(2 * n - 1), rtol=1e-5)
  assert accuracy == 0


def test_a_positive_as_near_as_another_view_is_no_hit():
  east, north = jnp.eye(4)[:2]
  z = jnp.array([[east, east], [east, north], [-east, -east]])
  _, accuracy = jitted(z, TAU)
  assert accuracy == pytest.approx(2 / 6)  # only the last pair


def test_bfloat16_is_computed_in_float32():
  z = noisy(9).astype(jnp.bfloat16)
  (loss, _), gradient = with_gradient(losses.loss_and_accuracy)(z)
  assert gradient.dtype == jnp.bfloat16
  (expected, _), _ = with_gradient(plain)(z.astype(jnp.float32))
  np.testing.assert_allclose(loss, expected, 1e-6)


def test_other_than_two_views_are_refused():
  with pytest.raises(ValueError, match="two views"):
    losses.loss_and_accuracy(jnp.ones((4, 3, 8)), TAU)


def test_memory_is_a_twentieth_of_the_plain_form():
  z = jax.ShapeDtypeStruct((8192, 2, 128), jnp.float32)
  blocks, whole = (
    with_gradient(f).lower(z).compile().memory_analysis().temp_size_in_bytes
    for f in (losses.loss_and_accuracy, plain)
  )
  assert blocks < whole / 20


@pytest.mark.parametrize(
  ("n", "block"), [(8, 8), (40, 3), (33, 8), (512, None)]
)
def test_eight_devices_give_what_one_gives(monkeypatch, n, block):
  if block:
    monkeypatch.setattr(losses, "_BLOCK", block)
  z = noisy(n)
  expected = with_gradient(plain)(z)
  mesh = distributed.make_mesh(jax.devices())
  assert mesh.size == 8
  if n % 8 == 0:  # else a batch cannot be split
    z = jax.device_put(z, distributed.batched(mesh))
  with jax.set_mesh(mesh):
    found = with_gradient(losses.loss_and_accuracy)(z)
  assert_equal(found, expected)
  assert n % 8 or found[1].sharding == distributed.batched(mesh)
  # Without the context mesh the compiler splits the work as it likes.
  assert_equal(with_gradient(losses.loss_and_accuracy)(z), expected)


def test_devices_exchange_embeddings_and_logsumexps_only():
  n, dim = 1024, 32
  mesh = distributed.make_mesh(jax.devices())
  z = jax.ShapeDtypeStruct(
    (n, 2, dim), jnp.float32, sharding=distributed.batched(mesh)
  )
  with jax.set_mesh(mesh):
    compiled = with_gradient(losses.loss_and_accuracy).lower(z).compile()
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
  assert max(sizes) == losses._BLOCK * 2 * n


def test_inside_a_mapped_function_each_device_is_on_its_own():
  mesh, z = distributed.make_mesh(jax.devices()), noisy(64)

  def local(z):
    return losses.loss_and_accuracy(z, TAU)[0][None]

  split = PartitionSpec("data")
  with jax.set_mesh(mesh):
    spread = jax.jit(jax.shard_map(local, in_specs=split, out_specs=split))
    found = spread(z)
  one = with_gradient(plain)
  expected = [one(part)[0][0] for part in jnp.split(z, 8)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
