"""The loss a config describes: a weighted sum of named terms."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dbl_jax.losses import contrastive, cross_entropy, feature_losses
from dbl_jax.losses.batch import LossInputs, Value

# A config's losses: name in `TERMS` -> options, with an optional 'weight'.
Terms = Mapping[str, Mapping[str, Any]]
# What terms remember from step to step: name of the term -> array.
Memory = dict[str, jax.Array]


class Term(NamedTuple):
  """A loss.

  Attributes:
    loss: (seen, **options) -> value; one that remembers gets what it does as
      second argument.
    start: (num_classes, num_features) -> what it remembers before the first
      step; None if it remembers nothing.
    update: (seen, memory, **options) -> what it remembers after the step.
    mixes: whether it heeds mixed targets.
    reads: of the model, 'features', 'embeddings' or 'logits'; see
      `models.heads` for which head gives which.
  """

  loss: Callable[..., Value]
  start: Callable[[int, int], jax.Array] | None = None
  update: Callable[..., jax.Array] | None = None
  mixes: bool = False
  reads: str = "logits"


TERMS: dict[str, Term] = {
  "balanced_contrastive": Term(
    contrastive.balanced_contrastive, reads="embeddings"
  ),
  "balanced_softmax": Term(cross_entropy.balanced_softmax, mixes=True),
  "center": Term(
    feature_losses.center,
    start=feature_losses.start_centers,
    update=feature_losses.move_centers,
    reads="features",
  ),
  "cross_entropy": Term(cross_entropy.cross_entropy, mixes=True),
  "label_aware_smoothing": Term(
    cross_entropy.label_aware_smoothing, mixes=True
  ),
  "ldam": Term(cross_entropy.ldam),
  "locality_preserving": Term(
    feature_losses.locality_preserving, reads="features"
  ),
  "nt_xent": Term(contrastive.nt_xent_term, reads="embeddings"),
  "sup_con": Term(contrastive.sup_con, reads="embeddings"),
}


def start_memory(
  terms: Terms, num_classes: int, num_features: Callable[[], int]
) -> Memory:
  """What the terms remember before the first step; few ask for the width."""
  return {
    name: start(num_classes, num_features())
    for name in terms
    if (start := TERMS[name].start)
  }


def weighted_sum(
  terms: Terms, seen: LossInputs, memory: Memory
) -> tuple[jax.Array, dict[str, jax.Array], Memory]:
  """The loss a config describes.

  Args:
    terms: name of a term in `TERMS` -> its options, with an optional 'weight'
      (default 1).
    seen: the batch.
    memory: what the terms remember.

  Returns:
    The weighted sum, all figures of the terms with the loss among them, and
    what the terms remember now.
  """
  total = jnp.zeros(())
  figures: dict[str, jax.Array] = {}
  remembered: Memory = {}
  for name, options in terms.items():
    options = dict(options)
    weight = options.pop("weight", 1.0)
    term = TERMS[name]
    given = (memory[name],) if name in memory else ()
    value, extra = term.loss(seen, *given, **options)
    if given and term.update:
      remembered[name] = jax.lax.stop_gradient(
        term.update(seen, *given, **options)
      )
    total = total + weight * value
    figures |= extra | ({name: value} if len(terms) > 1 else {})
  return total, {"loss": total} | figures, remembered
