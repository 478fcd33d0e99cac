"""Metric learning: losses on distances of embeddings or features.

Contrastive losses, center loss and the locality-preserving loss.
"""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from dbl_jax.losses import LossInputs, Value
from dbl_jax.runtime.options import integer, number

Temperature = Annotated[float, number(1e-3)]
Rate = Annotated[float, number(0, 1)]


def nt_xent(z: Array, temperature: float) -> Array:
  """Normalised temperature-scaled cross-entropy over pairs of views.

  Source: Chen et al. 2020, SimCLR; Fan et al. 2020, eq. (1)-(3). With rows
  2k-1 and 2k for the two views of example k,

    l(i, j) = -log exp(s_ij / tau) / sum_{m != i} exp(s_im / tau)
    L = 1/(2N) sum_k [l(2k-1, 2k) + l(2k, 2k-1)],

  where s is cosine similarity. No 2N x 2N matrix is stored.

  Args:
    z: f32[N, 2, D], embeddings of two views of each of N examples.
    temperature: tau > 0.

  Returns:
    f32[], the mean over all 2N views.
  """
  return loss_and_accuracy(z, temperature)[0]


def nt_xent_term(inputs: LossInputs, *, temperature: Temperature) -> Value:
  """Normalised temperature-scaled cross-entropy over pairs of views.

  Args:
    inputs: with embeddings f32[N, 2, D].
    temperature: divisor tau of the similarities.

  Returns:
    The loss and {'contrastive_accuracy': f32[]}, the share of views nearest to
    their positive. A tie is a miss, so that equal embeddings score 0.
  """
  loss, accuracy = loss_and_accuracy(inputs.embeddings, temperature)
  return loss, {"contrastive_accuracy": accuracy}


def sup_con(inputs: LossInputs, *, temperature: Temperature) -> Value:
  """Supervised contrastive loss: all views of a class are positives.

  Khosla et al. 2020, eq. (2), L_out: for view i with positives P(i), the other
  views of its class,

    L_i = -1/|P(i)| sum_{p in P(i)} log exp(s_ip / tau) /
          sum_{a != i} exp(s_ia / tau).

  Args:
    inputs: with embeddings f32[B, V, D], V at least 2.
    temperature: divisor tau of the similarities.

  Returns:
    The mean over all views and no metrics.
  """
  z, labels = _unit(_rows(inputs.embeddings)), _labels_of_rows(inputs)
  logits = _matmul(z, z.T) / temperature
  other = ~jnp.eye(len(z), dtype=bool)
  log_p = logits - _logsumexp(logits, other)
  positive = (labels[:, None] == labels[None]) & other
  return -_mean_where(log_p, positive).mean(), {}


def balanced_contrastive(
  inputs: LossInputs, *, temperature: Temperature
) -> Value:
  """Balanced contrastive loss (BCL): all classes count alike.

  Zhu et al. 2022, eq. (5): in the denominator each class's views count by
  their mean (class-averaging), and every class has a learned prototype in
  every batch (class-complement), so that no class is absent:

    L_i = -1/|B_y| sum_{p in B_y} log exp(s_ip / tau) /
          sum_j 1/|B_j| sum_{k in B_j} exp(s_ik / tau),

  where B_j holds the batch's views of class j and its prototype, without view
  i. The prototypes are parameters of the head (option `prototypes`); Zhu et al.
  derive them from a jointly trained classifier, which phase 1 of DBL lacks.

  Args:
    inputs: with embeddings f32[B, V, D] and prototypes f32[C, D].
    temperature: divisor tau of the similarities.

  Returns:
    The mean over all views and no metrics.
  """
  z, labels = _unit(_rows(inputs.embeddings)), _labels_of_rows(inputs)
  prototypes = _unit(inputs.prototypes)
  num_classes = len(prototypes)
  columns = jnp.concatenate([labels, jnp.arange(num_classes)])
  points = jnp.concatenate([z, prototypes])
  logits = _matmul(z, points.T) / temperature
  other = jnp.arange(len(columns))[None] != jnp.arange(len(z))[:, None]
  same = labels[:, None] == columns[None]
  members = jnp.bincount(columns, length=num_classes)[columns]
  # Without view i, its own class has one member less: at least its prototype.
  sizes = jnp.maximum(members[None] - same, 1).astype(jnp.float32)
  log_p = logits - _logsumexp(logits - jnp.log(sizes), other)
  return -_mean_where(log_p, same & other).mean(), {}


def center(inputs: LossInputs, centers: Array, *, rate: Rate = 0.5) -> Value:
  """Center loss: half the mean squared distance to the class's centre.

  Wen et al. 2016, eq. (2), over the M rows: 1/(2M) sum_i |x_i - c_{y_i}|^2.
  The centres are not learned by gradient; see `move_centers`. Rows of a class
  without a centre have loss 0: a centre at zero would shrink all features.

  Args:
    inputs: with features.
    centers: f32[C, F], zeros for a class without a centre.
    rate: step size of the centres, from 0 (fixed) to 1.

  Returns:
    The loss and no metrics.
  """
  del rate  # for the update
  labels = _labels_of_rows(inputs)
  away = _rows(inputs.features) - centers[labels]
  known = jnp.any(centers != 0, axis=1)[labels]
  return jnp.where(known, jnp.sum(away * away, axis=1), 0.0).mean() / 2, {}


def move_centers(
  inputs: LossInputs, centers: Array, *, rate: Rate = 0.5
) -> Array:
  """Updates the centres after a batch: Wen et al. 2016, eq. (4).

    c_j <- c_j - rate x sum_{y_i = j} (c_j - x_i) / (1 + |{i: y_i = j}|)

  The first centre of a class is the mean of its first rows. The centres are
  f32[C, F], before and after; `rate` is alpha of Wen et al.
  """
  one_hot = jax.nn.one_hot(_labels_of_rows(inputs), len(centers))
  count = one_hot.sum(axis=0)[:, None]
  total = _matmul(one_hot.T, _rows(inputs.features))
  moved = centers - rate * (count * centers - total) / (1 + count)
  known = jnp.any(centers != 0, axis=1, keepdims=True)
  return jnp.where(known, moved, total / jnp.maximum(count, 1))


def locality_preserving(
  inputs: LossInputs, *, neighbours: Annotated[int, integer(1)] = 20
) -> Value:
  """Locality-preserving loss of DLP-CNN, on distances to class neighbours.

  Li and Deng 2019, eq. (4) and (5): 1/2 |x_i - 1/k sum of its k nearest
  neighbours of the same class|^2, here averaged over the M rows. Neighbours
  come from the batch, fewer than k if it lacks others of the class. A row
  without neighbours has loss 0. As in eq. (5), gradients do not flow through
  the neighbours.

  Args:
    inputs: with features.
    neighbours: number k of neighbours.

  Returns:
    The loss and no metrics.
  """
  x, labels = _rows(inputs.features), _labels_of_rows(inputs)
  squares = jnp.sum(x * x, axis=1)
  distances = squares[:, None] + squares[None] - 2 * _matmul(x, x.T)
  peers = (labels[:, None] == labels[None]) & ~jnp.eye(len(x), dtype=bool)
  k = min(neighbours, len(x) - 1)
  nearness = jnp.where(peers, -distances, -jnp.inf)
  found, nearest = jax.lax.top_k(jax.lax.stop_gradient(nearness), k)
  chosen = (found > -jnp.inf).astype(x.dtype)
  count = chosen.sum(axis=1, keepdims=True)
  # As a product: gathering [M, k, F] would take k times the memory.
  rows = jnp.arange(len(x))[:, None]
  picked = jnp.zeros((len(x), len(x))).at[rows, nearest].add(chosen)
  mean = jax.lax.stop_gradient(_matmul(picked, x)) / jnp.maximum(count, 1)
  away = jnp.where(count > 0, x - mean, 0.0)
  return jnp.sum(away * away, axis=1).mean() / 2, {}


def _rows(values: Array) -> Array:
  """[B, V, ...] -> [B * V, ...], views of one example adjacent."""
  return values.reshape(-1, *values.shape[2:])


def _labels_of_rows(inputs: LossInputs) -> Array:
  """int32[B * V], the label of each row of `_rows`."""
  return jnp.repeat(inputs.labels, inputs.outputs.shape[1])


def _matmul(a: Array, b: Array) -> Array:
  """a @ b in full float32: low temperatures and differences magnify errors."""
  return jnp.matmul(a, b, precision="highest")


def _unit(z: Array) -> Array:
  """Normalises rows; an all-zero row stays zero and its gradient finite."""
  z = z.astype(jnp.float32)
  squares = jnp.sum(z * z, axis=-1, keepdims=True)
  return z * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def _logsumexp(logits: Array, where: Array) -> Array:
  return jax.nn.logsumexp(logits, axis=1, keepdims=True, where=where)


def _mean_where(values: Array, where: Array) -> Array:
  total = jnp.sum(values, axis=1, where=where)
  return total / jnp.maximum(where.sum(axis=1), 1)


# Rows per block. On two CPU cores 128 to 512 are equally fast.
_BLOCK = 256
# The axis of `distributed.make_mesh`.
_AXIS = "data"


def loss_and_accuracy(z: Array, temperature: float) -> tuple[Array, Array]:
  """Computes `nt_xent` and the share of views nearest to their positive.

  It runs in blocks of rows and does not overflow at any temperature. If the
  context mesh (`jax.set_mesh`) has several devices and N is divisible by their
  number, each computes the rows of its own examples.

  Returns:
    The loss, f32[], and the share, f32[] in 0..1. A tie is a miss.

  Raises:
    ValueError: if the number of views is not two.
  """
  if z.ndim != 3 or z.shape[1] != 2:
    raise ValueError(f"NT-Xent is over [N, 2, D], two views; got {z.shape}.")
  z = z.astype(jnp.float32)
  # Inside the root, so that an all-zero embedding has a finite gradient.
  squares = jnp.maximum(jnp.sum(z * z, axis=-1, keepdims=True), 1e-24)
  # Separate: the derivative of rsqrt(1e-24 * 0.01) overflows float32.
  rows = z * (jax.lax.rsqrt(squares) / jnp.sqrt(temperature))
  return _row_losses(rows.reshape(-1, z.shape[-1]))


@jax.custom_vjp
def _row_losses(rows: Array) -> tuple[Array, Array]:
  """Loss and share of hits of f32[2N, D], with partners in adjacent rows."""
  return _forward(rows)[0]


def _forward(rows: Array) -> tuple[Any, tuple[Array, Array]]:
  numbers = jnp.arange(len(rows))
  log_sums, losses, hits = _map_rows(_forward_row, (rows, numbers), (rows,))
  return (losses.mean(), hits.mean()), (rows, log_sums)


def _backward(residuals: tuple[Array, Array], cotangents: Any) -> tuple[Array]:
  rows, log_sums = residuals
  numbers = jnp.arange(len(rows))
  pulls = _map_rows(_backward_row, (rows, numbers, log_sums), (rows, log_sums))
  partners = rows.reshape(-1, 2, rows.shape[-1])[:, ::-1].reshape(rows.shape)
  return (cotangents[0] / len(rows) * (pulls - 2 * partners),)


_row_losses.defvjp(_forward, _backward)


def _forward_row(
  row: Array, number: Array, rows: Array
) -> tuple[Array, Array, Array]:
  """Logsumexp over all others, loss and hit of one row."""
  similarities = _matmul(row, rows.T)
  positive = similarities[number ^ 1]
  rest = similarities.at[number].set(-jnp.inf).at[number ^ 1].set(-jnp.inf)
  nearest = rest.max()
  top = jnp.maximum(nearest, positive)
  total = jnp.exp(rest - top).sum() + jnp.exp(positive - top)
  log_sum = top + jnp.log(total)
  # Compared, because argmax runs element by element on CPUs.
  hit = (positive > nearest).astype(jnp.float32)
  return log_sum, log_sum - positive, hit


def _backward_row(
  row: Array, number: Array, log_sum: Array, rows: Array, log_sums: Array
) -> Array:
  """Sum of all other rows, weighted by both softmax probabilities."""
  similarities = _matmul(row, rows.T).at[number].set(-jnp.inf)
  weights = jnp.exp(similarities - log_sum) + jnp.exp(similarities - log_sums)
  return _matmul(weights, rows)


def _map_rows(
  function: Callable[..., Any], rows: tuple[Any, ...], shared: tuple[Any, ...]
) -> Any:
  """Maps a function over rows in blocks; each device maps its own rows.

  The function takes entries of the arrays in `rows`, which have a leading axis
  over rows, and the arrays that all rows share; it returns a tree of arrays.
  """

  def local(rows: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
    return jax.lax.map(
      lambda row: function(*row, *shared), rows, batch_size=_BLOCK
    )

  mesh = jax.sharding.get_abstract_mesh()
  devices = mesh.shape.get(_AXIS, 1)
  # Both views of an example stay on one device.
  if devices == 1 or _AXIS in mesh.manual_axes or len(rows[0]) % (2 * devices):
    return local(rows, shared)
  split, everywhere = PartitionSpec(_AXIS), PartitionSpec()
  return jax.shard_map(local, in_specs=(split, everywhere), out_specs=split)(
    rows, shared
  )
