"""Damaged checkpoints: noticed, told, and the one before taken."""

import errno
import json
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from dbl_jax.errors import UserError
from dbl_jax.training import checkpoint
from dbl_jax.training.state import TrainState

META = {
  "config": {"data": {}, "classify": {"keep": "best"}},
  "class_names": ["a", "b"],
  "fingerprint": "0",
}


def state_at(step):
  """Arrays too large to lie in Orbax's index, which has checksums."""
  rng = np.random.default_rng(step)
  variables = {
    "params": {"head": {"kernel": jnp.asarray(rng.normal(size=(64, 100)))}},
    "batch_stats": {"encoder": {}},
  }
  state = TrainState.create(variables, optax.adam(1e-3), {})
  grads = state.params
  _, opt_state = optax.adam(1e-3).update(grads, state.opt_state, state.params)
  return state.replace(step=jnp.int32(step), opt_state=opt_state)


@pytest.fixture
def directory(tmp_path):
  """Steps 1 and 2, of which 2 is the better."""
  directory = tmp_path / "checkpoints" / "classify"
  with checkpoint.open_manager(directory) as manager:
    for step in (1, 2):
      metrics = {checkpoint.METRIC: step / 4}
      checkpoint.save(manager, state_at(step), metrics, META)
  # TensorStore remembers what it wrote, by path.
  moved = tmp_path / "moved" / "checkpoints" / "classify"
  shutil.copytree(directory, moved)
  return moved


def restore(directory):
  checkpoint.quarantine_damaged(directory)
  with checkpoint.open_manager(directory) as manager:
    return checkpoint.restore_latest(manager, state_at(0), META)


def assert_is(state, step):
  jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


def flip(path, place=0.5):
  data = bytearray(path.read_bytes())
  data[int(len(data) * place)] ^= 1
  path.write_bytes(data)


def largest(folder):
  """The file that holds the arrays."""
  return max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def truncate_all(step):
  for path in step.rglob("*"):
    if path.is_file() and path.stat().st_size:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_all(step):
  for path in step.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


def no_files(step):
  shutil.rmtree(step)
  step.mkdir()


def other_digit(step):
  path = step / "metrics" / "metrics"
  path.write_text(path.read_text().replace("0.5", "0.7"))


def other_config(step):
  path = step / "meta" / "metadata"
  path.write_text(path.read_text().replace("best", "last"))


DAMAGE = {
  "truncated": truncate_all,
  "arrays truncated": lambda s: largest(s / "model").write_bytes(b"x" * 9000),
  "bit of the model": lambda s: flip(largest(s / "model")),
  "bit of the optimizer": lambda s: flip(largest(s / "train"), 0.7),
  "bit of the scores": other_digit,
  "bit of the config": other_config,
  "emptied": empty_all,
  "no files": no_files,
  "half deleted": lambda s: shutil.rmtree(s / "train"),
  "arrays deleted": lambda s: largest(s / "model").unlink(),
  "metadata deleted": lambda s: (s / "_CHECKPOINT_METADATA").unlink(),
  "meta deleted": lambda s: shutil.rmtree(s / "meta"),
}


def test_whole_checkpoints_are_restored(directory, caplog):
  assert_is(restore(directory), 2)
  model, step = checkpoint.load_model(directory, "best")
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, model, state_at(2).model())
  assert caplog.text == ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_and_the_one_before_taken(directory, damage, caplog):
  DAMAGE[damage](directory / "2")
  assert_is(restore(directory), 1)
  assert "classify/2 is damaged" in caplog.text
  assert "It is now damaged.2; resuming from the one before" in caplog.text
  assert (directory / "damaged.2").is_dir()


@pytest.mark.parametrize("damage", DAMAGE)
def test_with_none_left_nothing_starts_over(directory, damage):
  for step in ("1", "2"):
    DAMAGE[damage](directory / step)
  if damage == "bit of the scores":
    path = directory / "1" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.25", "0.75"))
  for _ in range(2):  # nor when it is tried again
    with pytest.raises(
      UserError, match=r"None of the checkpoints in .*damaged"
    ):
      restore(directory)


@pytest.mark.parametrize(
  "damage",
  [
    "bit of the model",
    "bit of the scores",
    "bit of the config",
    "arrays deleted",
    "meta deleted",
  ],
)
def test_a_damaged_model_is_not_reported(directory, damage):
  DAMAGE[damage](directory / "2")
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.load_model(directory, "best")


PASSING = {
  "no permission": PermissionError(errno.EACCES, "Permission denied"),
  "stale disk": OSError(errno.ESTALE, "Stale file handle"),
  "open files": OSError(errno.EMFILE, "Too many open files"),
  "disk error": OSError(errno.EIO, "Input/output error"),
  "memory": MemoryError("Unable to allocate 9 GiB"),
  "device memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
  "no platform": RuntimeError("Unable to initialize backend 'cuda'"),
  "in TensorStore": ValueError("UNAVAILABLE: cannot read the kvstore"),
  "wrapped": None,
}


@pytest.mark.parametrize("where", ["resume", "evaluate"])
@pytest.mark.parametrize("name", PASSING)
def test_a_passing_error_is_not_damage(
  directory, monkeypatch, caplog, name, where
):
  def fail(*_, **__):
    if name == "wrapped":
      raise ValueError("cannot read arrays") from PASSING["open files"]
    raise PASSING[name]

  def read():
    if where == "resume":
      return int(restore(directory).step)
    return checkpoint.load_model(directory, "best")[1]

  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(UserError, match="cannot be read now") as caught:
      read()
  assert "same command again" in str(caught.value)
  assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
  assert read() == 2
  assert caplog.text == ""


def test_a_file_that_cannot_be_opened_is_not_damage(directory, monkeypatch):
  inner = pathlib.Path.open

  def opened(path, *mode, **options):
    if path.name == "metrics" and "2" in path.parts:
      raise OSError(errno.ESTALE, "Stale file handle", str(path))
    return inner(path, *mode, **options)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "open", opened)
    with pytest.raises(UserError, match="cannot be read now"):
      restore(directory)
  assert_is(restore(directory), 2)


def test_nothing_in_quarantine_is_deleted(directory):
  for number in (1, 2):
    shutil.copytree(directory / "2", directory / "copy")
    empty_all(directory / "2")
    (directory / "2" / "mark").write_text(str(number))
    restore(directory)
    (directory / "copy").rename(directory / "2")
  assert (directory / "damaged.2" / "mark").read_text() == "1"
  assert (directory / "damaged.2.2" / "mark").read_text() == "2"


def test_a_run_from_before_the_version_of_synthetic_faces_resumes(directory):
  meta = META | {"config": {"data": {"name": "synthetic_faces"}}}
  for step in ("1", "2"):
    (directory / step / "meta" / "metadata").write_text(json.dumps(meta))
  with checkpoint.open_manager(directory) as manager:
    now = meta | {"fingerprint": "another"}
    assert_is(checkpoint.restore_latest(manager, state_at(0), now), 2)


def test_scores_that_changed_do_not_choose_another_model(directory):
  path = directory / "1" / "metrics" / "metrics"
  path.write_text(path.read_text().replace("0.25", "0.75"))
  with pytest.raises(UserError, match="its metrics changed after"):
    checkpoint.load_model(directory, "best")


def test_to_look_at_a_run_leaves_its_unfinished_save_alone(directory):
  saving = directory / "3.orbax-checkpoint-tmp"
  saving.mkdir()
  checkpoint.load_meta(directory)
  checkpoint.load_model(directory, "best")
  time.sleep(0.5)  # Orbax removes such folders in a thread
  assert saving.is_dir()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"fingerprint": "1"}, "other images: 0, now 1"),
    ({"class_names": ["b", "a"]}, "other classes"),
    ({"start": 5}, "another model to start from"),
  ],
)
def test_a_state_is_not_restored_into_another_run(
  directory, change, message, caplog
):
  meta = META | {"start": 4}
  with checkpoint.open_manager(directory) as manager:
    checkpoint.save(manager, state_at(3), {checkpoint.METRIC: 0.1}, meta)
    manager.wait_until_finished()
    with pytest.raises(UserError, match=message):
      checkpoint.restore_latest(manager, state_at(0), meta | change)
    if "fingerprint" not in change:
      return
    accepted = checkpoint.restore_latest(
      manager, state_at(0), meta | change, accept_changes=True
    )
  assert_is(accepted, 3)
  assert "resuming as asked" in caplog.text


def test_a_changed_model_is_not_taken_for_damage(directory):
  other = state_at(0)
  other = other.replace(params={"head": {"kernel": jnp.zeros((64, 50))}})
  with (
    checkpoint.open_manager(directory) as manager,
    pytest.raises(UserError, match=r"kernel.*shape \(64, 100\), now \(64, 50"),
  ):
    checkpoint.restore_latest(manager, other, META, accept_changes=True)
  assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
  "meta",
  [{}, {"config": 5}, {"config": {"data": 5}}, META | {"class_names": "ab"}],
)
def test_a_strangers_meta_is_refused(directory, meta):
  (directory / "2" / "meta" / "metadata").write_text(json.dumps(meta))
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.load_meta(directory)
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.load_start(str(directory.parents[1]), ["classify"])


def test_an_older_damaged_one_is_told_too(directory, caplog):
  DAMAGE["bit of the config"](directory / "1")
  assert_is(restore(directory), 2)
  assert "the best of the others counts" in caplog.text


def test_checkpoints_from_before_checksums_are_read(directory):
  for step in ("1", "2"):
    (directory / step / "meta" / "metadata").write_text(json.dumps(META))
  assert_is(restore(directory), 2)
  assert checkpoint.load_model(directory, "best")[1] == 2
