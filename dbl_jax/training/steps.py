"""Training and evaluation steps: pure functions, made once, then compiled."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbl_jax.data import pipeline
from dbl_jax.losses import terms as losses
from dbl_jax.losses.batch import LossInputs
from dbl_jax.models.model import Model
from dbl_jax.training.inputs import Inputs
from dbl_jax.training.state import TrainState

# (state, resident, batch, key) -> next state, figures f32[]
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Objective(NamedTuple):
  """What a phase minimises.

  Attributes:
    terms: the phase's losses, see `losses.terms`.
    counts: int[C], training images of each class.
    total: steps of the phase.
  """

  terms: losses.Terms
  counts: np.ndarray
  total: int


def init_variables(
  model: Model, key: jax.Array, image_size: int
) -> dict[str, Any]:
  """Fresh variables, 'params' and 'batch_stats', each under encoder and head.

  Args:
    model: the model.
    key: typed key.
    image_size: height and width in pixels.

  Returns:
    The variables.
  """
  images = jnp.zeros((1, image_size, image_size, 3))
  init = jax.jit(model.init, static_argnames="train")
  variables = init(key, images, train=False)
  return {
    name: {"encoder": {}, "head": {}} | variables.get(name, {})
    for name in ("params", "batch_stats")
  }


def num_features(
  model: Model, variables: Mapping[str, Any], image_size: int
) -> int:
  """F, the width of the encoder's features."""
  images = jnp.zeros((1, image_size, image_size, 3))
  shapes = jax.eval_shape(
    lambda given: model.apply(given, images, train=False), variables
  )
  return shapes[0].shape[-1]


def make_train_step(
  model: Model,
  inputs: Inputs,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  trained: Any,
) -> TrainStep:
  """One step of a phase.

  Args:
    model: encoder and head.
    inputs: what the model reads; if its encoder is not 'trained', nothing of
      the encoder may be.
    objective: what is minimised.
    optimizer: as made by `optim.make_optimizer`.
    schedule: step -> learning rate, for the log.
    trained: tree of bool over the parameters.

  Returns:
    A function of (state, resident, batch, key), returning the next state and
    figures: loss, learning_rate, grad_norm of the trained leaves and what the
    loss terms report. `resident` and `batch` come from `pipeline`; `key` is
    the phase's, from which the step's and each example's are folded.
  """
  forward = _make_loss(model, inputs.encoder, objective)

  def train_step(
    state: TrainState,
    resident: jax.Array | None,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    view_key, dropout_key = jax.random.split(
      jax.random.fold_in(key, state.step)
    )
    rows = pipeline.gather(resident, batch)
    targets = jax.nn.one_hot(batch["label"], len(objective.counts))
    drawn, targets = inputs.draw(view_key, batch["id"], rows, targets)
    grads, (figures, batch_stats, memory) = jax.grad(forward, has_aux=True)(
      state.params, state, drawn, (batch["label"], targets), dropout_key
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # Over all leaves, this norm would bring the frozen backward pass back.
    of_trained = jax.tree.map(
      lambda grad, keep: grad if keep else None, grads, trained
    )
    figures["grad_norm"] = optax.tree.norm(of_trained)
    figures["learning_rate"] = schedule(state.step)
    return TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
      memory=memory,
    ), figures

  return train_step


SKIPPED = "skipped_steps"


def skipping(train_step: TrainStep) -> TrainStep:
  """A step that changes nothing where its loss or gradient is not finite.

  Args:
    train_step: as made by `make_train_step`.

  Returns:
    The same with a figure more, `SKIPPED`, the steps left out so far. The
    state's memory keeps it under the same name.
  """

  def step(
    state: TrainState, *given: Any
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    after, figures = train_step(state, *given)
    fine = jnp.isfinite(figures["loss"]) & jnp.isfinite(figures["grad_norm"])
    skipped = state.memory[SKIPPED] + ~fine
    after = after.replace(memory=after.memory | {SKIPPED: skipped})
    kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), after, state)
    memory = kept.memory | {SKIPPED: skipped}
    kept = kept.replace(step=after.step, memory=memory)
    return kept, figures | {SKIPPED: skipped.astype(jnp.float32)}

  return step


def _make_loss(
  model: Model, encoder: str, objective: Objective
) -> Callable[..., tuple[jax.Array, Any]]:
  """Loss of a batch of views, with figures, next statistics and memory."""

  def loss(
    params: Any,
    state: TrainState,
    drawn: jax.Array,
    truth: tuple[jax.Array, jax.Array],
    dropout_key: jax.Array,
  ) -> tuple[jax.Array, Any]:
    num_views = drawn.shape[0]
    # The views of one example side by side: the rows 2k-1, 2k of eq. (3),
    # and an axis that stays split over the devices.
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(-1, *drawn.shape[2:])
    found, updated = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      drawn,
      train=True,
      encoder=encoder,
      mutable=["batch_stats"],
      rngs={"dropout": dropout_key},
    )
    features, outputs = (
      rows.reshape(-1, num_views, rows.shape[-1]) for rows in found
    )
    seen = LossInputs(
      features,
      outputs,
      *truth,
      counts=jnp.asarray(objective.counts, jnp.float32),
      progress=state.step / objective.total,
      head=params["head"],
    )
    value, figures, memory = losses.weighted_sum(
      objective.terms, seen, state.memory
    )
    return value, (figures, state.batch_stats | updated["batch_stats"], memory)

  return loss


def repeat(train_step: TrainStep, most: int) -> TrainStep:
  """Several steps as one program, so that the host need not keep pace.

  The number of steps is an argument, not a shape: one program serves every
  number, to the same bits.

  Args:
    train_step: as made by `make_train_step`.
    most: L, the greatest number of steps.

  Returns:
    A function of (state, resident, batches, key, count): leaves of `batches`
    have one more leading axis, of length L; the first `count` are used.
    Figures are f32[L], of which the first `count` count.
  """

  def train_steps(
    state: TrainState,
    resident: jax.Array | None,
    batches: Mapping[str, jax.Array],
    key: jax.Array,
    count: jax.Array,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    def step(i: jax.Array, state: TrainState) -> Any:
      batch = jax.tree.map(lambda leaf: leaf[i], batches)
      return train_step(state, resident, batch, key)

    def body(i: jax.Array, carry: Any) -> Any:
      state, figures = carry
      state, latest = step(i, state)
      return state, jax.tree.map(
        lambda row, value: row.at[i].set(value), figures, latest
      )

    _, shapes = jax.eval_shape(step, jnp.int32(0), state)
    empty = jax.tree.map(lambda leaf: jnp.zeros(most, leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, empty))

  return train_steps


def make_eval_step(
  model: Model, inputs: Inputs
) -> Callable[[Mapping[str, Any], jax.Array], tuple[jax.Array, jax.Array]]:
  """The forward pass without augmentation.

  Args:
    model: encoder and head.
    inputs: what the model reads.

  Returns:
    (variables, rows [B, ...]) -> features f32[B, F], outputs f32[B, K].
  """

  def eval_step(
    variables: Mapping[str, Any], rows: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    # Nothing is mutable here, so that flax gives the model's own result.
    return model.apply(  # type: ignore[return-value]
      variables, inputs.plain(rows), train=False, encoder=inputs.encoder
    )

  return eval_step
