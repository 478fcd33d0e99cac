"""Properties that hold for all inputs, tried on some: the same at each run."""

import math

import numpy as np
import properties
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbl_jax.data import sampling, splits

bounded = settings(
  max_examples=60,
  derandomize=True,
  database=None,
  deadline=None,
  suppress_health_check=list(HealthCheck),
)
# Labels of up to six classes, some of them perhaps empty.
LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=60).map(np.array)
EXPONENTS = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
SEEDS = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize("name", properties.READERS)
def test_a_reader_keeps_its_promise_or_speaks_plainly(name):
  inputs, check = properties.READERS[name]
  count = 0

  @bounded
  @given(inputs)
  def reads(data):
    nonlocal count
    count += 1
    properties.holds(check, data)

  reads()
  assert count >= 20


@bounded
@given(LABELS, EXPONENTS, SEEDS, st.integers(1, 60), st.integers(0, 500))
def test_every_drawn_index_is_an_image_of_a_class_that_is_there(
  labels, q, seed, batch, step
):
  batch = min(batch, len(labels))
  sampler = sampling.make_sampler(labels, 7, q, batch, seed)
  drawn = sampling.batch_indices(sampler, step)
  assert drawn.shape == (batch,)
  assert drawn.dtype == np.int32
  assert drawn.min() >= 0
  assert drawn.max() < len(labels)
  np.testing.assert_array_equal(drawn, sampling.batch_indices(sampler, step))
  ids = sampling.example_ids(drawn, len(labels))
  assert len(set(ids.tolist())) == batch
  np.testing.assert_array_equal(ids % len(labels), drawn)


@bounded
@given(LABELS, SEEDS, st.integers(1, 60), st.integers(1, 3))
def test_instance_sampling_has_each_image_once_an_epoch(
  labels, seed, batch, epochs
):
  n, batch = len(labels), min(batch, len(labels))
  sampler = sampling.make_sampler(labels, 6, 1.0, batch, seed)
  steps = sampling.num_steps(sampler, epochs)
  assert steps == math.ceil(epochs * n / batch)
  row = np.concatenate(
    [sampling.batch_indices(sampler, step) for step in range(steps)]
  )
  for epoch in range(epochs):
    found = np.sort(row[epoch * n : (epoch + 1) * n])
    np.testing.assert_array_equal(found, np.arange(n))


@bounded
@given(
  st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any),
  EXPONENTS,
)
def test_class_probabilities_are_powers_of_the_counts(counts, q):
  found = sampling.class_probabilities(np.array(counts), q)
  expected = [float(n) ** q if n else 0.0 for n in counts]
  np.testing.assert_allclose(found, np.array(expected) / sum(expected))
  assert found.sum() == pytest.approx(1)
  # Of q below 1 the rare gain, and never more than the common.
  assert all(
    (a <= b) == (counts[i] <= counts[j])
    for i, a in enumerate(found)
    for j, b in enumerate(found)
    if q > 0.01 and counts[i] and counts[j] and counts[i] != counts[j]
  )


@settings(bounded, max_examples=15)
@given(LABELS, EXPONENTS, SEEDS)
def test_drawn_classes_follow_the_probabilities(labels, q, seed):
  sampler = sampling.make_sampler(labels, 6, q, len(labels), seed)
  steps = 4000 // len(labels) + 1
  drawn = np.concatenate(
    [labels[sampling.batch_indices(sampler, step)] for step in range(steps)]
  )
  share = np.bincount(drawn, minlength=6) / len(drawn)
  expected = sampling.class_probabilities(np.bincount(labels, minlength=6), q)
  # Six deviations: of all examples none lies beyond by chance.
  room = 6 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-9
  assert (abs(share - expected) <= room).all()


@bounded
@given(LABELS, st.floats(0.01, 0.9), SEEDS)
def test_a_split_is_whole_and_leaves_each_class_an_image(
  labels, fraction, seed
):
  counts = np.bincount(labels)
  for train, other in (
    splits.stratified_split(labels, fraction, seed),
    splits.split_off(labels, fraction, seed, splits.TEST),
  ):
    whole = np.sort(np.concatenate([train, other]))
    np.testing.assert_array_equal(whole, np.arange(len(labels)))
    left = np.bincount(labels[train], minlength=len(counts))
    taken = np.bincount(labels[other], minlength=len(counts))
    assert (left[counts > 0] >= 1).all()
    assert (taken[counts > 1] >= 1).all()
    assert (abs(taken - fraction * counts) <= 1).all()


@bounded
@given(LABELS, st.floats(0.01, 0.9), SEEDS, st.integers(1, 20))
def test_a_split_cuts_no_group_in_two(labels, fraction, seed, groups):
  group = np.random.default_rng(seed).integers(groups, size=len(labels))
  rest, other = splits.split_off(
    labels, fraction, seed, splits.VALIDATION, group
  )
  assert not set(group[rest].tolist()) & set(group[other].tolist())
  assert len(rest) + len(other) == len(labels)
  counts = np.bincount(labels)
  taken = np.bincount(labels[other], minlength=len(counts))
  assert (taken <= np.maximum(np.rint(fraction * counts), 1)).all()
  assert (taken < counts)[counts > 0].all()


@bounded
@given(
  st.lists(st.integers(1, 10_000), min_size=1, max_size=9).map(np.array),
  st.floats(1, 1e6),
)
def test_an_exponential_tail_falls_from_the_largest(counts, imbalance):
  wanted = splits.exponential_counts(counts, imbalance)
  assert wanted.max() == counts.max()
  assert wanted.min() >= 1
  order = np.argsort(-counts, kind="stable")
  assert (np.diff(wanted[order]) <= 0).all()
