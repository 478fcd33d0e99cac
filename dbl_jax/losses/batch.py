"""What a loss term may look at."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# A loss f32[] and figures worth a look.
Value = tuple[jax.Array, dict[str, jax.Array]]


class LossInputs(NamedTuple):
  """One batch, as the model saw it: B examples, V views of each, C classes.

  Attributes:
    features: f32[B, V, F], of the encoder.
    outputs: f32[B, V, K], of the head: embeddings, or logits (K = C), or of a
      `JointHead` both.
    labels: int32[B].
    targets: f32[B, C], rows summing to 1; one-hot unless examples were mixed.
    counts: f32[C], training images of each class.
    progress: f32[], the share of the phase's steps that is done.
    head: the head's parameters.
  """

  features: jax.Array
  outputs: jax.Array
  labels: jax.Array
  targets: jax.Array
  counts: jax.Array
  progress: jax.Array
  head: Mapping[str, Any]

  @property
  def embeddings(self) -> jax.Array:
    """f32[B, V, D], what contrastive losses compare."""
    if "projection" in self.head:
      return self.outputs[..., : -self.targets.shape[-1]]
    return self.outputs

  @property
  def logits(self) -> jax.Array:
    """f32[B, V, C]."""
    return self.outputs[..., -self.targets.shape[-1] :]

  @property
  def prototypes(self) -> jax.Array:
    """f32[C, D], of a head with the option of this name."""
    return self.head.get("projection", self.head)["prototypes"]


def as_rows(values: jax.Array) -> jax.Array:
  """[B, V, ...] -> [B * V, ...], views of one example side by side."""
  return values.reshape(-1, *values.shape[2:])


def labels_of_rows(seen: LossInputs) -> jax.Array:
  """int32[B * V], the label of each row of `as_rows`."""
  return jnp.repeat(seen.labels, seen.outputs.shape[1])
