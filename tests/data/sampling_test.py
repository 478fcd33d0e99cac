"""Sampling: who is drawn, how often, and that nothing else decides it."""

import numpy as np
import pytest

from dbl_jax.data import sampling
from dbl_jax.errors import UserError

COUNTS = (60, 25, 10, 5)
LABELS = np.random.default_rng(0).permutation(np.repeat(range(4), COUNTS))


def make_sampler(q, batch_size=16, seed=3):
  return sampling.make_sampler(LABELS, 4, q, batch_size, seed)


@pytest.mark.parametrize(
  ("q", "expected"),
  [
    (0.0, [1 / 4] * 4),
    (1.0, [0.6, 0.25, 0.1, 0.05]),
    (0.5, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()),
  ],
)
def test_class_frequencies_follow_q(q, expected):
  np.testing.assert_allclose(
    sampling.class_probabilities(np.array(COUNTS), q), expected
  )
  sampler = make_sampler(q)
  drawn = np.concatenate(
    [LABELS[sampling.batch_indices(sampler, step)] for step in range(1000)]
  )
  frequencies = np.bincount(drawn, minlength=4) / len(drawn)
  np.testing.assert_allclose(frequencies, expected, atol=0.015)


def test_class_balanced_reaches_every_image_of_a_class():
  sampler = make_sampler(0.0)
  drawn = np.concatenate(
    [sampling.batch_indices(sampler, step) for step in range(500)]
  )
  times = np.bincount(drawn, minlength=100)
  assert (times > 0).all()
  rare = times[LABELS == 3]
  assert rare.min() > 0.8 * rare.mean()


@pytest.mark.parametrize("batch_size", [1, 10, 16, 33, 100])
def test_instance_sampling_takes_each_image_once_per_epoch(batch_size):
  sampler = make_sampler(1.0, batch_size)
  steps = sampling.num_steps(sampler, 3)
  row = np.concatenate(
    [sampling.batch_indices(sampler, step) for step in range(steps)]
  )
  epochs = [row[100 * e : 100 * (e + 1)] for e in range(3)]
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
  assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_a_step_depends_on_seed_and_step_alone(q):
  forward = [
    sampling.batch_indices(make_sampler(q), step) for step in range(20)
  ]
  backward = [
    sampling.batch_indices(make_sampler(q), step)
    for step in reversed(range(20))
  ]
  np.testing.assert_array_equal(forward, backward[::-1])
  other = [
    sampling.batch_indices(make_sampler(q, seed=4), step) for step in range(20)
  ]
  assert (np.array(forward) != np.array(other)).any()


@pytest.mark.parametrize(
  ("q", "expected"),
  [
    (0.0, [93, 41, 76, 48]),
    (0.5, [93, 41, 70, 56]),
    (1.0, [13, 71, 86, 88]),
  ],
)
def test_batches_are_those_of_earlier_versions(q, expected):
  sampler = make_sampler(q, batch_size=4)
  assert sampling.batch_indices(sampler, 7).tolist() == expected


def test_example_ids_are_the_image_and_differ_for_repeats():
  ids = sampling.example_ids(np.array([7, 2, 7, 5, 7, 2], np.int32), 10)
  np.testing.assert_array_equal(ids, [7, 2, 17, 5, 27, 12])


def test_batch_larger_than_the_data_is_refused():
  with pytest.raises(UserError, match=r"batch_size=128 .* 100 images"):
    make_sampler(1.0, batch_size=128)
