"""Max-pooling by shifted slices against flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dbl_jax.models.kernels.pooling import max_pool

pytestmark = pytest.mark.usefixtures("debug_nans")


def reference(x):
  return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 9), (1, 2)], ids=str)
def test_values_and_gradient_equal_flax(size, dtype):
  shape = (2, *size, 3)
  # Distinct and exact in bfloat16 (8 bits) within each image and channel.
  pixels = jax.vmap(lambda key: jax.random.permutation(key, size[0] * size[1]))(
    jax.random.split(jax.random.key(0), 6)
  )
  x = pixels.reshape(2, 3, *size).transpose(0, 2, 3, 1).astype(dtype) - 20
  y, pull_back = jax.vjp(max_pool, x)
  expected, reference_pull_back = jax.vjp(reference, x)
  assert y.dtype == dtype
  np.testing.assert_array_equal(y, expected)
  dy = jax.random.randint(jax.random.key(1), y.shape, 1, 9).astype(dtype)
  dx, expected = pull_back(dy)[0], reference_pull_back(dy)[0]
  assert dx.shape == shape
  np.testing.assert_array_equal(dx, expected)


def test_the_first_of_equals_takes_the_gradient():
  x = jnp.zeros((1, 6, 6, 1))
  ours = jax.grad(lambda x: max_pool(x).sum())(x)
  assert ours.sum() == 9
  expected = jax.grad(lambda x: reference(x).sum())(x)
  np.testing.assert_array_equal(ours, expected)
