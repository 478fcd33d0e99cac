"""Max-pooling with a gradient that is fast on CPU."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax


def max_pool(x: Array) -> Array:
  """Max-pooling over 3x3 windows with stride 2 and padding 1.

  It is the maximum of shifted slices, along rows, then along columns: the
  gradient of `lax.reduce_window`, select-and-scatter, is slow on CPU. If
  several pixels of a window are the largest, the first gets the gradient.

  Args:
    x: float[B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C], of x's dtype.
  """
  return _pool_axis(_pool_axis(x, 1), 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool_axis(x: Array, axis: int) -> Array:
  before, centre, after = _windows(x, axis)
  return jnp.maximum(jnp.maximum(before, centre), after)


def _windows(x: Array, axis: int) -> tuple[Array, Array, Array]:
  """Pixels 2i - 1, 2i and 2i + 1 along an axis, -inf outside x."""
  centre = lax.slice_in_dim(x, 0, None, 2, axis)
  x = _pad(x, axis, 0, x.shape[axis] % 2, -jnp.inf)
  after = lax.slice_in_dim(x, 1, None, 2, axis)
  return _pad(after, axis, 1, -1, -jnp.inf), centre, after


def _pad(x: Array, axis: int, low: int, high: int, value: float) -> Array:
  edges = [(0, 0, 0)] * x.ndim
  edges[axis] = (low, high, 0)
  return lax.pad(x, jnp.array(value, x.dtype), edges)


def _pool_axis_forward(
  x: Array, axis: int
) -> tuple[Array, tuple[Array, Array]]:
  y = _pool_axis(x, axis)
  return y, (x, y)


def _pool_axis_backward(
  axis: int, saved: tuple[Array, Array], dy: Array
) -> tuple[Array]:
  x, y = saved
  before, centre, _ = _windows(x, axis)
  at_before = before == y
  at_centre = ~at_before & (centre == y)
  zero = jnp.zeros((), dy.dtype)
  even = jnp.where(at_centre, dy, zero)
  odd = jnp.where(at_before | at_centre, zero, dy)
  odd += _pad(jnp.where(at_before, dy, zero), axis, -1, 1, 0)
  # Interleaves even and odd pixels; a pixel of padding is cut off.
  dx = jnp.stack([even, odd], axis + 1)
  dx = dx.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
  return (lax.slice_in_dim(dx, 0, x.shape[axis], 1, axis),)


_pool_axis.defvjp(_pool_axis_forward, _pool_axis_backward)
