"""The data check finds what was hidden in the data, and nothing else."""

import csv
import io
import logging
import time

import mains
import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

import tiny
from dbl_jax.data import datasets, inspection, sources
from dbl_jax.data.datasets import Dataset, Split


def smooth(seed, size=48):
  """A picture of random blobs, of which no two are alike."""
  rng = np.random.default_rng(seed)
  small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
  return small.resize((size, size), Image.Resampling.BICUBIC)


def put(root, name, image, **options):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, **options)


@pytest.fixture
def root(tmp_path):
  """Two classes, with the same picture in two splits and a near one in one."""
  root = tmp_path / "faces"
  for i in range(12):
    put(root, f"train/{'ab'[i % 3 == 0]}/{i}.png", smooth(i))
    put(root, f"test/{'ab'[i % 4 == 0]}/{i}.png", smooth(100 + i))
  put(root, "test/a/same.bmp", smooth(1))  # another format, the same pixels
  put(root, "train/a/near.jpg", smooth(2, 60), quality=60)
  put(root, "train/b/other_label.png", smooth(4))
  put(root, "train/b/large.png", smooth(50, 80).convert("L"))
  return root


def check(root, name="image_folder"):
  data = {"name": name, "dir": str(root)}
  return inspection.inspect(sources.find(tiny.get_resolved(**data).data))


def test_the_report_finds_what_is_hidden(root):
  lines = inspection.report(check(root))
  text = "\n".join(" ".join(line.split()) for line in lines)
  for fact in (
    "train test",
    "a 9 60.0% 10 76.9%",
    "b 6 40.0% 3 23.1%",
    "all 15 13",
    "imbalance 1.5 3.3",
    "Size: 48 x 48 pixels 26 times, and 2 others; at least 48 x 48,",
    "at most 80 x 80",
    "Mode: RGB 27, L 1",
    "Unreadable files: none",
    "within train: 2 images have another like them\nLEAK between train and"
    " test: 1 images of train are like 1 of test\n1 pictures have different",
    "differ):\nwithin train: 2 images have another like them",
  ):
    assert fact in text, text
  assert "LEAK" not in text.split("differ):")[1]


def test_clean_data_has_no_duplicates(tmp_path):
  for i in range(40):
    put(tmp_path, f"{'ab'[i % 2]}/{i}.png", smooth(i))
  findings = check(tmp_path)
  assert (findings.same, findings.near) == ([], [])
  assert inspection.report(findings)[-1] == "  none"


def test_pairs_that_leak_come_first_and_are_in_the_table(root):
  rows = inspection.table(check(root))
  assert {len(row) for row in rows} == {8}
  kinds = [(row[0], row[2], row[5]) for row in rows[1:]]
  assert kinds == [
    ("same", "train", "test"),
    ("same", "train", "train"),
    ("near", "train", "train"),
  ]
  assert rows[1][7].endswith("same.bmp")


def test_unreadable_files_are_listed(root):
  (root / "train" / "a" / "bad.png").write_bytes(b"no image")
  findings = check(root)
  lines = inspection.report(findings)
  place = lines.index("Unreadable files: 1")
  assert "bad.png is not an image" in lines[place + 1]
  assert inspection.table(findings)[1][0] == "unreadable"


def test_the_hash_bears_resizing_and_recompression():
  image = smooth(7, 200)
  buffer = io.BytesIO()
  image.resize((90, 90)).save(buffer, "JPEG", quality=40)
  a, other, again = map(
    inspection.difference_hash, (image, smooth(8), Image.open(buffer))
  )
  assert np.bitwise_count(a ^ again).sum() <= inspection.NEAR
  assert np.bitwise_count(a ^ other).sum() > 30


@pytest.mark.parametrize("distance", [0, 8, 20])
def test_near_duplicates_are_those_of_a_plain_double_loop(distance):
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2, (700, 128), np.uint8)
  for i in range(0, 700, 7):
    bits[i] = bits[(i + 350) % 700]
    bits[i, : i % 12] ^= 1
  packed = np.packbits(bits, axis=1).view(np.uint64)
  apart = (bits[:, None] != bits[None]).sum(-1)
  found = inspection._near(packed, distance)
  assert len(found) >= 4
  for one, other, bits_apart in found:
    assert one < other
    assert apart[one, other] == bits_apart <= distance
  links = np.ones(len(found)), np.array(found).T[:2]
  graphs = (apart <= distance, sparse.coo_matrix(links, apart.shape))
  groups = [csgraph.connected_components(g, directed=False) for g in graphs]
  assert groups[0][0] == groups[1][0] == 700 - len(found)
  np.testing.assert_array_equal(groups[0][1], groups[1][1])


def test_many_alike_images_are_one_group(tmp_path):
  # Frames of a still video: each differs a little from all others.
  rng = np.random.default_rng(0)
  bits = np.zeros((5000, 128), np.uint8)
  bits[np.arange(5000), rng.integers(0, 128, 5000)] = 1
  found = inspection._near(np.packbits(bits, axis=1).view(np.uint64), 8)
  assert len(found) == 4999


def test_data_without_files_can_be_checked(tmp_path):
  data = {"num_train": 30, "num_test": 10, "cache_dir": str(tmp_path)}
  found = sources.find(tiny.get_resolved(**data).data)
  assert list(found.splits) == ["train", "validation", "test"]
  facts = inspection.inspect(found).facts
  assert {fact.size for fact in facts} == {(16, 16)}
  assert not any(fact.error for fact in facts)


def test_contact_sheets_show_each_class_and_the_duplicates(root, tmp_path):
  (tmp_path / "out").mkdir()
  for name in ("class_7_of_other_data.png", "findings.csv", "mine.png"):
    (tmp_path / "out" / name).touch()
  findings, *sheets = inspection.write(check(root), tmp_path / "out")
  names = [path.name for path in sheets]
  assert names == ["class_0_a.png", "class_1_b.png", "duplicates.png"]
  written = {path.name for path in (tmp_path / "out").iterdir()}
  assert written == {*names, "findings.csv", "mine.png"}
  assert len(findings.read_text().splitlines()) == 4
  for path in sheets:
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 12 * 64
    assert sheet.std() > 20


def test_of_many_classes_a_sample_is_shown(tmp_path):
  for i in range(100):
    for j in range(1 + i % 7):
      put(tmp_path / "data", f"class {i:02}/{j}.png", smooth(7 * i + j))
  findings = check(tmp_path / "data")
  lines = inspection.report(findings)
  assert "(30 of 100 classes, evenly spaced by frequency)" in lines
  _, *sheets = inspection.write(findings, tmp_path / "out")
  shown = [path.name.removesuffix(".png")[-2:] for path in sheets]
  assert len(shown) == 30
  sizes = [1 + int(name) % 7 for name in shown]
  assert sizes == sorted(sizes, reverse=True)
  assert {sizes[0], sizes[-1]} == {1, 7}


def test_the_script(root, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  arguments = ["--name=image_folder", f"--dir={root}"]
  done = mains.run("check_data", arguments)
  assert done.status == 0, done.err
  assert "LEAK between train and test" in done.out
  out = tmp_path / "data_check" / "image_folder"
  with (out / "findings.csv").open() as file:
    assert len(list(csv.reader(file))) == 4
  (root / "train" / "a" / "bad.png").write_bytes(b"no image")
  done = mains.run("check_data", [*arguments, "--out=elsewhere"])
  assert done.status == 2
  assert "error: 1 of 29 images cannot be read" in done.err
  assert (tmp_path / "elsewhere" / "duplicates.png").exists()


def random_part(n, side=16, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, side, side, 3), np.uint8)
  return Split(images, (np.arange(n) % 3).astype(np.int32))


def test_copies_are_counted_by_part():
  train, test = random_part(50), random_part(20, seed=1)
  validation = random_part(10, seed=2)
  for unrelated in (test, random_part(0)):
    assert inspection.shared({"train": train, "test": unrelated}) == {}
  test.images[3:6] = train.images[:3]
  test.images[6] = train.images[0]  # twice there
  validation.images[0] = test.images[19]
  found = inspection.shared(
    {"train": train, "validation": validation, "test": test}
  )
  assert found == {("train", "test"): 4, ("validation", "test"): 1}


def test_one_pixel_makes_another_image():
  train, test = random_part(50), random_part(5, seed=1)
  test.images[:] = train.images[:5]
  for i, place in enumerate(((0, 0, 0), (0, 0, 1), (7, 3, 2), (15, 15, 2))):
    test.images[i][place] += 1
  assert inspection.shared({"train": train, "test": test}) == {
    ("train", "test"): 1
  }


def test_of_fer2013s_size_it_takes_no_time():
  splits = {
    "train": random_part(12_000, 48),
    "test": random_part(3_000, 48, seed=1),
  }
  splits["test"].images[:351] = splits["train"].images[:351]
  started = time.process_time()
  assert inspection.shared(splits) == {("train", "test"): 351}
  assert time.process_time() - started < 0.5


@pytest.mark.parametrize("copies", [0, 2])
def test_loading_says_it_in_one_line(copies, tmp_path, caplog):
  train, test = random_part(40), random_part(10, seed=1)
  test.images[:copies] = train.images[:copies]
  splits = {"train": train, "test": test}
  data = Dataset("image_folder", ("a", "b", "c"), splits, "f")
  datasets.save(tmp_path / "a.npz", data)
  options = tiny.get_resolved(
    name="image_folder", dir=str(tmp_path / "a.npz"), image_size=16
  ).data
  with caplog.at_level(logging.WARNING):
    splits = sources.load(options).splits
  told = [r.getMessage() for r in caplog.records if "share" in r.getMessage()]
  if copies == 0:
    assert told == []
    return
  (line,) = told
  assert len(line.splitlines()) == 1
  assert "of test are in" in line
  assert (
    f"scripts/check_data.py --name=image_folder --dir={tmp_path}/a.npz" in line
  )
  assert len(splits["test"].labels) == 10  # said, not mended
