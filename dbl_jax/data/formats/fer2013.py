"""FER2013 (Goodfellow et al. 2013): 48 x 48 grey faces, by its CSV or folders.

The CSV is `fer2013.csv` (emotion, pixels, Usage) or the older
`icml_face_data.csv` (emotion, Usage, pixels, with spaces in the names).
Training is the training split, PublicTest validation, PrivateTest the test
split. The folder form is `train/angry/*.jpg` ... `test/surprise/*.jpg`; its
test split is PublicTest, PrivateTest or both, depending on the copy, and
validation is split off the training split. Either may lie in a zip.

Classes are in the order of the CSV's codes 0 to 6 in both forms. (Sorted, as
a plain image folder has them, neutral would come before sad and surprise.)
351 training images are in PublicTest too: see scripts/check_data.py.
"""

import functools
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.datasets import FER2013_NAMES, expression
from dbl_jax.data.formats import image_folder, listing, stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError

IMAGE_SIZE = 48
CLASS_NAMES = FER2013_NAMES
TRAIN_COUNTS = (3995, 436, 4097, 7215, 4830, 3171, 4965)
_LABELS = {expression(name): i for i, name in enumerate(CLASS_NAMES)} | {
  str(code): code for code in range(len(CLASS_NAMES))
}
_SPLITS = {
  b"Training": "train",
  b"PublicTest": "validation",
  b"PrivateTest": "test",
}
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_COLUMNS = ("emotion", "usage", "pixels")
_SIDE = 48  # of the CSV's images, in pixels
_EXPECTED = (
  "expected fer2013.csv or icml_face_data.csv, or folders train/ and test/"
  f" with {', '.join(CLASS_NAMES)} in each"
)


def find(path: Path, _: Any = None) -> Listing:
  """Finds the images, see `Source.find`.

  The path is the CSV, or a folder or zip that holds it or the class folders.
  """
  if path.suffix.lower() == ".csv" and path.is_file():
    files = {path.name: stored.of_path(path)}
  else:
    files = stored.open_tree(path, _EXPECTED)
  warnings: list[str] = []
  if (table := _find_table(path, files)) is not None:
    splits, origin = _read_table(table), table.origin
  else:
    (splits, warnings), origin = _read_folders(path, files), str(path)
  found = Listing(CLASS_NAMES, splits)
  counts = listing.counts(found)["train"]
  warnings += listing.differences(
    origin, "train", CLASS_NAMES, counts, ("FER2013", TRAIN_COUNTS)
  )
  return found._replace(warnings=tuple(warnings))


def _find_table(path: Path, files: dict[str, StoredFile]) -> StoredFile | None:
  """The table, by its name or else by its columns; None if not found."""
  names = (*_CSV_NAMES, path.name)
  by_name = [f for n, f in files.items() if n.rsplit("/", 1)[-1] in names]
  by_name.sort(key=lambda f: names.index(f.origin.rsplit("/", 1)[-1]))
  others = [f for n, f in files.items() if n.lower().endswith(".csv")]
  columns = {f.origin: _column_names(f.read().split(b"\n")[0]) for f in others}
  by_columns = [f for f in others if set(_COLUMNS) <= set(columns[f.origin])]
  lacking = [f.origin for f in others if "pixels" in columns[f.origin]]
  if lacking and not by_name and not by_columns:
    raise UserError(
      f"{lacking[0]} lacks the column Usage, so its splits are unknown;"
      f" {_EXPECTED}. Use fer2013.csv or icml_face_data.csv."
    )
  return next(iter([*by_name, *by_columns]), None)


def _read_folders(
  path: Path, files: dict[str, StoredFile]
) -> tuple[dict[str, tuple[Record, ...]], list[str]]:
  tree, warnings = image_folder.read_tree(path, files)
  if "train" not in tree:
    raise UserError(
      f"{path} has no train/ and test/; {_EXPECTED}. For other folders set"
      " data.name=image_folder."
    )
  splits = {}
  for split, folders in tree.items():
    records = []
    for folder, inside in folders.items():
      label = _LABELS.get(expression(folder))
      if label is None:
        raise UserError(
          f"{path}: {split} has a folder {folder!r}; {_EXPECTED}. Rename or"
          " remove it, or set data.name=image_folder to train on the classes"
          " as they are."
        )
      records += [Record(n, label, file) for n, file in inside.items()]
    missing = set(range(len(CLASS_NAMES))) - {r.label for r in records}
    if missing and split != "validation":
      names = ", ".join(CLASS_NAMES[label] for label in sorted(missing))
      raise UserError(
        f"{path}: {split} has no image of {names}; {_EXPECTED}. Copy or extract"
        " the images again."
      )
    splits[split] = tuple(sorted(records, key=lambda r: (r.label, r.name)))
  return splits, warnings


def _read_table(file: StoredFile) -> dict[str, tuple[Record, ...]]:
  lines = enumerate(file.read().split(b"\n"), start=1)
  rows = ((number, line) for number, line in lines if line.strip())
  _, header = next(rows, (0, b""))
  columns = _columns(header, file.origin)
  splits: dict[str, list[Record]] = {split: [] for split in _SPLITS.values()}
  for number, line in rows:
    where = f"{file.origin}, line {number}"
    split, label, pixels = _parse_row(line, columns, where)
    read = functools.partial(_image, pixels, where)
    crc = zlib.crc32(pixels)
    image = StoredFile(where, file.size, file.stamp, read, crc)
    splits[split].append(Record(f"{number:05}", label, image))
  for usage, split in _SPLITS.items():
    if not splits[split]:
      raise UserError(
        f"{file.origin} has no row of {usage.decode()}; expected"
        " Training, PublicTest and PrivateTest. Copy the original again."
      )
  return {split: tuple(records) for split, records in splits.items()}


def _columns(header: bytes, origin: str) -> tuple[int, int, int, int]:
  """Finds the columns of emotion, Usage and pixels, and counts all.

  Others are ignored, such as the row numbers that pandas adds.
  """
  names = _column_names(header)
  if any(names.count(column) != 1 for column in _COLUMNS):
    text = header.decode("utf-8-sig", "replace")
    raise UserError(
      f"{origin} begins with {text.strip()[:80]!r}; expected the columns"
      " emotion, pixels and Usage. Use fer2013.csv or icml_face_data.csv:"
      " train.csv and test.csv lack one of them."
    )
  emotion, usage, pixels = map(names.index, _COLUMNS)
  return emotion, usage, pixels, len(names)


def _column_names(header: bytes) -> list[str]:
  text = header.decode("utf-8-sig", "replace")
  return [name.strip().strip('"').lower() for name in text.split(",")]


def _parse_row(
  line: bytes, columns: tuple[int, int, int, int], where: str
) -> tuple[str, int, bytes]:
  """Parses a row: split, label, pixels."""
  fields = [field.strip(b' "\r') for field in line.split(b",")]
  *places, number = columns
  if len(fields) == number:
    code, usage, pixels = (fields[column] for column in places)
    if len(code) == 1 and code in b"0123456" and usage in _SPLITS:
      return _SPLITS[usage], int(code), pixels
  raise UserError(
    f"{where}: found {line[:30]!r} ... {line[-20:]!r}; expected an emotion 0"
    " to 6, pixels, and Training, PublicTest or PrivateTest. Copy the"
    " original again."
  )


def _image(pixels: bytes, where: str) -> bytes:
  """Converts pixels to a PGM file, so that they are read like any image."""
  # NumPy would stop at other characters, or take them for numbers.
  if pixels.translate(None, b"0123456789 \t"):
    pixels = b""
  values = np.fromstring(pixels, np.int64, sep=" ")
  if len(values) != _SIDE**2 or values.min() < 0 or values.max() > 255:
    raise UserError(
      f"{where} does not hold a picture; expected {_SIDE**2} ({_SIDE} x"
      f" {_SIDE}) whole numbers from 0 to 255. Copy the original again."
    )
  return b"P5 %d %d 255\n" % (_SIDE, _SIDE) + values.astype(np.uint8).tobytes()
