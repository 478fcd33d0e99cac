"""Losses, as terms a config names and weighs.

A term is a function of the model's outputs and the labels, returning the
loss and figures worth a look. `outputs` is f32[B, V, K]: B examples, V views
of each, K numbers a view (embeddings in phase 1, logits in phase 2).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dbl_jax.nt_xent import loss_and_accuracy

Term = tuple[jax.Array, dict[str, jax.Array]]


def nt_xent(z: jax.Array, temperature: float) -> jax.Array:
  """Normalised temperature-scaled cross-entropy over pairs of views.

  Source: the paper's eq. (1)-(3); Chen et al. 2020, SimCLR. With rows numbered
  2k-1 and 2k for the two views of example k,

    l(i, j) = -log exp(s_ij / tau) / sum_{m != i} exp(s_im / tau)
    L = 1/(2N) sum_k [l(2k-1, 2k) + l(2k, 2k-1)],

  where s is cosine similarity. `dbl_jax.nt_xent` says how it is computed.

  Args:
    z: f32[N, 2, D], embeddings of two views of each of N examples.
    temperature: tau > 0.

  Returns:
    f32[], the mean over all 2N views.
  """
  return loss_and_accuracy(z, temperature)[0]


def nt_xent_term(
  outputs: jax.Array, labels: jax.Array, *, temperature: float
) -> Term:
  """`nt_xent` as a term, with how often the positive is the nearest view.

  Args:
    outputs: f32[N, 2, D], embeddings.
    labels: int32[N], unused.
    temperature: tau > 0.

  Returns:
    The loss and {'contrastive_accuracy': f32[]}; a tie is no hit, so that
    embeddings which are all the same score 0.
  """
  del labels
  loss, accuracy = loss_and_accuracy(outputs, temperature)
  return loss, {"contrastive_accuracy": accuracy}


def cross_entropy_term(outputs: jax.Array, labels: jax.Array) -> Term:
  """Cross-entropy on logits, the paper's eq. (7), with training accuracy.

  Eq. (7) is written with a softmax of "the normalized prediction after
  softmax"; plain cross-entropy is meant.

  Args:
    outputs: f32[B, V, C], logits of each view.
    labels: int32[B].

  Returns:
    The mean over examples and views and {'accuracy': f32[]}.
  """
  labels = jnp.broadcast_to(labels[:, None], outputs.shape[:2])
  losses = optax.losses.softmax_cross_entropy_with_integer_labels(
    outputs, labels
  )
  hits = jnp.argmax(outputs, axis=-1) == labels
  return losses.mean(), {"accuracy": jnp.mean(hits.astype(jnp.float32))}


TERMS: dict[str, Callable[..., Term]] = {
  "cross_entropy": cross_entropy_term,
  "nt_xent": nt_xent_term,
}


def weighted_sum(
  terms: Mapping[str, Mapping[str, Any]],
  outputs: jax.Array,
  labels: jax.Array,
) -> Term:
  """The loss a config describes.

  Args:
    terms: name of a term in `TERMS` -> its options, with an optional 'weight'
      (default 1).
    outputs: f32[B, V, K].
    labels: int32[B].

  Returns:
    The weighted sum and all figures of the terms, the loss among them.
  """
  total = jnp.zeros(())
  figures = {}
  for name, options in terms.items():
    options = dict(options)
    weight = options.pop("weight", 1.0)
    value, extra = TERMS[name](outputs, labels, **options)
    total = total + weight * value
    figures |= extra | ({name: value} if len(terms) > 1 else {})
  return total, {"loss": total} | figures
