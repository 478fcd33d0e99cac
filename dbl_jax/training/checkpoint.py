"""Checkpoints: the only module that imports Orbax.

Each step holds three items: `model` (parameters and batch-norm statistics,
all that phase 2 and scripts need), `train` (the optimizer's state, and what
loss terms remember) and `meta` (config, class names, data, checksums of it
all: a flipped bit in an array is read by Orbax without a word). Kept are the
two latest steps and the best on validation mean-class accuracy.
"""

import contextlib
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dbl_jax.errors import UserError
from dbl_jax.runtime import distributed, trees
from dbl_jax.training.state import TrainState

logger = logging.getLogger(__name__)
# By which the best step is chosen.
METRIC = "mean_class_accuracy"
# Of a step saved between validations: never the best of several.
NOT_VALIDATED = {METRIC: -1.0}
# Version of what `meta` holds. Before 2, which first stored it, synthetic faces
# had a fingerprint of their source code.
_FORMAT = 2
# Status codes of TensorStore for errors that can pass. Its exceptions have no
# other mark.
_PASSING = re.compile(
  "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
  "|CANCELLED|UNAUTHENTICATED|Too many open files|Stale file handle"
)
# Fields of `meta` that must not change when a run resumes, for the message.
_SAME = {
  "class_names": "other classes",
  "fingerprint": "other images",
  "start": "another model to start from",
}


def phase_dir(workdir: Path, phase: str) -> Path:
  """Where the checkpoints of a phase are."""
  return workdir / "checkpoints" / phase


def open_manager(
  directory: Path, *, reading: bool = False
) -> ocp.CheckpointManager:
  """Opens, and makes if need be, the checkpoints of a phase.

  Orbax with `best_fn` alone would delete the newest checkpoint, from which a
  run resumes; the preservation policy keeps latest and best.

  Args:
    directory: as returned by `phase_dir`.
    reading: nothing is written or removed. A run may be saving there, and
      Orbax by itself takes its unfinished save for a dead one.

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
    cleanup_tmp_directories=not reading,
    create=not reading,
  )
  return ocp.CheckpointManager(directory.resolve(), options=options)


def _metric(metrics: dict[str, float]) -> float:
  return metrics[METRIC]


def best_so_far(manager: ocp.CheckpointManager) -> float:
  """The best saved step's score; -inf where nothing is saved."""
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
    manager: of the phase.
    state: of the training.
    metrics: on validation, with `step_folders.METRIC`; or `NOT_VALIDATED`.
    meta: plain data, kept as JSON.
  """
  meta = meta | {"format": _FORMAT}
  model, training = state.model(), _leaves(_of_training(state))
  items = {"model": model, "train": training, "meta": meta, "metrics": metrics}
  manager.save(
    int(state.step),
    args=ocp.args.Composite(
      model=ocp.args.StandardSave(model),
      train=ocp.args.StandardSave(training),
      meta=ocp.args.JsonSave(meta | {KEY: of_items(items)}),
    ),
    metrics=metrics,
  )


def _of_training(state: TrainState) -> tuple[Any, dict[str, jax.Array]]:
  """What training needs besides the model."""
  return state.opt_state, state.memory


def _leaves(tree: Any) -> dict[str, jax.Array]:
  """A tree's leaves by the names they have on disk.

  An optimizer's nodes are not all storable. Unlike `trees.by_path`, a name has
  no '/', which is for folders.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def restore_latest(
  manager: ocp.CheckpointManager,
  state: TrainState,
  meta: dict[str, Any],
  accept_changes: bool = False,
) -> TrainState | None:
  """The newest readable state, or None where nothing was saved yet.

  Args:
    manager: of the phase.
    state: a fresh state, whose shapes and placement the result takes on.
    meta: what is kept with checkpoints now.
    accept_changes: go on also with other images, or another config.

  Returns:
    The state.

  Raises:
    UserError: if there are checkpoints and none can be read, or if config,
      data or the model it started from are no longer those it was trained
      with.
  """
  like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
  args = ocp.args.Composite(
    model=ocp.args.StandardRestore(like.model()),
    train=ocp.args.StandardRestore(_leaves(_of_training(like))),
    meta=ocp.args.JsonRestore(),
  )
  directory = Path(manager.directory)
  while (step := manager.latest_step()) is not None:
    if accept_changes:
      _check_same_shapes(directory / str(step), like)
    try:
      items = manager.restore(step, args=args)
      metrics = manager.metrics(step)
      check(items.meta, model=items.model, train=items.train, metrics=metrics)
      found = _with_step(state, step, items)
    except Exception as error:
      _raise_unless_damaged(directory / str(step), error)
      with distributed.main_first(f"damaged step {step}"):
        if distributed.is_main():
          quarantine(directory / str(step), error)
      check_some_left(directory)
      manager.reload()
    else:
      _check_same_run(items.meta, meta, directory, accept_changes)
      return found
  return None


def _check_same_run(
  before: dict[str, Any],
  now: dict[str, Any],
  directory: Path,
  accept_changes: bool,
) -> None:
  """Raises UserError if data, config or start changed under a run."""
  before, now = (json.loads(json.dumps(meta)) for meta in (before, now))
  for field, words in _SAME.items():
    # Earlier versions kept fewer fields.
    if before.get(field, now.get(field)) == now.get(field):
      continue
    name = before["config"].get("data", {}).get("name")
    old = before.get("format", 1) < _FORMAT and name == "synthetic_faces"
    if field == "fingerprint" and old:  # the config has number and seed
      continue
    if accept_changes and field == "fingerprint":
      logger.warning(
        "%s was trained on %s; resuming as asked.", directory, words
      )
      continue
    shown = "" if field == "start" else f": {before[field]}, now {now[field]}"
    raise UserError(
      f"{directory} was trained on {words}{shown}. Bring back what it was to go"
      " on, or use another --workdir."
    )


def _check_same_shapes(step: Path, like: TrainState) -> None:
  """Raises UserError if a checkpoint has arrays of other shapes.

  Without it, arrays that a changed config does not fit look damaged. What
  cannot be read is left to who reads it.
  """
  wanted = {"model": like.model(), "train": _leaves(_of_training(like))}
  for name, tree in wanted.items():
    try:
      stored = ocp.StandardCheckpointHandler().metadata(step / name).tree
      differs = trees.first_difference(stored, tree)
    except Exception:  # `restore_latest` reports it
      return
    if differs:
      raise UserError(
        f"{step} cannot go on with the changed config: its {name} has"
        f" {differs.path} of shape {differs.found}, now {differs.expected}. Use"
        " another --workdir; with --config.init_from it may start from this"
        " run's model."
      )


def _with_step(state: TrainState, step: int, items: Any) -> TrainState:
  like = _of_training(state)
  opt_state, memory = jax.tree.unflatten(
    jax.tree.structure(like), [items.train[name] for name in _leaves(like)]
  )
  return TrainState(
    step=jax.device_put(jax.numpy.int32(step), state.step.sharding),
    params=items.model["params"],
    batch_stats=items.model["batch_stats"],
    opt_state=opt_state,
    memory=memory,
  )


def load_model(directory: Path, keep: str) -> tuple[dict[str, Any], int]:
  """Variables of a finished or running phase.

  Args:
    directory: as returned by `phase_dir`.
    keep: 'best' on validation, or 'latest'.

  Returns:
    Variables as host arrays, and the step.

  Raises:
    UserError: if there is no checkpoint, or it is damaged.
  """
  with _reading(directory) as manager:
    for step in manager.all_steps() if keep == "best" else ():
      meta, metrics = _stored_meta(manager, step), manager.metrics(step)
      check(meta, metrics=metrics)
    step = manager.best_step() if keep == "best" else manager.latest_step()
    # As host arrays: Orbax by itself asks for the devices that saved them.
    stored = ocp.StandardCheckpointHandler().metadata(
      Path(manager.directory) / str(step) / "model"
    )
    like = jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), stored.tree
    )
    args = ocp.args.Composite(
      model=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
    )
    items = manager.restore(step, args=args)
    check(items.meta, model=items.model)
    return dict(items.model), step


def load_meta(directory: Path) -> dict[str, Any]:
  """What was kept with the newest checkpoint: config, class names, data.

  Args:
    directory: as returned by `phase_dir`.

  Returns:
    Plain data.

  Raises:
    UserError: if there is no checkpoint, or it is damaged.
  """
  with _reading(directory) as manager:
    meta = _stored_meta(manager, manager.latest_step())
    check(meta)
    _check_form(meta)
    return meta


def _stored_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  args = ocp.args.Composite(meta=ocp.args.JsonRestore())
  return manager.restore(step, args=args).meta


def _check_form(meta: dict[str, Any]) -> None:
  """Raises ValueError unless it is what `save` is given; it may be anyone's."""
  config, names = meta.get("config"), meta.get("class_names")
  if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
    raise ValueError("it holds no config")
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ValueError("it names no classes")


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[ocp.CheckpointManager]:
  """A manager with at least one step; damage becomes a message."""
  if not directory.is_dir():
    raise UserError(
      f"No checkpoint found: {directory} is not a folder. Expected the"
      " workdir of a run that has saved at least once."
    )
  try:
    with open_manager(directory, reading=True) as manager:
      if manager.latest_step() is None:
        raise UserError(f"No checkpoint found in {directory}: it is empty.")
      yield manager
  except UserError:
    raise
  except Exception as error:
    _raise_unless_damaged(directory, error)
    raise UserError(
      f"A checkpoint in {directory} cannot be read ({first_line(error)}). It is"
      " damaged. Run the training command again: it puts the damaged step in"
      " quarantine and resumes from the step before it."
    ) from error


def load_start(
  init_from: str, phases: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The model another run trained, for a phase to start from.

  Args:
    init_from: workdir of that run.
    phases: names of phases in their order; of those the run has, the first
      is taken, which is where an encoder is trained.

  Returns:
    Variables, 'params' and 'batch_stats', of that run's choice of checkpoint;
    and its class names.

  Raises:
    UserError: if there is no checkpoint.
  """
  workdir = Path(init_from).expanduser()
  for name in phases:
    directory = phase_dir(workdir, name)
    if directory.is_dir():
      meta = load_meta(directory)
      settings = meta["config"].get(name)
      if not isinstance(settings, dict):
        raise UserError(
          f"The config kept in {directory} has no phase {name!r}. Expected the"
          " checkpoints of a run; train it again."
        )
      variables, _ = load_model(directory, settings.get("keep", "latest"))
      return variables, tuple(meta["class_names"])
  raise UserError(
    f"config.init_from={init_from} holds no checkpoint: expected the workdir"
    f" of a run, with {phase_dir(workdir, phases[0])} in it."
  )


_DAMAGED = "damaged."


def quarantine_damaged(directory: Path) -> None:
  """Renames steps whose metadata cannot be read, so that Orbax can open.

  Args:
    directory: of a phase, as returned by `checkpoint.phase_dir`.

  Raises:
    UserError: if all steps are damaged, or a step cannot be read now.
  """
  for path in sorted(_steps(directory), key=lambda path: int(path.name)):
    try:
      json.loads((path / "_CHECKPOINT_METADATA").read_text())
      metrics = json.loads((path / "metrics" / "metrics").read_text())
      float(metrics[METRIC])
      stored = json.loads((path / "meta" / "metadata").read_text())
      check(stored, metrics=metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      _raise_unless_damaged(path, error)
      quarantine(path, error)
  check_some_left(directory)


def _raise_unless_damaged(path: Path, error: Exception) -> None:
  """Raises UserError if reading failed for a reason other than damage.

  Damage is what a checksum, a parser or a missing file proves. A passing error,
  such as a lack of memory, permissions or file handles, leaves the checkpoint
  untouched, so that the same command works once its cause is gone.

  Args:
    path: a checkpoint, or a folder of checkpoints.
    error: raised while it was read.
  """
  cause = _passing_cause(error) or _unreadable_file(path)
  if cause is not None:
    raise UserError(
      f"{path} cannot be read now ({first_line(cause)}). This is not damage and"
      " nothing was changed. Remove the cause (permissions, memory, open files,"
      " the disk or the device), then run the same command again."
    ) from error


def _passing_cause(error: BaseException | None) -> BaseException | None:
  """The first exception of a chain that is no proof of damage.

  Files that cannot be parsed raise ValueError, KeyError and the like, or a bare
  Exception in Orbax.
  """
  while error is not None:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    passing = isinstance(error, OSError | MemoryError | RuntimeError)
    if (passing and not missing) or _PASSING.search(str(error)):
      return error
    error = error.__cause__ or error.__context__
  return None


def _unreadable_file(path: Path) -> OSError | None:
  """The error of the first file or folder that exists and cannot be read."""
  try:
    for one in (path, *path.rglob("*")):
      if one.is_dir():
        next(one.iterdir(), None)
      elif one.is_file():
        with one.open("rb") as file:
          while file.read(1 << 24):
            pass
  except FileNotFoundError:
    return None
  except OSError as error:
    return error
  return None


def has_steps(directory: Path) -> bool:
  """Whether a phase has saved anything that is not known to be damaged."""
  return bool(_steps(directory))


def _steps(directory: Path) -> list[Path]:
  return [path for path in _entries(directory) if path.name.isdecimal()]


def _entries(directory: Path) -> list[Path]:
  return list(directory.iterdir()) if directory.is_dir() else []


def quarantine(path: Path, error: BaseException) -> None:
  """Renames a damaged step, so that the step can be saved again."""
  last = all(int(path.name) >= int(x.name) for x in _steps(path.parent))
  kept, number = path.with_name(f"{_DAMAGED}{path.name}"), 1
  while kept.exists():
    number += 1
    kept = path.with_name(f"{_DAMAGED}{path.name}.{number}")
  path.rename(kept)
  logger.warning(
    "The checkpoint %s is damaged (%s). It is now %s; %s.",
    path,
    first_line(error),
    kept.name,
    "resuming from the one before"
    if last
    else "if it was the best on validation, the best of the others counts",
  )


def check_some_left(directory: Path) -> None:
  """Raises UserError if all steps are in quarantine."""
  damaged = [p.name for p in _entries(directory) if p.name.startswith(_DAMAGED)]
  if damaged and not _steps(directory):
    raise UserError(
      f"None of the checkpoints in {directory} can be read"
      f" ({', '.join(sorted(damaged))}): all are damaged. Restore them from a"
      " backup, or start over in another --workdir."
    )


def first_line(error: BaseException) -> str:
  """What an error says, in one line of at most 200 characters."""
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]


# Where `meta` keeps them.
KEY = "checksums"
_PLAIN = ("meta", "metrics")


def of_arrays(tree: Any) -> int:
  """CRC-32 over the bytes of a tree's leaves, in the order of their paths."""
  found = 0
  for _, leaf in sorted(trees.by_path(tree).items()):
    array = np.ascontiguousarray(leaf).reshape(-1)
    found = zlib.crc32(array.view(np.uint8).data, found)
  return found


def of_text(plain: Mapping[str, Any]) -> int:
  """CRC-32 of plain data as JSON, whatever the order of its keys."""
  return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def of_items(items: Mapping[str, Any]) -> dict[str, int]:
  """Name -> checksum of a checkpoint's items, of arrays or of plain data."""
  return {
    name: of_text(item) if name in _PLAIN else of_arrays(item)
    for name, item in items.items()
  }


def check(stored: Mapping[str, Any], **items: Any) -> None:
  """Raises ValueError if something is not as it was saved.

  Args:
    stored: the item `meta`; without checksums where an earlier version saved.
    **items: any of `model`, `train` and `metrics`.
  """
  sums = stored.get(KEY, {})
  if not sums:
    return
  items["meta"] = {k: v for k, v in stored.items() if k != KEY}
  for name, found in of_items(items).items():
    if sums[name] != found:
      raise ValueError(f"its {name} changed after it was saved")
