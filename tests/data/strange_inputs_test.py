"""Unusual and damaged data: it works as expected, or one line says why not.

Each case is loaded as for training, and inspected by scripts/check_data.py.
"""

import gzip
import os
import re
import tarfile
import zipfile

import mains
import pytest
import samples
import strange
from strange import (
  bomb,
  changed,
  cut,
  expw,
  faces,
  fer,
  last_line,
  link,
  named,
  patched,
  picture,
  raf,
  tar_of,
  tarred,
  under,
  with_image,
  zipped,
)  # fmt: skip

import tiny
from dbl_jax.data import sources
from dbl_jax.errors import UserError

IMAGES = 14  # of `strange.faces`


def loads(images):
  """It loads, with so many images."""
  return images


def fails(message):
  """Both say this."""
  return ("both", message)


def fails_to_load(message):
  """It is fit to be looked at, but not to be trained on."""
  return ("load", message)


def bad_image(message):
  """Loading says this of an image; the check lists it."""
  return ("image", message)


def extra(*parts, content=b"x"):
  """One more file."""

  def change(path):
    file = path.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)

  return change


def folder_of(build):
  """A folder that holds what a builder writes."""

  def both(root):
    (root / "in").mkdir()
    return build(root / "in").parent

  return both


def nameless(root):
  path = zipped([("x.png", b"x")])(root)
  data = path.read_bytes()
  place = data.rindex(b"x.png")
  path.write_bytes(data[:place] + b"\0" + data[place + 1 :])
  return path


def raf_zip(share):
  return changed(
    lambda root: samples.zip_folder(raf()(root), root / "z.zip"), cut(share)
  )


def raf_twice(root):
  name = "basic/Image/aligned/more/train_00001_aligned.jpg"
  path = changed(raf(), extra(name, content=samples.image_bytes(9)))(root)
  return samples.zip_folder(path, root / "z.zip")


def kaggle(rows):
  return strange.kaggle(strange.write_table(b"image,label\n" + rows))


# Edits of a label file.
def replaced(old, new, count=-1):
  return lambda text: text.replace(old, new, count)


def bom(text):
  return b"\xef\xbb\xbf" + text


def utf_16(text):
  return text.decode().encode("utf-16")


def empty(text):
  return b""


def first_line(text):
  return text.split(b"\n")[0]


def all_quoted(text):
  rows = text.strip().split(b"\n")
  return b"\n".join(
    b",".join(b'"%s"' % field for field in row.split(b",")) for row in rows
  )


CRLF = replaced(b"\n", b"\r\n")
CR = replaced(b"\n", b"\r")
BLANK = replaced(b"\n", b"\n\n")
LFS = b"version https://git-lfs.github.com/spec/v1\nsize 9\n"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
NOT_UTF_8 = os.fsdecode(b"\xff\xfe.png")
A_FILE = named("f", b"x")
OUT_OF_IT = "which leads out"
NO_IMAGE = bad_image("is not an image")
CUT_OFF = fails("is damaged or cut off")
FOLDER = {
  "as it should be": (faces, loads(IMAGES)),
  "1 pixel": (with_image(picture((1, 1))), loads(15)),
  "30,000 wide": (with_image(picture((30_000, 2))), loads(15)),
  "wrong suffix": (with_image(picture(kind="BMP"), "x.jpg"), loads(15)),
  "cut off": (
    with_image(picture((64, 64))[:-500]),
    bad_image(r"x\.png is damaged or cut off"),
  ),
  "text": (with_image(b"hello"), bad_image(r"x\.png is not an image")),
  "empty file": (with_image(b""), bad_image(r"x\.png is empty")),
  "PostScript": (with_image(POSTSCRIPT), NO_IMAGE),
  "81 million pixels": (
    with_image(strange.png(9000, 9000)),
    bad_image("has 9000 x 9000 pixels; at most 64 million"),
  ),
  "3.6 billion pixels": (
    with_image(strange.png(60_000, 60_000)),
    bad_image("at most 64 million"),
  ),
  "4 GB": (
    changed(faces, strange.sparse),
    bad_image("has 4294967296 bytes; expected an image"),
  ),
  "no image's name": (with_image(b"<svg/>", "x.svg"), loads(IMAGES)),
  "link to itself": (
    changed(faces, link("x.png", "x.png")),
    fails(r"ant/x\.png is a link to x\.png, which cannot"),
  ),
  "link to nowhere": (
    changed(faces, link("x.png", "/no/where.png")),
    fails(r"ant/x\.png is a link to /no/where\.png"),
  ),
  "link to a folder above": (changed(faces, link("up", "..")), loads(IMAGES)),
  "link to another class": (  # as stored: its images are in two classes
    changed(faces, link("more", "../bee")),
    loads(IMAGES + 3),
  ),
  "name with a newline": (
    with_image(b"hello", "a\nb.png"),
    bad_image(r"a\nb\.png is not an image"),
  ),
  "name that a terminal obeys": (with_image(b"x", "a\x1b[31mb.png"), NO_IMAGE),
  "name with spaces": (with_image(picture(), "ä b 🐜.png"), loads(15)),
  "name not UTF-8": (with_image(picture(), NOT_UTF_8), loads(15)),
  "bad file, name not UTF-8": (with_image(b"x", NOT_UTF_8), NO_IMAGE),
  "class not UTF-8": (changed(faces, under(b"\xff")), loads(IMAGES)),
  "class with a newline": (changed(faces, under(b"a\nb")), loads(IMAGES)),
  "class with spaces": (
    changed(faces, under("ein Tier ü 🐜".encode())),
    loads(IMAGES),
  ),
  "class of 250 letters": (changed(faces, under(b"x" * 250)), loads(IMAGES)),
  "hidden class": (
    changed(faces, under(b".ant")),
    fails("has a single class, bee"),
  ),
  "empty class folder": (
    changed(faces, lambda path: (path / "train" / "cow").mkdir()),
    loads(IMAGES),
  ),
  "empty folder": (lambda root: root, fails(r"\(found: nothing\)")),
  "no folder": (lambda root: root / "no", fails("no does not exist")),
  "a text file": (A_FILE, fails("is not a zip file")),
  "too long a path": (
    lambda root: root / ("x" * 5000),
    fails("does not exist"),
  ),
  "one image a class": (
    lambda root: faces(root, (1, 1), splits=("",)),
    fails_to_load("no image in the split test"),
  ),
  "one training image a class": (
    lambda root: faces(root, (1, 1)),
    fails_to_load("2 training images leave none for validation"),
  ),
  "zip": (zipped(), loads(IMAGES)),
  "zip with an outer folder": (zipped(base="outer/"), loads(IMAGES)),
  "zip with backslashes": (
    zipped([("train\\ant\\x.png", picture())]),
    loads(15),
  ),
  "zip with LZMA": (
    zipped([("train/ant/x.png", picture())], method=zipfile.ZIP_LZMA),
    loads(15),
  ),
  "zip with an entry without name": (nameless, loads(IMAGES)),
  "zip that leaves its folder": (
    zipped([("../../evil.png", picture())]),
    fails(r"entry '\.\./\.\./evil\.png', which leads out"),
  ),
  "zip that leaves its folder by a class": (
    zipped([("train/ant/../../../evil.png", picture())]),
    fails(OUT_OF_IT),
  ),
  "zip with a path from the root": (
    zipped([("/tmp/evil.png", picture())]),
    fails(OUT_OF_IT),
  ),
  "zip with a bad image": (zipped([("train/ant/x.png", b"no")]), NO_IMAGE),
  "zip bomb": (bomb("train/ant/x.png"), bad_image("more than 100 times")),
  "half a zip": (
    changed(zipped(), cut(0.5)),
    fails("is not a zip file or is damaged"),
  ),
  "tar": (tarred(), loads(IMAGES)),
  "tar.gz": (tarred("w:gz", "d.tar.gz"), loads(IMAGES)),
  "tgz": (tarred("w:gz", "d.tgz"), loads(IMAGES)),
  "tar.bz2": (tarred("w:bz2", "d.tar.bz2"), loads(IMAGES)),
  "tar.xz": (tarred("w:xz", "d.tar.xz"), loads(IMAGES)),
  "tar of old form": (strange.tar_of_old_form, loads(IMAGES)),
  "tar with impossible times": (
    strange.tar_with_times("nan", "inf", "-1e300", "-5.5"),
    loads(IMAGES),
  ),
  "tar with a hard link": (strange.linked, loads(15)),
  "tar that leaves its folder": (tar_of("../../evil.png"), fails(OUT_OF_IT)),
  "tar with a device": (
    tar_of("train/ant/x.png", tarfile.CHRTYPE),
    fails("is a link or not a regular file.* Extract it"),
  ),
  "tar bomb": (strange.tar_bomb, fails("would grow .* Extract it")),
  "half a tar.gz": (
    changed(tarred("w:gz", "d.tar.gz"), cut(0.5)),
    CUT_OFF,
  ),
  "half a tar": (changed(tarred(), cut(0.4)), CUT_OFF),
  "7z": (
    named("d.7z", b"7z\xbc\xaf\x27\x1c00"),
    fails("is a 7z archive; .* Extract it"),
  ),
  "RAR": (
    named("d.rar", b"Rar!\x1a\x07\x01"),
    fails("is a RAR archive; .* Extract it"),
  ),
  "part of a zip": (
    named("d.zip.001", b"PK\3\4"),
    fails("is one part of a split archive.* Join and extract"),
  ),
  "part of a zip, by WinZip": (
    named("d.z01", b"PK\7\x08"),
    fails("is one part of a split archive"),
  ),
  "Deflate64": (
    patched(10, b"\x09"),
    fails("is compressed by Deflate64, which is not read. Extract it"),
  ),
  "zip by another method": (patched(10, b"\x4d"), fails("by method 77")),
  "a photo": (
    named("x.jpg", picture(kind="JPEG")),
    fails("is a single image; .* Give the folder"),
  ),
  "a compressed table": (
    named("x.csv.gz", gzip.compress(b"a,b")),
    fails("is a single compressed file"),
  ),
  "HDF5": (
    named("x.h5", b"\x89HDF\r\n"),
    fails("is an HDF5 file; .* Save its images"),
  ),
  "an empty file": (named("d.zip", b""), fails(r"d\.zip is empty")),
  "a web page": (
    named("d.zip", b"\n<!doctype html><title>Quota</title>"),
    fails("is a web page, which a failed download leaves"),
  ),
  "a Git LFS pointer": (named("d.zip", LFS), fails("git lfs pull")),
  "only archives in a folder": (
    folder_of(named("d.parquet", b"PAR1")),
    fails(r"Images inside of other files are not found \(d\.parquet\)"),
  ),
  "folder not UTF-8": (strange.renamed(b"\xff\n"), loads(IMAGES)),
  "image that Git LFS left out": (
    with_image(LFS),
    bad_image(r"x\.png is a Git LFS pointer"),
  ),
  "HEIC": (
    with_image(b"\0\0\0\x18ftypheic" + bytes(20), "x.jpg"),
    bad_image("is in the format HEIC, which is not read"),
  ),
  "locked zip": (patched(8, b"\1"), bad_image("locked by a password")),
}
LINE_30, COLUMNS = fails("line 30"), fails("expected the columns")
NO_PICTURE = bad_image("line 2 does not hold a picture")
FER = {
  "as it should be": (fer(), loads(28)),
  "BOM": (fer(bom), loads(28)),
  "CRLF": (fer(end="\r\n"), loads(28)),
  "blank lines": (fer(BLANK), loads(28)),
  "no last newline": (fer(bytes.rstrip), loads(28)),
  "quotes": (fer(all_quoted), loads(28)),
  "row numbers, as pandas adds": (
    fer(lambda text: b"," + text.replace(b"\n", b"\n7,", 28)),
    loads(28),
  ),
  "tabs for commas": (fer(replaced(b",", b"\t")), COLUMNS),
  "CR alone": (fer(CR), COLUMNS),
  "UTF-16": (fer(utf_16), COLUMNS),
  "empty": (fer(empty), fails("begins with ''")),
  "header alone": (fer(first_line), fails("has no row of Training")),
  "four columns": (fer(last_line(b"0,1 2,Training,9")), LINE_30),
  "two columns": (fer(last_line(b"0,Training")), LINE_30),
  "unknown label": (fer(last_line(b"7,1,Training")), LINE_30),
  "no label": (fer(last_line(b",1,Training")), LINE_30),
  "unknown part": (fer(last_line(b"0,1,Testing")), LINE_30),
  "a word after the pixels": (
    fer(replaced(b",Training", b" x,Training", 1)),
    NO_PICTURE,
  ),
  "NUL": (fer(replaced(b" ", b"\0", 1)), NO_PICTURE),
  "folders": (strange.fer_folders, loads(28)),
  "bomb": (bomb("fer2013.csv"), fails("more than 100 times")),
  "another name": (folder_of(fer(name="faces (1).csv")), loads(28)),
  "another name, in a tar.gz": (
    tarred("w:gz", "d.tgz", folder_of(fer(name="faces.csv"))),
    loads(28),
  ),
  "a table without splits": (
    folder_of(fer(lambda text: b"emotion,pixels\n0,1", "train.csv")),
    fails(r"train\.csv lacks the column Usage"),
  ),
  "nothing": (lambda root: root, fails("found: nothing")),
  "another table": (named("x.csv", b"a,b\n1,2"), fails("begins with 'a,b'")),
}
ROW = b"p 0.jpg 9 1 1 20 20 50 1"
NO_PHOTO, LINE_121 = fails("1 photos .* are missing"), fails("line 121")


def expw_row(old, new):
  return expw(last_line(ROW.replace(old, new)))


EXPW = {
  "as it should be": (expw(), loads(120)),
  "BOM": (expw(bom), loads(120)),
  "CRLF": (expw(CRLF), loads(120)),
  "blank lines": (expw(BLANK), loads(120)),
  "tabs": (expw(replaced(b" 61.5", b"\t61.5")), loads(120)),
  "no last newline": (expw(bytes.rstrip), loads(120)),
  "not a number": (expw_row(b"20 20", b"nan 20"), LINE_121),
  "infinity": (expw_row(b"20 20", b"inf 20"), LINE_121),
  "too far": (expw_row(b"20 20", b"1e300 20"), LINE_121),
  "nine columns": (expw(last_line(ROW + b" more")), LINE_121),
  "unknown label": (expw(last_line(ROW[:-1] + b"7")), fails("label")),
  "not UTF-8": (expw_row(b"p 0", b"\xff\xfe"), NO_PHOTO),
  "UTF-16": (expw(utf_16), fails("line 1")),
  "a row twice": (
    expw(lambda text: text + first_line(text)),
    fails("was already in line 1"),
  ),
  "empty": (expw(empty), fails("has no rows")),
  "one face": (expw(first_line), fails_to_load("no training image of angry")),
  "a path for a name": (expw_row(b"p 0", b"../../etc/passwd"), NO_PHOTO),
  "no label file": (
    changed(expw(), lambda path: (path / "label" / "label.lst").unlink()),
    fails(r"no label\.lst \(found: image/origin"),
  ),
  "two photos of one name": (
    changed(expw(), extra("image", "origin", "b", "p 0.jpg")),
    fails("has the name of"),
  ),
}
MISSING = fails("are missing")
RAF = {
  "as it should be": (raf(), loads(16)),
  "BOM": (raf(bom), loads(16)),
  "CRLF": (raf(CRLF), loads(16)),
  "CR alone": (raf(CR), loads(16)),
  "not UTF-8": (raf(last_line(b"train_\xff.jpg 3")), fails("line 17")),
  "three columns": (raf(last_line(b"train_00001.jpg 2 2")), fails("line 17")),
  "empty": (raf(empty), fails("lacks train images")),
  "bad image": (
    changed(raf(), extra("basic/Image/aligned/train_00001_aligned.jpg")),
    bad_image("train_00001_aligned.jpg is not an image"),
  ),
  "name not UTF-8": (
    changed(
      raf(), extra("basic/Image/aligned", os.fsdecode(b"\xff_aligned.jpg"))
    ),
    loads(16),
  ),
  "two images of one name in a zip": (raf_twice, fails("has the name of")),
  "half a zip": (raf_zip(0.5), fails("is not a zip file")),
  "a text file": (A_FILE, fails("is not a zip file")),
  "nothing": (lambda root: root, fails("has no label file")),
  "Kaggle's": (strange.kaggle(), loads(16)),
  "Kaggle's, another label": (
    kaggle(b"train_00001_aligned.jpg,7\n"),
    fails("has the label 7, but lies in the folder of 2"),
  ),
  "Kaggle's, three columns": (
    kaggle(b"train_00001_aligned.jpg,2,3\n"),
    fails("line 2: found"),
  ),
  "Kaggle's, a row twice": (
    kaggle(b"train_00001_aligned.jpg,2\n" * 2),
    fails("line 3: .* already in line 2"),
  ),
  "Kaggle's, not UTF-8": (kaggle(b"\xff\xfe,2\n"), MISSING),
  "Kaggle's, NUL": (kaggle(b"\0,2\n"), MISSING),
  "Kaggle's, a field without end": (
    kaggle(b'"' + b"x" * 200_000 + b'",2\n'),
    fails(r"are missing: x{77}\.\.\.\."),
  ),
  "Kaggle's, an empty table": (kaggle(b""), fails("lacks train images")),
  "Kaggle's, codes from 0": (
    strange.kaggle(
      lambda path: (path / "train" / "1").rename(path / "train" / "0")
    ),
    fails("has a folder '0'"),
  ),
}
CASES = {
  (name, what): case
  for name, cases in {
    "image_folder": FOLDER,
    "fer2013": FER,
    "expw": EXPW,
    "raf_db": RAF,
  }.items()
  for what, case in cases.items()
}


@pytest.mark.parametrize(
  ("name", "what"), CASES, ids=[f"{n}: {w}" for n, w in CASES]
)
def test_it_works_or_one_line_says_why_not(name, what, tmp_path):
  build, expected = CASES[name, what]
  (tmp_path / "in").mkdir()
  path = build(tmp_path / "in")
  before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
  options = tiny.get_resolved(
    name=name, dir=str(path), image_size=16, cache_dir=str(tmp_path / "cache")
  ).data
  where, message = ("", "") if isinstance(expected, int) else expected
  if where:
    with pytest.raises(UserError, match=f"(?s){message}"):
      sources.load(options)
    assert not [*(tmp_path / "cache").glob("*.npz")]
  else:
    splits = sources.load(options).splits
    assert sum(len(part.labels) for part in splits.values()) == expected
    assert len([*(tmp_path / "cache").glob("*.npz")]) == 1
  assert not [*(tmp_path / "cache").rglob("*partial*")]
  after = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
  assert after == before

  done = mains.run(
    "check_data",
    [f"--name={name}", f"--dir={path}", f"--out={tmp_path / 'out'}"],
  )
  assert done.status == (2 if where else 0), done.err
  lines = done.err.splitlines()
  assert len(lines) == bool(where)
  assert all(line.startswith("error: ") for line in lines)
  if where in ("both", "load"):
    assert re.search(message, done.err)
  if where == "both":
    assert not (tmp_path / "out").exists()
  if where == "image":
    assert re.search("1 of .* images cannot be read|locked", done.err)
  assert all(c.isprintable() or c in "\n\r" for c in done.out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("place", ["train", "train/ant", "train/ant/0.png"])
def test_what_may_not_be_read_is_named(place, tmp_path):
  path = faces(tmp_path)
  (path / place).chmod(0)
  options = tiny.get_resolved(
    name="image_folder", dir=str(path), cache_dir=str(tmp_path / "cache")
  ).data
  with pytest.raises(UserError, match=f"{place} cannot be read"):
    sources.load(options)
