"""The one training loop: runs a phase from its last checkpoint to its end."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dbl_jax.data import pipeline, sampling
from dbl_jax.data.datasets import Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.evaluation.predictions import evaluate, jit_eval_step, make_forward
from dbl_jax.evaluation.predictors import FitContext
from dbl_jax.runtime import distributed, signals
from dbl_jax.runtime.logs import MetricWriter, Progress, print_line
from dbl_jax.training import checkpoint, steps
from dbl_jax.training.phase import Phase
from dbl_jax.training.steps import TrainState

# Seconds. Saving a quick phase after every epoch takes longer than training
# it; a checkpoint with a better score is saved at once.
_SAVE_EVERY = 30.0
# Steps per dispatch unless the config sets it. Their indices are sent together.
_MAX_STEPS_PER_DISPATCH = 1000

# Dispatched steps whose metrics have not been read: for each dispatch the
# number of steps and the metrics f32[L].
_Pending = list[tuple[int, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class CompiledPhase:
  """A phase on the devices. Made by `compile_phase`.

  Attributes:
    phase: the phase.
    state: its state, on every device; donated by `train_steps`.
    train_steps: several training steps as one program, see `steps.repeat`.
    max_steps_per_dispatch: the largest number of steps per call.
    eval_step: forward pass over rows of `splits`.
    splits: what the phase reads: images, or features in place of images.
    pipeline: the training input.
  """

  phase: Phase
  state: TrainState
  train_steps: steps.TrainStep
  max_steps_per_dispatch: int
  eval_step: Any
  splits: Mapping[str, Split]
  pipeline: pipeline.InputPipeline


def compile_phase(
  phase: Phase, splits: Mapping[str, Split], mesh: Mesh, config: ConfigDict
) -> CompiledPhase:
  """Places state and data on the devices and wraps the steps in `jax.jit`.

  Features of a frozen encoder are extracted here if the phase caches them. The
  splits, 'train' and 'validation' among them, hold images.
  """
  state = distributed.put(phase.state, distributed.replicated(mesh))
  cached, split = phase.config.cached_views, phase.split
  if cached:
    splits, split = extract(phase, splits, state.model(), mesh), "train"
  feed = pipeline.make_pipeline(
    *splits[split], phase.sampler, mesh, config.data.input
  )
  max_steps = config.steps_per_dispatch
  if not max_steps:
    # On a CPU a step over images takes so long that dispatch is negligible, and
    # Ctrl-C waits for the dispatched steps.
    one = mesh.devices.flat[0].platform == "cpu" and not cached
    max_steps = 1 if one else min(config.log_every, _MAX_STEPS_PER_DISPATCH)
  max_steps = min(max_steps, pipeline.max_steps(feed))
  return CompiledPhase(
    phase=phase,
    state=state,
    train_steps=jax.jit(
      steps.repeat(phase.train_step, max_steps),
      donate_argnums=0,
      out_shardings=distributed.replicated(mesh),
    ),
    max_steps_per_dispatch=max_steps,
    eval_step=steps.make_eval_step(phase.model, phase.inputs, mesh),
    splits=splits,
    pipeline=feed,
  )


def extract(
  phase: Phase, splits: Mapping[str, Split], variables: Any, mesh: Mesh
) -> dict[str, Split]:
  """Extracts the features of a frozen encoder, once before a phase.

  For each training image there are K = `cached_views` views: the image without
  augmentation and K - 1 random views, which depend only on the phase's key and
  the image's index. Validation images are not augmented.

  Returns:
    'train' with features f32[n, K, F] and 'validation' with f32[n, 1, F].
  """
  train, validation = splits["train"], splits["validation"]
  options = dict(phase.config) | {"views": 1, "mixup": 0.0}
  images = steps.image_inputs(options, train.images.shape[1], "frozen")

  def encode(
    given: tuple[Any, jax.Array | None], rows: jax.Array, ids: jax.Array
  ) -> tuple[jax.Array]:
    variables, key = given
    if key is None:
      views = images.plain(rows)
    else:
      views = images.draw(key, ids, rows, None)[0][0]
    return (phase.model.apply(variables, views, train=False)[0],)

  encode_step = jit_eval_step(encode, mesh)
  numbers = range(1, phase.config.cached_views)
  keys = [jax.random.fold_in(phase.key, i) for i in numbers]
  passes = [(key, train.images) for key in (None, *keys)]
  passes.append((None, validation.images))
  total, before = sum(len(rows) for _, rows in passes), 0
  progress = Progress(f"{phase.name}: features", total)
  found = []
  for key, rows in passes:

    def show(count: int, before: int = before) -> None:
      done = before + count
      progress.show(done, f"{done}/{total} views", last=done == total)

    ids = np.arange(len(rows), dtype=np.int32)
    forward = make_forward(encode_step, (variables, key), mesh, show)
    found.append(forward(rows, ids)[0])
    before += len(rows)
  *features, held_out = found
  return {
    "train": Split(np.stack(features, axis=1), train.labels),
    "validation": Split(held_out[:, None], validation.labels),
  }


def run_phase(
  compiled: CompiledPhase,
  manager: ocp.CheckpointManager,
  writer: MetricWriter,
  meta: dict[str, Any],
  log_every: int,
  stop: signals.Stop,
  accept_changes: bool = False,
) -> None:
  """Trains a phase to its end, starting from its latest checkpoint.

  When a stop is requested, the steps in flight are finished and saved.

  The writer receives a row of metrics every `log_every` steps. `meta` is stored
  with each checkpoint; `meta['class_names']` names the labels.

  Raises:
    UserError: if loss or gradients are not finite.
  """
  phase = compiled.phase
  restored = checkpoint.restore_latest(
    manager, compiled.state, meta, accept_changes
  )
  state = compiled.state if restored is None else restored
  step = resumed_from = int(state.step)
  writer.rewind(phase.name, step)
  log = _Log(phase, writer, manager)
  if step:
    print_line(f"{phase.name}: resuming from step {step} of {phase.num_steps}")
  next_batches = pipeline.batch_reader(
    compiled.pipeline, step, phase.num_steps, compiled.max_steps_per_dispatch
  )
  best, saved = checkpoint.best_so_far(manager), time.monotonic()
  # Step 0 is validated if the phase has no steps and was not validated yet.
  done = -1 if restored is None else step
  logged = {*range(log_every, phase.num_steps, log_every), *phase.eval_steps}
  targets = sorted(target for target in logged if target > done)
  if targets:
    print_line(f"{phase.name}: compiling, which can take minutes")
  for target in targets:
    state, pending = _dispatch(
      compiled, state, next_batches, target - step, stop
    )
    step += sum(count for count, _ in pending)
    log.add(step, pending)
    stopping = distributed.any_process(stop.requested)
    validating = step == target and target in phase.eval_steps
    # The latest metrics are not read yet, so that the devices keep working.
    log.flush(keep=0 if validating or stopping else 1, targets=targets)
    if validating:
      scores = validate(compiled, state, meta["class_names"])
      log.write_scores(step, scores)
      now = time.monotonic()
      # Of two equal checkpoints Orbax prefers the later one: save it, too.
      better = scores[checkpoint.METRIC] >= best
      due = step == phase.num_steps or now - saved > _SAVE_EVERY
      if distributed.any_process(better or due or stopping):
        checkpoint.save(manager, state, scores, meta)
        best, saved = max(best, scores[checkpoint.METRIC]), now
    elif stopping and step > resumed_from:
      checkpoint.save(manager, state, checkpoint.NOT_VALIDATED, meta)
    if stopping:
      break
  manager.wait_until_finished()


def _dispatch(
  compiled: CompiledPhase,
  state: TrainState,
  next_batches: pipeline.NextBatches,
  num_steps: int,
  stop: signals.Stop,
) -> tuple[TrainState, _Pending]:
  """Dispatches a number of steps, fewer if a stop is requested.

  It waits for all but the last two dispatches: two keep a device busy, and a
  stop would have to wait for more.
  """
  pending: _Pending = []
  for done in range(0, num_steps, compiled.max_steps_per_dispatch):
    # Several hosts stop only where they can agree on it, see `run_phase`.
    if stop.requested and distributed.is_alone():
      break
    if len(pending) > 1:
      jax.block_until_ready(pending[-2])
    count = min(compiled.max_steps_per_dispatch, num_steps - done)
    state, metrics = compiled.train_steps(
      state,
      compiled.pipeline.resident,
      next_batches(count),
      compiled.phase.key,
      count,
    )
    pending.append((count, metrics))
  return state, pending


class _Log:
  """Metrics of dispatched steps, read one dispatch behind the devices."""

  def __init__(
    self, phase: Phase, writer: MetricWriter, manager: ocp.CheckpointManager
  ):
    self._phase, self._writer, self._manager = phase, writer, manager
    self._unread: list[tuple[int, _Pending]] = []
    self._progress = Progress(
      phase.name, phase.num_steps, phase.config.batch_size
    )

  def add(self, step: int, pending: _Pending) -> None:
    """Adds metrics of the steps up to `step`."""
    if pending:
      self._unread.append((step, pending))

  def flush(self, keep: int, targets: list[int]) -> None:
    """Reads and writes metrics, except those of the latest `keep` targets."""
    phase = self._phase
    while len(self._unread) > keep:
      step, pending = self._unread.pop(0)
      metrics = self._last_finite(pending, step)
      if step not in targets:  # a stop can end the steps between two targets
        continue
      self._write(step, metrics)
      epoch, epochs = (
        count / phase.steps_per_epoch for count in (step, phase.num_steps)
      )
      self._progress.show(
        step,
        f"epoch {epoch:.1f}/{epochs:.1f}",
        f"step {step}/{phase.num_steps}",
        f"loss {metrics['loss']:.4f}",
        last=step in phase.eval_steps,
      )

  def write_scores(self, step: int, scores: dict[str, float]) -> None:
    """Writes validation scores; their names begin with 'knn_' or 'val_'."""
    prefix = "knn" if self._phase.config.predictor == "knn" else "val"
    self._write(step, {f"{prefix}_{k}": value for k, value in scores.items()})
    shown = ", ".join(
      f"{prefix} {name.replace('_', ' ')} {value:.1%}"
      for name, value in scores.items()
    )
    epoch = step / self._phase.steps_per_epoch
    print_line(f"{self._phase.name}  epoch {epoch:.1f}  {shown}")

  def _write(self, step: int, metrics: dict[str, float]) -> None:
    epoch = step / self._phase.steps_per_epoch
    self._writer.write(self._phase.name, step, epoch, metrics)

  def _last_finite(self, pending: _Pending, step: int) -> dict[str, float]:
    """Metrics of the last step, after a check that all steps are finite."""
    parts = [
      {name: row[:count] for name, row in metrics.items()}
      for count, metrics in jax.device_get(pending)
    ]
    rows = jax.tree.map(lambda *some: np.concatenate(some), *parts)
    if steps.SKIPPED not in rows:
      self._check_finite(rows, step)
    return {name: float(row[-1]) for name, row in rows.items()}

  def _check_finite(self, rows: dict[str, np.ndarray], done: int) -> None:
    """Raises UserError for the first step whose loss or gradient is not finite.

    The rows are metrics of the latest steps, up to step `done`.
    """
    bad = {name: ~np.isfinite(rows[name]) for name in ("loss", "grad_norm")}
    for place in np.flatnonzero(bad["loss"] | bad["grad_norm"])[:1]:
      phase, manager = self._phase, self._manager
      name = next(name for name in bad if bad[name][place])
      manager.wait_until_finished()
      last = manager.latest_step()
      where = f"{manager.directory}, step {last}" if last else "none yet"
      step = done - len(rows[name]) + 1 + int(place)
      images = np.unique(sampling.batch_indices(phase.sampler, step - 1))
      names = [phase.image_names[i] if phase.image_names else i for i in images]
      raise UserError(
        f"{phase.name}: {name} is {rows[name][place]} at step {step}. Last good"
        f" checkpoint: {where}. The batch had the training images"
        f" {', '.join(map(str, names))}. Check these images, try a lower"
        f" --config.{phase.name}.optimizer.learning_rate or a clip_norm, or"
        " skip such steps with --config.skip_nonfinite."
      )


def validate(
  compiled: CompiledPhase, state: TrainState, class_names: tuple[str, ...]
) -> dict[str, float]:
  """Returns overall and mean-class accuracy on the validation split, 0 to 1."""
  context = FitContext(
    make_forward(compiled.eval_step, state.model(), compiled.pipeline.mesh),
    state.model(),
    compiled.splits,
    len(class_names),
  )
  result, _ = evaluate(
    predictors.fit(compiled.phase.config.predictor, context),
    context.validation,
    context.validation_labels,
    class_names,
  )
  return {k: result[k] for k in ("overall_accuracy", checkpoint.METRIC)}
