"""A phase made ready to run: model, optimizer, state and input."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dbl_jax import config as configs
from dbl_jax import features, inputs, optim, sharding, steps
from dbl_jax.data import pipeline, sampling
from dbl_jax.data.prepared import Dataset, Part
from dbl_jax.errors import UserError
from dbl_jax.evaluate import compiled
from dbl_jax.losses import terms
from dbl_jax.models.model import make_model
from dbl_jax.state import TrainState


class Trainer(NamedTuple):
  """Everything the loop of one phase reads; made by `make_trainer`.

  Attributes:
    phase: the phase's config.
    name: the phase's name.
    state: fresh state, before the first step.
    trained: tree of bool over the parameters.
    steps: several training steps, compiled; see `steps.repeat`.
    most: the greatest number of steps at once.
    eval_step: forward pass over rows of `parts`, compiled.
    predict_step: forward pass over images, compiled.
    parts: what the phase reads: images, or features in their place.
    feed: the input.
    key: the phase's typed key.
    total: number of steps.
  """

  phase: ConfigDict
  name: str
  state: TrainState
  trained: Any
  steps: steps.TrainStep
  most: int
  eval_step: Any
  predict_step: Any
  parts: Mapping[str, Part]
  feed: pipeline.Feed
  key: jax.Array
  total: int


def make_trainer(
  config: ConfigDict,
  name: str,
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
  start: dict[str, Any] | None,
) -> Trainer:
  """Builds model, optimizer, state and input of a phase.

  Args:
    config: resolved config.
    name: which phase.
    dataset: with a 'train' part.
    mesh: the devices.
    start: variables of the model to start from, or None; what the phase
      does not inherit is fresh.

  Returns:
    The trainer.

  Raises:
    UserError: if batch, data, devices or start do not fit together.
  """
  phase, number = config[name], configs.stage(config, name)
  num_classes, size = len(dataset.class_names), dataset.image_size
  sharding.check_batch_size(phase.batch_size, mesh)
  train = dataset.parts["train"]
  seed = config.seed * configs.MOST_STAGES + number
  sampler = sampling.make_sampler(
    train.labels, num_classes, phase.q, phase.batch_size, seed
  )
  total = sampling.num_steps(sampler, phase.epochs)
  init_key, key = jax.random.split(
    jax.random.fold_in(jax.random.key(config.seed), number)
  )
  model = make_model(config.model, phase.head, num_classes)
  variables = steps.init_variables(model, init_key, size)
  trained = optim.trained_mask(variables["params"], phase.trained)
  frozen = not any(jax.tree.leaves(trained["encoder"]))
  _check_frozen(name, phase, frozen, start)
  if start is not None:
    variables = _with_inherited(variables, start, phase.inherit)
  model = model.with_frozen(_frozen_modules(trained["encoder"]))
  schedule = optim.make_schedule(phase.optimizer, total, phase.batch_size)
  optimizer = optim.make_optimizer(phase.optimizer, schedule, trained)
  counts = np.bincount(train.labels, minlength=num_classes)
  memory = terms.start_memory(
    phase.losses,
    num_classes,
    lambda: steps.num_features(model, variables, size),
  )
  if config.skip_nonfinite:
    memory[steps.SKIPPED] = jnp.int32(0)
  state = sharding.put(
    TrainState.start(variables, optimizer, memory), sharding.replicated(mesh)
  )

  images = inputs.of_images(phase, size, "frozen" if frozen else "trained")
  predict_step = compiled(steps.make_eval_step(model, images), mesh)
  parts, read, eval_step = dataset.parts, images, predict_step
  if phase.cached_views:
    parts = features.extract(
      model, state.model(), parts, phase, key, mesh, name
    )
    read = inputs.of_features(phase)
    eval_step = compiled(steps.make_eval_step(model, read), mesh)
  objective = steps.Objective(phase.losses, counts, max(total, 1))
  train_step = steps.make_train_step(
    model, read, objective, optimizer, schedule, trained
  )
  if config.skip_nonfinite:
    train_step = steps.skipping(train_step)
  most = _steps_per_dispatch(config, name, mesh)
  return Trainer(
    phase=phase,
    name=name,
    state=state,
    trained=trained,
    steps=jax.jit(
      steps.repeat(train_step, most),
      donate_argnums=0,
      out_shardings=sharding.replicated(mesh),
    ),
    most=most,
    eval_step=eval_step,
    predict_step=predict_step,
    parts=parts,
    feed=pipeline.make_feed(
      parts["train"].images, train.labels, sampler, mesh, config.data.input
    ),
    key=key,
    total=total,
  )


def _steps_per_dispatch(
  config: ConfigDict, name: str, mesh: jax.sharding.Mesh
) -> int:
  """As the config says, or what suits the device.

  A step over images takes a CPU so long that dispatching it costs nothing,
  and Ctrl-C waits for the end of what is dispatched.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  one = on_cpu and not config[name].cached_views
  return config.steps_per_dispatch or (1 if one else config.log_every)


def _check_frozen(
  name: str, phase: ConfigDict, frozen: bool, start: dict[str, Any] | None
) -> None:
  """Raises UserError where a phase freezes what it has not, or caches more."""
  if frozen and start is None:
    raise UserError(
      f"config.{name}.trained={tuple(phase.trained)} freezes the encoder, but"
      " there is none to start from. Set --config.init_from to the workdir of"
      " a finished run, for example of configs/simclr.py."
    )
  if phase.cached_views and not frozen:
    raise UserError(
      f"config.{name}.cached_views={phase.cached_views} keeps the encoder's"
      f" features, but trained={tuple(phase.trained)} changes the encoder. Set"
      " cached_views=0, or train the head alone."
    )


def _with_inherited(
  variables: dict[str, Any], start: dict[str, Any], patterns: Sequence[str]
) -> dict[str, Any]:
  """Fresh variables, those whose path matches replaced, shapes checked."""
  replaced = {}
  for kind, tree in variables.items():
    fresh, found = optim.by_path(tree), optim.by_path(start[kind])
    for path in sorted(fresh | found):
      if not optim.matches(path, patterns):
        continue
      shapes = [
        np.shape(leaves[path]) if path in leaves else None
        for leaves in (found, fresh)
      ]
      if shapes[0] != shapes[1]:
        raise UserError(
          "The model to start from has another architecture: its"
          f" {kind}/{path} has shape {shapes[0]}, but the config asks for"
          f" {shapes[1]}. Set config.model and the head as that run had them."
        )
      fresh[path] = found[path]
    replaced[kind] = jax.tree.unflatten(
      jax.tree.structure(tree), list(fresh.values())
    )
  return replaced


def _frozen_modules(trained: Any) -> tuple[str, ...]:
  """The encoder's modules of which nothing is trained, where some are."""
  frozen = {
    name for name, tree in trained.items() if not any(jax.tree.leaves(tree))
  }
  return tuple(sorted(frozen)) if len(frozen) < len(trained) else ()


def evaluation_steps(trainer: Trainer) -> set[int]:
  """The steps after which a phase validates and saves; the last is one."""
  every = trainer.phase.evaluate_every
  per_epoch = sampling.steps_per_epoch(trainer.feed.sampler)
  rounds = math.ceil(trainer.phase.epochs / every)
  marks = (math.ceil(i * every * per_epoch) for i in range(1, rounds + 1))
  return {min(mark, trainer.total) for mark in marks} | {trainer.total}
