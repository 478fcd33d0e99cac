"""RAF-DB: every form of its authors' and Kaggle's layout reads the same."""

import os
import shutil
import zipfile

import pytest
import samples

from dbl_jax.data.datasets import RAF_DB_NAMES
from dbl_jax.data.formats import listing, raf_db
from dbl_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
  return samples.write_raf_db(tmp_path / "raf_db")


def content(found):
  return [
    (record.name, split, record.label, record.file.read())
    for split, records in found.splits.items()
    for record in records
  ]


def expected_content(root):
  return [
    (name, split, code - 1, samples.raf_db_image(root, name).read_bytes())
    for split in ("train", "test")
    for name, code in sorted(samples.RAF_DB_ROWS)
    if name.startswith(split)
  ]


def spelt_rightly(root):
  labels = samples.raf_db_labels(root)
  labels.rename(labels.with_name("list_partition_label.txt"))
  return root


def twice_aligned(root):
  aligned = samples.raf_db_aligned(root)
  aligned.rename(aligned.with_name("inner"))
  aligned.mkdir()
  aligned.with_name("inner").rename(aligned / "aligned")
  return root


def in_a_folder(root):
  (root.parent / "downloads").mkdir()
  samples.zip_folder(root, root.parent / "downloads" / "basic.zip")
  return root.parent / "downloads"


def prefixed(root):
  path = samples.zip_folder(root, root.parent / "a.zip", "RAF-DB/")
  with zipfile.ZipFile(path, "a") as archive:
    junk = "__MACOSX/RAF-DB/basic/EmoLabel/list_patition_label.txt"
    archive.writestr(junk, b"\0\5\26\7")
  return path


def nested(root):
  aligned = samples.raf_db_aligned(root)
  samples.zip_folder(aligned, root / "basic/Image/aligned.zip", "aligned/")
  shutil.rmtree(aligned)
  return root


def zipped(root):
  return samples.zip_folder(root, root.parent / "basic.zip")


FORMS = {
  "parent": lambda root: root,
  "basic": lambda root: root / "basic",
  "other spelling": spelt_rightly,
  "aligned/aligned": twice_aligned,
  "zip": zipped,
  "zip of basic": lambda root: samples.zip_folder(
    root / "basic", root.parent / "any.zip"
  ),
  "zip in a folder": in_a_folder,
  "zip with a prefix": prefixed,
  "nested zip in a zip": lambda root: zipped(nested(root)),
  "nested zip in a folder": nested,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(root, form):
  expected = expected_content(root)
  path = FORMS[form](root)
  before = sorted(path.parent.rglob("*"))
  found = raf_db.find(path)
  assert content(found) == expected
  assert not any("no label" in warning for warning in found.warnings)
  assert found.fingerprint == raf_db.find(path).fingerprint
  assert sorted(path.parent.rglob("*")) == before  # nothing is extracted


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (b"train_00001.jpg", "line 17: found 'train_00001.jpg', expected a file"),
    (b"train_00099.jpg 0", "found the code '0', expected one of 1 surprise"),
    (b"train_00099.jpg happy", "found the code 'happy'"),
    (b"train_00099.jpg \xd9\xa3", "found the code"),
    (b"valid_00001.jpg 1", "found the name 'valid_00001.jpg'"),
    (b"train_../../x.jpg 1", "found the name"),
    (b"train_00001.jpg 3", "train_00001.jpg was already in line 3"),
  ],
)
def test_a_bad_row_is_named(root, rows, message):
  labels = samples.raf_db_labels(root)
  labels.write_bytes(labels.read_bytes() + b"\n" + rows)
  with pytest.raises(UserError, match=message) as caught:
    raf_db.find(root)
  assert str(labels) in str(caught.value)


def test_missing_images_are_counted_and_named(root):
  for name, _ in samples.RAF_DB_ROWS[:7]:
    samples.raf_db_image(root, name).unlink()
  with pytest.raises(UserError) as caught:
    raf_db.find(root)
  for fact in ("7 of 16 images", "train_00009_aligned.jpg", "and 2 more"):
    assert fact in str(caught.value)


def test_what_else_lies_in_the_folder_is_not_searched(root):
  for folder in (root / "other", root / "basic" / "Image" / "original"):
    folder.mkdir()
    (folder / "x.jpg").symlink_to("nowhere")
  assert content(raf_db.find(root)) == expected_content(root)


def test_two_sets_in_one_zip_are_refused(root, tmp_path):
  samples.zip_folder(root, tmp_path / "two.zip", "old/")
  with zipfile.ZipFile(tmp_path / "two.zip", "a") as archive:
    archive.write(
      samples.raf_db_labels(root), "new/EmoLabel/list_patition_label.txt"
    )
  with pytest.raises(UserError, match="label files under new/, old/basic/"):
    raf_db.find(tmp_path / "two.zip")


def test_warnings_name_expected_and_found(root):
  (samples.raf_db_aligned(root) / "train_99999_aligned.jpg").touch()
  (samples.raf_db_aligned(root) / "._train_00001_aligned.jpg").touch()
  (samples.raf_db_aligned(root) / "Thumbs.db").touch()
  train, test, unlabelled = raf_db.find(root).warnings
  assert (
    "train has 9 images (RAF-DB has 12271): surprise 1 (RAF-DB has 1290)"
    in train
  )
  assert "neutral 1 (RAF-DB has 680)" in test
  assert "1 aligned images without a label" in unlabelled


@pytest.mark.parametrize("form", ["parent", "zip"])
def test_the_fingerprint_changes_with_the_data(root, form):
  def fingerprint():
    return listing.fingerprint(raf_db.find(FORMS[form](root)))

  before = fingerprint()
  image = samples.raf_db_image(root, "train_00001.jpg")
  data = bytearray(image.read_bytes())
  stat = image.stat()
  data[-10] ^= 1
  image.write_bytes(data)
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  changed = fingerprint()
  assert changed != before
  labels = samples.raf_db_labels(root)
  labels.write_text(labels.read_text().replace("00001.jpg 2", "00001.jpg 3"))
  assert fingerprint() not in (before, changed)


def test_the_fingerprint_is_that_of_earlier_versions(root):
  # Runs that exist resume on the same fingerprint alone.
  for index, (name, _) in enumerate(samples.RAF_DB_ROWS):
    samples.raf_db_image(root, name).write_bytes(b"x" * index)
    os.utime(samples.raf_db_image(root, name), ns=(10**18, 10**18))
  former = listing.former_fingerprint(raf_db.find(root))
  assert former.startswith("c3247812373f76b4")


def kaggle(root, official, folder=str, tables=True):
  """Writes the images of the official fixture in class folders."""
  rows = {"train": ["image,label"], "test": ["image,label"]}
  for name, code in samples.RAF_DB_ROWS:
    split = name.split("_")[0]
    image = samples.raf_db_image(official, name)
    place = root / "DATASET" / split / folder(code) / image.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(image.read_bytes())
    rows[split].append(f"{image.name},{code}")
  for split in rows if tables else ():
    (root / f"{split}_labels.csv").write_text("\n".join(rows[split]) + "\n")
  return root


def in_words(code):
  return "Happy" if code == 4 else RAF_DB_NAMES[code - 1]


@pytest.mark.parametrize(
  ("folder", "tables"), [(str, True), (str, False), (in_words, True)]
)
def test_kaggles_layout_reads_the_same(root, tmp_path, folder, tables):
  other = kaggle(tmp_path / "k", root, folder, tables)
  archive = samples.zip_folder(other, tmp_path / "kaggle.zip")
  for place in (other, other / "DATASET", archive):
    found = raf_db.find(place)
    assert content(found) == expected_content(root)
    assert len(found.warnings) == 2
    assert found.fingerprint == raf_db.find(place).fingerprint


def test_kaggles_missing_and_unlabelled_images_are_counted(root, tmp_path):
  other = kaggle(tmp_path / "k", root)
  (other / "DATASET/train/2/train_00001_aligned.jpg").unlink()
  with pytest.raises(UserError, match=r"1 images named in .*train_labels\.csv"):
    raf_db.find(other)
  table = other / "train_labels.csv"
  table.write_text("image,label\ntrain_00002_aligned.jpg,3\n")
  found = raf_db.find(other)
  assert "7 aligned images without a label" in found.warnings[-1]
  assert len(found.splits["train"]) == 1
