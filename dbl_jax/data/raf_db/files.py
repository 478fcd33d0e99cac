"""The label file and the images of RAF-DB, found in a folder or a zip.

Nothing is extracted: a zip, and the aligned.zip inside it, are read in place.
"""

import io
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from dbl_jax.data.formats import stored
from dbl_jax.data.formats.stored import StoredFile, few
from dbl_jax.errors import UserError

# The first spelling is the authors' own.
LABEL_FILES = ("list_patition_label.txt", "list_partition_label.txt")
_LABEL_PATTERN = re.compile(r"(.*/)?EmoLabel/list_par?tition_label\.txt")
_EXPECTED = (
  "expected RAF-DB's basic set: EmoLabel/list_patition_label.txt and"
  " Image/aligned/train_00001_aligned.jpg and so on, under basic/ or not,"
  " or the zip of it; or Kaggle's DATASET/train/1 to DATASET/test/7"
)


class Files(NamedTuple):
  """What a folder or zip holds, before labels and images are matched."""

  label_origin: str
  labels: bytes
  image_origin: str
  images: dict[str, StoredFile]


def open_files(path: Path) -> Files:
  """Finds the label file and the images.

  Args:
    path: the folder that holds `basic`, `basic` itself, or a zip of either.

  Returns:
    The label file's content, and the images by file name, not read yet.

  Raises:
    UserError: if the path or the label file is missing or unreadable.
  """
  if os.path.isdir(path):
    return _open_folder(path)
  if os.path.isfile(path):
    return _open_zip(path)
  raise UserError(
    f"{path} does not exist; {_EXPECTED}. Give the folder or zip that you"
    " got from RAF-DB's authors."
  )


def _open_folder(root: Path) -> Files:
  for base in (root, root / "basic"):
    for name in LABEL_FILES:
      labels = base / "EmoLabel" / name
      if labels.is_file():
        where, images = _folder_images(base / "Image")
        return Files(str(labels), stored.read_file(labels), where, images)
  if (root / "basic.zip").is_file():
    return _open_zip(root / "basic.zip")
  try:
    found = sorted(p.name for p in root.iterdir())
  except OSError as error:
    raise stored.unreadable(root, error) from error
  raise UserError(
    f"{root} has no label file (found: {few(found) or 'nothing'});"
    f" {_EXPECTED}. Give the folder or zip you got from RAF-DB's authors."
  )


def _folder_images(parent: Path) -> tuple[str, dict[str, StoredFile]]:
  folder = parent / "aligned"
  # Unpacking aligned.zip into a folder of its name gives aligned/aligned.
  while (folder / "aligned").is_dir():
    folder /= "aligned"
  images = {}
  if folder.is_dir():
    images = {n: f for n, f in stored.folder_files(folder) if _is_image(n)}
  if not images and (parent / "aligned.zip").is_file():
    folder = parent / "aligned.zip"
    images = _zip_images(_archive(folder, str(folder)), str(folder), "")
  return str(folder), images


def _open_zip(path: Path) -> Files:
  archive = _archive(path, str(path))
  names = [n for n in archive.namelist() if not n.startswith("__MACOSX/")]
  # 'pati' sorts after 'part', but is the authors' own: it goes first.
  matches = [m for name in names if (m := _LABEL_PATTERN.fullmatch(name))]
  found = sorted((match[0] for match in matches), reverse=True)
  bases = sorted({match[1] or "" for match in matches})
  if len(bases) != 1:
    what = f"label files under {few(bases)}" if bases else "no label file"
    raise UserError(
      f"{path} has {what} (it holds {len(names)} entries: {few(names)});"
      f" {_EXPECTED}. Give the zip you got from RAF-DB's authors."
    )
  labels = stored.read_entry(archive, found[0], str(path))
  where, folder = str(path), f"{bases[0]}Image/aligned/"
  images = _zip_images(archive, where, folder)
  nested = f"{bases[0]}Image/aligned.zip"
  if not images and nested in names:
    content = io.BytesIO(stored.read_entry(archive, nested, where))
    where, folder = f"{where}/{nested}", ""
    images = _zip_images(_archive(content, where), where, folder)
  return Files(f"{path}/{found[0]}", labels, f"{where}/{folder}", images)


def _archive(file: Path | io.BytesIO, origin: str) -> zipfile.ZipFile:
  return stored.open_archive(file, origin, _EXPECTED)


def _zip_images(
  archive: zipfile.ZipFile, origin: str, folder: str
) -> dict[str, StoredFile]:
  return stored.by_name(
    {
      name: file
      for name, file in stored.zip_files(archive, origin)
      if name.startswith(folder) and _is_image(name.rsplit("/", 1)[-1])
    }
  )


def _is_image(name: str) -> bool:
  # Hidden files and thumbnails that systems leave behind are not counted.
  stem = name.rsplit(".", 1)[0]
  return stem.endswith("_aligned") and not name.startswith(".")
