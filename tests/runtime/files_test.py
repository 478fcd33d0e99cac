"""Files appear whole or not at all."""

import os
import time

import pytest

from dbl_jax.runtime import files


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
  dead, living, other = (
    tmp_path / name
    for name in (
      ".faces[1].npz.11.partial",
      ".faces[1].npz.12.partial",
      ".other.npz.11.partial",
    )
  )
  for left in (dead, living, other):
    left.write_bytes(b"half")
  for left in (dead, other):
    os.utime(left, (time.time() - 7200,) * 2)
  files.write(path, b"whole")
  assert path.read_bytes() == b"whole"
  assert set(tmp_path.iterdir()) == {path, living, other}
