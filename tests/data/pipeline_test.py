"""Input: both forms give the same batches, from any step on."""

import jax
import numpy as np
import pytest

from dbl_jax.data import pipeline, sampling
from dbl_jax.data.datasets import Split
from dbl_jax.runtime import distributed


@pytest.fixture(scope="module")
def part():
  rng = np.random.default_rng(0)
  labels = np.repeat(range(3), (40, 20, 4)).astype(np.int32)
  return Split(rng.integers(0, 256, (64, 8, 8, 3), np.uint8), labels)


def drawn(part, form, start, stop, q=0.0, most=1):
  mesh = distributed.make_mesh(jax.devices())
  sampler = sampling.make_sampler(part.labels, 3, q, 16, seed=1)
  feed = pipeline.make_pipeline(*part, sampler, mesh, form)
  assert (feed.resident is not None) == (form != "tf_data")
  take = pipeline.batch_reader(feed, start, stop, most)
  steps = []
  while start < stop:
    count = min(most, stop - start)
    batches = take(count)
    start += count
    for i in range(count):
      batch = {name: rows[i] for name, rows in batches.items()}
      rows = pipeline.gather(feed.resident, batch)
      steps.append([np.asarray(x) for x in (rows, batch["id"], batch["label"])])
  return steps


def assert_same(some, others):
  for left, right in zip(some, others, strict=True):
    for a, b in zip(left, right, strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("q", [0.0, 1.0])
def test_tf_data_and_resident_images_are_the_same(part, q):
  resident = drawn(part, "resident", 0, 6, q)
  assert len(resident) == 6
  assert_same(resident, drawn(part, "tf_data", 0, 6, q))


@pytest.mark.parametrize("form", ["resident", "tf_data"])
def test_a_later_start_or_several_steps_at_a_time_change_nothing(part, form):
  whole = drawn(part, form, 0, 6)
  assert_same(whole[3:], drawn(part, form, 3, 6))
  assert_same(whole[1:], drawn(part, form, 1, 6, most=3))


def test_images_and_labels_belong_together(part):
  for images, ids, labels in drawn(part, "auto", 0, 4):
    index = ids % 64
    np.testing.assert_array_equal(images, part.images[index])
    np.testing.assert_array_equal(labels, part.labels[index])


def test_batches_are_spread_over_all_devices(part):
  mesh = distributed.make_mesh(jax.devices())
  sampler = sampling.make_sampler(part.labels, 3, 1.0, 16, seed=1)
  feed = pipeline.make_pipeline(*part, sampler, mesh, "auto")
  index = pipeline.batch_reader(feed, 0, 1, 1)(1)["index"]
  assert {shard.data.shape for shard in index.addressable_shards} == {(1, 2)}


def test_features_are_streamed_as_they_are(part):
  features = np.random.default_rng(0).normal(size=(64, 2, 5)).astype("f4")
  part = Split(features, part.labels)
  for rows, ids, _ in drawn(part, "tf_data", 0, 3):
    np.testing.assert_array_equal(rows, features[ids % 64])
