"""Batches for the losses' tests, and slopes to compare gradients with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dbl_jax.losses import LossInputs


def make_inputs(
  outputs, labels, *, counts, features=None, targets=None, progress=1, head=()
):
  """A batch of arrays of any float, [B, V, ...], as the losses get it."""

  def cast(values):
    return jnp.asarray(values, jnp.float32)

  labels = np.asarray(labels, np.int32)
  return LossInputs(
    features=cast(outputs if features is None else features),
    outputs=cast(outputs),
    labels=jnp.asarray(labels),
    targets=cast(np.eye(len(counts))[labels] if targets is None else targets),
    counts=cast(counts),
    progress=cast(progress),
    head={name: cast(values) for name, values in dict(head).items()},
  )


def run(loss, given, **options):
  """A loss, its metrics, and its gradients by features, outputs and head."""
  parts = {key: getattr(given, key) for key in ("features", "outputs", "head")}
  program = _program(loss, tuple(options.items()))
  (value, metrics), gradients = program(parts, given)
  return value, metrics, gradients


@functools.cache
def _program(loss, options):
  def value(parts, given):
    return loss(given._replace(**parts), **dict(options))

  return jax.jit(jax.value_and_grad(value, has_aux=True))


def rows(values, labels):
  """The views one by one, (vector, label), as a paper numbers them."""
  return [
    (view, label)
    for views, label in zip(values, labels, strict=True)
    for view in views
  ]


def slopes(function, x, step=1e-5):
  """Gradient of a float64 function by central differences."""
  found = np.zeros_like(x)
  for place in np.ndindex(x.shape):
    away = np.zeros_like(x)
    away[place] = step
    found[place] = (function(x + away) - function(x - away)) / (2 * step)
  return found


def assert_gradient(found, expected):
  """Compares with the greatest entry: float32 knows no more of the small."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)
