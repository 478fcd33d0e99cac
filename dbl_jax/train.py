"""The one training loop, and what stands before and after it."""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from dbl_jax import checkpoint, optim, results, sharding, steps
from dbl_jax import config as configs
from dbl_jax.data import pipeline, sampling, sources
from dbl_jax.data.prepared import Dataset
from dbl_jax.errors import UserError
from dbl_jax.evaluate import evaluate, make_forward
from dbl_jax.models.model import make_model
from dbl_jax.progress import Journal, Progress
from dbl_jax.state import TrainState

log = logging.getLogger(__name__)

# Fields that do not change what a run computes.
_FREE_FIELDS = ("data.cache_dir", "data.input", "log_every", "tensorboard")


class Trainer(NamedTuple):
  """Everything the loop of one phase reads; made by `make_trainer`.

  Attributes:
    phase: the phase's config.
    name: the phase's name.
    state: fresh state, before the first step.
    step: compiled training step.
    eval_step: compiled forward pass.
    feed: the input.
    key: the phase's typed key.
    total: number of steps.
  """

  phase: ConfigDict
  name: str
  state: TrainState
  step: steps.TrainStep
  eval_step: Any
  feed: pipeline.Feed
  key: jax.Array
  total: int


def make_trainer(
  config: ConfigDict,
  name: str,
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
  encoder: dict[str, Any] | None,
) -> Trainer:
  """Builds model, optimizer, state and input of a phase.

  Args:
    config: resolved config.
    name: which phase.
    dataset: with a 'train' part.
    mesh: the devices.
    encoder: variables of the encoder to start from, or None for fresh ones.

  Returns:
    The trainer.

  Raises:
    UserError: if batch, data, devices or encoder do not fit together.
  """
  phase = config[name]
  number = configs.PHASES.index(name)
  sharding.check_batch_size(phase.batch_size, mesh)
  sampler = sampling.make_sampler(
    dataset.parts["train"].labels,
    len(dataset.class_names),
    phase.q,
    phase.batch_size,
    seed=config.seed * len(configs.PHASES) + number,
  )
  total = sampling.num_steps(sampler, phase.epochs)
  model = make_model(config.model, phase.head, len(dataset.class_names))
  key = jax.random.fold_in(jax.random.key(config.seed), number)
  init_key, step_key = jax.random.split(key)
  variables = steps.init_variables(model, init_key, dataset.image_size)
  trained = optim.trained_mask(variables["params"], phase.trained)
  if encoder is not None:
    variables = _with_encoder(variables, encoder)
  elif not any(jax.tree.leaves(trained["encoder"])):
    raise UserError(
      f"config.{name}.trained={tuple(phase.trained)} freezes the encoder, but"
      " there is none to start from. Set --config.init_from to the workdir of"
      " a finished run, for example of configs/simclr.py."
    )
  schedule = optim.make_schedule(phase.optimizer, total, phase.batch_size)
  optimizer = optim.make_optimizer(phase.optimizer, schedule, trained)
  state = TrainState(
    step=jax.numpy.int32(0),
    params=variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=optimizer.init(variables["params"]),
  )
  train_step = steps.make_train_step(
    model, phase, optimizer, schedule, trained, dataset.image_size
  )
  return Trainer(
    phase=phase,
    name=name,
    state=jax.device_put(state, sharding.replicated(mesh)),
    step=jax.jit(train_step, donate_argnums=0),
    eval_step=jax.jit(steps.make_eval_step(model, dataset.image_size)),
    feed=pipeline.make_feed(
      dataset.parts["train"], sampler, mesh, config.data.input
    ),
    key=jax.device_put(step_key, sharding.replicated(mesh)),
    total=total,
  )


def _with_encoder(
  variables: dict[str, Any], encoder: dict[str, Any]
) -> dict[str, Any]:
  """Fresh variables with their encoder replaced, shapes checked."""
  replaced = {}
  for kind, tree in variables.items():
    fresh = _shapes(tree["encoder"])
    found = _shapes(encoder[kind])
    for path in sorted(fresh | found):
      if fresh.get(path) != found.get(path):
        raise UserError(
          "The encoder to start from has another architecture: its"
          f" {kind}{path} has shape {found.get(path)}, but config.model asks"
          f" for {fresh.get(path)}. Set config.model as that run had it."
        )
    replaced[kind] = tree | {"encoder": encoder[kind]}
  return replaced


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def evaluation_steps(trainer: Trainer) -> set[int]:
  """The steps after which a phase validates and saves; the last is one."""
  every = trainer.phase.evaluate_every
  per_epoch = sampling.steps_per_epoch(trainer.feed.sampler)
  rounds = math.ceil(trainer.phase.epochs / every)
  marks = (math.ceil(i * every * per_epoch) for i in range(1, rounds + 1))
  return {min(mark, trainer.total) for mark in marks} | {trainer.total}


def run_phase(
  trainer: Trainer,
  manager: ocp.CheckpointManager,
  journal: Journal,
  dataset: Dataset,
  meta: dict[str, Any],
  log_every: int,
) -> None:
  """Trains a phase to its end, from where an earlier start stopped.

  Args:
    trainer: of the phase.
    manager: of the phase's checkpoints.
    journal: where figures go.
    dataset: with parts 'train' and 'validation'.
    meta: kept with each checkpoint.
    log_every: steps between figures.

  Raises:
    UserError: if loss or gradients are no longer finite.
  """
  state = checkpoint.restore_latest(manager, trainer.state) or trainer.state
  start, total = int(state.step), trainer.total
  per_epoch = sampling.steps_per_epoch(trainer.feed.sampler)
  progress = Progress(
    trainer.name, trainer.phase.epochs, total, trainer.phase.batch_size
  )
  journal.rewind(trainer.name, start)
  if start:
    print(f"{trainer.name}: going on from step {start} of {total}", flush=True)
  marks = evaluation_steps(trainer)
  pending: list[dict[str, jax.Array]] = []
  batches = pipeline.batches(trainer.feed, start, total)
  for done, batch in enumerate(batches, start=start + 1):
    state, figures = trainer.step(
      state, trainer.feed.resident, batch, trainer.key
    )
    pending.append(figures)
    if done % log_every and done not in marks:
      continue
    figures = _finite(pending, done, trainer.name, manager)
    pending.clear()
    journal.write(trainer.name, done, done / per_epoch, figures)
    progress.show(done, figures, last=done in marks)
    if done in marks:
      result = validate(trainer, state, dataset)
      journal.write(trainer.name, done, done / per_epoch, result)
      _say(trainer.name, done / per_epoch, result)
      checkpoint.save(manager, state, _selection(result), meta)
  manager.wait_until_finished()


def _finite(
  pending: Iterable[dict[str, jax.Array]],
  done: int,
  phase: str,
  manager: ocp.CheckpointManager,
) -> dict[str, float]:
  """The latest figures, once all since the last look are seen to be finite."""
  rows = jax.device_get(list(pending))
  for step, row in enumerate(rows, start=done - len(rows) + 1):
    for name in ("loss", "grad_norm"):
      if not np.isfinite(row[name]):
        manager.wait_until_finished()
        last = manager.latest_step()
        where = f"{manager.directory}, step {last}" if last else "none yet"
        raise UserError(
          f"{phase}: {name} is {row[name]} at step {step}. Last good"
          f" checkpoint: {where}. Try a lower"
          f" --config.{phase}.optimizer.learning_rate or a clip_norm."
        )
  return {name: float(value) for name, value in rows[-1].items()}


def validate(
  trainer: Trainer, state: TrainState, dataset: Dataset
) -> dict[str, float]:
  """Overall and mean-class accuracy on the validation part.

  Args:
    trainer: of the phase.
    state: to look at.
    dataset: with parts 'train' and 'validation'.

  Returns:
    Name -> fraction; names begin with 'knn_' for the probe, else 'val_'.
  """
  forward = make_forward(trainer.eval_step, state.model(), trainer.feed.mesh)
  result = evaluate(
    trainer.phase.predictor,
    forward,
    dataset.parts["train"],
    dataset.parts["validation"],
    dataset.class_names,
  )
  prefix = {"head": "val", "knn": "knn"}[trainer.phase.predictor]
  return {
    f"{prefix}_{name}": result[name]
    for name in ("overall_accuracy", "mean_class_accuracy")
  }


def _selection(result: dict[str, float]) -> dict[str, float]:
  return {name.split("_", 1)[1]: value for name, value in result.items()}


def _say(phase: str, epoch: float, result: dict[str, float]) -> None:
  shown = ", ".join(
    f"{name.replace('_', ' ')} {value:.1%}" for name, value in result.items()
  )
  print(f"{phase}  epoch {epoch:.1f}  {shown}", flush=True)


def train_and_evaluate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Runs all phases of a config, then the test part once, and reports.

  Run again with the same config and workdir, it goes on where it stopped.

  Args:
    config: as `config.resolve` returns it.
    workdir: folder of the run, made if need be.

  Returns:
    What `metrics.json` holds.

  Raises:
    UserError: for anything the user can mend.
  """
  workdir = workdir.expanduser().resolve()
  _remember(config, workdir)
  encoder = None
  if config.init_from:
    encoder = checkpoint.load_encoder(config.init_from, configs.PHASES)
  dataset = sources.load(config.data)
  mesh = sharding.make_mesh()
  print(_headline(config, dataset, mesh), flush=True)
  with Journal(workdir, config.tensorboard) as journal:
    for name in configs.phases(config):
      trainer = make_trainer(config, name, dataset, mesh, encoder)
      directory = checkpoint.phase_dir(workdir, name)
      checkpoint.set_aside_damaged(directory)
      with checkpoint.open_manager(directory) as manager:
        meta = {
          "config": config.to_dict(),
          "class_names": dataset.class_names,
          "fingerprint": dataset.fingerprint,
          "phase": name,
        }
        run_phase(trainer, manager, journal, dataset, meta, config.log_every)
      variables, step = checkpoint.load_model(directory, trainer.phase.keep)
      encoder = {kind: tree["encoder"] for kind, tree in variables.items()}
    forward = make_forward(trainer.eval_step, variables, mesh)
    run = results.Run(config, trainer.name, step, journal.rows())
    return results.write(run, dataset, "test", forward, workdir)


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


def _remember(config: ConfigDict, workdir: Path) -> None:
  """A workdir is one config; another one is refused."""
  path = workdir / "config.json"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
      changed = configs.differences(
        json.loads(path.read_text()), config.to_dict()
      )
      serious = [c for c in changed if not c.startswith(_FREE_FIELDS)]
      if serious:
        raise UserError(
          f"{workdir} holds a run of another config, which differs in"
          f" {'; '.join(serious)}. Use another --workdir, or set these fields"
          " back to go on with that run."
        )
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written: {error.strerror}. Choose a"
      " folder you may write to."
    ) from error
  except json.JSONDecodeError as error:
    raise UserError(
      f"{path} is damaged ({error}). Delete it if the workdir is this"
      " config's, or use another --workdir."
    ) from error
