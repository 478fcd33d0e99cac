"""The prepared file: whole, checked, and data alone."""

import numpy as np
import pytest

from dbl_jax.data import datasets
from dbl_jax.errors import UserError


@pytest.fixture
def dataset():
  rng = np.random.default_rng(0)
  splits = {
    name: datasets.Split(
      rng.integers(0, 256, (n, 8, 8, 3), np.uint8),
      rng.integers(0, 2, n).astype(np.int32),
    )
    for name, n in (("train", 20), ("test", 5))
  }
  return datasets.Dataset("faces", ("a", "ü"), splits, "f00", ("beware",))


def test_round_trip(tmp_path, dataset):
  path = tmp_path / "new" / "faces.npz"
  datasets.save(path, dataset)
  loaded = datasets.load(path)
  assert loaded._replace(splits=None) == dataset._replace(splits=None)
  for name, part in dataset.splits.items():
    for old, new in zip(part, loaded.splits[name], strict=True):
      np.testing.assert_array_equal(old, new)
      assert old.dtype == new.dtype
  assert [p.name for p in path.parent.iterdir()] == ["faces.npz"]


def test_parts_of_different_sizes_are_refused_in_any_order(tmp_path, dataset):
  small = dataset.splits["test"]._replace(
    images=np.zeros((5, 4, 4, 3), np.uint8)
  )
  splits = {"test": small, "train": dataset.splits["train"]}
  datasets.save(tmp_path / "faces.npz", dataset._replace(splits=splits))
  with pytest.raises(UserError, match=r"test has images \[5, 4, 4, 3\]"):
    datasets.load(tmp_path / "faces.npz")
