"""NT-Xent with its gradient: the project's, and the plain matrix form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dbl_jax.benchmarks.ours import devices
from dbl_jax.benchmarks.ours.step import device_facts
from dbl_jax.losses import contrastive


def plain(z: jax.Array, temperature: float) -> jax.Array:
  """Eq. (1)-(3) with the whole similarity matrix, f32[N, 2, D] -> f32[]."""
  z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
  positives = jnp.repeat((z[:, 0] * z[:, 1]).sum(-1), 2) / temperature
  rows = z.reshape(-1, z.shape[-1])
  similarities = jnp.matmul(rows, rows.T, precision="highest") / temperature
  itself = jnp.eye(len(rows), dtype=bool)
  similarities = jnp.where(itself, -jnp.inf, similarities)
  return (jax.nn.logsumexp(similarities, axis=-1) - positives).mean()


_IMPLEMENTATIONS = {"dbl_jax": contrastive.nt_xent, "plain": plain}


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: implementation, batch, width, temperature."""
  found = devices.prepare(settings["device"])
  loss = _IMPLEMENTATIONS[settings["implementation"]]
  rows = np.random.default_rng(0).standard_normal(
    (settings["batch"], 2, settings["width"]), np.float32
  )
  z = jnp.asarray(rows)
  program = jax.jit(
    jax.value_and_grad(lambda z: loss(z, settings["temperature"]))
  )
  jit_eval_step = program.lower(z).compile()

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      result = jit_eval_step(z)
    jax.block_until_ready(result)

  facts = device_facts(jit_eval_step) | {
    "set": found,
    "loss": float(jit_eval_step(z)[0]),
  }
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}
