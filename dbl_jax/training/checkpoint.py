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
import operator
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
from dbl_jax.runtime import distributed, files
from dbl_jax.training.steps import TrainState, by_path, first_difference

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# The metric that selects the best step.
METRIC = "mean_class_accuracy"
_metric = operator.itemgetter(METRIC)
# Metrics of a step saved between validations: never the best of several.
NOT_VALIDATED = {METRIC: -1.0}
# Version of `meta`, stored from 2 on. In version 1 the fingerprint of synthetic
# faces was a hash of source code.
_FORMAT = 2
_CHECKSUMS = "checksums"  # key in `meta`
_STEP = re.compile("0|[1-9][0-9]*")  # name of a step's folder
_DAMAGED = "damaged."  # prefix of folders in quarantine
# Fields of `meta` that must not change when a run resumes, for the message.
_SAME = {
  "class_names": "was trained on other classes",
  "fingerprint": "was trained on other images",
  "start": "started from another model",
  "init": "started from another model in config.init_from",
  "unlabelled": "was trained on other unlabelled images",
}


class DamagedError(UserError):
  """A checksum, a parser or a missing file shows that a step is damaged."""


def phase_dir(workdir: Path, phase: str) -> Path:
  """Returns the folder of a phase's checkpoints."""
  return workdir / "checkpoints" / phase


def open_manager(directory: Path) -> ocp.CheckpointManager:
  """Opens the checkpoints in a `phase_dir`, created if missing, for training.

  With `best_fn` alone Orbax would delete the newest step, from which a run
  resumes; the preservation policy retains latest and best.
  """
  latest = checkpoint_managers.LatestN(2)
  best = checkpoint_managers.BestN(get_metric_fn=_metric, n=1)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=checkpoint_managers.AnyPreservationPolicy(
      [latest, best]
    ),
    best_fn=_metric,
    best_mode="max",
    cleanup_tmp_directories=True,
  )
  return ocp.CheckpointManager(directory.resolve(), options=options)


def best_so_far(manager: ocp.CheckpointManager) -> float:
  """Returns the metric of the best saved step; -inf without saved steps."""
  step = manager.best_step()
  return -np.inf if step is None else _metric(manager.metrics(step))


def save(
  manager: ocp.CheckpointManager,
  state: TrainState,
  metrics: dict[str, float],
  meta: dict[str, Any],
) -> None:
  """Saves a state in the background.

  The metrics are those of validation, `METRIC` among them, or `NOT_VALIDATED`;
  `meta` is plain data, stored as JSON.
  """
  meta = meta | {"format": _FORMAT}
  arrays = {"model": state.model(), "train": _train_item(state)}
  sums = _checksums(meta=meta, metrics=metrics, **arrays)
  manager.save(
    int(state.step),
    args=ocp.args.Composite(
      meta=ocp.args.JsonSave(meta | {_CHECKSUMS: sums}),
      **{name: ocp.args.StandardSave(x) for name, x in arrays.items()},
    ),
    metrics=metrics,
  )


def _train_item(state: TrainState) -> dict[str, jax.Array]:
  """Leaves by their names on disk, since Orbax cannot store optax's nodes.

  Unlike in `by_path`, a name has no '/', which separates folders.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    (state.opt_state, state.memory)
  )
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
    The state, or None without a saved step.

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
      read = functools.partial(_read_state, stored, like, step)
      return _read(path, read)
    except DamagedError as error:
      with distributed.main_first(f"damaged step {step}"):
        if distributed.is_main():
          _quarantine(path, error)
      manager.reload()
  _check_some_left(directory)
  return None


def same_images(
  meta: Mapping[str, Any], fingerprint: str, former: str = ""
) -> bool:
  """Whether a checkpoint's `meta` has the fingerprint of the images now.

  `former` is the one that earlier versions gave them, see `Dataset`. Synthetic
  faces of format 1 are the same images: their config fixes them.
  """
  name = meta.get("config", {}).get("data", {}).get("name")
  if name == "synthetic_faces" and meta.get("format", 1) < _FORMAT:
    return True
  return meta.get("fingerprint", fingerprint) in (fingerprint, former)


def _check_same_run(
  before: dict[str, Any],
  now: dict[str, Any],
  directory: Path,
  accept_changes: bool,
) -> None:
  """Raises UserError if classes, images or initial model have changed."""
  now = json.loads(json.dumps(now))
  for field, words in _SAME.items():
    images = field == "fingerprint"
    if images and same_images(before, now[field], now.get("former", "")):
      continue
    # Earlier versions stored fewer fields.
    if before.get(field, now.get(field)) == now.get(field):
      continue
    what = f"{directory} {words}"
    if images and accept_changes:
      logger.warning("%s; resuming as requested.", what)
      continue
    shown = f": {before[field]}, now {now.get(field)}"
    shown = "" if field == "start" else shown
    raise UserError(
      f"{what}{shown}. Restore them to resume, or use another --workdir."
    )


def _read_state(
  meta: Mapping[str, Any], like: TrainState, number: int, step: Path
) -> TrainState:
  """Reads and verifies the items `model` and `train` of a step.

  Raises:
    UserError: if their shapes differ from those of `like`.
  """
  names = _train_item(like)
  items = {"model": like.model(), "train": names}
  for name, tree in items.items():
    stored = ocp.StandardCheckpointHandler().metadata(step / name).tree
    if differs := first_difference(stored, tree):
      raise UserError(
        f"{step} does not fit the config: its {name} has {differs[0]} of shape"
        f" {differs[1]}, expected {differs[2]}. Use another --workdir;"
        " --config.init_from can start it from this run's model."
      )
  items = {name: _restore(step / name, tree) for name, tree in items.items()}
  _verify(meta, **items)
  opt_state, memory = jax.tree.unflatten(
    jax.tree.structure((like.opt_state, like.memory)),
    [items["train"][name] for name in names],
  )
  return TrainState(
    step=jax.device_put(jax.numpy.int32(number), like.step.sharding),
    opt_state=opt_state,
    memory=memory,
    **items["model"],
  )


def _restore(item: Path, like: Any) -> Any:
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(item, like)


def load_model(directory: Path, keep: str) -> tuple[dict[str, Any], int]:
  """Loads the variables of a finished or running phase, without writing.

  Args:
    directory: as returned by `phase_dir`.
    keep: 'best' on validation, or 'latest'.

  Returns:
    Variables as host arrays, and the step.

  Raises:
    UserError: if the checkpoint is missing, damaged or cannot be read.
  """
  steps = _some_steps(directory)
  step = steps[-1]
  if keep == "best":
    scores = [_read(path, _read_json_items)[1][METRIC] for path in steps]
    # As Orbax does, of equal steps the last.
    _, _, step = max(zip(scores, range(len(steps)), steps, strict=True))
  return _read(step, _read_variables), int(step.name)


def _read_variables(step: Path) -> dict[str, Any]:
  meta, _ = _read_json_items(step)
  stored = ocp.StandardCheckpointHandler().metadata(step / "model").tree
  # Without host arrays Orbax requires the devices that saved the model.
  like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored)
  model = _restore(step / "model", like)
  _verify(meta, model=model)
  return dict(model)


def load_meta(directory: Path) -> dict[str, Any]:
  """Loads `meta` of a phase's newest checkpoint: config, class names, data.

  Raises:
    UserError: if the checkpoint is missing, damaged or cannot be read.
  """
  step = _some_steps(directory)[-1]
  meta, _ = _read(step, _read_json_items)
  match meta:
    case {"config": {"data": dict()}, "class_names": [*names]} if all(
      isinstance(name, str) for name in names
    ):
      return meta
  raise UserError(
    f"{step} is not a checkpoint of dbl_jax: its config or class names are"
    " missing. Give the workdir of a run."
  )


def load_start(
  init_from: str, phases: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Loads the model of another run, for a phase to start from.

  The first of the named phases that the run has is loaded.

  Returns:
    Variables, 'params' and 'batch_stats', of the checkpoint that the phase's
    config selects; and the class names.

  Raises:
    UserError: if the checkpoint is missing, damaged or cannot be read.
  """
  workdir = Path(init_from).expanduser()
  for name in phases:
    directory = phase_dir(workdir, name)
    if directory.is_dir():
      meta = load_meta(directory)
      settings = meta["config"].get(name)
      if not isinstance(settings, dict):
        raise UserError(
          f"The config stored in {directory} lacks the phase {name!r}."
          " Expected the checkpoints of a run; train it again."
        )
      variables, _ = load_model(directory, settings.get("keep", "latest"))
      return variables, tuple(meta["class_names"])
  raise UserError(
    f"config.init_from={init_from} does not hold a checkpoint. Expected the"
    f" workdir of a run, with {phase_dir(workdir, phases[0])} in it."
  )


def quarantine_damaged(directory: Path) -> None:
  """Renames a phase's steps with damaged JSON items, which Orbax cannot open.

  Raises:
    UserError: if all steps are damaged, or a step cannot be read now.
  """
  for path in saved_steps(directory):
    try:
      _read(path, _read_json_items)
    except DamagedError as error:
      _quarantine(path, error)
  _check_some_left(directory)


def saved_steps(directory: Path) -> list[Path]:
  """Returns folders of saved steps, in order, without those in quarantine."""
  # A save in progress has another name.
  steps = [p for p in _entries(directory) if _STEP.fullmatch(p.name)]
  return sorted(steps, key=lambda path: int(path.name))


def _entries(directory: Path) -> list[Path]:
  # Not `glob`, to which a folder that cannot be read is empty.
  try:
    return sorted(directory.resolve().iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []


def _some_steps(directory: Path) -> list[Path]:
  """`saved_steps`, at least one."""
  if steps := saved_steps(directory):
    return steps
  raise UserError(
    f"No checkpoint found in {directory}. Expected the workdir of a run that"
    " has saved at least once."
  )


def _quarantine(path: Path, error: DamagedError) -> None:
  """Renames a damaged step, so that the step can be saved again."""
  last = path == saved_steps(path.parent)[-1]
  name, count = f"{_DAMAGED}{path.name}", 1
  while (path.parent / name).exists():
    count += 1
    name = f"{_DAMAGED}{path.name}.{count}"
  path.rename(path.parent / name)
  logger.warning(
    "The checkpoint %s is damaged (%s). It is now %s; %s.",
    path,
    _first_line(error.__cause__ or error),
    name,
    "resuming from the one before"
    if last
    else "if it was the best on validation, the best of the others counts",
  )


def _check_some_left(directory: Path) -> None:
  """Raises UserError if all steps are in quarantine."""
  damaged = [p.name for p in _entries(directory) if p.name.startswith(_DAMAGED)]
  if damaged and not saved_steps(directory):
    raise UserError(
      f"None of the checkpoints in {directory} can be read: all are damaged."
      f" Restore them from a backup, move {', '.join(damaged)} away to start"
      " the phase over, or use another --workdir."
    )


def _read(step: Path, read: Callable[[Path], _T]) -> _T:
  """Calls a function that reads a step, and tells damage from other errors.

  An error counts as damage only if it occurs again after every file was read:
  Orbax and Python's `exists` report some errors of a disk as a missing file.

  Raises:
    DamagedError: if the files of the step are damaged.
    UserError: for other errors, possibly temporary: of disk, memory, device.
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
      raise DamagedError(
        f"The checkpoint {step} is damaged ({_first_line(error)}). Move that"
        " folder away and run the training command again: it resumes from the"
        " checkpoints that are left."
      ) from error
    raise UserError(
      f"{step} cannot be read now ({_first_line(error)}). It may be intact, so"
      " it was left unchanged. Remove the cause (permissions, memory, open"
      " files, the disk or the device) and run the same command again."
    ) from error


# Missing files, and what parsers raise for damaged ones; see `_is_damage`.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_DAMAGE = (*_MISSING, ValueError, LookupError, TypeError, RecursionError)
# Status codes of TensorStore for what a file contains. All others, such as
# UNKNOWN for most errors of a system call, may be temporary.
_STATUS = re.compile("([A-Z]+(?:_[A-Z]+)*): ")
_DAMAGE_STATUS = re.compile(
  "DATA_LOSS|FAILED_PRECONDITION|INVALID_ARGUMENT|NOT_FOUND|OUT_OF_RANGE"
)


def _is_damage(error: BaseException) -> bool:
  """Whether an error, with all its causes, comes from the content of files.

  Orbax raises a bare Exception for a truncated array, whose cause is
  TensorStore's ValueError with a status code in front.
  """
  chain = list(files.causes(error))
  others = (OSError, MemoryError, RuntimeError)
  if any(isinstance(x, others) and not isinstance(x, _DAMAGE) for x in chain):
    return False
  if codes := [found[1] for x in chain if (found := _STATUS.match(str(x)))]:
    return all(map(_DAMAGE_STATUS.fullmatch, codes))
  return isinstance(error, _DAMAGE)


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
  if isinstance(newer := meta.get("format"), int) and newer > _FORMAT:
    raise UserError(
      f"{step} was saved by a newer version of dbl_jax: it has the format"
      f" {newer}, and this version reads those up to {_FORMAT}. Update dbl_jax,"
      " or use another --workdir. It was left unchanged."
    )
  if not isinstance(metrics.get(METRIC), int | float):
    raise ValueError(f"its metrics have no {METRIC}")
  _verify(meta, metrics=metrics)
  return meta, metrics


def _read_json(path: Path) -> dict[str, Any]:
  found = json.loads(path.read_text())
  if not isinstance(found, dict):
    raise ValueError(f"{path.name} does not hold a JSON object")
  return found


def array_checksum(tree: Any) -> int:
  """CRC-32 over the bytes of a tree's leaves, in the order of their paths."""
  found = 0
  for _, leaf in sorted(by_path(tree).items()):
    array = np.ascontiguousarray(leaf).reshape(-1)
    found = zlib.crc32(array.view(np.uint8).data, found)
  return found


def _checksums(**items: Any) -> dict[str, int]:
  """CRC-32 of each item: of arrays, or of JSON whatever the order of keys."""
  return {
    name: zlib.crc32(json.dumps(item, sort_keys=True).encode())
    if name in ("meta", "metrics")
    else array_checksum(item)
    for name, item in items.items()
  }


def _verify(meta: Mapping[str, Any], **items: Any) -> None:
  """Raises ValueError if `meta` or an item differs from its stored checksum."""
  plain = dict(meta)
  stored = plain.pop(_CHECKSUMS, None)  # early versions stored none
  for name, found in _checksums(**items, meta=plain).items():
    if stored and stored[name] != found:
      raise ValueError(f"its {name} changed after it was saved")
