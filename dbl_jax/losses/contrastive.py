"""Contrastive losses on embeddings: with no labels, or with them."""

import jax
import jax.numpy as jnp

from dbl_jax.losses import nt_xent as pairs
from dbl_jax.losses.seen import Seen, Value, as_rows, labels_of_rows


def nt_xent(z: jax.Array, temperature: float) -> jax.Array:
  """Normalised temperature-scaled cross-entropy over pairs of views.

  Source: the paper's eq. (1)-(3); Chen et al. 2020, SimCLR. With rows numbered
  2k-1 and 2k for the two views of example k,

    l(i, j) = -log exp(s_ij / tau) / sum_{m != i} exp(s_im / tau)
    L = 1/(2N) sum_k [l(2k-1, 2k) + l(2k, 2k-1)],

  where s is cosine similarity. `losses.nt_xent` says how it is computed.

  Args:
    z: f32[N, 2, D], embeddings of two views of each of N examples.
    temperature: tau > 0.

  Returns:
    f32[], the mean over all 2N views.
  """
  return pairs.loss_and_accuracy(z, temperature)[0]


def nt_xent_term(seen: Seen, *, temperature: float) -> Value:
  """`nt_xent`, with how often the positive is the nearest view.

  Args:
    seen: with embeddings f32[N, 2, D].
    temperature: tau > 0.

  Returns:
    The loss and {'contrastive_accuracy': f32[]}; a tie is no hit, so that
    embeddings which are all the same score 0.
  """
  loss, accuracy = pairs.loss_and_accuracy(seen.embeddings, temperature)
  return loss, {"contrastive_accuracy": accuracy}


def sup_con(seen: Seen, *, temperature: float) -> Value:
  """Supervised contrastive loss: all views of a class are positives.

  Khosla et al. 2020, eq. (2), L_out: for view i with positives P(i), the other
  views of its class,

    L_i = -1/|P(i)| sum_{p in P(i)} log exp(s_ip / tau) /
          sum_{a != i} exp(s_ia / tau).

  Args:
    seen: with embeddings f32[B, V, D], V at least 2.
    temperature: tau > 0.

  Returns:
    The mean over all views and no figures.
  """
  z, labels = _unit(as_rows(seen.embeddings)), labels_of_rows(seen)
  logits = _similarities(z, z) / temperature
  other = ~jnp.eye(len(z), dtype=bool)
  log_p = logits - _logsumexp(logits, other)
  positive = (labels[:, None] == labels[None]) & other
  return -_mean_where(log_p, positive).mean(), {}


def balanced_contrastive(seen: Seen, *, temperature: float) -> Value:
  """Balanced contrastive loss (BCL): no class outweighs another.

  Zhu et al. 2022, eq. (5): in the denominator each class's views count by
  their mean (class-averaging), and every class has a learned prototype in
  every batch (class-complement), so that none is absent:

    L_i = -1/|B_y| sum_{p in B_y} log exp(s_ip / tau) /
          sum_j 1/|B_j| sum_{k in B_j} exp(s_ik / tau),

  where B_j holds the batch's views of class j and its prototype, without view
  i. The prototypes are the head's (option `prototypes`); the paper makes them
  of the weights of a classifier trained beside, which phase 1 of DBL has not.

  Args:
    seen: with embeddings f32[B, V, D]; the head has prototypes [C, D].
    temperature: tau > 0.

  Returns:
    The mean over all views and no figures.
  """
  z, labels = _unit(as_rows(seen.embeddings)), labels_of_rows(seen)
  prototypes = _unit(seen.prototypes)
  num_classes = len(prototypes)
  columns = jnp.concatenate([labels, jnp.arange(num_classes)])
  points = jnp.concatenate([z, prototypes])
  logits = _similarities(z, points) / temperature
  other = jnp.arange(len(columns))[None] != jnp.arange(len(z))[:, None]
  same = labels[:, None] == columns[None]
  members = jnp.bincount(columns, length=num_classes)[columns]
  # Without view i, its own class has one member less: at least its prototype.
  sizes = jnp.maximum(members[None] - same, 1).astype(jnp.float32)
  log_p = logits - _logsumexp(logits - jnp.log(sizes), other)
  return -_mean_where(log_p, same & other).mean(), {}


def _unit(z: jax.Array) -> jax.Array:
  """Rows of length 1; an all-zero row stays, with a finite gradient."""
  z = z.astype(jnp.float32)
  squares = jnp.sum(z * z, axis=-1, keepdims=True)
  return z * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def _similarities(a: jax.Array, b: jax.Array) -> jax.Array:
  """a @ b.T in full float32, as a low temperature magnifies rounding."""
  return jnp.matmul(a, b.T, precision="highest")


def _logsumexp(logits: jax.Array, where: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(logits, axis=1, keepdims=True, where=where)


def _mean_where(values: jax.Array, where: jax.Array) -> jax.Array:
  total = jnp.sum(values, axis=1, where=where)
  return total / jnp.maximum(where.sum(axis=1), 1)
