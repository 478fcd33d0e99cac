"""Parts for data sets that come without: seeded, stratified, by groups."""

import numpy as np

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
