"""Parts for data sets that come without: seeded, stratified, by groups."""

import hashlib

import numpy as np

from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import expressions
from dbl_jax.data.raf_db.layout import CLASS_COUNTS, CLASS_NAMES
from dbl_jax.errors import UserError

# Streams of random numbers; `sampling` has those below 16.
TEST, VALIDATION = 16, 17


def split_off(
  labels: np.ndarray,
  fraction: float,
  seed: int,
  stream: int,
  groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Splits off a part of the images, in which no group is cut in two.

  Each class gives round(fraction * n_j) images, at least one where it has
  two or more. With groups it may be fewer, never more. The rarest class
  chooses its groups first: what it takes of common classes they have to
  spare.

  Args:
    labels: int[n], from 0.
    fraction: share that is split off, 0 to 1.
    seed: seed of the split.
    stream: TEST or VALIDATION, whose draws are independent.
    groups: int[n] from 0, such as the photo a face was cut from; None puts
      each image in a group of its own.

  Returns:
    Sorted int64 indices of what is left, and of what is split off.
  """
  groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
  sizes = np.bincount(labels)
  room = np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)
  room = np.maximum(room, 0).astype(int).tolist()
  num_groups = groups.max(initial=-1) + 1
  members: list[dict[int, int]] = [{} for _ in range(num_groups)]
  for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
    members[group][label] = members[group].get(label, 0) + 1
  key = np.random.Philox(key=[seed, stream << 56])
  order = np.random.Generator(key).permutation(num_groups).tolist()
  taken = np.zeros(num_groups, bool)
  for label in np.argsort(sizes, kind="stable").tolist():
    for group in order:
      if not room[label]:
        break
      inside = members[group]
      if label not in inside or taken[group]:
        continue
      if all(room[c] >= count for c, count in inside.items()):
        taken[group] = True
        for c, count in inside.items():
          room[c] -= count
  split = taken[groups]
  return np.flatnonzero(~split), np.flatnonzero(split)


KINDS = ("raf_db", "exponential")
_STREAM = 18  # of random numbers; see `splitting`


def cut(dataset: Dataset, kind: str, imbalance: float, seed: int) -> Dataset:
  """Leaves out training images until each class has as many as it should.

  A class that has fewer to begin with keeps what it has. Of two cuts with one
  seed, the images of the smaller are among those of the larger.

  Args:
    dataset: with a part 'train'.
    kind: 'raf_db' cuts each of the seven expressions to RAF-DB's own number
      of training images; 'exponential' gives the class j-th in size
      n_max * imbalance^(-j / (C - 1)) (Cui et al. 2019, section 5.1), at
      least 1.
    imbalance: largest class over smallest; for 'exponential'.
    seed: picks the images.

  Returns:
    The data set with fewer training images in the same order, and a
    fingerprint of its own.

  Raises:
    UserError: if the classes are not RAF-DB's, for 'raf_db'.
  """
  images, labels = dataset.parts["train"]
  counts = np.bincount(labels, minlength=len(dataset.class_names))
  if kind == "raf_db":
    wanted = _raf_db_counts(dataset)
    what = kind
  else:
    wanted = exponential_counts(counts, imbalance)
    what = f"{kind} {imbalance:g}"
  kept = np.sort(
    np.concatenate(
      [
        _generator(seed, label).permutation(np.flatnonzero(labels == label))[:n]
        for label, n in enumerate(wanted)
      ]
    )
  )
  short = [
    f"{name} {found} (not {most})"
    for name, found, most in zip(
      dataset.class_names, counts, wanted, strict=True
    )
    if found < most
  ]
  warnings = dataset.warnings
  if short:
    warnings += (
      f"{dataset.name}: data.long_tail={kind} wants more training images than"
      f" there are, and keeps them all: {', '.join(short)}",
    )
  state = f"{dataset.fingerprint} {what} {seed}"
  return dataset._replace(
    parts=dataset.parts | {"train": Split(images[kept], labels[kept])},
    fingerprint=hashlib.sha256(state.encode()).hexdigest(),
    warnings=warnings,
  )


def exponential_counts(counts: np.ndarray, imbalance: float) -> np.ndarray:
  """What 'exponential' asks of each class.

  Args:
    counts: int[C], images per class; the classes keep their order of size.
    imbalance: largest class over smallest.

  Returns:
    int64[C].
  """
  rank = np.empty(len(counts), np.int64)
  rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
  share = imbalance ** (-rank / max(len(counts) - 1, 1))
  return np.maximum(np.rint(counts.max() * share), 1).astype(np.int64)


def _raf_db_counts(dataset: Dataset) -> np.ndarray:
  names = [expressions.noun(name) for name in dataset.class_names]
  if sorted(names) != sorted(CLASS_NAMES):
    raise UserError(
      "data.long_tail=raf_db needs the classes of RAF-DB,"
      f" {', '.join(CLASS_NAMES)}; {dataset.name} has"
      f" {', '.join(dataset.class_names)}. Set data.long_tail=exponential and"
      " data.imbalance."
    )
  profile = dict(zip(CLASS_NAMES, CLASS_COUNTS["train"], strict=True))
  return np.array([profile[name] for name in names])


def _generator(seed: int, label: int) -> np.random.Generator:
  key = [seed, (_STREAM << 56) | label]
  return np.random.Generator(np.random.Philox(key=key))
