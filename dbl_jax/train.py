"""The one training loop, and what stands before and after it."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from dbl_jax import (
  checkpoint,
  checksums,
  disk,
  distributed,
  locks,
  optim,
  predictors,
  results,
  run_folder,
  sharding,
  steps,
  stopping,
  trees,
)
from dbl_jax import config as configs
from dbl_jax.data import pipeline, sampling, sources
from dbl_jax.data.prepared import Dataset
from dbl_jax.errors import UserError
from dbl_jax.evaluate import evaluate, make_forward
from dbl_jax.predictors import Known
from dbl_jax.progress import Journal, Progress, say
from dbl_jax.provenance import provenance
from dbl_jax.state import TrainState
from dbl_jax.trainer import (
  Trainer,
  check_phases,
  evaluation_steps,
  make_trainer,
)

log = logging.getLogger(__name__)

# Seconds. To save a quick phase after every epoch takes longer than to train
# it; a better one is saved always.
_SAVE_EVERY = 30.0

# For each dispatch the number of steps, and their figures f32[L].
_Pending = list[tuple[int, dict[str, jax.Array]]]


def run_phase(
  trainer: Trainer,
  manager: ocp.CheckpointManager,
  journal: Journal,
  meta: dict[str, Any],
  log_every: int,
  stop: stopping.Stop,
  accept_changes: bool = False,
) -> None:
  """Trains a phase to its end, from where an earlier start stopped.

  Asked to stop, it finishes the step in flight, saves and returns.

  Args:
    trainer: of the phase.
    manager: of the phase's checkpoints.
    journal: where figures go.
    meta: kept with each checkpoint; its class_names name the labels.
    log_every: steps between figures.
    stop: whether to stop.
    accept_changes: as of `train_and_evaluate`.

  Raises:
    UserError: if loss or gradients are no longer finite.
  """
  restored = checkpoint.restore_latest(
    manager, trainer.state, meta, accept_changes
  )
  state = trainer.state if restored is None else restored
  start, total = int(state.step), trainer.total
  per_epoch = sampling.steps_per_epoch(trainer.feed.sampler)
  progress = Progress(trainer.name, total, trainer.phase.batch_size)
  journal.rewind(trainer.name, start)
  if start:
    say(f"{trainer.name}: going on from step {start} of {total}")
  marks = evaluation_steps(trainer)
  take = pipeline.reader(trainer.feed, start, total, trainer.most)
  unread: list[tuple[int, _Pending]] = []
  best, saved = checkpoint.best_so_far(manager), time.monotonic()
  saved_step = start
  # Of a phase without steps, what it starts from is what it leaves.
  looks = _looks(start, total, log_every, marks) if total else [0]
  for look in looks if restored is None or total else []:
    state, pending = _advance(trainer, state, take, look - start, stop)
    start += sum(count for count, _ in pending)
    unread += [(start, pending)] if pending else []
    leaving = distributed.any_asks(stop.requested)
    validating = start == look and look in marks
    # One behind, so that the devices work while the host looks.
    while len(unread) > (not validating and not leaving):
      done, pending = unread.pop(0)
      figures = _finite(pending, done, trainer, manager)
      if done in looks:  # or else stopped between two
        journal.write(trainer.name, done, done / per_epoch, figures)
        _show(progress, figures, done, total, per_epoch, last=done in marks)
    if validating:
      result = validate(trainer, state, meta["class_names"])
      journal.write(trainer.name, look, look / per_epoch, result)
      _say_result(trainer.name, look / per_epoch, result)
      scores, now = _selection(result), time.monotonic()
      # Of equals Orbax takes the last, so that one is saved whatever the time.
      better = scores[checkpoint.METRIC] >= best
      late = look == total or now - saved > _SAVE_EVERY
      if distributed.agreed(better or late or leaving):
        checkpoint.save(manager, state, scores, meta)
        best, saved = max(best, scores[checkpoint.METRIC]), now
    elif leaving and start > saved_step:
      checkpoint.save(manager, state, checkpoint.NOT_VALIDATED, meta)
    if leaving:
      break
  manager.wait_until_finished()


def _show(
  progress: Progress,
  figures: dict[str, float],
  done: int,
  total: int,
  per_epoch: float,
  last: bool,
) -> None:
  progress.show(
    done,
    f"epoch {done / per_epoch:.1f}/{total / per_epoch:.1f}",
    f"step {done}/{total}",
    f"loss {figures['loss']:.4f}",
    last=last,
  )


def _advance(
  trainer: Trainer,
  state: TrainState,
  take: pipeline.Take,
  ahead: int,
  stop: stopping.Stop,
) -> tuple[TrainState, _Pending]:
  """Dispatches the steps ahead, fewer if asked to stop.

  It waits for all but the last two dispatches: so many keep a device busy, and
  more would have to be waited for in order to stop.
  """
  pending: _Pending = []
  for done in range(0, ahead, trainer.most):
    # Several hosts stop where they can agree on it, see `run_phase`.
    if stop.requested and distributed.is_alone():
      break
    if len(pending) > 1:
      jax.block_until_ready(pending[-2])
    count = min(trainer.most, ahead - done)
    state, figures = trainer.steps(
      state, trainer.feed.resident, take(count), trainer.key, count
    )
    pending.append((count, figures))
  return state, pending


def _looks(
  start: int, total: int, log_every: int, marks: set[int]
) -> list[int]:
  """The steps after `start` whose figures are read."""
  return sorted({*range(0, total, log_every), *marks} - {*range(start + 1)})


def _finite(
  pending: _Pending,
  done: int,
  trainer: Trainer,
  manager: ocp.CheckpointManager,
) -> dict[str, float]:
  """The latest figures, once all since the last look are seen to be finite.

  Where steps that are not are skipped, that is all there is to see.
  """
  counts, figures = zip(*jax.device_get(pending), strict=True)
  rows = {
    name: np.concatenate(
      [some[name][:count] for some, count in zip(figures, counts, strict=True)]
    )
    for name in figures[0]
  }
  if steps.SKIPPED not in rows:
    _check_finite(rows, done, trainer, manager)
  return {name: float(row[-1]) for name, row in rows.items()}


def _check_finite(
  rows: dict[str, np.ndarray],
  done: int,
  trainer: Trainer,
  manager: ocp.CheckpointManager,
) -> None:
  """Raises UserError about the first step that is not finite."""
  phase = trainer.name
  bad = {name: ~np.isfinite(rows[name]) for name in ("loss", "grad_norm")}
  for place in np.flatnonzero(bad["loss"] | bad["grad_norm"])[:1]:
    name = next(name for name in bad if bad[name][place])
    manager.wait_until_finished()
    last = manager.latest_step()
    where = f"{manager.directory}, step {last}" if last else "none yet"
    step = done - len(rows[name]) + 1 + int(place)
    images = sampling.batch_indices(trainer.feed.sampler, step - 1)
    raise UserError(
      f"{phase}: {name} is {rows[name][place]} at step {step}. Last good"
      f" checkpoint: {where}. The batch had the training images"
      f" {', '.join(map(str, np.unique(images)))}. Look at these, try a lower"
      f" --config.{phase}.optimizer.learning_rate or a clip_norm, or leave such"
      " steps out with --config.skip_nonfinite."
    )


def _say_skipped(phase: str, rows: list[dict[str, Any]]) -> None:
  """Says how many steps of a phase changed nothing."""
  skipped = results.skipped_steps(rows).get(phase, 0)
  if skipped:
    say(
      f"{phase}: {skipped} steps skipped, whose loss or gradient was not finite"
    )


def validate(
  trainer: Trainer, state: TrainState, class_names: tuple[str, ...]
) -> dict[str, float]:
  """Overall and mean-class accuracy on the validation part.

  Args:
    trainer: of the phase.
    state: to look at.
    class_names: in the order of the labels.

  Returns:
    Name -> fraction; names begin with 'knn_' for the probe, else 'val_'.
  """
  known = Known(
    make_forward(trainer.eval_step, state.model(), trainer.feed.mesh),
    state.model(),
    trainer.parts,
    len(class_names),
  )
  fitted = predictors.fit(trainer.phase.predictor, known)
  result, _ = evaluate(
    fitted, known.validation, known.validation_labels, class_names
  )
  prefix = "knn" if trainer.phase.predictor == "knn" else "val"
  return {
    f"{prefix}_{name}": result[name]
    for name in ("overall_accuracy", "mean_class_accuracy")
  }


def _selection(result: dict[str, float]) -> dict[str, float]:
  return {name.split("_", 1)[1]: value for name, value in result.items()}


def _say_result(phase: str, epoch: float, result: dict[str, float]) -> None:
  shown = ", ".join(
    f"{name.replace('_', ' ')} {value:.1%}" for name, value in result.items()
  )
  say(f"{phase}  epoch {epoch:.1f}  {shown}")


def train_and_evaluate(
  config: ConfigDict, workdir: Path, *, accept_changes: bool = False
) -> dict[str, Any]:
  """Runs all phases of a config, then the test part once, and reports.

  Run again with the same config and workdir, it goes on where it stopped.
  Ctrl-C and SIGTERM end it in order.

  Args:
    config: as `config.resolve` returns it.
    workdir: folder of the run, made if need be.
    accept_changes: go on with a run of another config or other images, which
      is refused otherwise.

  Returns:
    What `metrics.json` holds.

  Raises:
    UserError: for anything the user can mend.
    stopping.Stopped: if a signal ended it.
  """
  workdir = workdir.expanduser().resolve()
  with (
    disk.plain_errors(workdir),
    contextlib.ExitStack() as stack,
    stopping.listening() as stop,
  ):
    with distributed.main_first("workdir"):
      if distributed.is_main():
        run_folder.make(workdir)
        stack.enter_context(locks.only_run(workdir))
      run_folder.remember(config, workdir, accept_changes)
    return _run(config, workdir, stop, accept_changes)


def _run(
  config: ConfigDict, workdir: Path, stop: stopping.Stop, accept_changes: bool
) -> dict[str, Any]:
  """`train_and_evaluate`, in a workdir that is this run's."""
  made_by = provenance()
  variables: dict[str, Any] | None = None
  known_classes: tuple[str, ...] = ()
  if config.init_from:
    variables, known_classes = checkpoint.load_start(
      config.init_from, configs.PHASES
    )
  with distributed.main_first("data"):
    dataset = sources.load(config.data)
  if variables is not None:
    _check_classes(config, dataset, variables, known_classes)
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    check_phases(config, dataset, mesh, variables)
  say(_headline(config, dataset, mesh))
  with Journal(workdir, config.tensorboard) as journal, jax.set_mesh(mesh):
    for name in configs.phases(config):
      trainer = make_trainer(config, name, dataset, mesh, variables)
      _describe(trainer, workdir / f"parameters_{name}.txt")
      directory = checkpoint.phase_dir(workdir, name)
      with distributed.main_first(f"checkpoints of {name}"):
        checkpoint.set_aside_damaged(directory)
      with checkpoint.open_manager(directory) as manager:
        meta = {
          "config": config.to_dict(),
          "class_names": dataset.class_names,
          "fingerprint": dataset.fingerprint,
          "phase": name,
          # Whose features are cached: those of one model go with one head.
          "start": None
          if variables is None or not trainer.phase.cached_views
          else checksums.of_arrays(variables),
        }
        with stop.in_order():
          run_phase(
            trainer,
            manager,
            journal,
            meta,
            config.log_every,
            stop,
            accept_changes,
          )
      _say_skipped(name, journal.rows())
      keep = trainer.phase.keep
      variables, step = checkpoint.load_model(directory, keep)
      lost = results.better_lost(journal.rows(), name, step)
      if keep == "best" and lost is not None:
        log.warning(
          "%s: the best checkpoint, of step %d, was damaged and is set aside;"
          " step %d is taken. Start over in another --workdir for the result"
          " of a run that lost nothing.",
          name,
          lost,
          step,
        )
    assert variables is not None  # a config has a phase
    run = results.Run(config, trainer.name, step, journal.rows(), made_by)
    known = results.known(trainer.predict_step, variables, dataset, mesh)
    return results.write(run, dataset, "test", known, workdir)


def _check_classes(
  config: ConfigDict,
  dataset: Dataset,
  variables: dict[str, Any],
  known: tuple[str, ...],
) -> None:
  """A classifier taken over must mean the same classes, in the same order."""
  inherit = config[configs.phases(config)[0]].inherit
  head = trees.by_path({"head": variables["params"]["head"]})
  takes_head = any(optim.matches(path, inherit) for path in head)
  if takes_head and known != tuple(dataset.class_names):
    raise UserError(
      f"The run in config.init_from={config.init_from} knows the classes"
      f" {', '.join(known)}, in this order; the data has"
      f" {', '.join(dataset.class_names)}. Inherit its encoder alone"
      " (inherit=('encoder',)), or use data with its classes."
    )


def _describe(trainer: Trainer, path: Path) -> None:
  """Writes tables of the parameters a phase trains and of those it does not."""
  try:
    from clu import parameter_overview
  except ImportError:  # a machine with what training needs and no more
    return
  leaves = jax.tree.leaves_with_path(trainer.state.params)
  trained = jax.tree.leaves(trainer.trained)
  groups: dict[str, dict[str, Any]] = {"Trained": {}, "Frozen": {}}
  for (path_to_leaf, leaf), changes in zip(leaves, trained, strict=True):
    name = jax.tree_util.keystr(path_to_leaf, simple=True, separator="/")
    groups["Trained" if changes else "Frozen"][name] = leaf
  tables = [
    f"{title}\n"
    + parameter_overview.get_parameter_overview(found, include_stats=False)
    for title, found in groups.items()
    if found
  ]
  if distributed.is_main():
    path.write_text("\n\n".join(tables) + "\n")


def _headline(
  config: ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh
) -> str:
  counts = {name: len(part.labels) for name, part in dataset.parts.items()}
  sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
  device = mesh.devices.flat[0]
  return (
    f"{' + '.join(configs.phases(config))} on {dataset.name}: {sizes} images,"
    f" {len(dataset.class_names)} classes, {dataset.image_size} px;"
    f" {mesh.size} x {device.device_kind}"
  )
