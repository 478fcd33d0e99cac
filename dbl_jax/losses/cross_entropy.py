"""Cross-entropy and its variants for imbalanced classes."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.losses import LossInputs, Value
from dbl_jax.runtime.options import number, one_of

WEIGHTINGS = ("none", "inverse", "effective")
Weighting = Annotated[str, one_of(WEIGHTINGS)]
Beta = Annotated[float, number(0, 1 - 1e-7)]
Fraction = Annotated[float, number(0, 1)]
Smoothing = Annotated[float, number(0, 0.99)]


def class_weights(counts: Array, weighting: str, beta: float = 0.9999) -> Array:
  """Weight of an example of each class; the mean over all images is 1.

  * 'none': equal weights.
  * 'inverse': w_j proportional to 1/n_j, as in Fan et al. 2020, eq. (5).
  * 'effective': w_j proportional to (1 - beta)/(1 - beta^n_j), the inverse of
    the effective number of samples; Cui et al. 2019, eq. (2) and section 4.

  Args:
    counts: f32[C], training images of each class, at least 1.
    weighting: name in `WEIGHTINGS`.
    beta: for 'effective', from 0 (equal weights) to almost 1 (inverse).

  Returns:
    f32[C].
  """
  counts = jnp.maximum(jnp.asarray(counts, jnp.float32), 1.0)
  weights = {
    "none": lambda: jnp.ones_like(counts),
    "inverse": lambda: 1 / counts,
    # expm1, as 1 - beta^n loses every digit for beta close to 1.
    "effective": lambda: -1 / jnp.expm1(counts * jnp.log(beta)),
  }[weighting]()
  # PyTorch's weighted cross-entropy divides by the weights of the batch. A mean
  # weight of 1 over classes would shrink the loss on long-tailed data.
  return weights * counts.sum() / (weights * counts).sum()


def cross_entropy(
  inputs: LossInputs,
  *,
  weighting: Weighting = "none",
  beta: Beta = 0.9999,
  after: Fraction = 0.0,
) -> Value:
  """Cross-entropy on logits (Fan et al. 2020, eq. (7)), and the accuracy.

  Eq. (7) applies the softmax to "the normalized prediction after softmax"; we
  read it as plain cross-entropy.

  Args:
    inputs: with logits.
    weighting: weights of the classes, see `class_weights`.
    beta: parameter of 'effective' weights, see `class_weights`.
    after: fraction of the phase after which the weights apply; before, all
      are 1 (deferred re-weighting, Cao et al. 2019, algorithm 1).

  Returns:
    The mean over examples and views of -sum_j w_j t_j log p_j, and
    {'accuracy': f32[]}.
  """
  weights = _deferred(inputs, weighting, beta, after)
  return _soft(inputs.logits, inputs.targets * weights[None]), _accuracy(inputs)


def balanced_softmax(
  inputs: LossInputs, *, strength: Annotated[float, number(0, 10)] = 1.0
) -> Value:
  """Cross-entropy on logits plus the logs of the class shares.

  Ren et al. 2020, "Balanced meta-softmax", eq. (4); Menon et al. 2021, eq.
  (10), with tau = `strength`. In training, rare classes need a margin, which
  remains when the shares are left out at test time.

  Args:
    inputs: with logits.
    strength: factor of the log shares; 0 is plain cross-entropy.

  Returns:
    The mean over examples and views and {'accuracy': f32[]}, computed from
    the logits without the shares, as at test time.
  """
  shares = inputs.counts / inputs.counts.sum()
  prior = strength * jnp.log(jnp.maximum(shares, 1e-12))
  return _soft(inputs.logits + prior[None, None], inputs.targets), _accuracy(
    inputs
  )


def ldam(
  inputs: LossInputs,
  *,
  margin: Annotated[float, number(0, 10)] = 0.5,
  scale: Annotated[float, number(1e-6)] = 30.0,
  weighting: Weighting = "effective",
  beta: Beta = 0.9999,
  after: Fraction = 0.8,
) -> Value:
  """Label-distribution-aware margin loss, with deferred re-weighting.

  Cao et al. 2019, eq. (10) to (13): the true class's logit z_y is lowered by
  scale x Delta_y, Delta_j proportional to n_j^(-1/4), the largest `margin`.
  Logits must be `scale` times cosines (head option `cosine`).

  Args:
    inputs: with logits. Labels are used, not mixed targets.
    margin: margin of the rarest class, in units of the cosine.
    scale: scale of the logits; must equal the head's option `cosine`.
    weighting: weights of the classes, see `class_weights`.
    beta: parameter of 'effective' weights, see `class_weights`.
    after: fraction of the phase after which the weights apply.

  Returns:
    The weighted mean over examples and views, divided by their number and not
      by the sum of the weights; and {'accuracy': f32[]}.
  """
  margins = jnp.maximum(inputs.counts, 1.0) ** -0.25
  margins = margin * scale * margins / margins.max()
  one_hot = jax.nn.one_hot(inputs.labels, len(inputs.counts))
  logits = inputs.logits - (one_hot * margins[None])[:, None, :]
  weights = _deferred(inputs, weighting, beta, after)
  return _soft(logits, one_hot * weights[None]), _accuracy(inputs)


def label_aware_smoothing(
  inputs: LossInputs, *, head: Smoothing = 0.3, tail: Smoothing = 0.0
) -> Value:
  """Cross-entropy with more label smoothing for more frequent classes.

  Zhong et al. 2021, "Improving calibration for long-tailed recognition"
  (MiSLAS), eq. (4) and the concave form of (6): class y keeps 1 - e_y, the
  others share e_y, with e_y = tail + (head - tail)
  sin(pi/2 (n_y - n_min)/(n_max - n_min)).

  Args:
    inputs: with logits.
    head: smoothing of the most frequent class.
    tail: smoothing of the rarest class.

  Returns:
    The mean over examples and views and {'accuracy': f32[]}.
  """
  low, high = inputs.counts.min(), inputs.counts.max()
  place = (inputs.counts - low) / jnp.maximum(high - low, 1.0)
  smoothing = tail + (head - tail) * jnp.sin(jnp.pi / 2 * place[None])
  shared = inputs.targets * smoothing / max(len(inputs.counts) - 1, 1)
  others = shared.sum(axis=1, keepdims=True) - shared
  smooth = inputs.targets * (1 - smoothing) + others
  return _soft(inputs.logits, smooth), _accuracy(inputs)


def _deferred(
  inputs: LossInputs, weighting: str, beta: float, after: float
) -> Array:
  weights = class_weights(inputs.counts, weighting, beta)
  return jnp.where(inputs.progress >= after, weights, 1.0)


def _soft(logits: Array, targets: Array) -> Array:
  """Mean over views and examples; logits f32[B, V, C], targets f32[B, C]."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.sum(targets[:, None, :] * log_p, axis=-1).mean()


def _accuracy(inputs: LossInputs) -> dict[str, Array]:
  hits = jnp.argmax(inputs.logits, axis=-1) == inputs.labels[:, None]
  return {"accuracy": jnp.mean(hits.astype(jnp.float32))}
