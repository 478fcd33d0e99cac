"""Convolutions and max-pooling against those of `lax` and flax."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from dbl_jax.models import cpu_conv
from dbl_jax.models.layers import (
  Conv2D,
  _lax_conv,
  conv2d,
  depthwise_conv2d,
  max_pool,
)
from dbl_jax.runtime import distributed

pytestmark = pytest.mark.usefixtures("debug_nans")

# batch, height, width, in channels, kernel size, out channels, stride, padding
CASES = [
  (5, 8, 8, 64, 3, 5, 1, 1),
  (7, 7, 5, 3, 3, 64, 1, 1),
  (3, 1, 1, 5, 3, 3, 1, 1),
  (4, 3, 2, 5, 3, 3, 1, 1),
  (5, 9, 8, 5, 3, 3, 2, 1),
  (3, 1, 1, 5, 3, 4, 2, 1),
  (5, 7, 6, 3, 3, 5, 1, 0),
  (7, 13, 10, 3, 7, 5, 2, 3),
  (4, 9, 9, 3, 7, 2, 1, 3),
  (5, 7, 8, 64, 1, 5, 2, 0),
  (3, 4, 5, 5, 1, 64, 1, 0),
  (5, 13, 9, 16, 3, 20, 1, 1),
  (5, 12, 16, 20, 3, 16, 1, 1),
  (5, 2, 2, 64, 3, 48, 1, 1),
  (5, 4, 4, 6, 3, 4, 2, 1),
]


def make_inputs(case, dtype=jnp.float32):
  batch, height, width, channels, size, features, stride, padding = case
  keys = jax.random.split(jax.random.key(0), 3)
  out = [(n + 2 * padding - size) // stride + 1 for n in (height, width)]
  x = jax.random.normal(keys[0], (batch, height, width, channels))
  kernel = jax.random.normal(keys[1], (size, size, channels, features))
  dy = jax.random.normal(keys[2], (batch, *out, features))
  return [array.astype(dtype) for array in (x, kernel, dy)]


def value_and_gradients(convolve, case):
  def run(x, kernel, dy):
    y, pull_back = jax.vjp(lambda *args: convolve(*args, *case[-2:]), x, kernel)
    return y, *pull_back(dy)

  return jax.jit(run)


def assert_close(actual, expected, tolerance):
  """Errors are measured against the largest entry."""
  assert actual.shape == expected.shape
  assert actual.dtype == expected.dtype
  expected = np.asarray(expected, np.float32)
  error = np.abs(np.asarray(actual, np.float32) - expected).max()
  assert error <= tolerance * np.abs(expected).max()


@pytest.fixture
def one_device(monkeypatch):
  """Batches are chunked on one device alone; tests see eight."""
  monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.parametrize(
  ("case", "chunk"),
  [*((case, 2) for case in CASES), (CASES[0], None), (CASES[4], None)],
  ids=str,
)
def test_values_and_gradients_equal_lax(case, chunk, monkeypatch):
  if chunk:
    monkeypatch.setattr(cpu_conv, "images_per_chunk", lambda *_: chunk)
  inputs = make_inputs(case)
  actual = value_and_gradients(conv2d, case)(*inputs)
  expected = value_and_gradients(_lax_conv, case)(*inputs)
  for ours, reference in zip(actual, expected, strict=True):
    assert_close(ours, reference, 1e-5)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(
  ("side", "size", "stride"),
  [(6, 3, 1), (6, 3, 2), (7, 3, 2), (7, 5, 1), (8, 5, 2), (5, 5, 2), (2, 5, 2)],
)
def test_depthwise_values_and_gradients_equal_lax(
  side, size, stride, chunk, monkeypatch
):
  if chunk:  # 3 images: the last chunk is padded
    monkeypatch.setattr(cpu_conv, "images_per_chunk", lambda *_: chunk)
  out = [-(-n // stride) for n in (side, side + 1)]
  shapes = (3, side, side + 1, 4), (size, size, 1, 4), (3, *out, 4)
  keys = jax.random.split(jax.random.key(0), 3)
  inputs = [jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True)]
  ours = functools.partial(depthwise_conv2d, stride=stride)
  plain = functools.partial(_lax_conv, stride=stride, padding="SAME")
  actual = value_and_gradients(ours, ())(*inputs)
  expected = value_and_gradients(plain, ())(*inputs)
  for found, reference in zip(actual, expected, strict=True):
    assert_close(found, reference, 1e-5)


def test_the_cases_cover_every_form():
  shapes = [(case, *make_inputs(case)[:2]) for case in CASES]
  assert {
    cpu_conv.choose_tile(x.shape, kernel.shape, *case[-2:])
    for case, x, kernel in shapes
  } == {0, 2, 3, 4}


@pytest.mark.parametrize("tile", [2, 3, 4])
def test_winograd_loses_few_bits_over_many_channels(tile):
  inputs = make_inputs((4, 13, 13, 256, 3, 64, 1, 1))

  def convolve(x, kernel, *_):
    matrices = cpu_conv.winograd_matrices(kernel, tile)
    return cpu_conv.winograd(x, matrices, tile)

  actual = value_and_gradients(convolve, (1, 1))(*inputs)
  expected = value_and_gradients(_lax_conv, (1, 1))(*inputs)
  for ours, reference in zip(actual, expected, strict=True):
    assert_close(ours, reference, 1e-5)


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
def test_bfloat16_in_and_out_computed_in_float32(case, monkeypatch):
  monkeypatch.setattr(cpu_conv, "images_per_chunk", lambda *_: 2)
  inputs = make_inputs(case, jnp.bfloat16)
  actual = value_and_gradients(conv2d, case)(*inputs)
  wide = [array.astype(jnp.float32) for array in inputs]
  expected = value_and_gradients(_lax_conv, case)(*wide)
  for ours, reference in zip(actual, expected, strict=True):
    # Half a unit in the last of 8 bits, and a little for float32's own error.
    assert_close(ours, reference.astype(jnp.bfloat16), 2**-8)


@pytest.mark.parametrize(
  ("batch", "images_that_fit", "expected"),
  [
    (128, 50, 32),  # a divisor, so that nothing is padded
    (127, 50, 50),  # prime: padding beats single images
    (100, 40, 25),
    (8, 50, 8),
    (8, 0.5, 1),
  ],
)
@pytest.mark.usefixtures("one_device")
def test_chunk_fits_the_budget(batch, images_that_fit, expected):
  budget = int(1000 * images_that_fit)
  assert cpu_conv.images_per_chunk(batch, 1000, budget) == expected


def test_batch_is_whole_on_several_devices():
  assert cpu_conv.images_per_chunk(64, 1000, 1000) == 64


@pytest.mark.usefixtures("one_device")
def test_big_batches_are_chunked_by_size(monkeypatch):
  monkeypatch.setattr(cpu_conv, "CHUNK_BYTES", 1 << 12)
  x, kernel, _ = make_inputs(CASES[0])
  lowered = jax.jit(conv2d, static_argnums=(2, 3)).lower(x, kernel, 1, 1)
  assert "stablehlo.while" in lowered.as_text()


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=str)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_form_follows_the_platform_compiled_for(case, platform):
  traced = value_and_gradients(conv2d, case).trace(*make_inputs(case))
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert ("stablehlo.convolution" in text) == (platform != "cpu")


def test_exports_with_any_batch_size():
  x, kernel, _ = make_inputs(CASES[0])
  shape = export.symbolic_shape("b, 8, 8, 64")
  exported = export.export(
    jax.jit(lambda x: conv2d(x, kernel, 1, 1)), platforms=["cpu", "cuda"]
  )(jax.ShapeDtypeStruct(shape, jnp.float32))
  assert_close(exported.call(x), _lax_conv(x, kernel, 1, 1), 1e-5)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize(
  "case", [(16, 6, 6, 5, 3, 3, 1, 1), (16, 7, 7, 3, 7, 3, 2, 3)], ids=str
)
def test_batch_split_over_devices(case, chunk, monkeypatch):
  if chunk:
    monkeypatch.setattr(cpu_conv, "images_per_chunk", lambda *_: chunk)
  mesh = distributed.make_mesh(jax.devices())
  split, whole = distributed.batched(mesh), distributed.replicated(mesh)
  inputs = make_inputs(case)
  compiled = (
    value_and_gradients(conv2d, case)
    .lower(
      *(
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
        for a, s in zip(inputs, (split, whole, split), strict=True)
      )
    )
    .compile()
  )
  if not chunk:
    text = compiled.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    y_sharding, dx_sharding, _ = compiled.output_shardings
    assert y_sharding.is_equivalent_to(split, 4)
    assert dx_sharding.is_equivalent_to(split, 4)
  actual = compiled(*jax.device_put(inputs, [split, whole, split]))
  expected = value_and_gradients(_lax_conv, case)(*inputs)
  for ours, reference in zip(actual, expected, strict=True):
    assert_close(ours, reference, 1e-5)


def test_module_has_one_float32_kernel_with_he_deviation():
  x = jnp.zeros((1, 4, 4, 32), jnp.bfloat16)
  module = Conv2D(128, 3, dtype=jnp.bfloat16)
  y, variables = module.init_with_output(jax.random.key(0), x)
  assert y.shape == (1, 4, 4, 128)
  assert y.dtype == jnp.bfloat16
  assert list(variables) == ["params"]
  kernel = variables["params"].pop("kernel")
  assert not variables["params"]
  assert kernel.shape == (3, 3, 32, 128)
  assert kernel.dtype == jnp.float32
  assert kernel.std() == pytest.approx((2 / (3 * 3 * 128)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("window", "padding"), [(3, 1), (2, 0)])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (6, 9), (2, 3)], ids=str)
def test_max_pooling_equals_flax(size, window, padding, dtype):
  # Distinct and exact in bfloat16 (8 bits) within each image and channel.
  pixels = jax.vmap(lambda key: jax.random.permutation(key, size[0] * size[1]))(
    jax.random.split(jax.random.key(0), 6)
  )
  x = pixels.reshape(2, 3, *size).transpose(0, 2, 3, 1).astype(dtype) - 20
  y, pull_back = jax.vjp(lambda x: max_pool(x, window, padding), x)
  expected, reference_pull_back = jax.vjp(
    lambda x: nn.max_pool(x, (window,) * 2, (2, 2), [(padding,) * 2] * 2), x
  )
  assert y.dtype == dtype
  np.testing.assert_array_equal(y, expected)
  dy = jax.random.randint(jax.random.key(1), y.shape, 1, 9).astype(dtype)
  dx, expected = pull_back(dy)[0], reference_pull_back(dy)[0]
  np.testing.assert_array_equal(dx, expected)
