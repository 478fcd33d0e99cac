"""From a model and a part of the data to metrics."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dbl_jax import metrics, sharding
from dbl_jax.data.prepared import Part

_BATCH_SIZE = 256

# uint8[n, S, S, 3] -> features f32[n, F], outputs f32[n, K]
Forward = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def make_forward(
  eval_step: Callable[..., tuple[jax.Array, ...]],
  variables: Any,
  mesh: jax.sharding.Mesh,
  seen: Callable[[int], None] = lambda done: None,
) -> Callable[..., tuple[np.ndarray, ...]]:
  """Runs a compiled step over any number of rows.

  The last batch is padded to the size of the others and the padding dropped
  again, so that every row counts once and nothing is compiled twice.

  Args:
    eval_step: compiled, of (variables, *batches), with outputs on every
      device; see `compiled`.
    variables: its first argument.
    mesh: the devices.
    seen: told how many rows are done, after each batch.

  Returns:
    A function of arrays [n, ...], giving what the step gives for all rows.
  """
  placement = sharding.batched(mesh)
  size = sharding.padded_size(_BATCH_SIZE, mesh)

  def padded(rows: np.ndarray) -> jax.Array:
    padding = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
    return sharding.put(np.concatenate([rows, padding]), placement)

  def forward(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    done = []
    for start in range(0, len(arrays[0]), size):
      batch = [array[start : start + size] for array in arrays]
      outputs = jax.device_get(eval_step(variables, *map(padded, batch)))
      done.append([output[: len(batch[0])] for output in outputs])
      seen(start + len(batch[0]))
    return tuple(map(np.concatenate, zip(*done, strict=True)))

  return forward


def compiled(
  eval_step: Callable[..., tuple[jax.Array, ...]], mesh: jax.sharding.Mesh
) -> Callable[..., tuple[jax.Array, ...]]:
  """A step for `make_forward`: jitted, its outputs whole on every device."""
  return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def head_scores(
  forward: Forward, train: Part, images: np.ndarray, num_classes: int
) -> np.ndarray:
  """Scores of the classifier head: its logits, f32[n, C]."""
  del train, num_classes
  return forward(images)[1]


def knn_scores(
  forward: Forward,
  train: Part,
  images: np.ndarray,
  num_classes: int,
  neighbours: int = 20,
  temperature: float = 0.1,
) -> np.ndarray:
  """Scores of a weighted kNN probe on the encoder's features.

  Each of the k nearest training images by cosine similarity s votes for its
  class with exp(s / temperature) (Wu et al. 2018, section 3.4).

  Args:
    forward: see `make_forward`.
    train: training part, whose features are the bank.
    images: uint8[n, S, S, 3].
    num_classes: C.
    neighbours: k, at most the size of the training part.
    temperature: of the votes.

  Returns:
    f32[n, C], the votes.
  """
  bank = _unit(forward(train.images)[0])
  features = _unit(forward(images)[0])
  k = min(neighbours, len(bank))
  scores = np.zeros((len(images), num_classes), np.float32)
  for start in range(0, len(features), 1024):
    rows = slice(start, start + 1024)
    similar = features[rows] @ bank.T
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    votes = np.exp(np.take_along_axis(similar, nearest, 1) / temperature)
    ballot = train.labels[nearest][:, :, None] == np.arange(num_classes)
    scores[rows] = (votes[:, :, None] * ballot).sum(axis=1)
  return scores


def _unit(features: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(norms, 1e-12)


PREDICTORS: dict[str, Callable[..., np.ndarray]] = {
  "head": head_scores,
  "knn": knn_scores,
}


def evaluate(
  predictor: str,
  forward: Forward,
  train: Part,
  part: Part,
  class_names: tuple[str, ...],
) -> dict[str, Any]:
  """Metrics of a model on a part of the data.

  Args:
    predictor: name in `PREDICTORS`.
    forward: see `make_forward`.
    train: training part, the bank of the kNN probe.
    part: the images to classify.
    class_names: C names in the order of the labels.

  Returns:
    As `metrics.summarise`.
  """
  scores = PREDICTORS[predictor](forward, train, part.images, len(class_names))
  confusion = metrics.confusion_matrix(
    part.labels, scores.argmax(axis=1), len(class_names)
  )
  return metrics.summarise(confusion, class_names)
