"""Seeded stratified splits, and cuts of the training split to a long tail."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dbl_jax.data import datasets
from dbl_jax.data.datasets import Dataset, Split, class_name
from dbl_jax.data.formats.stored import few
from dbl_jax.data.sampling import philox
from dbl_jax.errors import UserError
from dbl_jax.runtime.rows import take as take_rows

# Streams of random numbers; `sampling` has others below 16.
_BY_CLASS, TEST, VALIDATION, _LONG_TAIL = 0, 16, 17, 18
KINDS = ("raf_db", "exponential")


def stratified_split(
  labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits a validation part off the training images, class by class.

  Each class gives round(fraction * n_j) images, at least one where it has two
  or more; a class with a single image keeps it for training.

  Args:
    labels: int[n], from 0.
    fraction: share that is split off, 0 to 1.
    seed: seed of the split.

  Returns:
    Sorted int64 indices of the remaining part, and of the part split off.
  """
  taken = np.zeros(len(labels), bool)
  shares = _shares(labels, fraction)
  for label, members in enumerate(_members(labels, len(shares))):
    order = philox(seed, _BY_CLASS, label).permutation(members)
    taken[order[: shares[label]]] = True
  return np.flatnonzero(~taken), np.flatnonzero(taken)


def split_off(
  labels: np.ndarray,
  fraction: float,
  seed: int,
  stream: int,
  groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Splits a part off as `stratified_split` does, without dividing a group.

  With groups a class may give fewer images, never more. The rarest class
  chooses its groups first, since the common classes can spare the images that
  come along.

  Args:
    labels, fraction, seed: see `stratified_split`.
    stream: TEST or VALIDATION, whose draws are independent.
    groups: int[n] from 0, such as the photo that a face was cut from; None
      puts each image into a group of its own.

  Returns:
    Sorted int64 indices of the remaining part, and of the part split off.
  """
  groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
  room = _shares(labels, fraction)
  num_groups = groups.max(initial=-1) + 1
  members: list[dict[int, int]] = [{} for _ in range(num_groups)]
  for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
    members[group][label] = members[group].get(label, 0) + 1
  having: list[list[int]] = [[] for _ in room]
  for group in philox(seed, stream).permutation(num_groups).tolist():
    for label in members[group]:
      having[label].append(group)
  taken = np.zeros(num_groups, bool)
  for label in np.argsort(np.bincount(labels), kind="stable").tolist():
    for group in having[label]:
      if not room[label]:
        break
      inside = members[group]
      fits = all(room[c] >= count for c, count in inside.items())
      if fits and not taken[group]:
        taken[group] = True
        for c, count in inside.items():
          room[c] -= count
  split = taken[groups]
  return np.flatnonzero(~split), np.flatnonzero(split)


def _members(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
  """Returns the sorted indices of the images of each class."""
  counts = np.bincount(labels, minlength=num_classes)
  order = np.argsort(labels, kind="stable")
  return np.split(order, np.cumsum(counts))[:-1]


def _shares(labels: np.ndarray, fraction: float) -> list[int]:
  """Returns the number of images that each class gives."""
  sizes = np.bincount(labels)
  shares = np.minimum(np.maximum(np.rint(fraction * sizes), 1), sizes - 1)
  return np.maximum(shares, 0).astype(int).tolist()


def cut(
  dataset: Dataset,
  kind: str,
  imbalance: float,
  seed: int,
  whole_counts: np.ndarray | None = None,
) -> Dataset:
  """Removes training images until each class has its target number.

  Classes with fewer images keep all. With one seed, the images of a smaller cut
  are a subset of those of a larger one. The images keep their order, and the
  data set gets another fingerprint.

  Args:
    dataset: with a split 'train'.
    kind: 'raf_db' cuts each of the seven expressions to the number of training
      images of RAF-DB; 'exponential' is the cut of CIFAR-LT, see
      `exponential_counts`.
    imbalance: largest class over smallest; for 'exponential'.
    seed: picks the images.
    whole_counts: int[C], images per class before a validation split was taken
      away, from which 'exponential' counts; None is those of 'train'.

  Raises:
    UserError: if the classes are not those of RAF-DB, for 'raf_db'.
  """
  labels = dataset.splits["train"].labels
  counts = np.bincount(labels, minlength=len(dataset.class_names))
  if kind == "raf_db":
    targets, what = _raf_db_counts(dataset), kind
  else:
    whole = counts if whole_counts is None else whole_counts
    targets = exponential_counts(whole, imbalance)
    what = f"{kind} {imbalance:g} of {whole.max()}, rounded down"
  kept = [
    philox(seed, _LONG_TAIL, label).permutation(members)[: targets[label]]
    for label, members in enumerate(_members(labels, len(counts)))
  ]
  classes = zip(dataset.class_names, counts, targets, strict=True)
  short = [
    f"{name} {n} (not {target})" for name, n, target in classes if n < target
  ]
  warnings = dataset.warnings
  if short:
    warnings += (
      f"{dataset.name}: data.long_tail={kind} asks for more images than these"
      f" classes have; all are kept: {few(short, 10)}",
    )
  changed = with_state(dataset, f"{what} {seed}")
  rows = {"train": np.sort(np.concatenate(kept))}
  return take(changed, rows)._replace(warnings=warnings)


def with_state(dataset: Dataset, state: str) -> Dataset:
  """Copies a data set with fingerprints that also depend on a state."""
  fingerprint, former = (
    one and hashlib.sha256(f"{one} {state}".encode()).hexdigest()
    for one in (dataset.fingerprint, dataset.former)
  )
  return dataset._replace(fingerprint=fingerprint, former=former)


def take(dataset: Dataset, rows: Mapping[str, np.ndarray]) -> Dataset:
  """Copies a data set with splits made of rows of its training split.

  `rows` has the name of each of these splits, and its indices into 'train'.
  """
  images, labels = dataset.splits["train"]
  names = dataset.names.get("train")
  new = {k: Split(take_rows(images, i), labels[i]) for k, i in rows.items()}
  # Splits are counted and shown in the order 'train', the new ones, the others.
  # A union keeps the first place of a key and its last value.
  splits = {"train": dataset.splits["train"]} | new | dataset.splits | new
  named = names and {k: [names[j] for j in i] for k, i in rows.items()}
  return dataset._replace(
    splits=splits, names={**dataset.names, **(named or {})}
  )


def groups_of(dataset: Dataset, groups: str) -> np.ndarray:
  """Finds the group of each training image, such as the person on it.

  `groups` is 'folder', the folder in the class folder; or a text file with a
  line 'path group' for each image, its path as in `Dataset.names`.

  Returns:
    int[n] from 0.

  Raises:
    UserError: if the group or name of an image is missing.
  """
  names = dataset.names.get("train", ())
  labels = dataset.splits["train"].labels
  if len(names) != len(labels):
    raise UserError(
      f"data.groups={groups} needs the names of the images, which a file"
      " prepared by an earlier version lacks. Set data.dir to the original"
      " images."
    )
  classes = [dataset.class_names[label] for label in labels]
  return group_numbers(names, classes, groups)


def group_numbers(
  names: Sequence[str], classes: Sequence[str], groups: str
) -> np.ndarray:
  """See `groups_of`; takes the n names of the images and of their classes."""
  if groups == "folder":
    found = list(map(_folder_in_class, names, classes))
  else:
    table = _read_groups(Path(groups).expanduser())
    found = [table.get(name, "") for name in names]
  if lacking := [n for n, group in zip(names, found, strict=True) if not group]:
    raise UserError(
      f"data.groups={groups}: {len(lacking)} of {len(names)} images lack a"
      f" group, such as {lacking[0]}; expected "
      + (
        "folders in the class folders, such as CLASS/PERSON/1.jpg."
        if groups == "folder"
        else f"a line '{lacking[0]} GROUP'."
      )
    )
  return np.unique(found, return_inverse=True)[1]


def _folder_in_class(name: str, of_class: str) -> str:
  *folders, _ = name.split("/")
  known = [class_name(folder) for folder in folders]
  place = known.index(of_class) + 1 if of_class in known else len(folders)
  return folders[place] if place < len(folders) else ""


def _read_groups(path: Path) -> dict[str, str]:
  """Parses a file of 'path group', separated by a comma or blanks."""
  try:
    lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
  except OSError as error:
    raise UserError(
      f"data.groups={path} cannot be read ({error.strerror}); expected 'folder'"
      " or a text file with a line 'path group' for each image."
    ) from error
  rows = (re.fullmatch(r"(.+?)(?:\s*,\s*|\s+)(\S+)\s*", line) for line in lines)
  return {row[1].strip(): row[2] for row in rows if row}


def exponential_counts(counts: np.ndarray, imbalance: float) -> np.ndarray:
  """Returns the target numbers of 'exponential', int64[C].

  The class j-th in size gets n_max * imbalance^(-j / (C - 1)), rounded down, at
  least 1 (Cao et al. 2019, section 4.1, and their code).

  Args:
    counts: int[C], images per class; the classes keep their order of size,
      those of equal size their order.
    imbalance: largest class over smallest.
  """
  rank = np.argsort(np.argsort(-counts, kind="stable"))
  share = imbalance ** (-rank / max(len(counts) - 1, 1))
  # Rounding errors must not take an image: 5000 / 100 is 50.
  exact = np.floor(counts.max() * share + 1e-9)
  return np.maximum(exact, 1).astype(np.int64)


def _raf_db_counts(dataset: Dataset) -> np.ndarray:
  names = [datasets.expression(name) for name in dataset.class_names]
  expected = datasets.RAF_DB_NAMES
  if sorted(names) != sorted(expected):
    raise UserError(
      "data.long_tail=raf_db needs the classes of RAF-DB,"
      f" {', '.join(expected)}; {dataset.name} has"
      f" {few(dataset.class_names, 10)}. Set data.long_tail=exponential and"
      " data.imbalance."
    )
  counts = datasets.RAF_DB_COUNTS["train"]
  return np.array([counts[expected.index(name)] for name in names])
