import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import raf_db_fixture as fixture

from dbl_jax.data import raf_db
from dbl_jax.data.formats import images
from dbl_jax.data.raf_db import layout, prepare
from dbl_jax.errors import UserError


@pytest.fixture
def root(tmp_path):
  return fixture.write(tmp_path / "raf_db")


def content(found):
  return [(r.name, r.split, r.label, r.read()) for r in found.records]


def expected_content(root):
  return [
    (name, name.split("_")[0], code - 1, fixture.image(root, name).read_bytes())
    for name, code in fixture.ROWS
  ]


def relayout(root, form):
  """Puts the folder into one of the forms users have it in."""
  basic = root / "basic"
  aligned = fixture.aligned(root)
  if form == "parent":
    return root
  if form == "basic":
    return basic
  if form == "other spelling":
    labels = fixture.labels(root)
    labels.rename(labels.with_name("list_partition_label.txt"))
    return root
  if form == "aligned/aligned":
    aligned.rename(aligned.with_name("inner"))
    aligned.mkdir()
    aligned.with_name("inner").rename(aligned / "aligned")
    return root
  if form == "zip":
    return fixture.zip_folder(root, root.parent / "basic.zip")
  if form == "zip of basic":
    return fixture.zip_folder(basic, root.parent / "any.zip")
  if form == "zip in a folder":
    (root.parent / "downloads").mkdir()
    fixture.zip_folder(root, root.parent / "downloads" / "basic.zip")
    return root.parent / "downloads"
  if form == "zip with a prefix":
    path = fixture.zip_folder(root, root.parent / "a.zip", "RAF-DB/")
    with zipfile.ZipFile(path, "a") as archive:
      junk = "__MACOSX/RAF-DB/basic/EmoLabel/list_patition_label.txt"
      archive.writestr(junk, b"\0\5\26\7")
    return path
  fixture.zip_folder(aligned, root / "basic/Image/aligned.zip", "aligned/")
  for file in aligned.iterdir():
    file.unlink()
  aligned.rmdir()
  if form == "nested zip in a zip":
    return fixture.zip_folder(root, root.parent / "basic.zip")
  assert form == "nested zip in a folder"
  return root


FORMS = [
  "parent",
  "basic",
  "other spelling",
  "aligned/aligned",
  "zip",
  "zip of basic",
  "zip in a folder",
  "zip with a prefix",
  "nested zip in a zip",
  "nested zip in a folder",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(root, form):
  expected = expected_content(root)
  path = relayout(root, form)
  before = sorted(path.parent.rglob("*"))
  found = layout.read(path)
  assert content(found) == expected
  assert found.unlabelled == 0
  assert layout.fingerprint(path) == layout.fingerprint(path)
  assert sorted(path.parent.rglob("*")) == before  # nothing is extracted


@pytest.mark.parametrize(
  "change",
  [
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.replace(b"\n", b"\r\n"),
    lambda text: text.replace(b" ", b"\t"),
    lambda text: b"\n\n" + text.replace(b"\n", b" \n\n") + b"\n \n",
  ],
  ids=["BOM", "CRLF", "tabs", "blank lines"],
)
def test_harmless_differences_in_the_label_file(root, change):
  labels = fixture.labels(root)
  labels.write_bytes(change(labels.read_bytes()))
  assert content(layout.read(root)) == expected_content(root)


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (b"train_00001.jpg", "line 17: found 'train_00001.jpg', expected a file"),
    (b"train_00001.jpg 1 2", "line 17: found 'train_00001.jpg 1 2'"),
    (b"train_00099.jpg 0", "found the code '0', expected one of 1 surprise"),
    (b"train_00099.jpg 8", "found the code '8'"),
    (b"train_00099.jpg happy", "found the code 'happy'"),
    (b"train_00099.jpg \xd9\xa3", "found the code"),
    (b"valid_00001.jpg 1", "found the name 'valid_00001.jpg'"),
    (b"train_../../x.jpg 1", "found the name"),
    (b"train_00001.jpg 2", "already in line 3, with the same code, 2"),
    (b"train_00001.jpg 3", "already in line 3, as code 3 here and 2 there"),
    (b"train_\xff.jpg 3", "is not UTF-8 text"),
  ],
)
def test_a_bad_row_is_named(root, rows, message):
  labels = fixture.labels(root)
  labels.write_bytes(labels.read_bytes() + b"\n" + rows)
  with pytest.raises(UserError, match=message) as caught:
    layout.read(root)
  assert str(labels) in str(caught.value)


def test_missing_images_are_counted_and_named(root):
  for name, _ in fixture.ROWS[:7]:
    fixture.image(root, name).unlink()
  with pytest.raises(UserError) as caught:
    layout.read(root)
  assert "7 of 16 images" in str(caught.value)
  assert "train_00009_aligned.jpg" in str(caught.value)
  assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused(root, split):
  labels = fixture.labels(root)
  rows = labels.read_text().splitlines()
  labels.write_text("\n".join(r for r in rows if not r.startswith(split)))
  with pytest.raises(UserError, match=f"names no {split} image"):
    layout.read(root)


def test_an_empty_label_file_is_refused(root):
  fixture.labels(root).write_text("")
  with pytest.raises(UserError, match=r"names no train image \(0 rows"):
    layout.read(root)


def test_what_is_not_there_is_named(root, tmp_path):
  with pytest.raises(UserError, match="nowhere does not exist"):
    layout.read(tmp_path / "nowhere")
  fixture.labels(root).unlink()
  with pytest.raises(UserError, match=r"no label file \(found: basic\)"):
    layout.read(root)
  path = fixture.zip_folder(root, tmp_path / "some.zip")
  with pytest.raises(UserError, match=r"some\.zip has no label file"):
    layout.read(path)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match=r"some\.zip is not a zip file"):
    layout.read(path)


def test_two_sets_in_one_zip_are_refused(root, tmp_path):
  fixture.zip_folder(root, tmp_path / "two.zip", "old/")
  with zipfile.ZipFile(tmp_path / "two.zip", "a") as archive:
    archive.write(fixture.labels(root), "new/EmoLabel/list_patition_label.txt")
  with pytest.raises(UserError, match="label files under new/, old/basic/"):
    layout.read(tmp_path / "two.zip")


def test_a_damaged_or_locked_zip_entry_is_named(root, tmp_path):
  path = fixture.zip_folder(root, tmp_path / "basic.zip")
  data = bytearray(path.read_bytes())
  data[data.index(b"JFIF") + 100] ^= 255
  path.write_bytes(data)
  records = layout.read(path).records
  with pytest.raises(UserError, match=r"basic\.zip: .*_aligned\.jpg cannot be"):
    [record.read() for record in records]
  # The flag in the directory of the archive, which zipfile goes by.
  data[data.index(b"PK\1\2") + 8] |= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match="locked by a password"):
    layout.read(path)


def test_an_image_that_vanishes_is_named(root):
  record = layout.read(root).records[0]
  fixture.image(root, record.name).unlink()
  with pytest.raises(UserError, match="train_00009_aligned"):
    record.read()


def test_warnings_name_expected_and_found(root):
  (fixture.aligned(root) / "train_99999_aligned.jpg").touch()
  (fixture.aligned(root) / "._train_00001_aligned.jpg").touch()
  (fixture.aligned(root) / "Thumbs.db").touch()
  train, test, unlabelled = layout.count_warnings(layout.read(root))
  assert (
    "train has 9 images (RAF-DB has 12271): surprise 1 (RAF-DB has 1290)"
    in train
  )
  assert "neutral 1 (RAF-DB has 680)" in test
  assert "1 aligned images have no label" in unlabelled


def test_rafdb_itself_has_no_warnings():
  records = tuple(
    layout.Record(f"{split}_{label}_{i}.jpg", split, label, "", bytes)
    for split, counts in layout.CLASS_COUNTS.items()
    for label, count in enumerate(counts)
    for i in range(count)
  )
  assert len(records) == 15339
  assert layout.count_warnings(layout.Layout("basic", records)) == []


@pytest.mark.parametrize("form", ["parent", "zip"])
def test_the_fingerprint_changes_with_the_data(root, form, tmp_path):
  before = layout.fingerprint(relayout(root, form))
  image = fixture.image(root, "train_00001.jpg")
  data = bytearray(image.read_bytes())
  stat = image.stat()
  data[-10] ^= 1
  image.write_bytes(data)
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  changed = layout.fingerprint(relayout(root, form))
  assert changed != before
  labels = fixture.labels(root)
  labels.write_text(labels.read_text().replace("00001.jpg 2", "00001.jpg 3"))
  assert layout.fingerprint(relayout(root, form)) not in (before, changed)


def check_loaded(root, loaded, size=10):
  class_names, parts, _ = loaded
  assert class_names == layout.CLASS_NAMES
  for split, (found, labels) in parts.items():
    rows = sorted(row for row in fixture.ROWS if row[0].startswith(split))
    assert labels.dtype == np.int32
    assert labels.tolist() == [code - 1 for _, code in rows]
    expected = [
      images.decode(fixture.image(root, name).read_bytes(), size, name)
      for name, _ in rows
    ]
    np.testing.assert_array_equal(found, expected)


def test_load_end_to_end(root, tmp_path, capfd, recwarn):
  calls = []
  loaded = raf_db.load(
    str(root), str(tmp_path / "c"), 10, lambda *call: calls.append(call)
  )
  check_loaded(root, loaded)
  assert len(loaded[2]) == 2
  assert calls[-1] == (16, 16)
  assert capfd.readouterr() == ("", "")


def test_load_reads_a_zip(root, tmp_path):
  path = relayout(root, "nested zip in a zip")
  with zipfile.ZipFile(root / "basic/Image/aligned.zip") as archive:
    archive.extractall(root / "basic/Image")
  check_loaded(root, raf_db.load(str(path), str(tmp_path / "c"), 10))


def test_load_uses_the_build_again(root, tmp_path, monkeypatch):
  first = raf_db.load(str(root), str(tmp_path / "c"), 10)
  monkeypatch.setattr(prepare, "_build", lambda *_: pytest.fail("built again"))
  second = raf_db.load(str(root), str(tmp_path / "c"), 10)
  for split in first[1]:
    np.testing.assert_array_equal(first[1][split][0], second[1][split][0])


def test_load_never_uses_a_stale_build(root, tmp_path):
  cache = str(tmp_path / "c")
  raf_db.load(str(root), cache, 10)
  image = fixture.image(root, "train_00001.jpg")
  stat = image.stat()
  image.write_bytes(fixture.image_bytes(99))
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
  check_loaded(root, raf_db.load(str(root), cache, 10))


def test_two_folders_never_share_a_build(root, tmp_path):
  other = fixture.write(tmp_path / "other")
  # Same names, sizes and times, as some copying tools leave them.
  for index, (name, _) in enumerate(fixture.ROWS):
    for folder, seed in ((root, index), (other, index + 100)):
      image = fixture.image(folder, name)
      image.write_bytes(fixture.image_bytes(seed, image_format="BMP"))
      os.utime(image, ns=(10**18, 10**18))
  assert layout.fingerprint(root) == layout.fingerprint(other)
  check_loaded(root, raf_db.load(str(root), str(tmp_path / "c"), 10))
  check_loaded(other, raf_db.load(str(other), str(tmp_path / "c"), 10))


def test_load_mends_a_damaged_build(root, tmp_path):
  cache = tmp_path / "c"
  raf_db.load(str(root), str(cache), 10)
  (shard,) = cache.rglob("*train.array_record*")
  shard.write_bytes(shard.read_bytes()[:100])
  check_loaded(root, raf_db.load(str(root), str(cache), 10))


def test_a_build_put_in_place_by_another_run_is_used(
  root, tmp_path, monkeypatch
):
  from dbl_jax.data.raf_db import raf_db_dataset_builder

  build = raf_db_dataset_builder.RafDb.download_and_prepare

  def overtaken(self):
    build(self)
    raise OSError(39, "Directory not empty")

  monkeypatch.setattr(
    raf_db_dataset_builder.RafDb, "download_and_prepare", overtaken
  )
  check_loaded(root, raf_db.load(str(root), str(tmp_path / "c"), 10))


def test_an_unwritable_cache_is_named(root, tmp_path):
  (tmp_path / "c").write_text("in the way")
  with pytest.raises(UserError, match=r"c/tfds/\w+ cannot be written"):
    raf_db.load(str(root), str(tmp_path / "c"), 10)


def test_an_unreadable_image_is_named_and_leaves_nothing(root, tmp_path):
  image = fixture.image(root, "test_0003.jpg")
  whole = image.read_bytes()
  image.write_bytes(whole[:-60])
  with pytest.raises(UserError, match="test_0003_aligned"):
    raf_db.load(str(root), str(tmp_path / "c"), 10)
  assert list((tmp_path / "c" / "tfds").iterdir()) == []
  image.write_bytes(whole)
  check_loaded(root, raf_db.load(str(root), str(tmp_path / "c"), 10))


def test_without_tfds_the_user_hears_what_to_do(root, tmp_path, monkeypatch):
  module = "dbl_jax.data.raf_db.raf_db_dataset_builder"
  monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.delattr(
    sys.modules["dbl_jax.data.raf_db"], "raf_db_dataset_builder", raising=False
  )
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(UserError, match="pip install tensorflow-datasets"):
    raf_db.load(str(root), str(tmp_path / "c"), 10)


def test_loading_does_not_import_tensorflow(root, tmp_path):
  code = (
    "import sys; from dbl_jax.data import raf_db;"
    "assert 'tensorflow_datasets' not in sys.modules;"
    f"raf_db.load({str(root)!r}, {str(tmp_path / 'c')!r}, 10);"
    "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
