"""A data set that has been found but not read: its image files, by split.

Each reader returns a `Listing`; hashing, decoding and checking are the same for
all data sets.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dbl_jax.data import face_crops
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import images
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError


class Record(NamedTuple):
  """One labelled image.

  Attributes:
    name: unique within the data set.
    label: index into the class names.
    file: where it is stored.
    box: the region of the image to use; None is all of it.
  """

  name: str
  label: int
  file: StoredFile
  box: images.Box | None = None


class Listing(NamedTuple):
  """All labelled images of a data set.

  Attributes:
    class_names: in the order of the labels.
    splits: 'train' and 'test', and 'validation' if the data set has its own.
      Records may be read when they are indexed; then the reader computes the
      fingerprint.
    warnings: lines for the user.
    fingerprint: if the reader computes its own, see `fingerprint`.
    former: likewise, see `former_fingerprint`.
  """

  class_names: tuple[str, ...]
  splits: Mapping[str, Sequence[Record]]
  warnings: tuple[str, ...] = ()
  fingerprint: str = ""
  former: str = ""


def fingerprint(
  listing: Listing, progress: Callable[[int, int], None] | None = None
) -> str:
  """Hashes the labels, the splits and the content of the images.

  Copies of a data set have the same fingerprint, in a folder or an archive.
  Files whose checksum is not stored next to them are read; `progress` is called
  with the number of images read, and of all.

  Returns:
    64 hexadecimal digits.

  Raises:
    UserError: if a file cannot be read.
  """
  if listing.fingerprint:
    return listing.fingerprint
  records = (r for split in listing.splits.values() for r in split)
  stored = {r.file.origin: r.file for r in records}
  sums = images.in_threads(StoredFile.checksum, [*stored.values()], progress)
  crcs = dict(zip(stored, sums, strict=True))
  return _hash(listing, lambda file: crcs[file.origin])


def former_fingerprint(listing: Listing) -> str:
  """Hashes times of change in place of content, without reading.

  Earlier versions used it as the fingerprint of a run.
  """
  known = listing.former or listing.fingerprint
  return known or _hash(listing, lambda file: file.stamp)


def _hash(listing: Listing, of_file: Callable[[StoredFile], int]) -> str:
  digest = hashlib.sha256(repr(listing.class_names).encode())
  for split, records in listing.splits.items():
    digest.update(f"\n{split}\n".encode())
    for name, label, file, box in records:
      row = (name, label, file.size, of_file(file), box)
      digest.update(f"{row}\n".encode())
  return digest.hexdigest()


def decode(
  listing: Listing,
  name: str,
  image_size: int,
  aligned: bool = False,
  parts: Mapping[str, Sequence[int]] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Dataset:
  """Decodes images, on all cores.

  Args:
    listing: the data set.
    name: its name, such as 'fer2013'.
    image_size: height and width of the decoded images, in pixels.
    aligned: whether to cut out and align the largest face of each image; those
      without a face are used whole, with a warning.
    parts: split -> indices of the records to decode; None is all of them.
    progress: called with the number of images decoded, and of all.

  Returns:
    The data set, with the splits of the listing in the order of their records;
    its fingerprint is not computed.

  Raises:
    UserError: if images cannot be read, with the first and their number.
  """
  if parts is None:
    parts = {k: range(len(records)) for k, records in listing.splits.items()}
  shape = (image_size, image_size, 3)
  arrays = {
    split: (
      np.empty((len(some), *shape), np.uint8),
      np.empty(len(some), np.int32),
    )
    for split, some in parts.items()
  }
  names = {split: [""] * len(chosen) for split, chosen in parts.items()}
  faceless: list[str] = []

  def decode_one(place: tuple[str, int]) -> UserError | None:
    split, i = place
    pixels, labels = arrays[split]
    try:
      record = listing.splits[split][parts[split][i]]
      names[split][i], labels[i] = record.name, record.label
      file, box = record.file, record.box
      arguments = file.read(), image_size, file.origin, box
      face = face_crops.decode(*arguments) if aligned else None
      if aligned and face is None:
        faceless.append(split)
      pixels[i] = images.decode(*arguments) if face is None else face
    except UserError as error:
      return error
    return None

  places = [(k, i) for k, chosen in parts.items() for i in range(len(chosen))]
  errors = images.in_threads(decode_one, places, progress)
  bad = [error for error in errors if error is not None]
  if len(bad) > 1:
    raise UserError(
      f"{len(bad)} of {len(places)} images cannot be read; the first: {bad[0]}"
      " scripts/check_data.py lists them all."
    ) from bad[0]
  if bad:
    raise bad[0]
  warnings = [*listing.warnings] + [
    f"{name}: no face is found in {missed} of {len(parts[split])} images of"
    f" {split}, which are used whole"
    for split in parts
    if (missed := faceless.count(split))
  ]
  splits = {split: Split(*pair) for split, pair in arrays.items()}
  return Dataset(name, listing.class_names, splits, "", tuple(warnings), names)


def counts(listing: Listing) -> dict[str, list[int]]:
  """Counts the images per class, for each split."""
  found = {}
  for split, records in listing.splits.items():
    of_class = Counter(record.label for record in records)
    found[split] = [of_class[c] for c in range(len(listing.class_names))]
  return found


def differences(
  origin: str,
  split: str,
  class_names: Sequence[str],
  found: Sequence[int],
  original: tuple[str, Sequence[int]],
) -> list[str]:
  """Compares the counts of a split with those its authors published.

  `original` is the name of their data set and its counts. Returns a line with
  the differences, if any.
  """
  name, expected = original
  differing = [
    f"{class_name} {here} ({name} has {there})"
    for class_name, here, there in zip(
      class_names, found, expected, strict=True
    )
    if here != there
  ]
  return differing and [
    f"{origin}: {split} has {sum(found)} images ({name} has {sum(expected)}):"
    f" {', '.join(differing)}"
  ]
