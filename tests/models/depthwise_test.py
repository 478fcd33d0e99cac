"""The depthwise convolution for CPUs equals XLA's."""

import functools

import jax
import numpy as np
import pytest

from dbl_jax.models import cpu_conv, layers


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
  ("side", "size", "stride"),
  [(6, 3, 1), (6, 3, 2), (7, 3, 2), (7, 5, 1), (8, 5, 2), (5, 5, 2), (2, 5, 2)],
)
def test_values_and_gradients_equal_xlas(
  side, size, stride, chunk, monkeypatch
):
  if chunk:  # 3 images: the last chunk is padded
    monkeypatch.setattr(cpu_conv, "images_per_chunk", lambda *_: chunk)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, side, side + 1, 4)).astype(np.float32)
  kernel = rng.standard_normal((size, size, 1, 4)).astype(np.float32)
  expected, transposed = jax.vjp(
    functools.partial(layers._lax_depthwise, stride=stride), x, kernel
  )
  dy = rng.standard_normal(expected.shape).astype(np.float32)
  found, backward = jax.jit(
    lambda x, kernel, dy: (
      layers.depthwise_conv2d(x, kernel, stride),
      jax.vjp(lambda *args: layers.depthwise_conv2d(*args, stride), x, kernel)[
        1
      ](dy),
    )
  )(x, kernel, dy)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for gradient, other in zip(backward, transposed(dy), strict=True):
    np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=1e-5)
