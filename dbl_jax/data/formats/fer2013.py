"""FER2013 (Goodfellow et al. 2013): 48 x 48 grey faces, by its CSV or folders.

The CSV is `fer2013.csv` (emotion, pixels, Usage) or the older
`icml_face_data.csv` (emotion, Usage, pixels, with spaces in the names): its
part Training is for training, PublicTest for validation, PrivateTest the test
part. The folder form is `train/angry/*.jpg` ... `test/surprise/*.jpg`; its
test part is PublicTest, PrivateTest or both, depending on who made it, and
validation is split off the training part. Either may lie in a zip.

Classes are in the order of the CSV's codes 0 to 6 in both forms. (Sorted, as
a plain image folder has them, neutral would come before sad and surprise.)
351 training images are in PublicTest too: see scripts/check_data.py.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax.data.formats import expressions, image_folder, listing, stored
from dbl_jax.data.formats.listing import Listing, Record
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.errors import UserError

IMAGE_SIZE = 48
CLASS_NAMES = expressions.FER2013_NAMES
TRAIN_COUNTS = (3995, 436, 4097, 7215, 4830, 3171, 4965)
_LABELS = {expressions.noun(name): i for i, name in enumerate(CLASS_NAMES)} | {
  str(code): code for code in range(len(CLASS_NAMES))
}
_PARTS = {
  b"Training": "train",
  b"PublicTest": "validation",
  b"PrivateTest": "test",
}
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_SIDE = 48  # of the CSV's images, in pixels
_EXPECTED = (
  "expected fer2013.csv or icml_face_data.csv, or folders train/ and test/"
  f" with {', '.join(CLASS_NAMES)} in each"
)


def find(path: Path, _: Any = None) -> Listing:
  """Finds the images.

  Args:
    path: the CSV, or a folder or zip that holds it or the class folders.

  Returns:
    The images, with part 'validation' if they are from the CSV.

  Raises:
    UserError: if neither form is found, or something in it is wrong.
  """
  if path.suffix.lower() == ".csv" and path.is_file():
    files = {path.name: stored.of_path(path)}
  else:
    files = stored.open_tree(path, _EXPECTED)
  tables = [
    file
    for csv_name in (*_CSV_NAMES, path.name)
    for name, file in files.items()
    if name.rsplit("/", 1)[-1] == csv_name
  ]
  warnings: list[str] = []
  if tables:
    parts, origin = _read_table(tables[0]), tables[0].origin
  else:
    (parts, warnings), origin = _read_folders(path, files), str(path)
  found = Listing(CLASS_NAMES, parts)
  warnings += listing.differences(
    origin,
    "train",
    CLASS_NAMES,
    listing.counts(found)["train"],
    ("FER2013", TRAIN_COUNTS),
  )
  return found._replace(warnings=tuple(warnings))


def _read_folders(
  path: Path, files: dict[str, StoredFile]
) -> tuple[dict[str, tuple[Record, ...]], list[str]]:
  tree, warnings = image_folder.read_tree(path, files)
  if "train" not in tree:
    raise UserError(
      f"{path} has no train/ and test/; {_EXPECTED}. To have other folders"
      " split for you, set data.name=image_folder."
    )
  parts = {}
  for part, folders in tree.items():
    records = []
    for folder, inside in folders.items():
      label = _LABELS.get(expressions.noun(folder))
      if label is None:
        raise UserError(
          f"{path}: {part} has a folder {folder!r}; {_EXPECTED}. Rename or"
          " remove it, or set data.name=image_folder to train on the classes"
          " as they are."
        )
      records += [Record(n, label, file) for n, file in inside.items()]
    missing = set(range(len(CLASS_NAMES))) - {r.label for r in records}
    if missing and part != "validation":
      names = ", ".join(CLASS_NAMES[label] for label in sorted(missing))
      raise UserError(
        f"{path}: {part} has no image of {names}; {_EXPECTED}. Copy or extract"
        " the images again."
      )
    parts[part] = tuple(sorted(records, key=lambda r: (r.label, r.name)))
  return parts, warnings


def _read_table(file: StoredFile) -> dict[str, tuple[Record, ...]]:
  content = file.read()
  lines = _lines(content)
  columns = _columns(next(lines, (0, 0, b""))[2], file.origin)
  parts: dict[str, list[Record]] = {part: [] for part in _PARTS.values()}
  for number, start, line in lines:
    where = f"{file.origin}, line {number}"
    part, label, (low, high) = _parse_row(line, columns, where)
    pixels = slice(start + low, start + high)
    read = functools.partial(_image, content, pixels, where)
    image = StoredFile(where, file.size, file.stamp, read)
    parts[part].append(Record(f"{number:05}", label, image))
  for usage, part in _PARTS.items():
    if not parts[part]:
      raise UserError(
        f"{file.origin} has no row of {usage.decode()}; expected"
        " Training, PublicTest and PrivateTest. Copy the original again."
      )
  return {part: tuple(records) for part, records in parts.items()}


def _lines(content: bytes) -> Iterator[tuple[int, int, bytes]]:
  """Number, place and content of each line that is not empty."""
  start, number = 0, 0
  while start < len(content):
    end = content.find(b"\n", start)
    end = len(content) if end < 0 else end
    number += 1
    if content[start:end].strip():
      yield number, start, content[start:end]
    start = end + 1


def _columns(header: bytes, origin: str) -> tuple[int, int, int]:
  """Places of emotion, Usage and pixels."""
  text = header.decode("utf-8-sig", "replace")
  names = [name.strip().strip('"').lower() for name in text.split(",")]
  wanted = ("emotion", "usage", "pixels")
  if sorted(names) != sorted(wanted):
    raise UserError(
      f"{origin} begins with {text.strip()[:80]!r}; expected the columns"
      " emotion, pixels and Usage. Use fer2013.csv or icml_face_data.csv:"
      " train.csv and test.csv lack one of them."
    )
  emotion, usage, pixels = map(names.index, wanted)
  return emotion, usage, pixels


def _parse_row(
  line: bytes, columns: tuple[int, int, int], where: str
) -> tuple[str, int, tuple[int, int]]:
  """Part, label, and where in the line the pixels are."""
  fields = line.split(b",")
  emotion, usage, pixels = columns
  code = fields[emotion].strip(b' "\r') if len(fields) == 3 else b""
  part = _PARTS.get(fields[usage].strip(b' "\r')) if len(fields) == 3 else None
  if len(code) != 1 or code not in b"0123456" or part is None:
    raise UserError(
      f"{where}: found {line[:30]!r} ... {line[-20:]!r}; expected an emotion 0"
      " to 6, pixels, and Training, PublicTest or PrivateTest. Copy the"
      " original again."
    )
  low = sum(len(field) + 1 for field in fields[:pixels])
  return part, int(code), (low, low + len(fields[pixels]))


def _image(content: bytes, place: slice, where: str) -> bytes:
  """The row's picture as a PGM file, so that it is read like any other."""
  pixels = content[place].strip(b' "\r')
  # What is no number would end NumPy's reading, or be taken for one.
  if pixels.translate(None, b"0123456789 \t"):
    pixels = b""
  values = np.fromstring(pixels, np.int64, sep=" ")
  if len(values) != _SIDE**2 or values.min() < 0 or values.max() > 255:
    raise UserError(
      f"{where} does not hold a picture; expected {_SIDE**2} ({_SIDE} x"
      f" {_SIDE}) whole numbers from 0 to 255. Copy the original again."
    )
  return b"P5 %d %d 255\n" % (_SIDE, _SIDE) + values.astype(np.uint8).tobytes()
