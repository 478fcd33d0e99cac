"""Images that are in two splits: counted, said once, found quickly."""

import logging
import time

import numpy as np
import pytest

import tiny
from dbl_jax.data import datasets, inspection, sources
from dbl_jax.data.datasets import Dataset, Split


def random_part(n, side=16, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, side, side, 3), np.uint8)
  return Split(images, (np.arange(n) % 3).astype(np.int32))


def test_copies_are_counted_by_part():
  train, test = random_part(50), random_part(20, seed=1)
  validation = random_part(10, seed=2)
  for unrelated in (test, random_part(0)):
    assert inspection.shared({"train": train, "test": unrelated}) == {}
  test.images[3:6] = train.images[:3]
  test.images[6] = train.images[0]  # twice there
  validation.images[0] = test.images[19]
  found = inspection.shared(
    {"train": train, "validation": validation, "test": test}
  )
  assert found == {("train", "test"): 4, ("validation", "test"): 1}


def test_one_pixel_makes_another_image():
  train, test = random_part(50), random_part(5, seed=1)
  test.images[:] = train.images[:5]
  for i, place in enumerate(((0, 0, 0), (0, 0, 1), (7, 3, 2), (15, 15, 2))):
    test.images[i][place] += 1
  assert inspection.shared({"train": train, "test": test}) == {
    ("train", "test"): 1
  }


def test_of_fer2013s_size_it_takes_no_time():
  splits = {
    "train": random_part(12_000, 48),
    "test": random_part(3_000, 48, seed=1),
  }
  splits["test"].images[:351] = splits["train"].images[:351]
  started = time.process_time()
  assert inspection.shared(splits) == {("train", "test"): 351}
  assert time.process_time() - started < 0.5


@pytest.mark.parametrize("copies", [0, 2])
def test_loading_says_it_in_one_line(copies, tmp_path, caplog):
  train, test = random_part(40), random_part(10, seed=1)
  test.images[:copies] = train.images[:copies]
  splits = {"train": train, "test": test}
  data = Dataset("image_folder", ("a", "b", "c"), splits, "f")
  datasets.save(tmp_path / "a.npz", data)
  options = tiny.get_resolved(
    name="image_folder", dir=str(tmp_path / "a.npz"), image_size=16
  ).data
  with caplog.at_level(logging.WARNING):
    splits = sources.load(options).splits
  told = [r.getMessage() for r in caplog.records if "share" in r.getMessage()]
  if copies == 0:
    assert told == []
    return
  (line,) = told
  assert len(line.splitlines()) == 1
  assert "of test are in" in line
  assert (
    f"scripts/check_data.py --name=image_folder --dir={tmp_path}/a.npz" in line
  )
  assert len(splits["test"].labels) == 10  # said, not mended
