"""Inputs, state and steps of a phase, as pure functions.

The inputs are augmented images, or cached features of a frozen encoder. Such an
encoder maps an image to the same features at every step. Extracting them once
and training the head on them is many times faster; the price is a finite number
of views per image.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from dbl_jax.augment import views
from dbl_jax.data import pipeline
from dbl_jax.evaluation import predictions
from dbl_jax.losses import LossInputs
from dbl_jax.losses import terms as losses
from dbl_jax.models.model import Model


class TrainState(flax.struct.PyTreeNode):
  """State of one phase.

  Attributes:
    step: int32[], number of steps done.
    params: parameters, under 'encoder' and 'head'.
    batch_stats: batch-norm running statistics, under the same keys.
    opt_state: optimizer state of the trained leaves.
    memory: state of the loss terms, such as class centres.
  """

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  memory: dict[str, Array]

  def model(self) -> dict[str, Any]:
    """Variables of a forward pass."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves in order, by paths such as 'head/logits/bias'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def first_difference(found: Any, expected: Any) -> tuple[str, Any, Any] | None:
  """Returns path and shapes of the first leaf whose shapes differ, or None.

  Both trees have leaves with a shape. The result has the path, and the shape in
  `found` and in `expected`, None where the leaf is missing.
  """
  have, want = (
    {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
    for tree in (found, expected)
  )
  for path in sorted(have | want):
    if have.get(path) != want.get(path):
      return path, have.get(path), want.get(path)
  return None


class Inputs(NamedTuple):
  """How rows of a split become inputs of the model.

  Attributes:
    encoder_mode: see `Model.__call__`.
    draw: (key, ids int32[B], rows [B, ...], targets f32[B, C]) -> random views
      f32[V, B, ...] and their targets f32[B, C].
    plain: rows [B, ...] -> f32[B, ...], for evaluation.
  """

  encoder_mode: str
  draw: Callable[..., tuple[Array, Array]]
  plain: Callable[[Array], Array]


def image_inputs(
  phase: Mapping[str, Any], image_size: int, encoder_mode: str
) -> Inputs:
  """Makes inputs of images uint8[B, S, S, 3], augmented at every step.

  It uses views, augment and mixup of the phase's config. `image_size` is the
  side of the views in pixels; `encoder_mode` is 'trained' or 'frozen'.
  """

  def draw(key: Array, ids: Array, images: Array) -> Array:
    return views.make_views(
      key,
      ids,
      images,
      num_views=phase["views"],
      out_size=image_size,
      **phase["augment"],
    )

  return Inputs(
    encoder_mode,
    _mixed(draw, phase["mixup"]),
    lambda images: views.plain(images, image_size),
  )


def feature_inputs(phase: Mapping[str, Any]) -> Inputs:
  """Makes inputs of cached features f32[B, K, F] of K views.

  It uses views, the number of the K to draw at a step, and mixup of the config.
  """
  num_views = phase["views"]

  def draw(key: Array, ids: Array, features: Array) -> Array:
    cached = features.shape[1]
    if cached == 1:
      return jnp.repeat(features.transpose(1, 0, 2), num_views, axis=0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
    chosen = jax.vmap(
      lambda one: jax.random.randint(one, (num_views,), 0, cached)
    )(keys)
    drawn = jnp.take_along_axis(features, chosen[:, :, None], axis=1)
    return drawn.transpose(1, 0, 2)

  return Inputs(
    "cached", _mixed(draw, phase["mixup"]), lambda features: features[:, 0]
  )


def _mixed(
  draw: Callable[..., Array], alpha: float
) -> Callable[..., tuple[Array, Array]]:
  """Adds mixup (Zhang et al. 2018, eq. (1)) to `draw` unless alpha is 0.

  Each example is mixed with the next one of the batch, whose order is random:
  share x example + (1 - share) x neighbour, share ~ Beta(alpha, alpha).
  """

  def mixed(
    key: Array, ids: Array, rows: Array, targets: Array
  ) -> tuple[Array, Array]:
    if not alpha:
      return draw(key, ids, rows), targets
    draw_key, share_key = jax.random.split(key)
    found = draw(draw_key, ids, rows)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(share_key, ids)
    share = jax.vmap(lambda one: jax.random.beta(one, alpha, alpha))(keys)

    def blend(rows: Array, axis: int) -> Array:
      shape = [1] * rows.ndim
      shape[axis] = -1
      weight = share.reshape(shape)
      return weight * rows + (1 - weight) * jnp.roll(rows, 1, axis)

    return blend(found, 1), blend(targets, 0)

  return mixed


# (state, resident, batch, key) -> next state, metrics f32[]
TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]


def init_variables(model: Model, key: Array, image_size: int) -> dict[str, Any]:
  """Initialises 'params' and 'batch_stats', each under 'encoder' and 'head'.

  The side of the images, in pixels, determines the shape of some parameters.
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
  """Returns F, the width of the encoder's features."""
  images = jnp.zeros((1, image_size, image_size, 3))
  shapes = jax.eval_shape(
    lambda given: model.apply(given, images, train=False), variables
  )
  return shapes[0].shape[-1]


def make_train_step(
  model: Model,
  inputs: Inputs,
  terms: losses.Terms,
  counts: np.ndarray,
  num_steps: int,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  trained: Any,
) -> TrainStep:
  """Makes one training step of a phase.

  Args:
    model: encoder and head.
    inputs: what the model reads. Unless `encoder_mode` is 'trained', all
      of the encoder must be frozen.
    terms: the phase's losses, see `losses.terms`.
    counts: int[C], training images of each class.
    num_steps: steps of the phase.
    optimizer: as made by `optim.make_optimizer`.
    schedule: step -> learning rate, for the log.
    trained: tree of bool over the parameters.

  Returns:
    A function of (state, resident, batch, key) that returns the next state and
    metrics: loss, learning_rate, grad_norm over the trained leaves and the
    metrics of the loss terms. `resident` and `batch` come from `pipeline`.
    `key` is the phase's key; the keys of the step and of each example are
    folded from it.
  """
  loss_fn = _make_loss_fn(model, inputs.encoder_mode, terms, counts, num_steps)

  def train_step(
    state: TrainState,
    resident: Array | None,
    batch: Mapping[str, Array],
    key: Array,
  ) -> tuple[TrainState, dict[str, Array]]:
    view_key, dropout_key = jax.random.split(
      jax.random.fold_in(key, state.step)
    )
    rows = pipeline.gather(resident, batch)
    targets = jax.nn.one_hot(batch["label"], len(counts))
    views, targets = inputs.draw(view_key, batch["id"], rows, targets)
    grads, (metrics, batch_stats, memory) = jax.grad(loss_fn, has_aux=True)(
      state.params, state, views, (batch["label"], targets), dropout_key
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # A norm over all leaves would make XLA compute gradients of frozen ones.
    trained_grads = jax.tree.map(
      lambda grad, keep: grad if keep else None, grads, trained
    )
    metrics["grad_norm"] = optax.tree.norm(trained_grads)
    metrics["learning_rate"] = schedule(state.step)
    return TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
      memory=memory,
    ), metrics

  return train_step


SKIPPED = "skipped_steps"


def skip_nonfinite(train_step: TrainStep) -> TrainStep:
  """Wraps a step so that it keeps the state if loss or gradient is not finite.

  It has one more metric, `SKIPPED`: the number of steps skipped so far, which
  the state stores under the same name.
  """

  def step(
    state: TrainState, *given: Any
  ) -> tuple[TrainState, dict[str, Array]]:
    after, metrics = train_step(state, *given)
    fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    skipped = state.memory[SKIPPED] + ~fine
    counter = {SKIPPED: skipped}
    after = after.replace(memory=after.memory | counter)
    kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), after, state)
    kept = kept.replace(step=after.step, memory=kept.memory | counter)
    return kept, metrics | {SKIPPED: skipped.astype(jnp.float32)}

  return step


def _make_loss_fn(
  model: Model,
  encoder_mode: str,
  terms: losses.Terms,
  counts: np.ndarray,
  num_steps: int,
) -> Callable[..., tuple[Array, Any]]:
  """Makes the loss of a batch of views; its aux values update the state."""

  def loss_fn(
    params: Any,
    state: TrainState,
    views: Array,
    truth: tuple[Array, Array],
    dropout_key: Array,
  ) -> tuple[Array, Any]:
    num_views = views.shape[0]
    # The views of an example are adjacent: rows 2k-1 and 2k of `nt_xent`. The
    # axis stays split over the devices.
    rows = jnp.moveaxis(views, 0, 1).reshape(-1, *views.shape[2:])
    model_outputs, updated = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      rows,
      train=True,
      encoder_mode=encoder_mode,
      mutable=["batch_stats"],
      rngs={"dropout": dropout_key},
    )
    features, outputs = (
      rows.reshape(-1, num_views, rows.shape[-1]) for rows in model_outputs
    )
    loss_inputs = LossInputs(
      features,
      outputs,
      *truth,
      counts=jnp.asarray(counts, jnp.float32),
      progress=state.step / num_steps,
      head=params["head"],
    )
    value, metrics, memory = losses.weighted_sum(
      terms, loss_inputs, state.memory
    )
    return value, (metrics, state.batch_stats | updated["batch_stats"], memory)

  return loss_fn


def repeat(train_step: TrainStep, max_steps: int) -> TrainStep:
  """Makes one program of several steps, which the host dispatches at once.

  The number of steps is an argument, not a shape: one program serves every
  number of steps, up to `max_steps` L, and gives the same bits.

  Returns:
    A function of (state, resident, batches, key, count): leaves of `batches`
    have one more leading axis, of length L; the first `count` are used.
    Metrics are f32[L]; the first `count` are valid.
  """

  def train_steps(
    state: TrainState,
    resident: Array | None,
    batches: Mapping[str, Array],
    key: Array,
    count: Array,
  ) -> tuple[TrainState, dict[str, Array]]:
    def step(i: Array, state: TrainState) -> Any:
      batch = jax.tree.map(lambda leaf: leaf[i], batches)
      return train_step(state, resident, batch, key)

    def body(i: Array, carry: Any) -> Any:
      state, latest = step(i, carry[0])
      metrics = {k: row.at[i].set(latest[k]) for k, row in carry[1].items()}
      return state, metrics

    _, shapes = jax.eval_shape(step, jnp.int32(0), state)
    empty = jax.tree.map(lambda leaf: jnp.zeros(max_steps, leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, empty))

  return train_steps


def make_eval_step(
  model: Model, inputs: Inputs, mesh: Mesh
) -> predictions.Step:
  """Compiles the forward pass without augmentation, for `make_forward`.

  Returns:
    (variables, rows [B, ...]) -> features f32[B, F], outputs f32[B, K].
  """

  def eval_step(variables: Mapping[str, Any], rows: Array) -> Any:
    rows = inputs.plain(rows)
    mode = inputs.encoder_mode
    return model.apply(variables, rows, train=False, encoder_mode=mode)

  return predictions.jit_eval_step(eval_step, mesh)
