"""A tiny folder in RAF-DB's layout, of random images."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

# Every class in both splits, and not in the order of the names.
ROWS = (
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


def write(root: Path, rows=ROWS) -> Path:
  """Writes `root/basic`, one image of it grey, one a PNG; returns root."""
  (root / "basic" / "EmoLabel").mkdir(parents=True)
  aligned(root).mkdir(parents=True)
  text = "\n".join(f"{name} {code}" for name, code in rows)
  labels(root).write_text(text)
  for index, (name, _) in enumerate(rows):
    mode = "L" if index == 1 else "RGB"
    image_format = "PNG" if index == 2 else "JPEG"
    image(root, name).write_bytes(image_bytes(index, mode, image_format))
  return root


def labels(root: Path) -> Path:
  return root / "basic" / "EmoLabel" / "list_patition_label.txt"


def aligned(root: Path) -> Path:
  return root / "basic" / "Image" / "aligned"


def image(root: Path, name: str) -> Path:
  return aligned(root) / name.replace(".jpg", "_aligned.jpg")


def zip_folder(folder: Path, path: Path, base: str = "") -> Path:
  """Packs what is in the folder, under names that start with `base`."""
  files = sorted(folder.rglob("*"))  # before the zip is one of them
  with zipfile.ZipFile(path, "w") as archive:
    for file in files:
      if file.is_file():
        archive.write(file, base + file.relative_to(folder).as_posix())
  return path
