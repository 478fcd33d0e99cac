"""A phase made ready to run: model, optimizer, state and input."""

import math
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import optim, sharding, steps
from dbl_jax.data import pipeline, sampling
from dbl_jax.data.prepared import Dataset
from dbl_jax.errors import UserError
from dbl_jax.models.model import make_model
from dbl_jax.state import TrainState


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
  phase, number = config[name], configs.PHASES.index(name)
  num_classes, size = len(dataset.class_names), dataset.image_size
  sharding.check_batch_size(phase.batch_size, mesh)
  train = dataset.parts["train"]
  seed = config.seed * len(configs.PHASES) + number
  sampler = sampling.make_sampler(
    train.labels, num_classes, phase.q, phase.batch_size, seed
  )
  total = sampling.num_steps(sampler, phase.epochs)
  init_key, step_key = jax.random.split(
    jax.random.fold_in(jax.random.key(config.seed), number)
  )
  model = make_model(config.model, phase.head, num_classes)
  variables = steps.init_variables(model, init_key, size)
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
  train_step = steps.make_train_step(
    model, phase, optimizer, schedule, trained, size
  )
  everywhere = sharding.replicated(mesh)
  return Trainer(
    phase=phase,
    name=name,
    state=jax.device_put(TrainState.start(variables, optimizer), everywhere),
    step=jax.jit(train_step, donate_argnums=0),
    eval_step=jax.jit(steps.make_eval_step(model, size)),
    feed=pipeline.make_feed(train, sampler, mesh, config.data.input),
    key=jax.device_put(step_key, everywhere),
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
