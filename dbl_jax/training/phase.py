"""A phase of a run: its model, data order, loss and optimizer.

A run is a sequence of phases. Each may start from the model of the phase
before it. A `Phase` knows arrays and pure functions only; `training.loop`
compiles it and feeds it.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dbl_jax.data import pipeline, sampling
from dbl_jax.data.datasets import Dataset
from dbl_jax.errors import UserError
from dbl_jax.evaluation import predictors
from dbl_jax.losses import terms
from dbl_jax.models.model import Model, make_model
from dbl_jax.runtime import distributed
from dbl_jax.runtime import options as declared
from dbl_jax.training import optim, steps
from dbl_jax.training.steps import TrainState, by_path, first_difference

logger = logging.getLogger(__name__)
# In the order they run; a config has one or more of them.
PHASES = ("pretrain", "finetune", "classify")


def phases(config: ConfigDict) -> list[str]:
  """Names of the phases a config has, in the order they run."""
  return [name for name in PHASES if name in config]


def _phase_index(config: ConfigDict, name: str) -> int:
  """Number of phases before a phase, from which its random streams derive.

  A run that starts from another run (`init_from`) counts that run as one
  phase. Therefore the second phase of a run and the only phase of a run that
  starts from the first phase of another draw the same random numbers.
  """
  return phases(config).index(name) + bool(config.init_from)


def split_of(name: str, options: ConfigDict) -> str:
  """The split that a phase trains on."""
  return f"unlabelled_{name}" if options.get("unlabelled") else "train"


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase, ready to be traced or compiled. Made by `make_phase`.

  Attributes:
    name: one of `PHASES`.
    split: the split it trains on.
    config: the phase's section of the config.
    model: encoder and head.
    state: state before the first step.
    trained: tree of bool over the parameters.
    images: preprocessing of images.
    inputs: preprocessing of training rows: images, or cached features.
    train_step: one training step, see `steps.make_train_step`.
    sampler: which images each step draws.
    num_steps: number of training steps; 0 if only the predictor is new.
    key: typed key of the phase.
    image_names: names of the training images for messages, if they have some.
  """

  name: str
  split: str
  config: ConfigDict
  model: Model
  state: TrainState
  trained: Any
  images: steps.Inputs
  inputs: steps.Inputs
  train_step: steps.TrainStep
  sampler: sampling.Sampler
  num_steps: int
  key: jax.Array
  image_names: Sequence[str] = ()

  @property
  def steps_per_epoch(self) -> float:
    """Number of steps per epoch, possibly not whole."""
    return sampling.steps_per_epoch(self.sampler)

  @functools.cached_property
  def eval_steps(self) -> set[int]:
    """Steps after which the phase is validated; the last step is one."""
    every = self.config.evaluate_every
    rounds = math.ceil(self.config.epochs / every)
    ends = (
      math.ceil(i * every * self.steps_per_epoch) for i in range(1, rounds + 1)
    )
    return {min(end, self.num_steps) for end in ends} | {self.num_steps}


def make_phase(
  config: ConfigDict, name: str, dataset: Dataset, start: dict[str, Any] | None
) -> Phase:
  """Builds a phase from the config and the data.

  Only labels and shapes of the data are used, so the function can be traced.
  `start` has the variables of the model to start from, or is None. Parameters
  that the phase does not inherit are initialised.

  Raises:
    UserError: if batch size, data and start do not fit together.
  """
  options, index = config[name], _phase_index(config, name)
  num_classes, size = len(dataset.class_names), dataset.image_size
  split = split_of(name, options)
  labels = dataset.splits[split].labels
  # Each (seed, index) has its own seed; those of indices 0 to 2 must stay, so
  # that runs of earlier versions resume.
  seed = config.seed * 3 + index if index < 3 else (index << 40) + config.seed
  sampler = sampling.make_sampler(
    labels, num_classes, options.q, options.batch_size, seed
  )
  num_steps = sampling.num_steps(sampler, options.epochs)
  init_key, key = jax.random.split(
    jax.random.fold_in(jax.random.key(config.seed), index)
  )
  model = make_model(config.model, options.head, num_classes)
  variables = steps.init_variables(model, init_key, size)
  trained = optim.trained_mask(variables["params"], options.trained)
  frozen = not any(jax.tree.leaves(trained["encoder"]))
  _check_frozen(name, options, trained["encoder"], start)
  if start is not None:
    variables = _with_inherited(variables, start, options.inherit)
  model = model.with_frozen(trained["encoder"])
  schedule = optim.make_schedule(
    options.optimizer, num_steps, options.batch_size
  )
  optimizer = optim.make_optimizer(options.optimizer, schedule, trained)
  memory = terms.start_loss_state(
    options.losses,
    num_classes,
    lambda: steps.num_features(model, variables, size),
  )
  images = steps.image_inputs(options, size, "frozen" if frozen else "trained")
  read = steps.feature_inputs(options) if options.cached_views else images
  counts = np.bincount(dataset.splits["train"].labels, minlength=num_classes)
  train_step = steps.make_train_step(
    model=model,
    inputs=read,
    terms=options.losses,
    counts=counts,
    num_steps=max(num_steps, 1),
    optimizer=optimizer,
    schedule=schedule,
    trained=trained,
  )
  if config.skip_nonfinite:
    memory[steps.SKIPPED] = jnp.int32(0)
    train_step = steps.skip_nonfinite(train_step)
  opt_state = optimizer.init(variables["params"])
  state = TrainState(
    jnp.int32(0), **variables, opt_state=opt_state, memory=memory
  )
  return Phase(
    name=name,
    split=split,
    config=options,
    model=model,
    state=state,
    trained=trained,
    images=images,
    inputs=read,
    train_step=train_step,
    sampler=sampler,
    num_steps=num_steps,
    key=key,
    image_names=dataset.names.get(split, ()),
  )


def check_phases(
  config: ConfigDict, dataset: Dataset, mesh: Mesh, start: dict[str, Any] | None
) -> dict[str, Any]:
  """Traces every phase, so that a mistake in the last one is found at once.

  Each phase is traced on the shapes of the model that the phase before it
  returns, and with one training step if it has a start: variables, or their
  shapes. Returns the shapes of the model after the last phase.

  Raises:
    UserError: naming the phase, if its batch size, parameters, loss or
      predictor do not fit the data, the devices or its start.
  """
  for name in phases(config):
    _warn_of_double_balance(name, config[name])
    try:
      distributed.check_batch_size(config[name].batch_size, mesh)
      start = _trace(config, name, dataset, mesh, start)
      predictors.check(config[name].predictor, start["params"]["head"])
    except UserError as error:
      named = f"config.{name}" in str(error)
      raise UserError(f"{'' if named else f'{name}: '}{error}") from error
  assert start is not None  # a resolved config has a phase
  return start


def _warn_of_double_balance(name: str, options: ConfigDict) -> None:
  """Warns if both sampling and a loss favour rare classes."""
  for loss, given in options.losses.items():
    all_options = declared.defaults(terms.TERMS[loss].loss) | dict(given)
    if options.q < 1 and terms.TERMS[loss].balances(all_options):
      logger.warning(
        "%s: both the sampling (q=%g) and the loss %s favour rare classes,"
        " which corrects for the class sizes twice. Use either q=1 with this"
        " loss, or cross_entropy without weighting.",
        name,
        options.q,
        loss,
      )


def _trace(
  config: ConfigDict,
  name: str,
  dataset: Dataset,
  mesh: Mesh,
  start: dict[str, Any] | None,
) -> dict[str, Any]:
  """Shapes of the model after a phase, from the shapes of its start."""
  images: Any = dataset.splits[split_of(name, config[name])].images
  views, size = config[name].cached_views, config[name].batch_size

  def first_step(start: dict[str, Any] | None) -> dict[str, Any]:
    phase, rows = make_phase(config, name, dataset, start), images
    if start is None:
      return phase.state.model()
    if views:
      model = phase.state.model()
      width = steps.num_features(phase.model, model, dataset.image_size)
      shape = len(images), views, width
      rows = jax.ShapeDtypeStruct(shape, np.dtype(np.float32))
    pipeline.check_form(rows, mesh, config.data.input)
    batch = {
      "row": jnp.zeros((size, *rows.shape[1:]), rows.dtype),
      "id": jnp.arange(size),
      "label": jnp.zeros(size, jnp.int32),
    }
    return phase.train_step(phase.state, None, batch, phase.key)[0].model()

  return jax.eval_shape(first_step, start)


def _check_frozen(
  name: str, phase: ConfigDict, trained: Any, start: dict[str, Any] | None
) -> None:
  """Raises UserError if frozen parameters are random or cached ones trained.

  `trained` is a tree of bool over the encoder's parameters.
  """
  kept = by_path({"encoder": trained})
  frozen = [path for path, changes in kept.items() if not changes]
  if frozen and start is None:
    raise UserError(
      f"config.{name}.trained={tuple(phase.trained)} freezes parameters of the"
      " encoder, but a model to start from is missing. Set --config.init_from"
      " to the workdir of a finished run, for example of configs/simclr.py."
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
      f"config.{name}.cached_views={phase.cached_views} caches features, but"
      f" trained={tuple(phase.trained)} changes the encoder. Set"
      " cached_views=0, or train the head only."
    )


def _with_inherited(
  variables: dict[str, Any], start: dict[str, Any], patterns: Sequence[str]
) -> dict[str, Any]:
  """Fresh variables, those whose path matches replaced, shapes checked."""
  trees = (*variables.values(), *start.values())
  paths = [path for tree in trees for path in by_path(tree)]
  optim.check_patterns("inherit", patterns, paths)
  replaced = {}
  for kind, tree in variables.items():
    fresh = by_path(tree)
    inherited, expected = (
      {path: x for path, x in leaves.items() if optim.matches(path, patterns)}
      for leaves in (by_path(start[kind]), fresh)
    )
    if differs := first_difference(inherited, expected):
      raise UserError(
        "The model to start from has another architecture: its"
        f" {kind}/{differs[0]} has shape {differs[1]}, but the config asks for"
        f" {differs[2]}. Set config.model and the head as in that run."
      )
    replaced[kind] = jax.tree.unflatten(
      jax.tree.structure(tree), list((fresh | inherited).values())
    )
  return replaced
