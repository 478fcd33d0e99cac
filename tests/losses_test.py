"""Losses against the paper's formulas, other code and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dbl_jax import losses


def literal_nt_xent(z, temperature):
  """Eq. (1)-(3) as they are printed, in float64, with loops."""
  n = len(z)
  rows = {2 * k + 1 + view: z[k, view] for k in range(n) for view in (0, 1)}

  def sim(a, b):  # eq. (2)
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

  def pair_loss(i, j):  # eq. (1)
    others = [k for k in range(1, 2 * n + 1) if k != i]
    total = sum(np.exp(sim(rows[i], rows[k]) / temperature) for k in others)
    return -np.log(np.exp(sim(rows[i], rows[j]) / temperature) / total)

  return sum(  # eq. (3)
    pair_loss(2 * k - 1, 2 * k) + pair_loss(2 * k, 2 * k - 1)
    for k in range(1, n + 1)
  ) / (2 * n)


def embeddings(n, dim=16, seed=0):
  return np.random.default_rng(seed).normal(size=(n, 2, dim))


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_nt_xent_equals_the_paper(n, temperature):
  z = embeddings(n)
  np.testing.assert_allclose(
    losses.nt_xent(jnp.asarray(z, jnp.float32), temperature),
    literal_nt_xent(z, temperature),
    rtol=1e-5,
    atol=1e-5,
  )


def test_nt_xent_equals_optax():
  z = jnp.asarray(embeddings(8), jnp.float32)
  with jax.numpy_rank_promotion("allow"):
    expected = optax.losses.ntxent(
      z.transpose(1, 0, 2).reshape(16, -1), jnp.tile(jnp.arange(8), 2), 0.3
    )
  np.testing.assert_allclose(
    losses.nt_xent(z, 0.3), jnp.mean(expected), rtol=1e-5
  )


@pytest.mark.parametrize("n", [2, 16])
def test_nt_xent_of_equal_rows_is_log_of_the_others(n):
  z = jnp.ones((n, 2, 8))
  np.testing.assert_allclose(
    losses.nt_xent(z, 0.1), np.log(2 * n - 1), rtol=1e-5
  )


def test_nt_xent_of_orthogonal_pairs():
  n, temperature = 4, 0.5
  z = jnp.repeat(jnp.eye(n)[:, None], 2, axis=1)
  expected = np.log(np.exp(1 / temperature) + 2 * n - 2) - 1 / temperature
  np.testing.assert_allclose(
    losses.nt_xent(z, temperature), expected, rtol=1e-5
  )


def test_nt_xent_does_not_see_length_or_order():
  z = jnp.asarray(embeddings(6), jnp.float32)
  scale = jnp.linspace(0.1, 30, 12).reshape(6, 2, 1)
  value = losses.nt_xent(z, 0.2)
  np.testing.assert_allclose(losses.nt_xent(z * scale, 0.2), value, rtol=1e-5)
  np.testing.assert_allclose(
    losses.nt_xent(z[::-1, ::-1], 0.2), value, rtol=1e-5
  )


def test_nt_xent_gradient_by_finite_differences():
  z = embeddings(3, dim=4)
  gradient = jax.grad(losses.nt_xent)(jnp.asarray(z, jnp.float32), 0.3)
  for place in [(0, 0, 0), (1, 1, 3), (2, 0, 2)]:
    step = np.zeros_like(z)
    step[place] = 1e-5
    rise = literal_nt_xent(z + step, 0.3) - literal_nt_xent(z - step, 0.3)
    np.testing.assert_allclose(gradient[place], rise / 2e-5, rtol=1e-3)


def test_cross_entropy_equals_its_definition():
  logits = jnp.array([[[2.0, 0.0, -1.0]], [[0.0, 0.0, 0.0]]])
  loss, figures = losses.cross_entropy_term(logits, jnp.array([0, 2]))
  expected = [np.log(np.exp(2) + 1 + np.exp(-1)) - 2, np.log(3)]
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
  assert figures["accuracy"] == 0.5


def test_weighted_sum_adds_terms_by_weight():
  logits = jnp.array([[[2.0, 0.0], [1.0, 0.0]]])
  labels = jnp.array([0])
  loss, figures = losses.weighted_sum(
    {"cross_entropy": {"weight": 2.0}, "nt_xent": {"temperature": 1.0}},
    logits,
    labels,
  )
  np.testing.assert_allclose(
    loss, 2 * figures["cross_entropy"] + figures["nt_xent"], rtol=1e-6
  )
