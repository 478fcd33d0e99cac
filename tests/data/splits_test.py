"""Splits: seeded, stratified, groups undivided; cuts to a long tail."""

import numpy as np
import pytest

import tiny
from dbl_jax.data import sources, splits
from dbl_jax.data.datasets import FER2013_NAMES, RAF_DB_COUNTS, Dataset, Split
from dbl_jax.errors import UserError

LABELS = np.repeat(range(4), (60, 25, 14, 1))


def split_test(labels, fraction, seed):
  return splits.split_off(labels, fraction, seed, splits.TEST)


@pytest.mark.parametrize("split", [splits.stratified_split, split_test])
def test_each_class_gives_its_share_and_keeps_one(split):
  left, taken = split(LABELS, 0.1, 0)
  np.testing.assert_array_equal(np.bincount(LABELS[taken]), [6, 2, 1])
  np.testing.assert_array_equal(
    np.sort(np.concatenate([left, taken])), np.arange(100)
  )
  np.testing.assert_array_equal(split(LABELS, 0.1, 0)[1], taken)
  assert (split(LABELS, 0.1, 1)[1] != taken).any()
  train, validation = split(np.array([0, 0, 0, 1]), 0.5, 0)
  assert 3 in train
  assert len(validation) == 2
  assert [len(part) for part in split(np.zeros(0, int), 0.2, 0)] == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_close(seed):
  rng = np.random.default_rng(seed)
  labels = rng.choice(4, 4000, p=[0.6, 0.3, 0.08, 0.02])
  groups = rng.integers(0, 2000, 4000)
  left, taken = splits.split_off(labels, 0.2, seed, splits.TEST, groups)
  assert not set(groups[left]) & set(groups[taken])
  wanted = 0.2 * np.bincount(labels)
  assert (np.abs(np.bincount(labels[taken]) - wanted) <= 2).all()


def test_splits_are_those_of_earlier_versions():
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(range(4), (60, 25, 10, 5)))
  for split, arguments, expected in (
    (splits.stratified_split, (), [2, 6, 16, 20, 21, 27, 32, 52, 79, 86]),
    (splits.split_off, (splits.TEST,), [5, 8, 9, 40, 47, 49, 55, 56, 58, 99]),
    (splits.split_off, (splits.VALIDATION,),
     [3, 10, 14, 43, 46, 51, 71, 78, 81, 93]),
  ):  # fmt: skip
    assert split(labels, 0.1, 0, *arguments)[1].tolist() == expected


def make_dataset(counts, names):
  labels = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
  labels = np.random.default_rng(0).permutation(labels)
  images = np.arange(len(labels)).reshape(-1, 1, 1, 1)
  part = Split(images, labels)
  return Dataset("faces", names, {"train": part, "test": part}, "f00")


@pytest.fixture
def three():
  return make_dataset((50, 400, 200), ("a", "b", "c"))


def counts_of(dataset, part="train"):
  return np.bincount(dataset.splits[part].labels).tolist()


def test_exponential_keeps_the_order_of_sizes_and_only_cuts(three):
  cut = splits.cut(three, "exponential", 16, 0)
  assert counts_of(cut) == [25, 400, 100]
  assert counts_of(cut, "test") == [50, 400, 200]
  cut = splits.cut(three, "exponential", 2, 0)
  assert counts_of(cut) == [50, 400, 200]
  assert "exponential asks for more" in cut.warnings[0]
  assert "a 50 (not 200), c 200 (not 282)" in cut.warnings[0]
  for imbalance, expected in ((1, [9, 9, 9]), (1000, [9, 1, 1])):
    found = splits.exponential_counts(np.array([9, 9, 9]), imbalance)
    assert found.tolist() == expected


@pytest.mark.parametrize(
  ("classes", "largest", "imbalance", "total"),
  [(10, 5000, 100, 12_406), (100, 500, 100, 10_847)],
)
def test_the_cut_of_cifar_is_the_published_one(
  classes, largest, imbalance, total
):
  found = splits.exponential_counts(np.full(classes, largest), imbalance)
  assert found.sum() == total
  if classes == 10:  # CIFAR-10-LT of Cao et al. 2019
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert found.tolist() == published


def test_the_images_of_validation_count_for_the_cut():
  dataset = make_dataset((90, 90, 90), ("a", "b", "c"))
  cut = splits.cut(dataset, "exponential", 4, 0, np.array([100, 100, 100]))
  assert counts_of(cut) == [90, 50, 25]


def test_images_keep_their_labels_and_their_order(three):
  images, labels = splits.cut(three, "exponential", 16, 0).splits["train"]
  index = images.ravel()
  assert (np.diff(index) > 0).all()
  np.testing.assert_array_equal(labels, three.splits["train"].labels[index])


def test_a_cut_is_seeded_nested_and_changes_the_fingerprint(three):
  def cut(imbalance, seed=0):
    found = splits.cut(three, "exponential", imbalance, seed)
    return set(found.splits["train"].images.ravel()), found.fingerprint

  assert cut(16) == cut(16)
  assert cut(100)[0] < cut(16)[0]
  assert cut(16, seed=1)[0] != cut(16)[0]
  prints = {cut(16)[1], cut(100)[1], cut(16, seed=1)[1], three.fingerprint}
  assert len(prints) == 4


def test_raf_db_goes_by_the_names_of_the_classes():
  dataset = make_dataset((900, 500, 400, 5000, 2000, 1300, 2600), FER2013_NAMES)
  cut = splits.cut(dataset, "raf_db", 100, 0)
  assert counts_of(cut) == [705, 500, 281, 4772, 1982, 1290, 2524]
  assert cut.warnings == (
    "faces: data.long_tail=raf_db asks for more images than these classes have;"
    " all are kept: disgust 500 (not 717)",
  )
  assert sum(RAF_DB_COUNTS["train"]) - sum(counts_of(cut)) == 217


def test_raf_db_of_other_classes_is_refused(three):
  with pytest.raises(UserError, match=r"faces has a, b, c\. Set data\.long"):
    splits.cut(three, "raf_db", 100, 0)


def test_load_cuts_the_training_part_alone(tmp_path):
  options = tiny.get_resolved(cache_dir=str(tmp_path), num_train=200).data
  whole = sources.load(options)
  options.long_tail, options.imbalance = "exponential", 20.0
  cut = sources.load(options)
  assert cut.fingerprint != whole.fingerprint
  assert max(counts_of(cut)) == max(counts_of(whole))
  assert sum(counts_of(cut)) < sum(counts_of(whole))
  for part in ("validation", "test"):
    assert counts_of(cut, part) == counts_of(whole, part)
  assert len(list(tmp_path.glob("*.npz"))) == 1
