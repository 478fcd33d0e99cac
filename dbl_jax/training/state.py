"""State of a training step, and trees of arrays by path."""

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


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves in order, by paths such as 'head/logits/bias'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def first_difference(found: Any, expected: Any) -> tuple[str, Any, Any] | None:
  """Returns path and shapes of the first leaf whose shapes differ.

  Args:
    found: a tree of arrays, or of anything that has a shape.
    expected: another.

  Returns:
    Path, shape in `found` and in `expected`, a shape being None if the tree
    lacks the leaf; None if all shapes are equal.
  """
  have, want = (
    {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
    for tree in (found, expected)
  )
  for path in sorted(have | want):
    if have.get(path) != want.get(path):
      return path, have.get(path), want.get(path)
  return None
