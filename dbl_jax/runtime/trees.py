"""Trees of arrays: leaves by path, and whether two have the same shapes."""

from typing import Any, NamedTuple

import jax


class Difference(NamedTuple):
  """A leaf at which two trees differ; shape None where a tree lacks it."""

  path: str
  found: tuple[int, ...] | None
  expected: tuple[int, ...] | None


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree in its order, by paths like 'head/logits/bias'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def first_difference(found: Any, expected: Any) -> Difference | None:
  """The first leaf, by path, whose shape differs; None for none.

  Args:
    found: a tree of arrays, or of anything that has a shape.
    expected: another.

  Returns:
    The leaf's path and both shapes.
  """
  have, want = (
    {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
    for tree in (found, expected)
  )
  for path in sorted(have | want):
    if have.get(path) != want.get(path):
      return Difference(path, have.get(path), want.get(path))
  return None
