"""Decoding a listing: in order, with progress, naming what cannot be read."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbl_jax.data.formats import listing, stored
from dbl_jax.errors import UserError


def encode(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return buffer.getvalue()


def pixels(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def decode(reads, progress=None):
  records = tuple(
    listing.Record(name, 0, stored.StoredFile(name, 0, 0, read))
    for name, read in reads.items()
  )
  found = listing.Listing(("a", "b"), {"train": records, "test": ()})
  return listing.decode(found, "x", 8, progress=progress).splits["train"].images


def test_the_order_is_kept_and_progress_reported():
  expected = [pixels(seed=i) for i in range(50)]
  reads = {str(i): lambda p=p: encode(p) for i, p in enumerate(expected)}
  calls = []
  decoded = decode(reads, lambda *call: calls.append(call))
  np.testing.assert_array_equal(decoded, expected)
  assert calls == sorted(calls)
  assert calls[-1] == (50, 50)
  assert len(calls) > 5
  assert decode({}).shape == (0, 8, 8, 3)


def test_the_first_bad_image_is_named_and_all_are_counted():
  later = threading.Event()

  def slow():
    later.wait(5)
    return b"bad"

  def quick():
    later.set()
    return b"bad"

  def good():
    return encode(pixels())

  reads = {"a": good, "slow": slow, "quick": quick, "b": good}
  with pytest.raises(UserError, match=r"2 of 4 images .* first: slow is not"):
    decode(reads)
  with pytest.raises(UserError, match=r"^quick is not an image"):
    decode({"quick": quick, "b": good})


def test_a_file_that_vanishes_is_named(tmp_path):
  path = Path(tmp_path / "gone.jpg")
  path.touch()
  file = stored.of_path(path)
  path.unlink()
  with pytest.raises(UserError, match=r"gone\.jpg cannot be read \(No such"):
    decode({"gone": file.read})
