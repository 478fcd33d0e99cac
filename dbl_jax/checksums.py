"""Sums by which a changed array or text is known: CRC-32."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dbl_jax import trees


def of_arrays(tree: Any) -> int:
  """CRC-32 over the bytes of a tree's leaves, in the order of their paths."""
  found = 0
  for _, leaf in sorted(trees.by_path(tree).items()):
    array = np.ascontiguousarray(leaf).reshape(-1)
    found = zlib.crc32(array.view(np.uint8).data, found)
  return found


def of_text(plain: Mapping[str, Any]) -> int:
  """CRC-32 of plain data as JSON, whatever the order of its keys."""
  return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
