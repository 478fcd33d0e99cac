import numpy as np

from dbl_jax.runtime import trees

TREE = {"head": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}, "scale": [1]}


def test_leaves_have_paths_in_the_tree_s_order():
  assert list(trees.by_path(TREE)) == ["head/bias", "head/kernel", "scale/0"]


def test_the_same_shapes_do_not_differ():
  tree = {"head": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
  other = {"head": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}}
  assert trees.first_difference(tree, other) is None


def test_another_shape_and_a_leaf_of_one_tree_alone_are_named():
  tree = {"a": np.zeros(4), "b": np.zeros((2, 3))}
  wider = {"a": np.zeros(4), "b": np.zeros((2, 5))}
  assert trees.first_difference(tree, wider) == ("b", (2, 3), (2, 5))
  assert trees.first_difference({"a": tree["a"]}, tree) == ("b", None, (2, 3))
  assert trees.first_difference(tree, {"a": tree["a"]}) == ("b", (2, 3), None)
