"""Sampling of batches: pure NumPy functions of (seed, step).

Class j is drawn with probability p_j proportional to n_j^q (Kang et al. 2020,
eq. (1)): q = 1 is instance sampling, where each image comes once per epoch in
shuffled order; q = 1/2 is square-root sampling; q = 0 is class-balanced
sampling (Fan et al. 2020, eq. (4)). Steps do not share state, so a resumed run
sees the batches of an uninterrupted one, on any number of devices.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from dbl_jax.errors import UserError

# Streams of random numbers; `splits` has those from 16, and 0.
_EPOCH, _STEP = 1, 2


def philox(
  seed: int, stream: int, index: int = 0, block: int = 0
) -> np.random.Generator:
  """Makes a random generator; those of different arguments are independent.

  The stream (0 to 127) is the purpose of a draw, index (below 2^56) its number
  within the stream, and block (below 2^64) the highest word of the counter.
  """
  key = [seed, (stream << 56) | index]
  counter = np.array([0, 0, 0, block], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Sampler(NamedTuple):
  """Parameters of the sampling of a phase. Made by `make_sampler`.

  Attributes:
    order: int64[n], the training images sorted by class.
    counts: int64[C], images per class; class j's are
      order[starts[j] : starts[j] + counts[j]].
    starts: int64[C].
    q: sampling exponent, 0 (class-balanced) to 1 (instance).
    batch_size: images per step over all devices.
    seed: seed of the phase.
  """

  order: np.ndarray
  counts: np.ndarray
  starts: np.ndarray
  q: float
  batch_size: int
  seed: int


def make_sampler(
  labels: np.ndarray, num_classes: int, q: float, batch_size: int, seed: int
) -> Sampler:
  """Makes a sampler: sorts the training images by class, once.

  Args:
    labels: int[n], the class of each training image.
    num_classes: number of classes C.
    q, batch_size, seed: see `Sampler`.

  Raises:
    UserError: if the batch is larger than the training split.
  """
  if batch_size > len(labels):
    raise UserError(
      f"batch_size={batch_size} is larger than the training split, which has"
      f" {len(labels)} images. Set a batch_size of at most {len(labels)}."
    )
  counts = np.bincount(labels, minlength=num_classes)
  order, starts = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
  return Sampler(order, counts, starts, q, batch_size, seed)


def class_probabilities(counts: np.ndarray, q: float) -> np.ndarray:
  """Computes p_j = n_j^q / sum_i n_i^q over the classes that have images.

  Args:
    counts: int[C], images per class; an empty class gets probability 0.
    q: sampling exponent; 0 gives p_j = 1/C.

  Returns:
    float64[C], summing to 1.
  """
  counts = np.asarray(counts, np.float64)
  weights = np.where(counts > 0, np.maximum(counts, 1) ** q, 0.0)
  return weights / weights.sum()


def steps_per_epoch(sampler: Sampler) -> float:
  """Returns the number of steps per epoch, possibly not whole."""
  return len(sampler.order) / sampler.batch_size


def num_steps(sampler: Sampler, epochs: float) -> int:
  """Returns the number of steps of a number of epochs, rounded up."""
  return math.ceil(epochs * steps_per_epoch(sampler) - 1e-9)


def batch_indices(sampler: Sampler, step: int) -> np.ndarray:
  """Draws the training images of one step of the phase, from 0.

  Returns:
    int32[batch_size], indices into the training split.
  """
  if sampler.q == 1:
    return _next_in_shuffled_epochs(sampler, step)
  rng = philox(sampler.seed, _STEP, step)
  probabilities = class_probabilities(sampler.counts, sampler.q)
  classes = rng.choice(
    len(probabilities), size=sampler.batch_size, p=probabilities
  )
  members = rng.integers(sampler.counts[classes])
  return sampler.order[sampler.starts[classes] + members].astype(np.int32)


def _next_in_shuffled_epochs(sampler: Sampler, step: int) -> np.ndarray:
  """Cuts batches from an endless sequence of shuffled epochs."""
  n = len(sampler.order)
  places = step * sampler.batch_size + np.arange(sampler.batch_size)
  epochs = places // n
  batch = np.empty(sampler.batch_size, np.int32)
  for epoch in np.unique(epochs):
    chosen = epochs == epoch
    batch[chosen] = _shuffled(n, sampler.seed, int(epoch))[places[chosen] % n]
  return batch


@functools.lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
  return philox(seed, _EPOCH, epoch).permutation(n).astype(np.int32)


def example_ids(indices: np.ndarray, num_images: int) -> np.ndarray:
  """Numbers the examples of a batch; random views are keyed by the number.

  The id of an image is its index, so that its view does not depend on its
  place in the batch or on the device. An image drawn twice into one batch gets
  another id, and so another view, the second time.

  Args:
    indices: int32[B], as returned by `batch_indices`.
    num_images: size of the training split.

  Returns:
    int32[B], unique within the batch.
  """
  order = np.argsort(indices, kind="stable")
  ranked = indices[order]
  first = np.searchsorted(ranked, ranked, side="left")
  occurrence = np.empty_like(order)
  occurrence[order] = np.arange(len(indices)) - first
  return (indices + num_images * occurrence).astype(np.int32)
