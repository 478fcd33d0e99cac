"""Sums by which a changed array or text is known: CRC-32."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dbl_jax import trees

# Where `meta` keeps them.
KEY = "checksums"
_PLAIN = ("meta", "metrics")


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


def of_items(items: Mapping[str, Any]) -> dict[str, int]:
  """Name -> checksum of a checkpoint's items, of arrays or of plain data."""
  return {
    name: of_text(item) if name in _PLAIN else of_arrays(item)
    for name, item in items.items()
  }


def check(stored: Mapping[str, Any], **items: Any) -> None:
  """Raises ValueError if something is not as it was saved.

  Args:
    stored: the item `meta`; without checksums where an earlier version saved.
    **items: any of `model`, `train` and `metrics`.
  """
  sums = stored.get(KEY, {})
  if not sums:
    return
  items["meta"] = {k: v for k, v in stored.items() if k != KEY}
  for name, found in of_items(items).items():
    if sums[name] != found:
      raise ValueError(f"its {name} changed after it was saved")
