"""ExpW, Expression in-the-Wild (Zhang et al. 2018): faces in web photos.

A folder or zip with `label.lst` and the photos:

  label/label.lst     image_name face_id top left right bottom confidence label
  image/origin/*.jpg

A photo may show several faces, so a face is identified by photo and id. Each
is cropped to its box, grown to a square. All faces are used, whatever the
confidence of the face detector.

ExpW is published without splits. Here it is split by `data.split_seed`:
stratified, `data.test_fraction` for the test split and
`data.validation_fraction` of the rest for validation, with all faces of a
photo in one split, as they share the scene. Fan et al. 2020 do not train on it,
so there is no published split or result to compare with.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.datasets import FER2013_NAMES
from dbl_jax.data.formats import image_folder, listing, stored
from dbl_jax.data.formats.images import Box
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.data.splits import TEST, VALIDATION, split_off
from dbl_jax.errors import UserError

IMAGE_SIZE = 100
CLASS_NAMES = FER2013_NAMES
COUNTS = (3671, 3995, 1088, 30537, 10559, 7060, 34883)
# With more boxes without area the columns must be others.
_MAX_DEGENERATE = 0.01
_MAX_COORDINATE = 1e6  # in pixels; no photo is so large
_EXPECTED = "expected label/label.lst and the photos in image/origin/"
_ROW = "image_name face_id top left right bottom confidence label"
# Photo, face id, label, box.
_Face = tuple[str, str, int, Box]


def find(path: Path, options: Any) -> Listing:
  """Finds the faces, each with its box, and splits them; see `Source.find`.

  The options `test_fraction`, `validation_fraction` and `split_seed` are used.
  """
  files = stored.open_tree(path, _EXPECTED)
  lists = [name for name in files if name.rsplit("/", 1)[-1] == "label.lst"]
  if len(lists) != 1:
    what = f"{len(lists)} files label.lst" if lists else "no label.lst"
    raise UserError(
      f"{path} has {what} (found: {few(files) or 'nothing'}); {_EXPECTED}."
      " Check --config.data.dir."
    )
  labels = files[lists[0]]
  faces, warnings = _parse(labels)
  photos = _photos(files)
  missing = sorted({photo for photo, *_ in faces} - photos.keys())
  if missing:
    raise UserError(
      f"{path}: {len(missing)} photos named in {labels.origin} are missing:"
      f" {few(missing)}; {_EXPECTED}. Extract all of the archive again."
    )
  records = [
    Record(f"{photo}#{face}", label, photos[photo], box)
    for photo, face, label, box in faces
  ]
  counts = np.bincount([r.label for r in records], minlength=len(CLASS_NAMES))
  warnings += listing.differences(
    str(path), "all", CLASS_NAMES, counts.tolist(), ("ExpW", COUNTS)
  )
  splits = _split(records, [photo for photo, *_ in faces], options)
  return Listing(CLASS_NAMES, splits, tuple(warnings))


def _photos(files: dict[str, StoredFile]) -> dict[str, StoredFile]:
  """Returns the photos by name; only those in `origin/` if it exists."""
  names = [name for name in files if image_folder.is_image(name)]
  origin = [name for name in names if "origin" in name.split("/")[:-1]]
  return stored.by_name({name: files[name] for name in origin or names})


def _parse(file: StoredFile) -> tuple[list[_Face], list[str]]:
  text = file.read().decode("utf-8-sig", "replace")
  faces = stored.unique_rows(text, file.origin, _parse_row)
  if not faces:
    raise UserError(
      f"{file.origin} has no rows; expected '{_ROW}'. Copy the original again."
    )
  bad = {name for name, face in faces.items() if _is_empty(face[-1])}
  shown = few(name for name in faces if name in bad)
  if len(bad) > max(1, _MAX_DEGENERATE * len(faces)):
    raise UserError(
      f"{file.origin}: {len(bad)} of {len(faces)} boxes have no area: {shown};"
      f" expected rows '{_ROW}'. Check the order of the columns."
    )
  left_out = (
    f"{file.origin}: {len(bad)} faces are left out, as their boxes have no"
    f" area: {shown}"
  )
  kept = [face for name, face in faces.items() if name not in bad]
  return kept, [left_out] if bad else []


def _is_empty(box: Box) -> bool:
  left, top, right, bottom = box
  return right - left < 1 or bottom - top < 1 or right <= 0 or bottom <= 0


def _parse_row(line: str, where: str) -> tuple[str, _Face]:
  fields = line.split()
  try:
    # A photo's name may hold a space; the numbers after it do not.
    *name, face, top, left, right, bottom, _, label = fields
    box = (float(left), float(top), float(right), float(bottom))
    if max(map(abs, box)) > _MAX_COORDINATE or any(map(math.isnan, box)):
      raise ValueError
    if not name or label not in {"0", "1", "2", "3", "4", "5", "6"}:
      raise ValueError
  except ValueError:
    codes = ", ".join(f"{i} {c}" for i, c in enumerate(CLASS_NAMES))
    raise UserError(
      f"{where}: found {line[:80]!r}, expected '{_ROW}' with a label"
      f" of {codes}. Correct the row or copy the original again."
    ) from None
  photo = " ".join(name)
  return f"face {face} of {photo}", (photo, face, int(label), box)


def _split(
  records: list[Record], photos: Iterable[str], options: Any
) -> dict[str, tuple[Record, ...]]:
  labels, seed = np.array([r.label for r in records]), options.split_seed
  _, groups = np.unique(list(photos), return_inverse=True)
  rest, test = split_off(labels, options.test_fraction, seed, TEST, groups)
  train, validation = split_off(
    labels[rest],
    options.validation_fraction,
    seed,
    VALIDATION,
    np.unique(groups[rest], return_inverse=True)[1],
  )
  index = {"train": rest[train], "validation": rest[validation], "test": test}
  return {
    split: tuple(records[i] for i in inside) for split, inside in index.items()
  }
