"""Training and evaluation steps: pure functions, made once, then compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dbl_jax import losses
from dbl_jax.augment import views
from dbl_jax.data import pipeline
from dbl_jax.models.model import Model
from dbl_jax.state import TrainState

TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


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


def make_train_step(
  model: Model,
  phase: Mapping[str, Any],
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  trained: Any,
  image_size: int,
) -> TrainStep:
  """One step of a phase.

  Args:
    model: encoder and head.
    phase: the phase's config: views, augment, losses.
    optimizer: as made by `optim.make_optimizer`.
    schedule: step -> learning rate, for the log.
    trained: tree of bool over the parameters. If nothing of the encoder is
      trained, it runs frozen, statistics included.
    image_size: height and width of the views, in pixels.

  Returns:
    A function of (state, resident, batch, key), to be compiled with the state
    donated, returning the next state and figures: loss, learning_rate,
    grad_norm of the trained leaves and what the loss terms report. `resident`
    and `batch` come from `pipeline`; `key` is the phase's, from which the
    step's and each example's are folded.
  """
  num_views, family = phase["views"], dict(phase["augment"])
  forward = _make_loss(model, phase, trained)

  def train_step(
    state: TrainState,
    resident: jax.Array | None,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    view_key, dropout_key = jax.random.split(
      jax.random.fold_in(key, state.step)
    )
    pictures = views.make_views(
      view_key,
      batch["id"],
      pipeline.gather(resident, batch),
      num_views=num_views,
      out_size=image_size,
      **family,
    )
    grads, (figures, batch_stats) = jax.grad(forward, has_aux=True)(
      state.params, state.batch_stats, pictures, batch["label"], dropout_key
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
    ), figures

  return train_step


def _make_loss(
  model: Model, phase: Mapping[str, Any], trained: Any
) -> Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]:
  """Loss of a batch of views, with its figures and the next statistics."""
  frozen = not any(jax.tree.leaves(trained["encoder"]))

  def loss(
    params: Any,
    batch_stats: Any,
    pictures: jax.Array,
    labels: jax.Array,
    dropout_key: jax.Array,
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    num_views = pictures.shape[0]
    # The views of one example side by side: the rows 2k-1, 2k of eq. (3),
    # and an axis that stays split over the devices.
    pictures = jnp.moveaxis(pictures, 0, 1).reshape(-1, *pictures.shape[2:])
    (_, outputs), updated = model.apply(
      {"params": params, "batch_stats": batch_stats},
      pictures,
      train=True,
      freeze_encoder=frozen,
      mutable=["batch_stats"],
      rngs={"dropout": dropout_key},
    )
    outputs = outputs.reshape(-1, num_views, outputs.shape[-1])
    value, figures = losses.weighted_sum(phase["losses"], outputs, labels)
    return value, (figures, batch_stats | updated["batch_stats"])

  return loss


def make_eval_step(
  model: Model, image_size: int
) -> Callable[[Mapping[str, Any], jax.Array], tuple[jax.Array, jax.Array]]:
  """The forward pass without augmentation.

  Args:
    model: encoder and head.
    image_size: height and width in pixels.

  Returns:
    (variables, images uint8[B, S, S, 3]) -> features f32[B, F], outputs
    f32[B, K].
  """

  def eval_step(
    variables: Mapping[str, Any], images: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return model.apply(
      variables, views.plain(images, out_size=image_size), train=False
    )

  return eval_step
