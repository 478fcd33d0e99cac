"""Splits that are seeded, stratified and leave groups whole."""

import numpy as np
import pytest

from dbl_jax.data import splits

LABELS = np.repeat(range(4), (60, 25, 14, 1))


def test_each_class_gives_its_share_and_keeps_one():
  left, taken = splits.split_off(LABELS, 0.1, 0, splits.TEST)
  np.testing.assert_array_equal(np.bincount(LABELS[taken]), [6, 2, 1])
  np.testing.assert_array_equal(
    np.sort(np.concatenate([left, taken])), np.arange(100)
  )
  again = splits.split_off(LABELS, 0.1, 0, splits.TEST)[1]
  np.testing.assert_array_equal(again, taken)
  for other in (
    splits.split_off(LABELS, 0.1, 1, splits.TEST),
    splits.split_off(LABELS, 0.1, 0, splits.VALIDATION),
  ):
    assert (other[1] != taken).any()


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_close(seed):
  rng = np.random.default_rng(seed)
  labels = rng.choice(4, 4000, p=[0.6, 0.3, 0.08, 0.02])
  groups = rng.integers(0, 2000, 4000)
  left, taken = splits.split_off(labels, 0.2, seed, splits.TEST, groups)
  assert not set(groups[left]) & set(groups[taken])
  wanted = 0.2 * np.bincount(labels)
  assert (np.abs(np.bincount(labels[taken]) - wanted) <= 2).all()


def test_nothing_to_split():
  left, taken = splits.split_off(np.zeros(0, int), 0.2, 0, splits.TEST)
  assert len(left) == len(taken) == 0
