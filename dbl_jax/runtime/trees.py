"""Trees of arrays: leaves by path, and differences in shape."""

from typing import Any, NamedTuple

import jax


class Difference(NamedTuple):
  """A leaf at which two trees differ; shape None if a tree lacks it."""

  path: str
  found: tuple[int, ...] | None
  expected: tuple[int, ...] | None


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves in order, by paths such as 'head/logits/bias'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def first_difference(found: Any, expected: Any) -> Difference | None:
  """Finds the first leaf, by path, whose shape differs.

  Args:
    found: a tree of arrays, or of anything that has a shape.
    expected: another.

  Returns:
    Path and both shapes; None if all shapes are equal.
  """
  have, want = (
    {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
    for tree in (found, expected)
  )
  for path in sorted(have | want):
    if have.get(path) != want.get(path):
      return Difference(path, have.get(path), want.get(path))
  return None
