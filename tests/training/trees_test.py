import numpy as np
import pytest

from dbl_jax.training import steps

A, B, WIDE = np.zeros(4), np.zeros((2, 3)), np.zeros((2, 5))


def test_leaves_have_paths_in_the_order_of_the_tree():
  tree = {"head": {"kernel": B, "bias": A}, "scale": [1]}
  assert list(steps.by_path(tree)) == ["head/bias", "head/kernel", "scale/0"]


@pytest.mark.parametrize(
  ("found", "expected", "difference"),
  [
    ({"a": A, "b": B}, {"a": A + 1, "b": B + 1}, None),
    ({"a": A, "b": B}, {"a": A, "b": WIDE}, ("b", (2, 3), (2, 5))),
    ({"a": A}, {"a": A, "b": B}, ("b", None, (2, 3))),
    ({"a": A, "b": B}, {"a": A}, ("b", (2, 3), None)),
  ],
)
def test_the_first_difference_in_shape_is_found(found, expected, difference):
  assert steps.first_difference(found, expected) == difference
