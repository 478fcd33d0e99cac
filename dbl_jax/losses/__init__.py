"""Losses: functions of `LossInputs`; `terms` lists them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# A loss f32[] and metrics to log, each f32[].
Value = tuple[Array, dict[str, Array]]


class LossInputs(NamedTuple):
  """A batch of B examples, V views of each, and the model's outputs.

  C is the number of classes.

  Attributes:
    features: f32[B, V, F], outputs of the encoder.
    outputs: f32[B, V, K], outputs of the head: embeddings, or logits (K = C),
      or both of a `JointHead`.
    labels: int32[B].
    targets: f32[B, C], rows summing to 1; one-hot unless examples were mixed.
    counts: f32[C], training images of each class.
    progress: f32[], fraction of the phase's steps that are done.
    head: parameters of the head.
  """

  features: Array
  outputs: Array
  labels: Array
  targets: Array
  counts: Array
  progress: Array
  head: Mapping[str, Any]

  @property
  def embeddings(self) -> Array:
    """f32[B, V, D], for contrastive losses."""
    if "projection" in self.head:
      return self.outputs[..., : -self.targets.shape[-1]]
    return self.outputs

  @property
  def logits(self) -> Array:
    """f32[B, V, C]."""
    return self.outputs[..., -self.targets.shape[-1] :]

  @property
  def prototypes(self) -> Array:
    """f32[C, D], of a head with the option `prototypes`."""
    return self.head.get("projection", self.head)["prototypes"]


def loss_inputs(
  outputs: Array,
  labels: Array,
  counts: Array,
  *,
  features: Array | None = None,
  head: Mapping[str, Any] | None = None,
  progress: float = 1.0,
) -> LossInputs:
  """Makes inputs with one-hot targets from plain arrays, for other code.

  Args:
    outputs: logits or embeddings, f32[B, K], or f32[B, V, K] of V views.
    labels: int[B].
    counts: [C], training images of each class.
    features: f32[B, F] or f32[B, V, F], for losses that read features.
    head: parameters of the head, for losses that read prototypes.
    progress: fraction of the training that is done, for deferred losses.
  """

  def of_views(values: Array) -> Array:
    return values[:, None] if values.ndim == 2 else values

  return LossInputs(
    features=of_views(outputs if features is None else features),
    outputs=of_views(outputs),
    labels=jnp.asarray(labels, jnp.int32),
    targets=jax.nn.one_hot(labels, len(counts)),
    counts=jnp.asarray(counts, jnp.float32),
    progress=jnp.float32(progress),
    head=head or {},
  )
