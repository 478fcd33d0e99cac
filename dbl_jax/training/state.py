"""State of a training step: arrays only."""

from typing import Any, Self

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
  """State of one phase.

  Attributes:
    step: int32[], number of steps done.
    params: parameters, under 'encoder' and 'head'.
    batch_stats: batch-norm running statistics, under the same keys.
    opt_state: optimizer state of the trained leaves.
    memory: state of the loss terms, such as class centres.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  memory: dict[str, jax.Array]

  @classmethod
  def create(
    cls,
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    memory: dict[str, jax.Array],
  ) -> Self:
    """Creates the state before the first step."""
    return cls(
      step=jnp.int32(0),
      params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=optimizer.init(variables["params"]),
      memory=memory,
    )

  def model(self) -> dict[str, Any]:
    """Variables of a forward pass."""
    return {"params": self.params, "batch_stats": self.batch_stats}
