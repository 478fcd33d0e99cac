"""Contrastive losses against their papers' formulas and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import assert_gradient, make_inputs, rows, run, slopes

from dbl_jax.losses import contrastive

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


nt_xent = jax.jit(contrastive.nt_xent)


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
  gradient = jax.jit(jax.grad(contrastive.nt_xent))(float32(z), 0.3)
  assert_gradient(gradient, slopes(lambda z: literal_nt_xent(z, 0.3), z))


def test_nt_xent_does_not_see_labels_and_counts_hits():
  # Both views of an image are alike, and unlike those of the others.
  z = np.repeat(embeddings(5)[:, :1], 2, axis=1)
  for labels in (LABELS, LABELS[::-1]):
    value, metrics, _ = run(
      contrastive.nt_xent_term, batch(z, labels), temperature=0.2
    )
    np.testing.assert_allclose(value, literal_nt_xent(z, 0.2), rtol=1e-5)
    assert metrics == {"contrastive_accuracy": 1}


@pytest.mark.parametrize(("views", "temperature"), [(2, 0.07), (3, 0.5)])
def test_sup_con_and_its_gradient_equal_the_paper(views, temperature):
  z = embeddings(5, dim=4, views=views)

  def expected(z):
    return literal_sup_con(z, LABELS, temperature)

  value, _, gradients = run(
    contrastive.sup_con, batch(z), temperature=temperature
  )
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
    contrastive.balanced_contrastive, batch(z), temperature=temperature
  )
  np.testing.assert_allclose(value, expected(z, PROTOTYPES), rtol=1e-5)
  by_rows = slopes(lambda z: expected(z, PROTOTYPES), z)
  assert_gradient(gradients["outputs"], by_rows)
  by_prototypes = slopes(lambda p: expected(z, p), PROTOTYPES)
  assert_gradient(gradients["head"]["prototypes"], by_prototypes)
