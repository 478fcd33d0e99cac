"""Files appear whole or not at all; a stranger's .npz holds arrays only."""

import json
import os
import struct
import time
import zipfile

import numpy as np
import pytest

from dbl_jax.data import datasets
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.runtime import files


class Evil:
  """Makes a folder when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return os.mkdir, (self.path,)


def npy(header, content=b""):
  header = header.encode().ljust(117) + b"\n"
  size = struct.pack("<H", len(header))
  return b"\x93NUMPY\x01\x00" + size + header + content


def write(path, entries, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
  return path


def meta(**changes):
  found = {
    "format": 1,
    "name": "faces",
    "class_names": ["a", "b"],
    "parts": ["test", "train"],
    "fingerprint": "f",
    "warnings": [],
  } | changes
  return np.frombuffer(json.dumps(found).encode(), np.uint8)


def contents(**changes):
  images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.int32([0, 1, 0, 1])
  return {
    "meta": meta(),
    "train_images": images,
    "train_labels": labels,
    "test_images": images,
    "test_labels": labels,
  } | changes


def test_what_numpy_writes_is_read(tmp_path):
  rng = np.random.default_rng(0)
  given = {
    "a": rng.integers(0, 256, (3, 4, 5), np.uint8),
    "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
    "none": np.zeros((0, 7), np.float32),
    "one": np.array(True),
    "text": np.array(["ä", "bc"]),
  }
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "a.npz", **given)
    found = files.load(tmp_path / "a.npz")
    assert found.keys() == given.keys()
    for name, array in given.items():
      np.testing.assert_array_equal(found[name], array)
      assert found[name].dtype == array.dtype
      assert found[name].flags.writeable


@pytest.mark.parametrize("load", [datasets.load, predictions.load])
def test_nothing_in_a_file_is_run(load, tmp_path):
  path = tmp_path / "a.npz"
  target = tmp_path / "made"
  evil = np.array([Evil(target)], dtype=object)
  np.savez(path, **contents(meta=evil, scores=evil))
  with pytest.raises(UserError, match="holds objects, not numbers"):
    load(path)
  # A pickle by itself, and an array by itself.
  for save in (lambda p: evil.dump(p), lambda p: np.save(p, evil)):
    with path.open("wb") as file:
      save(file)
    with pytest.raises(UserError, match=r"a\.npz"):
      load(path)
  code = f"{{'descr': __import__('os').mkdir({str(target)!r})}}"
  write(path, {"meta.npy": npy(code)})
  with pytest.raises(UserError, match=r"a\.npz"):
    load(path)
  text = f"__import__('os').mkdir({str(target)!r})"
  np.savez(path, **contents(meta=np.frombuffer(text.encode(), np.uint8)))
  with pytest.raises(UserError, match=r"a\.npz"):
    load(path)
  assert not target.exists()


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }"


@pytest.mark.parametrize(
  ("entries", "message"),
  [
    ({"a.npy": npy(HUGE % 10**15, b"abc")}, "has 3 bytes for an array"),
    ({"a.npy": npy(HUGE % 10**40, b"abc")}, "has 3 bytes for an array"),
    ({"a.npy": npy(HUGE % -3, b"abc")}, "has 3 bytes for an array"),
    ({"a.npy": npy(HUGE % 2, b"abc")}, "has 3 bytes for an array"),
    ({"a.npy": b"\x93NUMPY\x09\x00abc"}, "unknown version"),
    ({"a.npy": npy("(" * 116)}, "."),
    ({"a.npy": npy("{'descr': '|u1'}")}, "."),
    ({"a.npy": npy("[" * 30 + "'''")}, "."),
    ({"a.npy": npy("\0\xff")}, "."),
    ({"a.npy": b""}, "."),
    ({"a.txt": b"hello"}, "magic"),
  ],
)
def test_a_false_header_is_refused(entries, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    files.load(write(tmp_path / "a.npz", entries))


@pytest.mark.parametrize("bombs", [{"a": 100}, dict.fromkeys("abcd", 15)])
def test_a_bomb_is_refused(bombs, tmp_path):
  """One of 100 MB, or many that are small enough by themselves."""
  entries = {
    f"{name}.npy": npy(HUGE % (mb << 20)) + bytes(mb << 20)
    for name, mb in bombs.items()
  }
  path = write(tmp_path / "a.npz", entries, zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 1 << 20
  with pytest.raises(ValueError, match="would grow to"):
    files.load(path)


def raw(text):
  return np.frombuffer(text, np.uint8)


def zeros(*shape, dtype=np.uint8):
  return np.zeros(shape, dtype)


DAMAGE = [
  ("meta", None, "its arrays are train_images .* expected meta"),
  ("meta", raw(b"[1]"), "format 1"),
  ("meta", raw(b"[" * 100_000), "nested too deep"),
  ("meta", raw(b"{"), "."),
  ("meta", raw(b"\xff\xfe\xfd"), "."),
  ("meta", meta(format=2), "format 1"),
  ("meta", meta(name=3), "its name is not a string"),
  ("meta", meta(fingerprint=None), "fingerprint is no"),
  ("meta", meta(class_names="ab"), "class_names are not a list"),
  ("meta", meta(class_names=[1, 2]), "class_names are not a list"),
  ("meta", meta(class_names=["a"]), "labels outside of the classes"),
  ("meta", meta(class_names=["a", "a"]), "have the same name"),
  ("meta", meta(parts=["train"]), "its parts are"),
  ("meta", meta(parts=["train", "test", "x"]), "its parts are"),
  ("meta", meta(warnings={"a": 1}), "warnings are not a list"),
  ("test_images", None, "lacks the images or labels of test"),
  ("train_images", zeros(4, 8, 8, 3, dtype=float), "of float64"),
  ("train_images", zeros(4, 8, 8), r"images \[4, 8, 8\]"),
  ("train_images", zeros(4, 8, 9, 3), "images"),
  ("test_images", zeros(4, 9, 9, 3), "test has images"),
  ("train_images", zeros(4, 0, 0, 3), "images"),
  ("train_labels", np.int32([0, 1]), "for 4 images"),
  ("train_labels", np.int64([0, 1, 0, 1]), "of int64"),
  ("test_labels", np.int32([0, 1, 0, 2]), "outside of the classes"),
  ("test_labels", np.int32([0, 1, 0, -1]), "outside of the classes"),
]


@pytest.mark.parametrize(("name", "value", "message"), DAMAGE)
def test_a_prepared_file_is_checked(name, value, message, tmp_path):
  found = contents(**{name: value})
  path = tmp_path / "a.npz"
  np.savez(path, **contents())
  assert datasets.load(path).image_size == 8
  np.savez(path, **{k: v for k, v in found.items() if v is not None})
  with pytest.raises(UserError, match=f"a.npz is not a prepared .*{message}"):
    datasets.load(path)


SCORES = {
  "class_names": np.array(["a", "b"]),
  "train_counts": np.array([3, 4]),
  "labels": np.int32([0, 1, 1]),
  "scores": np.zeros((3, 2), np.float32),
  "validation_labels": np.int32([0]),
  "validation_scores": np.zeros((1, 2), np.float32),
  "calibrated": np.array(True),
}


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("labels", None, "without labels"),
    ("labels", np.int32([0, 1, 2]), "labels are not in 0 to 1"),
    ("labels", np.int32([0, 1]), "its scores are"),
    ("labels", np.zeros((3, 1), np.int32), "its labels are"),
    ("scores", np.array([["a", "b"]] * 3), "its scores are"),
    ("train_counts", np.array([3]), "its train_counts are"),
    ("validation_scores", np.array(1.0), "its validation_scores are"),
  ],
)
def test_scores_are_checked(name, value, message, tmp_path):
  path = tmp_path / "scores.npz"
  np.savez(path, **SCORES)
  assert predictions.load(path).class_names == ("a", "b")
  found = {k: v for k, v in (SCORES | {name: value}).items() if v is not None}
  np.savez(path, **found)
  with pytest.raises(UserError, match=f"scores.npz does not hold .*{message}"):
    predictions.load(path)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
  path = tmp_path / "one"
  files.write(path, b"old")

  def fail():
    with files.replacing(path) as file:
      file.write(b"half")
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    fail()
  assert path.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_and_living_ones_are_not(tmp_path):
  path = tmp_path / "faces[1].npz"
  dead, living = (tmp_path / f".faces[1].npz.{i}.partial" for i in (11, 12))
  other = tmp_path / ".other.npz.11.partial"
  for left in (dead, living, other):
    left.write_bytes(b"half")
  for left in (dead, other):
    os.utime(left, (time.time() - 7200,) * 2)
  files.write(path, b"whole")
  assert path.read_bytes() == b"whole"
  assert set(tmp_path.iterdir()) == {path, living, other}
