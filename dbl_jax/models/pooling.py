"""Max-pooling whose gradient is fast on CPU."""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array) -> jax.Array:
  """Max-pooling over 3x3 windows with stride 2 and padding 1.

  The maximum of shifted slices, along rows and then along columns: the
  gradient of `lax.reduce_window`, select-and-scatter, is slow on CPU. Where
  several pixels of a window are the largest they share the gradient; after a
  ReLU those are the windows of zeros, whose gradient the ReLU drops.

  Args:
    x: float[B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C], of x's dtype.
  """
  sides = ((0, 0), (1, 1), (1, 1), (0, 0))
  x = jnp.pad(x, sides, constant_values=-jnp.inf)
  for axis in (1, 2):
    end = x.shape[axis] - 2
    first, second, third = (
      lax.slice_in_dim(x, start, start + end, 2, axis) for start in range(3)
    )
    x = jnp.maximum(jnp.maximum(first, second), third)
  return x
