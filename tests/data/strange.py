"""Unusual and damaged data sets: one builder for each oddity.

A builder takes an empty folder, writes to it, and returns what to give as
`data.dir`.
"""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import samples
from PIL import Image


def picture(size=(12, 12), mode="RGB", kind="PNG", seed=0, **options):
  """An image file of any mode."""
  shape = (size[1], size[0], 3)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, kind, **options)
  return file.getvalue()


def faces(root, counts=(4, 3), names=("ant", "bee"), splits=("train", "test")):
  """A folder of class folders, of different images."""
  seed = 0
  for part in splits:
    for name, count in zip(names, counts, strict=True):
      folder = root / "d" / part / name
      folder.mkdir(parents=True)
      for i in range(count):
        seed += 1
        (folder / f"{i}.png").write_bytes(picture(seed=seed))
  return root / "d"


def with_image(data, name="x.png"):
  """The folder with one more image in the first class of the training part."""

  def build(root):
    path = faces(root)
    (path / "train" / "ant" / name).write_bytes(data)
    return path

  return build


def changed(build, change):
  """A data set, something in it changed."""

  def both(root):
    path = build(root)
    return change(path) or path

  return both


def png(width, height, data=None):
  """A PNG that says it has a size, whatever it holds."""

  def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
      ">I", crc
    )  # fmt: skip

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(bytes(100)) if data is None else data)
    + chunk(b"IEND", b"")
  )


def sparse(path, size=4 << 30):
  """A file that says it is large, and takes no room."""
  with (path / "train" / "ant" / "x.png").open("wb") as file:
    file.truncate(size)


def link(name, target):
  return lambda path: (path / "train" / "ant" / name).symlink_to(target)


def zipped(entries=(), base="", method=zipfile.ZIP_STORED):
  """The folder as a zip, with further entries: (name, content)."""

  def build(root):
    path = samples.zip_folder(faces(root), root / "d.zip", base)
    with zipfile.ZipFile(path, "a", method) as archive:
      for name, content in entries:
        archive.writestr(name, content)
    return path

  return build


def tarred(mode="w", name="d.tar", build=faces):
  """A data set as a tar; names begin with './', as GNU tar writes them."""

  def both(root):
    with tarfile.open(root / name, mode) as archive:
      archive.add(build(root), ".")
    return root / name

  return both


def linked(root):
  """A tar with a second name of a file, as tar stores a hard link."""
  path = faces(root)
  os.link(path / "train/ant/0.png", path / "train/ant/x.png")
  return tarred(build=lambda _: path)(root)


def tar_of(name, kind=tarfile.REGTYPE):
  """A tar with a single entry."""

  def build(root):
    with tarfile.open(root / "d.tar", "w") as archive:
      entry = tarfile.TarInfo(name)
      entry.type = kind
      archive.addfile(entry)
    return root / "d.tar"

  return build


def tar_of_old_form(root):
  """As Unix's seventh edition wrote it: headers without a magic word."""
  path = tarred()(root)
  data = bytearray(path.read_bytes())
  with tarfile.open(path) as archive:
    places = [member.offset for member in archive]
  for place in places:
    header = data[place : place + 512]
    header[257:265], header[148:156] = bytes(8), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[place : place + 512] = header
  path.write_bytes(data)
  return path


def tar_with_times(*times):
  def build(root):
    path = faces(root)
    with tarfile.open(root / "d.tar", "w") as archive:
      for i, file in enumerate(sorted(path.rglob("*.png"))):
        entry = archive.gettarinfo(file, str(file.relative_to(path)))
        entry.pax_headers = {"mtime": times[i % len(times)]}
        archive.addfile(entry, io.BytesIO(file.read_bytes()))
    return root / "d.tar"

  return build


def tar_bomb(root):
  path = root / "d.tar.gz"
  with gzip.open(path, "wb", 1) as file:
    for _ in range(200):
      file.write(bytes(1 << 20))
  return path


def named(name, content):
  """A file that is no archive of a kind that is read."""

  def build(root):
    (root / name).write_bytes(content)
    return root / name

  return build


def patched(place, content):
  """A zip; its directory says something else of the first file."""

  def build(root):
    path = samples.zip_folder(faces(root), root / "d.zip")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2") + place
    data[start : start + len(content)] = content
    path.write_bytes(data)
    return path

  return build


def bomb(name):
  """A file of 300 MB of zeros in a zip of 300 KB."""

  def build(root):
    path = samples.zip_folder(faces(root), root / "d.zip")
    with (
      zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
      archive.open(name, "w") as file,
    ):
      for _ in range(300):
        file.write(bytes(1 << 20))
    return path

  return build


def cut(share):
  def change(path):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

  return change


def fer(edit=lambda text: text, name="fer2013.csv", **options):
  """FER2013's CSV, edited as bytes."""

  def build(root):
    path = samples.write_fer_csv(root / name, **options)
    path.write_bytes(edit(path.read_bytes()))
    return path

  return build


def fer_folders(root):
  return samples.write_fer_folders(root / "d")


def expw(edit=lambda text: text, photos=60):
  """ExpW, its label file edited as bytes."""

  def build(root):
    path = samples.write_expw(root / "d", samples.expw_rows(photos))
    labels = path / "label" / "label.lst"
    labels.write_bytes(edit(labels.read_bytes()))
    return path

  return build


def raf(edit=lambda text: text):
  """RAF-DB, its label file edited as bytes."""

  def build(root):
    path = samples.write_raf_db(root / "d")
    labels = samples.raf_db_labels(path)
    labels.write_bytes(edit(labels.read_bytes()))
    return path

  return build


def kaggle(change=lambda path: None):
  """Kaggle's RAF-DB: a folder for each code."""

  def build(root):
    path = root / "DATASET"
    for name, code in samples.RAF_DB_ROWS:
      folder = path / name.split("_")[0] / str(code)
      folder.mkdir(parents=True, exist_ok=True)
      stem = name.removesuffix(".jpg")
      (folder / f"{stem}_aligned.jpg").write_bytes(
        samples.image_bytes(hash(name) % 99)
      )
    change(path)
    return path

  return build


def write_table(text):
  """Kaggle's table of labels beside its folders."""
  return lambda path: (path.parent / "train_labels.csv").write_bytes(text)


def renamed(name):
  """The folder under another name, in bytes."""

  def build(root):
    path = os.fsdecode(os.fsencode(root) + b"/" + name)
    os.rename(faces(root), path)
    return Path(path)

  return build


def last_line(text):
  """Replaces the last line of a label file; one is added."""
  return lambda data: data.rstrip(b"\n") + b"\n" + text


def under(name):
  """Moves a class folder to another name, in all splits."""

  def change(path):
    for part in path.iterdir():
      os.rename(os.fsencode(part / "ant"), os.fsencode(part) + b"/" + name)

  return change
