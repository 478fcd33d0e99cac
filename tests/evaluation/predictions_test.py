"""Files of scores: they come back whole, and harm nobody."""

import io
import pickle

import numpy as np
import pytest

from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictions
from dbl_jax.evaluation.predictions import Predictions

RNG = np.random.default_rng(0)
SOME = Predictions(
  class_names=("sad", "glücklich"),
  train_counts=np.array([7, 3]),
  labels=RNG.integers(0, 2, 40).astype(np.int32),
  scores=RNG.normal(size=(40, 2)).astype(np.float32),
  validation_labels=RNG.integers(0, 2, 9).astype(np.int32),
  validation_scores=RNG.normal(size=(9, 2)).astype(np.float32),
  calibrated=True,
)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "run" / "scores.npz"


@pytest.mark.parametrize("calibrated", [True, False])
def test_what_is_saved_is_loaded(path, calibrated):
  predictions.save(path, SOME._replace(calibrated=calibrated))
  found = predictions.load(path)
  assert found.class_names == SOME.class_names
  assert found.calibrated is calibrated
  for name in set(Predictions._fields) - {"class_names", "calibrated"}:
    expected = getattr(SOME, name)
    np.testing.assert_array_equal(getattr(found, name), expected)
    assert getattr(found, name).dtype == expected.dtype


def test_saving_replaces_and_leaves_nothing_beside(path):
  for labels in (SOME.labels, 1 - SOME.labels):
    predictions.save(path, SOME._replace(labels=labels))
  np.testing.assert_array_equal(predictions.load(path).labels, 1 - SOME.labels)
  assert list(path.parent.iterdir()) == [path]


def test_a_save_cut_short_leaves_the_old_file(path, monkeypatch):
  predictions.save(path, SOME)

  def cut_short(file, **arrays):
    file.write(b"half")
    raise OSError("No space left on device")

  monkeypatch.setattr(np, "savez_compressed", cut_short)
  with pytest.raises(OSError, match="No space"):
    predictions.save(path, SOME)
  np.testing.assert_array_equal(predictions.load(path).scores, SOME.scores)
  assert list(path.parent.iterdir()) == [path]


def refuse(path):
  with pytest.raises(UserError, match="run the same command again") as caught:
    predictions.load(path)
  assert str(path) in str(caught.value)


def test_a_missing_file_is_a_user_error(path):
  refuse(path)


def test_a_file_cut_short_anywhere_is_a_user_error(path):
  predictions.save(path, SOME)
  whole = path.read_bytes()
  for length in range(0, len(whole), 53):
    path.write_bytes(whole[:length])
    refuse(path)


def test_a_damaged_file_is_a_user_error_or_says_the_same(path):
  predictions.save(path, SOME)
  whole = path.read_bytes()
  for place in range(len(whole)):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    try:
      found = predictions.load(path)
    except UserError:
      continue  # anything else is not for users
    for name in Predictions._fields:  # dates and the like do not matter
      expected = getattr(SOME, name)
      np.testing.assert_array_equal(getattr(found, name), expected)


def npy():
  buffer = io.BytesIO()
  np.save(buffer, SOME.scores)
  return buffer.getvalue()


def npz(**arrays):
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  return buffer.getvalue()


FOREIGN = {
  "text": b"image,label\n",
  "another array": npy(),
  "another archive": npz(images=SOME.scores),
  "a part of it": npz(labels=SOME.labels, scores=SOME.scores),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_a_user_error(path, name):
  path.parent.mkdir()
  path.write_bytes(FOREIGN[name])
  refuse(path)


class Bomb:
  """Leaves a file where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "archive"])
def test_no_pickle_is_loaded(path, tmp_path, kind):
  bomb = Bomb(tmp_path / "exploded")
  path.parent.mkdir()
  if kind == "pickle":
    path.write_bytes(pickle.dumps(bomb))
  else:
    arrays = SOME._asdict() | {"labels": np.array([bomb], object)}
    path.write_bytes(npz(**arrays))
  refuse(path)
  assert not bomb.path.exists()


def test_class_names_are_saved_without_pickle(path):
  names = np.array(SOME.class_names, object)
  predictions.save(path, SOME._replace(class_names=names))
  assert predictions.load(path).class_names == SOME.class_names
