"""A data set that has been found but not read: its image files, by part.

A source that finds image files gives a `Listing`; hashing, decoding and
checking it are the same for all of them, and are here.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dbl_jax.data.datasets import PARTS, Dataset, Split
from dbl_jax.data.formats import images
from dbl_jax.data.formats.stored import StoredFile

__all__ = [
  "PARTS",
  "Listing",
  "Record",
  "counts",
  "decode",
  "differences",
  "fingerprint",
]


class Record(NamedTuple):
  """One labelled image.

  Attributes:
    name: which is the image's own within the data set.
    label: index into the class names.
    file: where it is stored.
    box: the part of the picture that is meant; None is all of it.
  """

  name: str
  label: int
  file: StoredFile
  box: images.Box | None = None


class Listing(NamedTuple):
  """All labelled images of a data set.

  Attributes:
    class_names: in the order of the labels.
    parts: 'train' and 'test', and 'validation' if the data set has its own.
    warnings: what a user should know, one line each.
  """

  class_names: tuple[str, ...]
  parts: dict[str, tuple[Record, ...]]
  warnings: tuple[str, ...] = ()


def fingerprint(listing: Listing) -> str:
  """A hash that changes when the labels, the parts or the images do.

  Images go in by name, size and time of change (in a zip: checksum), so no
  image is read.

  Args:
    listing: the data set.

  Returns:
    64 hexadecimal digits.
  """
  digest = hashlib.sha256(repr(listing.class_names).encode())
  for part, records in listing.parts.items():
    digest.update(f"\n{part}\n".encode())
    for name, label, file, box in records:
      row = (name, label, file.size, file.stamp, box)
      digest.update(f"{row}\n".encode())
  return digest.hexdigest()


def decode(
  listing: Listing,
  name: str,
  image_size: int,
  progress: Callable[[int, int], None] | None = None,
) -> Dataset:
  """Decodes all images.

  Args:
    listing: the data set.
    name: its name, such as 'fer2013'.
    image_size: height and width of the decoded images, in pixels.
    progress: called with the number of images decoded, and of all.

  Returns:
    The data set, with the listing's parts in the order of their records.

  Raises:
    UserError: if images cannot be read, with the first and their number.
  """
  pictures = [
    images.Picture(record.file.origin, record.file.read, record.box)
    for records in listing.parts.values()
    for record in records
  ]
  decoded = images.decode_all(pictures, image_size, progress)
  parts, start = {}, 0
  for part, records in listing.parts.items():
    labels = np.array([record.label for record in records], np.int32)
    parts[part] = Split(decoded[start : start + len(records)], labels)
    start += len(records)
  return Dataset(
    name,
    listing.class_names,
    parts,
    fingerprint(listing),
    tuple(listing.warnings),
  )


def counts(listing: Listing) -> dict[str, list[int]]:
  """Images per class, for each part."""
  found = {}
  for part, records in listing.parts.items():
    of_class = Counter(record.label for record in records)
    found[part] = [of_class[c] for c in range(len(listing.class_names))]
  return found


def differences(
  origin: str,
  part: str,
  class_names: Sequence[str],
  found: Sequence[int],
  original: tuple[str, Sequence[int]],
) -> list[str]:
  """Says how a part's counts differ from those its authors published.

  Args:
    origin: where the data lie.
    part: name of the part.
    class_names: C names.
    found: C counts.
    original: the data set's name and its C counts.

  Returns:
    A line, or nothing if there is no difference.
  """
  name, expected = original
  differing = [
    f"{class_name} {here} ({name} has {there})"
    for class_name, here, there in zip(
      class_names, found, expected, strict=True
    )
    if here != there
  ]
  if not differing:
    return []
  return [
    f"{origin}: {part} has {sum(found)} images ({name} has {sum(expected)}):"
    f" {', '.join(differing)}"
  ]
