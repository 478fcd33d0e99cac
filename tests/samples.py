"""Tiny data sets of random images, in the layouts of RAF-DB, ExpW, FER2013."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from dbl_jax.data.formats import fer2013

# Every class in both splits, and not in the order of the names.
RAF_DB_ROWS = (
  *((f"train_{i:05d}.jpg", i % 7 + 1) for i in (9, 3, 1, 2, 8, 4, 7, 5, 6)),
  *((f"test_{i:04d}.jpg", (i + 2) % 7 + 1) for i in range(1, 8)),
)


def image_bytes(seed, mode="RGB", image_format="JPEG", size=(12, 12)):
  """A random image file."""
  channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
  shape = (size[1], size[0], *channels)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, image_format)
  return buffer.getvalue()


def write_raf_db(root: Path, rows=RAF_DB_ROWS) -> Path:
  """Writes `root/basic`, one image of it grey, one a PNG; returns root."""
  (root / "basic" / "EmoLabel").mkdir(parents=True)
  raf_db_aligned(root).mkdir(parents=True)
  text = "\n".join(f"{name} {code}" for name, code in rows)
  raf_db_labels(root).write_text(text)
  for index, (name, _) in enumerate(rows):
    mode = "L" if index == 1 else "RGB"
    image_format = "PNG" if index == 2 else "JPEG"
    raf_db_image(root, name).write_bytes(image_bytes(index, mode, image_format))
  return root


def raf_db_labels(root: Path) -> Path:
  return root / "basic" / "EmoLabel" / "list_patition_label.txt"


def raf_db_aligned(root: Path) -> Path:
  return root / "basic" / "Image" / "aligned"


def raf_db_image(root: Path, name: str) -> Path:
  return raf_db_aligned(root) / name.replace(".jpg", "_aligned.jpg")


def zip_folder(folder: Path, path: Path, base: str = "") -> Path:
  """Packs what is in the folder, under names that start with `base`."""
  files = sorted(folder.rglob("*"))  # before the zip is one of them
  with zipfile.ZipFile(path, "w") as archive:
    for file in files:
      if file.is_file():
        archive.write(file, base + file.relative_to(folder).as_posix())
  return path


EXPW_SIZE = (40, 30)


def expw_rows(photos=60):
  """One to three faces a photo, of long-tailed classes."""
  rng = np.random.default_rng(0)
  rows = []
  for photo in range(photos):
    for face in range(1 + photo % 3):
      label = rng.choice(7, p=[0.1, 0.1, 0.05, 0.25, 0.1, 0.1, 0.3])
      left, top = rng.integers(0, 20, 2)
      row = (f"p {photo}.jpg", face, top, left, left + 12, top + 10, 61.5)
      rows.append((*row, label))
  return rows


def write_expw(root, rows, folder="image/origin"):
  (root / "label").mkdir(parents=True)
  (root / folder).mkdir(parents=True)
  text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
  (root / "label" / "label.lst").write_text(text)
  for i, name in enumerate(dict.fromkeys(row[0] for row in rows)):
    data = image_bytes(i, "RGB", "PNG", EXPW_SIZE)
    (root / folder / name).write_bytes(data)
  return root


FER_USAGES = ("Training", "PublicTest", "PrivateTest")
# Usage and emotion of each row: every class twice in Training.
FER_ROWS = [("Training", c) for c in (*range(7), *range(7))] + [
  (usage, c) for c in range(7) for usage in FER_USAGES[1:]
]


def fer_pixels(row):
  return np.random.default_rng(row).integers(0, 256, (48, 48), np.uint8)


def write_fer_csv(path, form="emotion,pixels,Usage", rows=FER_ROWS, end="\n"):
  lines = [form]
  for i, (usage, emotion) in enumerate(rows):
    pixels = " ".join(map(str, fer_pixels(i).ravel()))
    field = {"emotion": emotion, "pixels": pixels, "usage": usage}
    columns = [name.strip().lower() for name in form.split(",")]
    lines.append(",".join(str(field[name]) for name in columns))
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(end.join(lines) + end)
  return path


def write_fer_folders(root, rename=str):
  for part in ("train", "test"):
    for name in fer2013.CLASS_NAMES:
      folder = root / part / rename(name)
      folder.mkdir(parents=True)
      for i in range(2):
        data = image_bytes(hash((part, i)) % 99, "L", size=(48, 48))
        (folder / f"{i}.jpg").write_bytes(data)
  return root
