"""A SimCLR training step: forward, loss, gradient, update; views given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dbl_jax.benchmarks.ours import devices
from dbl_jax.benchmarks.ours.plain_flax import PlainSimCLR
from dbl_jax.losses.contrastive import nt_xent
from dbl_jax.models.model import make_model

# Variables, state of the optimizer.
State = tuple[dict[str, Any], Any]


def make_step(
  embed: Callable[..., Any], optimizer: optax.GradientTransformation, tau: float
) -> Callable[[State, jax.Array], tuple[State, jax.Array]]:
  """The step.

  Args:
    embed: (variables, images f32[2N, S, S, 3], mutable) -> embeddings
      f32[2N, D] and the next batch statistics.
    optimizer: of the parameters.
    tau: temperature of NT-Xent.

  Returns:
    A function of the state and the images, rows 2k and 2k + 1 the views of
    example k, returning the next state and the loss.
  """

  def step(state: State, images: jax.Array) -> tuple[State, jax.Array]:
    variables, opt_state = state

    def loss(params: Any) -> tuple[jax.Array, Any]:
      z, updated = embed(
        variables | {"params": params}, images, mutable=["batch_stats"]
      )
      return nt_xent(z.reshape(-1, 2, z.shape[-1]), tau), updated

    params = variables["params"]
    (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return ({"params": params} | updated, opt_state), value

  return step


def _ours(settings: dict[str, Any]) -> tuple[Callable, Callable]:
  """How the project's model is initialised and applied."""
  model = make_model(
    {
      "name": "resnet18",
      "stem": settings["stem"],
      "dtype": settings["dtype"],
    },
    {"name": "projection", "hidden": 512, "out": 128},
    num_classes=7,
  )

  def embed(variables: Any, images: jax.Array, **options: Any) -> Any:
    outputs, updated = model.apply(variables, images, train=True, **options)
    return outputs[1], updated

  return model.init, embed


def _plain(settings: dict[str, Any]) -> tuple[Callable, Callable]:
  """The same of flax as it comes."""
  model = PlainSimCLR(settings["stem"], jnp.dtype(settings["dtype"]))

  def embed(variables: Any, images: jax.Array, **options: Any) -> Any:
    return model.apply(variables, images, train=True, **options)

  return model.init, embed


_IMPLEMENTATIONS = {"dbl_jax": _ours, "flax": _plain}


def make_program(
  settings: dict[str, Any],
) -> tuple[Callable, Callable[[], tuple[State, jax.Array]]]:
  """The step a case asks for.

  Args:
    settings: implementation ('dbl_jax' or 'flax'), stem, dtype, size in
      pixels, batch N, learning_rate, momentum, weight_decay, temperature.

  Returns:
    The step, not compiled; a function making its first state and images
    f32[2N, S, S, 3].
  """
  init, embed = _IMPLEMENTATIONS[settings["implementation"]](settings)
  optimizer = optax.chain(
    optax.add_decayed_weights(settings["weight_decay"]),
    optax.sgd(settings["learning_rate"], momentum=settings["momentum"]),
  )
  size = settings["size"]

  def start() -> tuple[State, jax.Array]:
    pixels = np.random.default_rng(0).random(
      (2 * settings["batch"], size, size, 3), np.float32
    )
    images = jnp.asarray(pixels)
    variables = jax.jit(init, static_argnames="train")(
      jax.random.key(0), images[:2], train=True
    )
    return (variables, optimizer.init(variables["params"])), images

  return make_step(embed, optimizer, settings["temperature"]), start


def count_flops(settings: dict[str, Any]) -> float | None:
  """FLOPs of a step by flax's plain layers, in whatever form it is run.

  Winograd's products would be counted instead of the convolution's, and loops
  once.
  """
  step, start = make_program(settings | {"implementation": "flax"})
  lowered = jax.jit(step).lower(*jax.eval_shape(start))
  return (lowered.cost_analysis() or {}).get("flops")


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Further settings: steps_per_call, device."""
  plain = settings["implementation"] == "flax"
  found = devices.prepare(settings["device"], as_it_comes=plain)
  step, start = make_program(settings)
  state, images = start()
  jit_eval_step = jax.jit(step, donate_argnums=0).lower(state, images).compile()
  box = [state]

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      box[0], loss = jit_eval_step(box[0], images)
    jax.block_until_ready(loss)

  facts: dict[str, Any] = {"set": found}
  if settings["device"] == "gpu":
    facts |= device_facts(jit_eval_step)
    facts["flops"] = count_flops(settings)
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}


def device_facts(jit_eval_step: jax.stages.Compiled) -> dict[str, Any]:
  """What XLA says of a program, and JAX of the device it is for."""
  cost, memory = (
    jit_eval_step.cost_analysis() or {},
    jit_eval_step.memory_analysis(),
  )
  return {
    "device_kind": jax.devices()[0].device_kind,
    "compiled_flops": cost.get("flops"),
    "compiled_bytes": cost.get("bytes accessed"),
    "temporary_bytes": memory and memory.temp_size_in_bytes,
    "argument_bytes": memory and memory.argument_size_in_bytes,
  }
