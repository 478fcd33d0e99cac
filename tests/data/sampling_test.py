"""Sampling: who is drawn, how often, and that nothing else decides it."""

import numpy as np
import pytest

from dbl_jax.data import sampling

COUNTS = (60, 25, 10, 5)
LABELS = np.random.default_rng(0).permutation(np.repeat(range(4), COUNTS))


def make_sampler(q, batch_size=16, seed=3):
  return sampling.make_sampler(LABELS, 4, q, batch_size, seed)


def test_class_balanced_reaches_every_image_of_a_class():
  sampler = make_sampler(0.0)
  drawn = np.concatenate(
    [sampling.batch_indices(sampler, step) for step in range(500)]
  )
  times = np.bincount(drawn, minlength=100)
  assert (times > 0).all()
  rare = times[LABELS == 3]
  assert rare.min() > 0.8 * rare.mean()


@pytest.mark.parametrize(
  ("q", "expected"),
  [(0.0, [93, 41, 76, 48]), (0.5, [93, 41, 70, 56]), (1.0, [13, 71, 86, 88])],
)
def test_batches_are_those_of_earlier_versions(q, expected):
  sampler = make_sampler(q, batch_size=4)
  assert sampling.batch_indices(sampler, 7).tolist() == expected


def test_example_ids_are_the_image_and_differ_for_repeats():
  ids = sampling.example_ids(np.array([7, 2, 7, 5, 7, 2], np.int32), 10)
  np.testing.assert_array_equal(ids, [7, 2, 17, 5, 27, 12])
