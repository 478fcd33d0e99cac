"""Cross-entropy and its forms for skewed classes."""

import jax
import jax.numpy as jnp

from dbl_jax.losses.batch import LossInputs, Value

WEIGHTINGS = ("none", "inverse", "effective")


def class_weights(
  counts: jax.Array, weighting: str, beta: float = 0.9999
) -> jax.Array:
  """How much an example of each class counts; the mean over classes is 1.

  * 'none': alike.
  * 'inverse': w_j proportional to 1/n_j, to which the paper's eq. (5) reduces.
  * 'effective': w_j proportional to (1 - beta)/(1 - beta^n_j), the inverse of
    the effective number of samples; Cui et al. 2019, eq. (2) and section 4.

  Args:
    counts: f32[C], training images of each class, at least 1.
    weighting: name in `WEIGHTINGS`.
    beta: of 'effective', 0 (alike) to almost 1 (inverse).

  Returns:
    f32[C].
  """
  counts = jnp.maximum(jnp.asarray(counts, jnp.float32), 1.0)
  weights = {
    "none": lambda: jnp.ones_like(counts),
    "inverse": lambda: 1 / counts,
    # expm1, as 1 - beta^n loses every digit where beta is almost 1.
    "effective": lambda: -1 / jnp.expm1(counts * jnp.log(beta)),
  }[weighting]()
  return weights / weights.mean()


def cross_entropy(
  seen: LossInputs,
  *,
  weighting: str = "none",
  beta: float = 0.9999,
  after: float = 0.0,
) -> Value:
  """Cross-entropy on logits, the paper's eq. (7), with training accuracy.

  Eq. (7) is written with a softmax of "the normalized prediction after
  softmax"; plain cross-entropy is meant.

  Args:
    seen: with logits.
    weighting: of classes, see `class_weights`.
    beta: see `class_weights`.
    after: share of the phase after which the weights hold; before, all count
      alike (deferred re-weighting, Cao et al. 2019, algorithm 1).

  Returns:
    The mean over examples and views of -sum_j w_j t_j log p_j, and
    {'accuracy': f32[]}.
  """
  weights = _deferred(seen, weighting, beta, after)
  return _soft(seen.logits, seen.targets * weights[None]), _accuracy(seen)


def balanced_softmax(seen: LossInputs, *, strength: float = 1.0) -> Value:
  """Cross-entropy on logits to which the log of the class's share is added.

  Ren et al. 2020, "Balanced meta-softmax", eq. (4); Menon et al. 2021, eq.
  (10), with their tau for `strength`. Rare classes must win by a margin in
  training, which they keep when the shares are left out at test time.

  Args:
    seen: with logits.
    strength: 0 is plain cross-entropy.

  Returns:
    The mean over examples and views and {'accuracy': f32[]}, that of the
    logits as they are at test time.
  """
  shares = seen.counts / seen.counts.sum()
  prior = strength * jnp.log(jnp.maximum(shares, 1e-12))
  return _soft(seen.logits + prior[None, None], seen.targets), _accuracy(seen)


def ldam(
  seen: LossInputs,
  *,
  margin: float = 0.5,
  scale: float = 30.0,
  weighting: str = "effective",
  beta: float = 0.9999,
  after: float = 0.8,
) -> Value:
  """Label-distribution-aware margin loss, with deferred re-weighting.

  Cao et al. 2019, eq. (10) to (13): the true class's logit z_y is lowered by
  scale x Delta_y, Delta_j proportional to n_j^(-1/4), the largest `margin`.
  Logits are to be `scale` times cosines (head option `cosine`).

  Args:
    seen: with logits. Labels count, not mixed targets.
    margin: of the rarest class, in units of the cosine.
    scale: of the head.
    weighting: see `class_weights`.
    beta: see `class_weights`.
    after: see `cross_entropy`.

  Returns:
    The weighted mean over examples and views and {'accuracy': f32[]}. It is
    divided by the number of rows, not by the sum of the weights.
  """
  margins = jnp.maximum(seen.counts, 1.0) ** -0.25
  margins = margin * scale * margins / margins.max()
  one_hot = jax.nn.one_hot(seen.labels, len(seen.counts))
  logits = seen.logits - (one_hot * margins[None])[:, None, :]
  weights = _deferred(seen, weighting, beta, after)
  return _soft(logits, one_hot * weights[None]), _accuracy(seen)


def label_aware_smoothing(
  seen: LossInputs, *, head: float = 0.3, tail: float = 0.0
) -> Value:
  """Cross-entropy on labels smoothed the more, the more frequent the class.

  Zhong et al. 2021, "Improving calibration for long-tailed recognition"
  (MiSLAS), eq. (4) and the concave form of (6): class y keeps 1 - e_y, the
  others share e_y, with e_y = tail + (head - tail)
  sin(pi/2 (n_y - n_min)/(n_max - n_min)).

  Args:
    seen: with logits.
    head: smoothing of the most frequent class.
    tail: smoothing of the rarest class.

  Returns:
    The mean over examples and views and {'accuracy': f32[]}.
  """
  low, high = seen.counts.min(), seen.counts.max()
  place = (seen.counts - low) / jnp.maximum(high - low, 1.0)
  smoothing = tail + (head - tail) * jnp.sin(jnp.pi / 2 * place)
  num_classes = len(seen.counts)
  kept = jnp.eye(num_classes) * (1 - smoothing)[:, None]
  shared = smoothing[:, None] / max(num_classes - 1, 1)
  rows = kept + (1 - jnp.eye(num_classes)) * shared
  return _soft(seen.logits, seen.targets @ rows), _accuracy(seen)


def _deferred(
  seen: LossInputs, weighting: str, beta: float, after: float
) -> jax.Array:
  weights = class_weights(seen.counts, weighting, beta)
  return jnp.where(seen.progress >= after, weights, 1.0)


def _soft(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Mean over views and examples; logits f32[B, V, C], targets f32[B, C]."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.sum(targets[:, None, :] * log_p, axis=-1).mean()


def _accuracy(seen: LossInputs) -> dict[str, jax.Array]:
  hits = jnp.argmax(seen.logits, axis=-1) == seen.labels[:, None]
  return {"accuracy": jnp.mean(hits.astype(jnp.float32))}
