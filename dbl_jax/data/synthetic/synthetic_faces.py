"""Faces with the seven basic expressions, drawn by this module's own code.

The default data set: no download, no image files, any size, any number of
images, and RAF-DB's long-tailed class proportions. A face is a vector of
FACS action units (what the expression is) and of nuisances (whose face, in
which light, seen by which camera). Expressions vary in strength, lose or
gain units and mix, so that neighbours (fear and surprise, disgust and anger,
sadness and neutral) are confusable as in real photographs.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dbl_jax.data.synthetic import face_features, face_parameters, face_scene
from dbl_jax.errors import UserError

CLASS_NAMES = (
  'surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral',
)  # fmt: skip
RAF_DB_TRAIN_COUNTS = (1290, 281, 717, 4772, 1982, 705, 2524)
RAF_DB_TEST_COUNTS = (329, 74, 160, 1185, 478, 162, 680)

# Faces are made in fixed blocks of consecutive indices, whatever range is
# asked for: so a face does not depend on the range, and neither do the
# floating-point operations that draw it.
_BLOCK = 8
# Split -> stream of faces, class frequencies.
_SPLITS = {"train": (0, RAF_DB_TRAIN_COUNTS), "test": (1, RAF_DB_TEST_COUNTS)}


def long_tailed_counts(n: int, profile: Sequence[int]) -> np.ndarray:
  """Splits n images over classes in a profile's proportions.

  Args:
    n: number of images, at least the number of classes.
    profile: relative class frequencies, each positive.

  Returns:
    int64[C] counts, each at least 1, that sum to n (largest remainders).

  Raises:
    UserError: n is smaller than the number of classes.
  """
  if n < len(profile):
    raise UserError(
      f"{n} images cannot cover {len(profile)} classes; ask for at least "
      f"{len(profile)}."
    )
  share = np.asarray(profile, np.float64) / np.sum(profile) * n
  counts = np.maximum(np.floor(share), 1).astype(np.int64)
  # Raising a rare class to 1 can overshoot: then the largest pays.
  while counts.sum() > n:
    counts[np.argmax(counts)] -= 1
  order = np.argsort(counts - share, kind="stable")
  counts[order[: n - counts.sum()]] += 1
  return counts


def render(
  labels: np.ndarray,
  seed: int,
  image_size: int,
  start: int = 0,
  stream: int = 0,
) -> np.ndarray:
  """Draws one face per label.

  Args:
    labels: int[n] classes in the order of `CLASS_NAMES`.
    seed: picks the faces, with `stream`.
    image_size: side S in pixels.
    start: index of the first face. Face i of the result depends only on
      seed, stream, start + i, labels[i] and image_size.
    stream: independent series of faces of one seed.

  Returns:
    uint8[n, S, S, 3] RGB.
  """
  labels = np.asarray(labels, np.int64)
  images = np.empty((len(labels), image_size, image_size, 3), np.uint8)

  def draw(block):
    first = block * _BLOCK - start
    kept = slice(max(first, 0), min(first + _BLOCK, len(labels)))
    inside = slice(kept.start - first, kept.stop - first)
    # Faces of the block outside the range are drawn too, and thrown away.
    padded = np.zeros(_BLOCK, np.int64)
    padded[inside] = labels[kept]
    rng = _generator(seed, stream, block)
    images[kept] = _draw_block(padded, rng, image_size)[inside]

  blocks = range(start // _BLOCK, -(-(start + len(labels)) // _BLOCK))
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(draw, blocks))
  return images


def make_split(
  split: str, num_images: int, image_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """A long-tailed split of drawn faces in shuffled order.

  Args:
    split: 'train' or 'test'; the two share no face.
    num_images: size n of the split.
    image_size: side S in pixels.
    seed: picks faces and order.

  Returns:
    images uint8[n, S, S, 3] and labels int32[n].

  Raises:
    UserError: the split is unknown, or smaller than the number of classes.
  """
  if split not in _SPLITS:
    raise UserError(
      f"Drawn faces have no split {split!r}; choose one of "
      f"{', '.join(_SPLITS)}."
    )
  stream, profile = _SPLITS[split]
  counts = long_tailed_counts(num_images, profile)
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  # Block numbers never reach this one, so the order is a stream of its own.
  _generator(seed, stream, 2**63).shuffle(labels)
  return render(labels, seed, image_size, stream=stream), labels


def _generator(seed: int, stream: int, block: int) -> np.random.Generator:
  key = np.array([seed, stream], np.uint64)
  counter = np.array([0, 0, 0, block], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _draw_block(
  labels: np.ndarray, rng: np.random.Generator, image_size: int
) -> np.ndarray:
  au = face_parameters.expression(labels, rng)
  p = face_parameters.nuisances(len(labels), rng)
  # Noise is drawn last, so a person stays the same at any size.
  shape = (len(labels), 3, image_size, image_size)
  noise = rng.standard_normal(shape, np.float32)
  f = face_scene.frame_of(p, image_size)
  face_scene.background(f, p)
  head = face_scene.body(f, p, au)
  face_features.draw(f, p, au)
  face_scene.hair_front(f, p, head)
  face_scene.accessories(f, p)
  return face_scene.camera(f.rgb, p, noise)
