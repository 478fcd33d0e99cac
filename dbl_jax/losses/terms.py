"""The losses by name, and their weighted sum."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dbl_jax.losses import (
  LossInputs,
  Value,
  cross_entropy,
  metric_learning,
)
from dbl_jax.runtime.options import number

# A config's losses: name in `TERMS` -> options, with an optional 'weight'.
Terms = Mapping[str, Mapping[str, Any]]
# Arrays that losses carry from step to step: name of the loss -> array.
LossState = dict[str, Array]


@dataclasses.dataclass
class TermFields:
  """Options that all losses have.

  Attributes:
    weight: factor of the loss in the sum.
  """

  weight: Annotated[float, number(0)] = 1.0


class Term(NamedTuple):
  """A loss.

  Attributes:
    loss: (inputs, **options) -> value, or (inputs, state, **options) -> value
      for a loss with state. Its keyword-only parameters are the options of the
      loss in a config; see `runtime.options` for how to declare their range.
    start: (num_classes, num_features) -> initial state; None without state.
    update: (inputs, state, **options) -> state after the step.
    mixes: whether it supports mixed targets.
    reads: 'features', 'embeddings' or 'logits'; see `models.model` for which
      head gives which.
    labels: whether it needs labels.
    balances: options -> whether the loss favours rare classes.
  """

  loss: Callable[..., Value]
  start: Callable[[int, int], Array] | None = None
  update: Callable[..., Array] | None = None
  mixes: bool = False
  reads: str = "logits"
  labels: bool = True
  balances: Callable[[Mapping[str, Any]], bool] = lambda options: False


def _weighted(options: Mapping[str, Any]) -> bool:
  return options.get("weighting", "none") != "none"


TERMS: dict[str, Term] = {
  "balanced_contrastive": Term(
    metric_learning.balanced_contrastive, reads="embeddings"
  ),
  "balanced_softmax": Term(
    cross_entropy.balanced_softmax,
    mixes=True,
    balances=lambda options: options["strength"] > 0,
  ),
  "center": Term(
    metric_learning.center,
    start=lambda *shape: jnp.zeros(shape),
    update=metric_learning.move_centers,
    reads="features",
  ),
  "cross_entropy": Term(
    cross_entropy.cross_entropy, mixes=True, balances=_weighted
  ),
  "label_aware_smoothing": Term(
    cross_entropy.label_aware_smoothing, mixes=True
  ),
  "ldam": Term(cross_entropy.ldam, balances=_weighted),
  "locality_preserving": Term(
    metric_learning.locality_preserving, reads="features"
  ),
  "nt_xent": Term(
    metric_learning.nt_xent_term, reads="embeddings", labels=False
  ),
  "sup_con": Term(metric_learning.sup_con, reads="embeddings"),
}


def start_loss_state(
  terms: Terms, num_classes: int, num_features: Callable[[], int]
) -> LossState:
  """Returns the state of all losses with state before the first step, by name.

  `num_features` returns F; it is called only if a loss has state.
  """
  return {
    name: start(num_classes, num_features())
    for name in terms
    if (start := TERMS[name].start)
  }


def weighted_sum(
  terms: Terms, inputs: LossInputs, loss_state: LossState
) -> tuple[Array, dict[str, Array], LossState]:
  """Returns the weighted sum of losses, metrics, and the next state.

  `terms` has the options of each loss, with an optional 'weight' (default 1).
  The metrics, f32[] each, include 'loss', the sum, and each of several losses
  by its name.
  """
  total = jnp.zeros(())
  metrics: dict[str, Array] = {}
  next_state: LossState = {}
  for name, options in terms.items():
    options = dict(options)
    weight = options.pop("weight", 1.0)
    term = TERMS[name]
    state = (loss_state[name],) if name in loss_state else ()
    value, extra = term.loss(inputs, *state, **options)
    if state and term.update:
      next_state[name] = jax.lax.stop_gradient(
        term.update(inputs, *state, **options)
      )
    total = total + weight * value
    metrics |= extra | ({name: value} if len(terms) > 1 else {})
  return total, {"loss": total} | metrics, next_state
