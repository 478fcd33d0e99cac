"""Schedules, optimizers and freezing, as a config sets them."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import optax

from dbl_jax.errors import UserError
from dbl_jax.runtime.options import number, one_of
from dbl_jax.training.steps import by_path

# Factor of the peak rate, given the batch size over 256.
SCALINGS: dict[str, Callable[[float], float]] = {
  "linear": lambda ratio: ratio,
  "sqrt": math.sqrt,
  "none": lambda ratio: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer and the defaults that suit it.

  Attributes:
    make: (schedule, options, mask of matrices) -> optimizer.
    learning_rate: peak rate for batches of 256.
    scaling: name in `SCALINGS`.
    weight_decay: decay of kernels.
  """

  make: Callable[..., optax.GradientTransformation]
  learning_rate: float
  scaling: str
  weight_decay: float


OPTIMIZERS: dict[str, Optimizer] = {
  # As Kang et al. 2020 train on long tails: 0.2 for batches of 512.
  "sgd": Optimizer(
    lambda rate, options, matrices: optax.chain(
      optax.add_decayed_weights(options["weight_decay"], mask=matrices),
      optax.sgd(rate, momentum=options["momentum"], nesterov=True),
    ),
    learning_rate=0.1,
    scaling="linear",
    weight_decay=5e-4,
  ),
  # The noise of Adam's normalised step falls with the square root of the batch
  # (Malladi et al. 2022). Its decay is multiplied by the rate, so that 1e-4
  # would have no effect.
  "adamw": Optimizer(
    lambda rate, options, matrices: optax.adamw(
      rate, weight_decay=options["weight_decay"], mask=matrices
    ),
    learning_rate=3e-3,
    scaling="sqrt",
    weight_decay=0.05,
  ),
  # Chen et al. 2020, section 2.1: 0.3 for 256, decay 1e-6.
  "lars": Optimizer(
    lambda rate, options, matrices: optax.lars(
      rate,
      weight_decay=options["weight_decay"],
      weight_decay_mask=matrices,
      trust_ratio_mask=matrices,
      momentum=options["momentum"],
    ),
    learning_rate=0.3,
    scaling="linear",
    weight_decay=1e-6,
  ),
}
# Fields that are None take the value of the chosen optimizer.
OWN_FIELDS = ("learning_rate", "scaling", "weight_decay")


@dataclasses.dataclass
class OptimizerFields:
  """The optimizer of a phase.

  Attributes:
    name: name; sgd has Nesterov momentum, lars is You et al. 2017.
    learning_rate: peak rate for batches of 256; None is 0.1 for sgd, 3e-3
      for adamw and 0.3 for lars.
    scaling: how the peak rate grows with the batch; None is 'sqrt' for adamw
      and 'linear' for the others.
    momentum: momentum of sgd and lars.
    weight_decay: weight decay of kernels; biases and batch norm are not
      decayed. None is 5e-4 for sgd, 0.05 for adamw and 1e-6 for lars.
    warmup: fraction of the steps in which the rate rises from 0, linearly.
    clip_norm: largest norm of the gradient; 0 disables clipping.
    encoder_rate: factor of the encoder's learning rate, to fine-tune it.
  """

  name: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
  learning_rate: Annotated[float | None, number(1e-6)] = None
  scaling: Annotated[str | None, one_of(SCALINGS)] = None
  momentum: Annotated[float, number(0, 0.9999)] = 0.9
  weight_decay: Annotated[float | None, number(0)] = None
  warmup: Annotated[float, number(0, 0.9)] = 0.1
  clip_norm: Annotated[float, number(0)] = 0.0
  encoder_rate: Annotated[float, number(1e-6, 1)] = 1.0


def make_schedule(
  options: Mapping[str, Any], total_steps: int, batch_size: int
) -> optax.Schedule:
  """Returns step -> learning rate: linear warm-up, then a cosine to zero.

  The peak is the rate for batches of 256, scaled to the batch size. The
  `total_steps` of the phase include the warm-up.
  """
  scale = SCALINGS[options["scaling"]](batch_size / 256)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=options["learning_rate"] * scale,
    warmup_steps=min(round(options["warmup"] * total_steps), total_steps - 1),
    decay_steps=total_steps,
  )


def trained_mask(params: Any, patterns: Sequence[str]) -> Any:
  """Selects the leaves that a phase trains, as a tree of bool like `params`.

  Raises:
    UserError: if a pattern matches no parameter.
  """
  names = list(by_path(params))
  check_patterns("trained", patterns, names)
  return jax.tree.unflatten(
    jax.tree.structure(params), [matches(name, patterns) for name in names]
  )


def check_patterns(
  field: str, patterns: Sequence[str], paths: Sequence[str]
) -> None:
  """Raises UserError if a pattern of a field matches none of the paths."""
  for pattern in patterns:
    if not any(matches(path, [pattern]) for path in paths):
      groups = sorted({"/".join(path.split("/")[:2]) for path in paths})
      raise UserError(
        f"{field}={tuple(patterns)}: {pattern!r} matches no parameter."
        f" Parameters begin with {', '.join(groups)}."
      )


def matches(path: str, patterns: Sequence[str]) -> bool:
  """Whether one of the regular expressions matches the start of a path.

  A path is that of a parameter, such as 'encoder/stage4_block1/conv1/kernel'.
  """
  return any(re.match(pattern, path) for pattern in patterns)


def make_optimizer(
  options: Mapping[str, Any], schedule: optax.Schedule, trained: Any
) -> optax.GradientTransformation:
  """Makes the optimizer of a phase; the rest of the model is frozen.

  Weight decay and LARS's trust ratio apply to matrices and kernels only, not
  to biases or batch norm. Frozen leaves are without optimizer state. Their
  updates are set to zero, because `optax.masked` passes gradients through.

  Args:
    options: the phase's `optimizer`, of `OptimizerFields`.
    schedule: step -> learning rate.
    trained: tree of bool, as made by `trained_mask`.
  """

  def matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  optimizer = OPTIMIZERS[options["name"]].make(schedule, options, matrices)
  if options["clip_norm"]:
    clip = optax.clip_by_global_norm(options["clip_norm"])
    optimizer = optax.chain(clip, optimizer)
  if options["encoder_rate"] != 1:
    encoder = {name: name == "encoder" for name in trained}
    scale = optax.masked(optax.scale(options["encoder_rate"]), encoder)
    optimizer = optax.chain(optimizer, scale)
  frozen = jax.tree.map(lambda leaf: not leaf, trained)
  return optax.chain(
    optax.masked(optimizer, trained), optax.masked(optax.set_to_zero(), frozen)
  )
