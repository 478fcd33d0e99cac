"""Images that are in two parts of a data set."""

import hashlib
import itertools
import math
from collections.abc import Mapping

import numpy as np

from dbl_jax.data.prepared import Part

_KEY_BYTES = 64


def shared(parts: Mapping[str, Part]) -> dict[tuple[str, str], int]:
  """Counts images that have the same pixels as one in another part.

  Args:
    parts: by name.

  Returns:
    For pairs of parts (one, other) that share images: how many of the
    other's images are in the first.
  """
  keys = {name: _keys(part.images) for name, part in parts.items()}
  found = {}
  for one, other in itertools.combinations(parts, 2):
    # Few images agree in some of their pixels; those are compared in all.
    common = np.intersect1d(keys[one], keys[other])
    here, there = (
      [_digest(image) for image in parts[n].images[np.isin(keys[n], common)]]
      for n in (one, other)
    )
    first = set(here)
    if number := sum(digest in first for digest in there):
      found[one, other] = number
  return found


def _keys(images: np.ndarray) -> np.ndarray:
  """uint64[n], of some of each image's bytes."""
  flat = images.reshape(len(images), math.prod(images.shape[1:]))
  some = flat[:, :: max(flat.shape[1] // _KEY_BYTES, 1)].astype(np.uint64)
  # Odd factors of 64 bits: sums that wrap around differ with the pixels.
  factors = np.random.default_rng(0).integers(2**63, size=some.shape[1])
  return some @ (factors.astype(np.uint64) | np.uint64(1))


def _digest(image: np.ndarray) -> bytes:
  return hashlib.blake2b(image.tobytes(), digest_size=16).digest()
