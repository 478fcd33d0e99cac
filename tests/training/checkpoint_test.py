"""Damaged steps are reported and replaced; other errors change nothing.

What happens (`DAMAGE`, `PASSING`, `OTHERS`) x when (at open, at restore, at
save, in evaluate): the message, what is on disk, and that the same call works
once the cause is gone.
"""

import errno
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from dbl_jax.errors import UserError
from dbl_jax.training import checkpoint
from dbl_jax.training.steps import TrainState

# Callbacks of TensorStore that come after Orbax has failed, see `cli.run_main`.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)
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
  opt_state = optax.adam(1e-3).init(variables["params"])
  state = TrainState(jnp.int32(0), **variables, opt_state=opt_state, memory={})
  grads = state.params
  _, opt_state = optax.adam(1e-3).update(grads, state.opt_state, state.params)
  return state.replace(step=jnp.int32(step), opt_state=opt_state)


def save(directory, scores, meta=META):
  """Saves steps with the given scores; returns the best."""
  with checkpoint.open_manager(directory) as manager:
    for step, score in scores.items():
      metrics = {checkpoint.METRIC: score}
      checkpoint.save(manager, state_at(step), metrics, meta)
    manager.wait_until_finished()
    return manager.best_step()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Steps 1 and 2, of which 2 is the better."""
  directory = tmp_path_factory.mktemp("saved") / "classify"
  save(directory, {1: 0.25, 2: 0.5})
  return directory


@pytest.fixture
def directory(saved, tmp_path):
  """A copy, because TensorStore caches what it wrote, by path."""
  copy = tmp_path / "checkpoints" / "classify"
  shutil.copytree(saved, copy)
  return copy


def restore(directory, meta=META, like=None, **options):
  checkpoint.quarantine_damaged(directory)
  like = like or state_at(0)
  with checkpoint.open_manager(directory) as manager:
    return checkpoint.restore_latest(manager, like, meta, **options)


def assert_is(state, step):
  jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def flip(path, place=0.5):
  data = bytearray(path.read_bytes())
  data[int(len(data) * place)] ^= 1
  path.write_bytes(data)


def largest(folder):
  """The file that holds the arrays."""
  return max(folder.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def truncate_all(step, share=0.5):
  for path in filter(Path.is_file, step.rglob("*")):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def empty_all(step):
  truncate_all(step, 0)


def no_files(step):
  shutil.rmtree(step)
  step.mkdir()


def change(name, old, new):
  def damage(step):
    path = step / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))

  return damage


DAMAGE = {
  "truncated": truncate_all,
  "arrays truncated": lambda s: largest(s / "model").write_bytes(b"x" * 9000),
  "index truncated": lambda s: (s / "model/manifest.ocdbt").write_bytes(b"x"),
  "bit of the model": lambda s: flip(largest(s / "model")),
  "bit of the optimizer": lambda s: flip(largest(s / "train"), 0.7),
  "bit of the index": lambda s: flip(s / "train" / "manifest.ocdbt"),
  "bit of the metrics": change("metrics/metrics", "0.5", "0.7"),
  "bit of the config": change("meta/metadata", "best", "last"),
  "bit of a key": change("model/_METADATA", "key_type", "kex_type"),
  "nested": lambda s: (s / "meta/metadata").write_text("[" * 100_000),
  "emptied": empty_all,
  "no files": no_files,
  "half deleted": lambda s: shutil.rmtree(s / "train"),
  "arrays deleted": lambda s: largest(s / "model").unlink(),
  "metadata deleted": lambda s: (s / "_CHECKPOINT_METADATA").unlink(),
  "meta deleted": lambda s: shutil.rmtree(s / "meta"),
}
NOT_OF_MODEL = {"bit of the optimizer", "bit of the index", "half deleted"}


def test_sound_checkpoints_are_restored(directory, caplog):
  assert_is(restore(directory), 2)
  model, step = checkpoint.load_model(directory, "best")
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, model, state_at(2).model())
  assert caplog.text == ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_never_evaluated(directory, damage, caplog):
  DAMAGE[damage](directory / "2")
  if damage not in NOT_OF_MODEL:
    with pytest.raises(UserError, match=r"classify/2 is damaged.*Move that"):
      checkpoint.load_model(directory, "best")
  assert names(directory) == ["1", "2"]
  assert_is(restore(directory), 1)
  assert "classify/2 is damaged" in caplog.text
  assert "It is now damaged.2; resuming from the one before" in caplog.text
  assert names(directory) == ["1", "damaged.2"]
  if damage == "bit of the metrics":
    change("metrics/metrics", "0.25", "0.75")(directory / "1")
  else:
    DAMAGE[damage](directory / "1")
  for _ in range(2):  # with none left nothing starts over, nor if tried again
    with pytest.raises(UserError, match=r"None of the checkpoints in .*damag"):
      restore(directory)
  assert names(directory) == ["damaged.1", "damaged.2"]


PASSING = [
  PermissionError(errno.EACCES, "Permission denied"),
  OSError(errno.ESTALE, "Stale file handle"),
  OSError(errno.EMFILE, "Too many open files"),
  OSError(errno.ENOSPC, "No space left on device"),
  OSError(errno.EIO, "Input/output error"),
  MemoryError("Unable to allocate 9 GiB"),
  jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
  RuntimeError("Unable to initialize backend 'cuda'"),
  ValueError("UNKNOWN: Failed to open: Stale file handle"),  # TensorStore's
  AssertionError("a bug"),
]
CALLS = {
  "resume": lambda directory: int(restore(directory).step),
  "evaluate": lambda directory: checkpoint.load_model(directory, "best")[1],
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("where", ["metadata", "arrays", "arrays in Orbax"])
def test_an_error_that_may_pass_changes_nothing(
  directory, monkeypatch, caplog, where, call
):
  for error in PASSING:

    def fail(*_, error=error, **__):
      if where == "arrays in Orbax":
        raise Exception("Error while reading array index") from error
      raise error

    with monkeypatch.context() as patch:
      if where == "metadata":
        patch.setattr(checkpoint.json, "loads", fail)
      else:
        patch.setattr(ocp.StandardCheckpointer, "restore", fail)
      with pytest.raises(UserError, match=r"cannot be read now.*command again"):
        CALLS[call](directory)
    assert names(directory) == ["1", "2"]
  assert CALLS[call](directory) == 2
  assert caplog.text == ""


def test_an_error_at_save_leaves_what_is_saved(directory, monkeypatch):
  for error in PASSING:

    def fail(*_, error=error, **__):
      raise error

    with monkeypatch.context() as patch:
      patch.setattr(ocp.CheckpointManager, "save", fail)
      with pytest.raises(type(error)) as caught:
        save(directory, {3: 0.75})
    assert caught.value is error
    assert names(directory) == ["1", "2"]
  assert_is(restore(directory), 2)
  save(directory, {3: 0.75})
  assert_is(restore(directory), 3)


def interrupt(directory):
  """As a kill before or during Orbax's last rename leaves it."""
  shutil.copytree(directory / "2", directory / "3.orbax-checkpoint-tmp")


def copy_by_hand(directory):
  """What disks, systems and users add."""
  for name in ("2 (1)", "1 - Copy", "02", "\u0663"):
    shutil.copytree(directory / "2", directory / name)
  for name in (".DS_Store", "notes.txt", "2/desktop.ini", "2/model/.nfs01"):
    (directory / name).write_text("x")


def save_by_newer_version(directory):
  for step in ("1", "2"):
    path = directory / step / "meta" / "metadata"
    path.write_text(json.dumps({"format": 99, "checksums": "of another kind"}))


OTHERS = {  # change -> message, or None where step 2 is read
  interrupt: None,
  copy_by_hand: None,
  save_by_newer_version: "was saved by a newer version.*99.*Update dbl_jax",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", OTHERS)
def test_what_is_not_damage_renames_nothing(directory, change, call, caplog):
  change(directory)
  before = names(directory)
  if OTHERS[change]:
    with pytest.raises(UserError, match=OTHERS[change]):
      CALLS[call](directory)
  else:
    assert CALLS[call](directory) == 2
  left = {*names(directory), "3.orbax-checkpoint-tmp"}  # which Orbax removes
  assert left == {*before, "3.orbax-checkpoint-tmp"}
  assert caplog.text == ""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("files", ["unreadable", "readable again"])
def test_a_disk_s_error_that_orbax_reports_as_a_missing_file_is_not_damage(
  directory, monkeypatch, files, call
):
  """Its `exists` is False for any error, such as of a stale disk."""
  failures = iter([FileNotFoundError("model not found")])
  restored = ocp.StandardCheckpointer.restore

  def restore_once(*arguments):
    for failure in failures:
      raise failure
    return restored(*arguments)

  def stale(*_):
    raise OSError(errno.ESTALE, "Stale file handle")

  with monkeypatch.context() as patch:
    patch.setattr(ocp.StandardCheckpointer, "restore", restore_once)
    if files == "unreadable":
      patch.setattr(checkpoint, "open", stale, raising=False)
      with pytest.raises(UserError, match=r"cannot be read now.*Stale"):
        CALLS[call](directory)
    else:
      assert CALLS[call](directory) == 2
  assert names(directory) == ["1", "2"]
  assert CALLS[call](directory) == 2


def test_a_step_that_a_running_phase_removes_is_not_damage(directory):
  def gone(step):
    shutil.rmtree(step)
    raise FileNotFoundError

  with pytest.raises(UserError, match="cannot be read now"):
    checkpoint._read(directory / "2", gone)


def test_nothing_in_quarantine_is_deleted(directory):
  for number in (1, 2):
    shutil.copytree(directory / "2", directory / "copy")
    empty_all(directory / "2")
    (directory / "2" / "mark").write_text(str(number))
    restore(directory)
    (directory / "copy").rename(directory / "2")
  assert (directory / "damaged.2" / "mark").read_text() == "1"
  assert (directory / "damaged.2.2" / "mark").read_text() == "2"


def test_reading_leaves_an_unfinished_save_alone(directory):
  saving = directory / "3.orbax-checkpoint-tmp"
  saving.mkdir()
  checkpoint.load_meta(directory)
  checkpoint.load_model(directory, "best")
  time.sleep(0.5)  # Orbax removes such folders in a thread
  assert saving.is_dir()


def test_of_equal_steps_the_last_is_the_best(directory):
  assert save(directory, {3: 0.5, 4: 0.1}) == 3
  assert checkpoint.load_model(directory, "best")[1] == 3
  assert checkpoint.load_model(directory, "latest")[1] == 4


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"fingerprint": "1"}, "other images: 0, now 1"),
    ({"class_names": ["b", "a"]}, "other classes"),
    ({"start": 5}, "started from another model"),
  ],
)
def test_another_run_is_not_resumed(directory, change, message, caplog):
  meta = META | {"start": 4}
  save(directory, {3: 0.1}, meta)
  with pytest.raises(UserError, match=message):
    restore(directory, meta | change)
  if "fingerprint" in change:
    assert_is(restore(directory, meta | change, accept_changes=True), 3)
    assert "resuming as requested" in caplog.text


def test_a_run_from_before_checksums_and_versions_resumes(directory):
  """The fingerprint of synthetic faces was a hash of source code."""
  meta = META | {"config": {"data": {"name": "synthetic_faces"}}}
  for step in ("1", "2"):
    (directory / step / "meta" / "metadata").write_text(json.dumps(meta))
  assert checkpoint.load_model(directory, "best")[1] == 2
  assert_is(restore(directory, meta | {"fingerprint": "another"}), 2)
  save(directory, {3: 0.1}, meta)
  assert checkpoint.load_meta(directory)["format"] == 2
  with pytest.raises(UserError, match="other images"):
    restore(directory, meta | {"fingerprint": "another"})


def test_a_changed_model_is_not_damage(directory):
  wrong = {"head": {"kernel": jnp.zeros((64, 50))}}
  message = r"kernel.*shape \(64, 100\), expected \(64, 50"
  for accept in (False, True):
    other = state_at(0).replace(params=wrong)
    with pytest.raises(UserError, match=message):
      restore(directory, like=other, accept_changes=accept)
  assert names(directory) == ["1", "2"]


@pytest.mark.parametrize(
  "meta",
  [{}, {"config": 5}, {"config": {"data": 5}}, META | {"class_names": "ab"}],
)
def test_meta_of_another_form_is_refused(directory, meta):
  (directory / "2" / "meta" / "metadata").write_text(json.dumps(meta))
  for load in (
    lambda: checkpoint.load_meta(directory),
    lambda: checkpoint.load_start(str(directory.parents[1]), ["classify"]),
  ):
    with pytest.raises(UserError, match="is not a checkpoint of dbl_jax"):
      load()


def test_damage_of_an_older_step_is_reported_too(directory, caplog):
  change("metrics/metrics", "0.25", "0.75")(directory / "1")
  with pytest.raises(UserError, match="its metrics changed after"):
    checkpoint.load_model(directory, "best")  # it selects no other model
  assert_is(restore(directory), 2)
  assert "the best of the others counts" in caplog.text


def test_no_checkpoint_is_one_line(tmp_path):
  for path in (tmp_path, tmp_path / "missing"):
    with pytest.raises(UserError, match="No checkpoint found"):
      checkpoint.load_model(path, "best")
