"""The one training loop: a phase, from where it stopped to its end."""

import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dbl_jax.data import pipeline, sampling
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.evaluation.forward import evaluate, make_forward
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.runtime import distributed, signals
from dbl_jax.runtime.logs import MetricWriter, Progress, say
from dbl_jax.training import checkpoint, steps
from dbl_jax.training.phase import Trainer, evaluation_steps
from dbl_jax.training.state import TrainState

# Seconds. To save a quick phase after every epoch takes longer than to train
# it; a better one is saved always.
_SAVE_EVERY = 30.0

# For each dispatch the number of steps, and their figures f32[L].
_Pending = list[tuple[int, dict[str, jax.Array]]]


def run_phase(
  trainer: Trainer,
  manager: ocp.CheckpointManager,
  journal: MetricWriter,
  meta: dict[str, Any],
  log_every: int,
  stop: signals.Stop,
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
    accept_changes: as of `train.train_and_evaluate`.

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
  stop: signals.Stop,
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
  known = FitContext(
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
