"""A phase made ready to run: model, optimizer, state and input."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dbl_jax.data import pipeline, sampling
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.evaluation.forward import jit_eval_step
from dbl_jax.losses import terms
from dbl_jax.models.model import Model, make_model
from dbl_jax.runtime import sharding, trees
from dbl_jax.training import inputs, optim, steps
from dbl_jax.training.state import TrainState

PHASES = ("pretrain", "classify")
# Stages of a model: those of the run it starts from (`init_from`) count as one.
MOST_STAGES = 1 + len(PHASES)
# Steps of a dispatch, unless the config says: their indices go to the device
# together.
_MOST_AT_ONCE = 1000


def phases(config: ConfigDict) -> list[str]:
  """The phases a config has, in the order they run."""
  return [name for name in PHASES if name in config]


def stage(config: ConfigDict, name: str) -> int:
  """How many stages a phase has before it; its random numbers are keyed by it.

  So the second phase of one run and the only phase of a run that starts from
  the first of another are the same, and so are first phases by either name.
  """
  return phases(config).index(name) + bool(config.init_from)


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
  parts: Mapping[str, Split]
  feed: pipeline.InputPipeline
  key: jax.Array
  total: int


class _Plan(NamedTuple):
  """What a phase computes; of the data it knows numbers alone.

  Attributes:
    model: encoder and head.
    state: before the first step.
    trained: tree of bool over the parameters.
    images: how the model reads images.
    read: how it reads what the phase trains on, images or features.
    step: one training step.
    sampler: what each step draws.
    total: number of steps.
    key: the phase's typed key.
  """

  model: Model
  state: TrainState
  trained: Any
  images: inputs.Inputs
  read: inputs.Inputs
  step: steps.TrainStep
  sampler: sampling.Sampler
  total: int
  key: jax.Array


def _make_plan(
  config: ConfigDict, name: str, dataset: Dataset, start: dict[str, Any] | None
) -> _Plan:
  """Checks a phase and says what it does, which may be traced or done."""
  phase, number = config[name], stage(config, name)
  num_classes, size = len(dataset.class_names), dataset.image_size
  train = dataset.splits["train"]
  seed = config.seed * MOST_STAGES + number
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
  _check_frozen(name, phase, trained["encoder"], start)
  if start is not None:
    variables = _with_inherited(variables, start, phase.inherit)
  model = model.with_frozen(_frozen_modules(trained["encoder"]))
  schedule = optim.make_schedule(phase.optimizer, total, phase.batch_size)
  optimizer = optim.make_optimizer(phase.optimizer, schedule, trained)
  memory = terms.start_memory(
    phase.losses,
    num_classes,
    lambda: steps.num_features(model, variables, size),
  )
  if config.skip_nonfinite:
    memory[steps.SKIPPED] = jnp.int32(0)
  images = inputs.of_images(phase, size, "frozen" if frozen else "trained")
  read = inputs.of_features(phase) if phase.cached_views else images
  counts = np.bincount(train.labels, minlength=num_classes)
  objective = steps.Objective(phase.losses, counts, max(total, 1))
  step = steps.make_train_step(
    model, read, objective, optimizer, schedule, trained
  )
  return _Plan(
    model=model,
    state=TrainState.start(variables, optimizer, memory),
    trained=trained,
    images=images,
    read=read,
    step=steps.skipping(step) if config.skip_nonfinite else step,
    sampler=sampler,
    total=total,
    key=key,
  )


def check_phases(
  config: ConfigDict,
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
  start: dict[str, Any] | None,
) -> dict[str, Any]:
  """Sees that every phase can begin, before hours go into the first.

  Nothing is computed: phases are traced, each on what the one before leaves,
  with a step of those that do not begin at once.

  Args:
    config: resolved config.
    dataset: with a 'train' part.
    mesh: the devices.
    start: variables of the model to start from or their shapes, or None.

  Returns:
    Shapes of the model that the last phase leaves.

  Raises:
    UserError: naming the phase, if its batch, parameters, loss or predictor
      do not fit the data, the devices, or what it starts from.
  """
  for name in phases(config):
    try:
      sharding.check_batch_size(config[name].batch_size, mesh)
      start = _traced(config, name, dataset, mesh, start)
      predictors.check(config[name].predictor, start["params"]["head"])
    except UserError as error:
      named = f"config.{name}" in str(error)
      raise UserError(f"{'' if named else f'{name}: '}{error}") from error
  assert start is not None  # a resolved config has a phase
  return start


def _traced(
  config: ConfigDict,
  name: str,
  dataset: Dataset,
  mesh: jax.sharding.Mesh,
  start: dict[str, Any] | None,
) -> dict[str, Any]:
  """Shapes of the model that a phase leaves, from shapes of its start."""
  images, labels = dataset.splits["train"]
  views, size = config[name].cached_views, config[name].batch_size

  def first_step(start: dict[str, Any] | None) -> dict[str, Any]:
    plan = _make_plan(config, name, dataset, start)
    if start is None:
      return plan.state.model()
    shape, dtype = images.shape[1:], images.dtype
    if views:
      width = steps.num_features(
        plan.model, plan.state.model(), dataset.image_size
      )
      shape, dtype = (views, width), np.dtype(np.float32)
    pipeline.check_form(
      len(labels) * math.prod(shape) * dtype.itemsize, mesh, config.data.input
    )
    batch = {
      "row": jnp.zeros((size, *shape), dtype),
      "id": jnp.arange(size),
      "label": jnp.zeros(size, jnp.int32),
    }
    return plan.step(plan.state, None, batch, plan.key)[0].model()

  return jax.eval_shape(first_step, start)


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
  phase = config[name]
  sharding.check_batch_size(phase.batch_size, mesh)
  plan = _make_plan(config, name, dataset, start)
  state = sharding.put(plan.state, sharding.replicated(mesh))
  predict_step = jit_eval_step(
    steps.make_eval_step(plan.model, plan.images), mesh
  )
  parts, eval_step = dataset.splits, predict_step
  if phase.cached_views:
    parts = inputs.extract(
      plan.model, state.model(), parts, phase, plan.key, mesh, name
    )
    eval_step = jit_eval_step(steps.make_eval_step(plan.model, plan.read), mesh)
  most = _steps_per_dispatch(config, name, mesh)
  rows, labels = parts["train"]
  return Trainer(
    phase=phase,
    name=name,
    state=state,
    trained=plan.trained,
    steps=jax.jit(
      steps.repeat(plan.step, most),
      donate_argnums=0,
      out_shardings=sharding.replicated(mesh),
    ),
    most=most,
    eval_step=eval_step,
    predict_step=predict_step,
    parts=parts,
    feed=pipeline.make_pipeline(
      rows, labels, plan.sampler, mesh, config.data.input
    ),
    key=plan.key,
    total=plan.total,
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
  several = min(config.log_every, _MOST_AT_ONCE)
  return config.steps_per_dispatch or (1 if one else several)


def _check_frozen(
  name: str, phase: ConfigDict, trained: Any, start: dict[str, Any] | None
) -> None:
  """Raises UserError where a phase freezes what it has not, or caches more.

  Args:
    name: of the phase.
    phase: its config.
    trained: tree of bool over the encoder's parameters.
    start: variables to start from, or None.
  """
  kept = trees.by_path({"encoder": trained})
  frozen = [path for path, changes in kept.items() if not changes]
  if frozen and start is None:
    raise UserError(
      f"config.{name}.trained={tuple(phase.trained)} freezes the encoder, but"
      " there is none to start from. Set --config.init_from to the workdir of"
      " a finished run, for example of configs/simclr.py."
    )
  fresh = [path for path in frozen if not optim.matches(path, phase.inherit)]
  if fresh:
    raise UserError(
      f"config.{name} neither inherits nor trains {fresh[0]}, so it would stay"
      f" random: inherit={tuple(phase.inherit)},"
      f" trained={tuple(phase.trained)}. Add 'encoder' to either."
    )
  if phase.cached_views and any(kept.values()):
    raise UserError(
      f"config.{name}.cached_views={phase.cached_views} keeps the encoder's"
      f" features, but trained={tuple(phase.trained)} changes the encoder. Set"
      " cached_views=0, or train the head alone."
    )


def _with_inherited(
  variables: dict[str, Any], start: dict[str, Any], patterns: Sequence[str]
) -> dict[str, Any]:
  """Fresh variables, those whose path matches replaced, shapes checked."""
  every = [path for tree in (variables, start) for path in _paths(tree)]
  for pattern in patterns:
    if not any(optim.matches(path, [pattern]) for path in every):
      groups = sorted({"/".join(path.split("/")[:2]) for path in every})
      raise UserError(
        f"inherit={tuple(patterns)}: {pattern!r} matches no parameter."
        f" Parameters begin with {', '.join(groups)}."
      )
  replaced = {}
  for kind, tree in variables.items():
    fresh = trees.by_path(tree)
    inherited, expected = (
      {path: x for path, x in leaves.items() if optim.matches(path, patterns)}
      for leaves in (trees.by_path(start[kind]), fresh)
    )
    if differs := trees.first_difference(inherited, expected):
      raise UserError(
        "The model to start from has another architecture: its"
        f" {kind}/{differs.path} has shape {differs.found}, but the config asks"
        f" for {differs.expected}. Set config.model and the head as that run"
        " had them."
      )
    replaced[kind] = jax.tree.unflatten(
      jax.tree.structure(tree), list((fresh | inherited).values())
    )
  return replaced


def _paths(variables: dict[str, Any]) -> list[str]:
  return [path for tree in variables.values() for path in trees.by_path(tree)]


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
