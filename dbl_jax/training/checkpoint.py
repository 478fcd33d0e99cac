"""Checkpoints of a phase: save, resume, and load a trained model.

The only module that imports Orbax. Each step stores three items: `model`
(parameters and batch-norm statistics, all that the next phase and evaluation
need), `train` (optimizer state and the memory of loss terms) and `meta`
(config, class names, data, and checksums of all items, because Orbax restores
an array with a flipped bit without an error). The two latest steps are
retained, and the best one by mean-class accuracy on validation.
"""

import functools
import json
import logging
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, files, trees
from dbl_jax.training.state import TrainState

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# The metric that selects the best step.
METRIC = "mean_class_accuracy"
# Metrics of a step saved between validations: never the best of several.
NOT_VALIDATED = {METRIC: -1.0}
# Version of `meta`, stored from 2 on. In version 1 the fingerprint of synthetic
# faces was a hash of source code.
_FORMAT = 2
_CHECKSUMS = "checksums"  # key in `meta`
_DAMAGED = "damaged."  # prefix of folders in quarantine
# Fields of `meta` that must not change when a run resumes, for the message.
_SAME = {
  "class_names": "other classes",
  "fingerprint": "other images",
  "start": "another model to start from",
}


class DamagedError(Exception):
  """A checksum, a parser or a missing file proves that a step is damaged."""


def phase_dir(workdir: Path, phase: str) -> Path:
  """Returns the folder of a phase's checkpoints."""
  return workdir / "checkpoints" / phase


def open_manager(directory: Path) -> ocp.CheckpointManager:
  """Opens the checkpoints of a phase for training.

  With `best_fn` alone Orbax would delete the newest step, from which a run
  resumes; the preservation policy retains latest and best.

  Args:
    directory: as returned by `phase_dir`; created if missing.

  Returns:
    The manager; close it.
  """
  options = ocp.CheckpointManagerOptions(
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(
      [
        checkpoint_managers.LatestN(2),
        checkpoint_managers.BestN(get_metric_fn=_metric, n=1),
      ]
    ),
    best_fn=_metric,
    best_mode="max",
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(directory.resolve(), options=options)


def _metric(metrics: dict[str, float]) -> float:
  return metrics[METRIC]


def best_so_far(manager: ocp.CheckpointManager) -> float:
  """Returns the metric of the best saved step; -inf if nothing is saved."""
  step = manager.best_step()
  return -np.inf if step is None else _metric(manager.metrics(step))


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  metrics: dict[str, float],
  meta: dict[str, Any],
) -> None:
  """Saves a state in the background.

  Args:
    manager: checkpoints of the phase.
    state: state of the training.
    metrics: validation metrics, `METRIC` among them; or `NOT_VALIDATED`.
    meta: plain data, stored as JSON.
  """
  meta = meta | {"format": _FORMAT}
  model, train = state.model(), _named_leaves(_train_item(state))
  sums = _checksums(model=model, train=train, meta=meta, metrics=metrics)
  manager.save(
    int(state.step),
    args=ocp.args.Composite(
      model=ocp.args.StandardSave(model),
      train=ocp.args.StandardSave(train),
      meta=ocp.args.JsonSave(meta | {_CHECKSUMS: sums}),
    ),
    metrics=metrics,
  )


def _train_item(state: TrainState) -> tuple[Any, dict[str, jax.Array]]:
  return state.opt_state, state.memory


def _named_leaves(tree: Any) -> dict[str, jax.Array]:
  """Leaves by their names on disk, since Orbax cannot store optax's nodes.

  Unlike in `trees.by_path`, a name has no '/', which separates folders.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def restore_latest(
  manager: ocp.CheckpointManager,
  state: TrainState,
  meta: dict[str, Any],
  accept_changes: bool = False,
) -> TrainState | None:
  """Restores the newest step that is not damaged.

  Args:
    manager: checkpoints of the phase.
    state: a fresh state; the result has its shapes and shardings.
    meta: what would be stored with a checkpoint now.
    accept_changes: resume even if the images have changed.

  Returns:
    The state; None if nothing was saved yet.

  Raises:
    UserError: if all steps are damaged, a step cannot be read now, or classes,
      images or the initial model have changed.
  """
  like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
  directory = Path(manager.directory)
  while (step := manager.latest_step()) is not None:
    path = directory / str(step)
    try:
      stored, _ = _read(path, _read_json_items)
      _check_same_run(stored, meta, directory, accept_changes)
      model, train = _read(path, functools.partial(_read_arrays, stored, like))
    except DamagedError as error:
      with distributed.main_first(f"damaged step {step}"):
        if distributed.is_main():
          _quarantine(path, error)
      _check_some_left(directory)
      manager.reload()
    else:
      return _with_items(state, step, model, train)
  return None


def same_images(meta: Mapping[str, Any], fingerprint: str) -> bool:
  """Whether a checkpoint was trained on images with this fingerprint.

  Args:
    meta: the checkpoint's `meta`.
    fingerprint: of the images now.

  Returns:
    True if the images are the same. Synthetic faces of format 1 always are:
    their config fixes them.
  """
  name = meta.get("config", {}).get("data", {}).get("name")
  if name == "synthetic_faces" and meta.get("format", 1) < _FORMAT:
    return True
  return meta.get("fingerprint", fingerprint) == fingerprint


def _check_same_run(
  before: dict[str, Any],
  now: dict[str, Any],
  directory: Path,
  accept_changes: bool,
) -> None:
  """Raises UserError if classes, images or initial model have changed."""
  now = json.loads(json.dumps(now))
  for field, words in _SAME.items():
    # Earlier versions stored fewer fields.
    if before.get(field, now.get(field)) == now.get(field):
      continue
    if field == "fingerprint" and same_images(before, now[field]):
      continue
    if field == "fingerprint" and accept_changes:
      logger.warning(
        "%s was trained on %s; resuming as requested.", directory, words
      )
      continue
    shown = "" if field == "start" else f": {before[field]}, now {now[field]}"
    raise UserError(
      f"{directory} was trained on {words}{shown}. Restore them to resume, or"
      " use another --workdir."
    )


def _read_arrays(
  meta: Mapping[str, Any], like: TrainState, step: Path
) -> tuple[Any, dict[str, jax.Array]]:
  """Reads and verifies the items `model` and `train`.

  Raises:
    UserError: if their shapes differ from those of `like`.
  """
  wanted = {"model": like.model(), "train": _named_leaves(_train_item(like))}
  for name, tree in wanted.items():
    stored = ocp.StandardCheckpointHandler().metadata(step / name).tree
    if differs := trees.first_difference(stored, tree):
      raise UserError(
        f"{step} does not fit the config: its {name} has {differs.path} of"
        f" shape {differs.found}, expected {differs.expected}. Use another"
        " --workdir; --config.init_from can start it from this run's model."
      )
  items = {name: _restore(step / name, tree) for name, tree in wanted.items()}
  verify(meta, **items)
  return items["model"], items["train"]


def _restore(item: Path, like: Any) -> Any:
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(item, like)


def _with_items(
  state: TrainState, step: int, model: Any, train: dict[str, jax.Array]
) -> TrainState:
  like = _train_item(state)
  opt_state, memory = jax.tree.unflatten(
    jax.tree.structure(like), [train[name] for name in _named_leaves(like)]
  )
  return TrainState(
    step=jax.device_put(jax.numpy.int32(step), state.step.sharding),
    params=model["params"],
    batch_stats=model["batch_stats"],
    opt_state=opt_state,
    memory=memory,
  )


def load_model(directory: Path, keep: str) -> tuple[dict[str, Any], int]:
  """Loads the variables of a finished or running phase; writes nothing.

  Args:
    directory: as returned by `phase_dir`.
    keep: 'best' on validation, or 'latest'.

  Returns:
    Variables as host arrays, and the step.

  Raises:
    UserError: if there is no checkpoint, it is damaged or cannot be read.
  """
  steps = _saved_steps(directory)
  scores = {
    step: _read_sound(step, _read_json_items)[1][METRIC]
    for step in (steps if keep == "best" else ())
  }
  # As Orbax does, of equal steps the last.
  step = max(steps, key=lambda path: (scores.get(path, 0), int(path.name)))
  return _read_sound(step, _read_variables), int(step.name)


def _read_variables(step: Path) -> dict[str, Any]:
  meta, _ = _read_json_items(step)
  stored = ocp.StandardCheckpointHandler().metadata(step / "model").tree
  # Without host arrays Orbax asks for the devices that saved the model.
  like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
  model = _restore(step / "model", like)
  verify(meta, model=model)
  return dict(model)


def load_meta(directory: Path) -> dict[str, Any]:
  """Loads `meta` of the newest checkpoint: config, class names, data.

  Args:
    directory: as returned by `phase_dir`.

  Returns:
    Plain data.

  Raises:
    UserError: if there is no checkpoint, it is damaged or cannot be read.
  """
  step = _saved_steps(directory)[-1]
  meta, _ = _read_sound(step, _read_json_items)
  config, names = meta.get("config"), meta.get("class_names")
  if (
    not isinstance(config, dict)
    or not isinstance(config.get("data"), dict)
    or not isinstance(names, list)
    or not all(isinstance(name, str) for name in names)
  ):
    raise UserError(
      f"{step} is no checkpoint of this project: it holds no config or no names"
      " of classes. Give the workdir of a run."
    )
  return meta


def load_start(
  init_from: str, phases: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Loads the model of another run, for a phase to start from.

  Args:
    init_from: workdir of that run.
    phases: names of phases; the first that the run has is taken.

  Returns:
    Variables, 'params' and 'batch_stats', of the checkpoint that the phase's
    config selects; and the class names.

  Raises:
    UserError: if there is no checkpoint, it is damaged or cannot be read.
  """
  workdir = Path(init_from).expanduser()
  for name in phases:
    directory = phase_dir(workdir, name)
    if directory.is_dir():
      meta = load_meta(directory)
      settings = meta["config"].get(name)
      if not isinstance(settings, dict):
        raise UserError(
          f"The config stored in {directory} has no phase {name!r}. Expected"
          " the checkpoints of a run; train it again."
        )
      variables, _ = load_model(directory, settings.get("keep", "latest"))
      return variables, tuple(meta["class_names"])
  raise UserError(
    f"config.init_from={init_from} holds no checkpoint: expected the workdir"
    f" of a run, with {phase_dir(workdir, phases[0])} in it."
  )


def quarantine_damaged(directory: Path) -> None:
  """Renames steps with damaged JSON items, which Orbax could not open.

  Args:
    directory: as returned by `phase_dir`.

  Raises:
    UserError: if all steps are damaged, or a step cannot be read now.
  """
  for path in _steps(directory):
    try:
      _read(path, _read_json_items)
    except DamagedError as error:
      _quarantine(path, error)
  _check_some_left(directory)


def has_steps(directory: Path) -> bool:
  """Whether a phase has a checkpoint that is not in quarantine."""
  return bool(_steps(directory))


def _steps(directory: Path) -> list[Path]:
  """Folders of saved steps, in order. A save in progress has another name."""
  steps = [path for path in _entries(directory) if path.name.isdecimal()]
  return sorted(steps, key=lambda path: int(path.name))


def _entries(directory: Path) -> list[Path]:
  try:
    return list(directory.resolve().iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []


def _saved_steps(directory: Path) -> list[Path]:
  """`_steps`, at least one."""
  if steps := _steps(directory):
    return steps
  raise UserError(
    f"No checkpoint found in {directory}. Expected the workdir of a run that"
    " has saved at least once."
  )


def _quarantine(path: Path, error: DamagedError) -> None:
  """Renames a damaged step, so that the step can be saved again."""
  last = path == _steps(path.parent)[-1]
  target, number = path.with_name(f"{_DAMAGED}{path.name}"), 1
  while target.exists():
    number += 1
    target = path.with_name(f"{_DAMAGED}{path.name}.{number}")
  path.rename(target)
  logger.warning(
    "The checkpoint %s is damaged (%s). It is now %s; %s.",
    path,
    error,
    target.name,
    "resuming from the one before"
    if last
    else "if it was the best on validation, the best of the others counts",
  )


def _check_some_left(directory: Path) -> None:
  """Raises UserError if all steps are in quarantine."""
  damaged = [p.name for p in _entries(directory) if p.name.startswith(_DAMAGED)]
  if damaged and not _steps(directory):
    raise UserError(
      f"None of the checkpoints in {directory} can be read: all are damaged."
      f" Restore them from a backup, move {', '.join(sorted(damaged))} away to"
      " start the phase over, or use another --workdir."
    )


def _read_sound(step: Path, read: Callable[[Path], _T]) -> _T:
  """Reads a step; damage is a UserError."""
  try:
    return _read(step, read)
  except DamagedError as error:
    raise UserError(
      f"The checkpoint {step} is damaged ({error}). Move that folder away and"
      " run the training command again: it resumes from the checkpoints that"
      " are left."
    ) from error


def _read(step: Path, read: Callable[[Path], _T]) -> _T:
  """Calls a function that reads a step, and tells damage from other errors.

  What looks like damage must look so twice, with every file readable: Orbax
  and Python's `exists` report some errors of a disk as a missing file.

  Args:
    step: folder of the step.
    read: may raise anything.

  Returns:
    The result of `read`.

  Raises:
    DamagedError: if the files of the step are damaged.
    UserError: for any other error, which may pass: of a disk, memory, a device.
  """
  try:
    try:
      return read(step)
    except Exception as error:
      if not _is_damage(error):
        raise
    _read_every_file(step)
    return read(step)
  except UserError:
    raise
  except Exception as error:
    if _is_damage(error) and step.is_dir():
      raise DamagedError(_first_line(error)) from error
    raise UserError(
      f"{step} cannot be read now ({_first_line(error)}). This is no proof of"
      " damage, so nothing was changed. Remove the cause (permissions, memory,"
      " open files, the disk or the device) and run the same command again."
    ) from error


# Damaged files make parsers raise these; see `_is_damage`.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PARSING = (DamagedError, ValueError, LookupError, TypeError, RecursionError)
# Status codes of TensorStore for what a file contains. All others, such as
# UNKNOWN for most errors of a system call, may pass.
_STATUS = re.compile("([A-Z]+(?:_[A-Z]+)*): ")
_DAMAGE_STATUS = {
  "DATA_LOSS",
  "FAILED_PRECONDITION",
  "INVALID_ARGUMENT",
  "NOT_FOUND",
  "OUT_OF_RANGE",
}


def _is_damage(error: BaseException) -> bool:
  """Whether an error, with all its causes, comes from the content of files.

  Orbax raises a bare Exception for a truncated array, whose cause is
  TensorStore's ValueError with a status code in front.
  """
  chain = list(files.causes(error))
  others = (OSError, MemoryError, RuntimeError)
  if any(
    isinstance(one, others) and not isinstance(one, _MISSING + _PARSING)
    for one in chain
  ):
    return False
  if codes := {found[1] for one in chain if (found := _STATUS.match(str(one)))}:
    return codes <= _DAMAGE_STATUS
  return isinstance(error, _MISSING + _PARSING)


def _read_every_file(folder: Path) -> None:
  """Raises OSError unless every file of a folder can be read to its end."""

  def fail(error: OSError) -> None:
    raise error

  for place, _, names in os.walk(folder, onerror=fail):
    for name in names:
      with open(os.path.join(place, name), "rb") as file:
        while file.read(1 << 24):
          pass


def _first_line(error: BaseException) -> str:
  """The message of an error in one line of at most 200 characters."""
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]


def _read_json_items(step: Path) -> tuple[dict[str, Any], dict[str, float]]:
  """Reads and verifies the items `meta` and `metrics`."""
  _read_json(step / "_CHECKPOINT_METADATA")
  metrics = _read_json(step / "metrics" / "metrics")
  meta = _read_json(step / "meta" / "metadata")
  if not isinstance(metrics.get(METRIC), int | float):
    raise DamagedError(f"its metrics have no {METRIC}")
  verify(meta, metrics=metrics)
  return meta, metrics


def _read_json(path: Path) -> dict[str, Any]:
  found = json.loads(path.read_text())
  if not isinstance(found, dict):
    raise DamagedError(f"{path.name} holds no JSON object")
  return found


def array_checksum(tree: Any) -> int:
  """CRC-32 over the bytes of a tree's leaves, in the order of their paths."""
  found = 0
  for _, leaf in sorted(trees.by_path(tree).items()):
    array = np.ascontiguousarray(leaf).reshape(-1)
    found = zlib.crc32(array.view(np.uint8).data, found)
  return found


def json_checksum(plain: Mapping[str, Any]) -> int:
  """CRC-32 of plain data as JSON, whatever the order of its keys."""
  return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def _checksums(**items: Any) -> dict[str, int]:
  plain = ("meta", "metrics")
  return {
    name: json_checksum(item) if name in plain else array_checksum(item)
    for name, item in items.items()
  }


def verify(meta: Mapping[str, Any], **items: Any) -> None:
  """Compares items with their stored checksums; early versions stored none.

  Args:
    meta: the item `meta`, which is verified, too.
    **items: any of `model`, `train` and `metrics`.

  Raises:
    DamagedError: naming the first item that differs.
  """
  stored = meta.get(_CHECKSUMS)
  if not stored:
    return
  own = {key: value for key, value in meta.items() if key != _CHECKSUMS}
  for name, found in _checksums(**items, meta=own).items():
    if stored[name] != found:
      raise DamagedError(f"its {name} changed after it was saved")
