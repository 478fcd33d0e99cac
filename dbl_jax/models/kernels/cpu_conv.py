"""Convolutions as chunked matrix products, for CPUs.

XLA's convolutions are slow on CPU, above all the gradient with respect to the
kernel (about 5 GFLOP/s, where matrix products reach 100). Here a convolution
gathers windows of its input and multiplies them by matrices derived from the
kernel. Of three forms the cheapest is chosen: `dense` for maps of a few pixels,
`winograd` for other 3x3 kernels with stride 1 and padding 1, `im2col` for the
rest. They process the batch in chunks whose windows fit in the cache.

All arithmetic is float32, since bfloat16 products are no faster on CPU.
"""

import jax.numpy as jnp
from jax import Array

from dbl_jax.models.kernels import chunks
from dbl_jax.models.kernels.dense import Dense
from dbl_jax.models.kernels.im2col import Im2Col
from dbl_jax.models.kernels.winograd import Winograd

Form = Dense | Im2Col | Winograd

# Size of the windows of a chunk, so that they and their products fit in the
# second-level cache. Each chunk also reads all matrices and updates their
# gradient, so its windows are at least twice as large as these.
CHUNK_BYTES = 2 << 20
# Cost of Winograd's transforms per output, in products. It only excludes first
# layers, which have 3 channels.
_TRANSFORM = 10


def forward(x: Array, kernel: Array, stride: int, padding: int) -> Array:
  """Convolves a batch of images.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, F].
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.

  Returns:
    [B, (H + 2 padding - K) // stride + 1, likewise for W, F], of x's dtype.
  """
  form = choose_form(x, kernel, stride, padding)
  matrices = form.matrices(kernel.astype(jnp.float32))

  def step(carry: None, chunk: Array) -> tuple[None, Array]:
    y = form.convolve(chunk.astype(jnp.float32), matrices)
    return carry, y.astype(x.dtype)

  return chunks.scan(step, None, x, _images_per_chunk(x, form, matrices))[1]


def backward(
  x: Array, kernel: Array, dy: Array, stride: int, padding: int
) -> tuple[Array, Array]:
  """Gradients of sum(dy * forward(x, kernel)) by x and by kernel.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, F].
    dy: like the output of `forward`.
    stride: as for `forward`.
    padding: as for `forward`.

  Returns:
    Gradients by x and by kernel, of their shapes and dtypes.
  """
  form = choose_form(x, kernel, stride, padding)
  matrices = form.matrices(kernel.astype(jnp.float32))

  def step(total: Array, chunk: tuple) -> tuple[Array, Array]:
    x_chunk, dy_chunk = (part.astype(jnp.float32) for part in chunk)
    total = total + form.matrices_gradient(x_chunk, dy_chunk)
    dx = form.convolve_transposed(dy_chunk, matrices)
    return total, dx.astype(x.dtype)

  total = jnp.zeros(matrices.shape, jnp.float32)
  size = _images_per_chunk(x, form, matrices)
  total, dx = chunks.scan(step, total, (x, dy), size)
  return dx, form.kernel_gradient(total).astype(kernel.dtype)


def choose_form(x: Array, kernel: Array, stride: int, padding: int) -> Form:
  """Chooses the cheapest form; arguments are those of `forward`."""
  forms: list[Form] = [
    Dense(x.shape, kernel.shape, stride, padding),
    Im2Col(x.shape, kernel.shape, stride, padding),
  ]
  if kernel.shape[:2] == (3, 3) and stride == padding == 1:
    forms += [Winograd(x.shape, kernel.shape, tile) for tile in (3, 4)]
  _, _, channels, features = kernel.shape

  def cost(form: Form) -> int:
    transforms = isinstance(form, Winograd) * _TRANSFORM * (channels + features)
    return form.products * (channels * features + transforms)

  return min(forms, key=cost)


def _images_per_chunk(x: Array, form: Form, matrices: Array) -> int:
  budget = max(CHUNK_BYTES, 2 * 4 * matrices.size)
  return chunks.images_per_chunk(x.shape[0], form.window_bytes, budget)
