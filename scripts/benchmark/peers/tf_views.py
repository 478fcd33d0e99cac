"""Input by tf.data, in the style of google-research/simclr.

Written anew after what Chen et al. 2020, appendix A, and that project say of
it: each image is cropped, flipped and recoloured in a parallel map, twice;
then the batch is blurred as a whole and the blur kept for half of its images.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: work ('augment' or 'plain'), and the family."""
  tf.config.set_visible_devices([], "GPU")
  tf.random.set_seed(0)
  rows = {"augment": _views, "plain": _plain}[settings["work"]](settings)
  box: list[Iterator[Any]] = []

  def begin() -> None:
    box.append(iter(rows))
    for _ in range(8):  # drops prefetched batches
      next(box[-1])

  def run() -> None:
    for _ in range(settings["batches_per_call"]):
      next(box[-1])

  images = settings["batches_per_call"] * settings["batch"]
  return {
    "run": run,
    "begin": begin,
    "end": box.clear,
    "units": images * (2 if settings["work"] == "augment" else 1),
    "facts": {
      "set": {"num_parallel_calls": settings["workers"], "prefetch": "autotune"}
    },
  }


def _plain(settings: dict[str, Any]) -> tf.data.Dataset:
  """f32[N, S, S, 3] without augmentation."""
  return (
    _images(settings)
    .map(_to_float, num_parallel_calls=settings["workers"])
    .batch(settings["batch"], drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def _views(settings: dict[str, Any]) -> tf.data.Dataset:
  """Two views of N images, f32[N, S, S, 6]."""

  def two(image: tf.Tensor) -> tf.Tensor:
    image = _to_float(image)
    return tf.concat([_view(image, settings) for _ in range(2)], axis=-1)

  return (
    _images(settings)
    .map(two, num_parallel_calls=settings["workers"])
    .batch(settings["batch"], drop_remainder=True)
    .map(lambda batch: _blur(batch, settings))
    .prefetch(tf.data.AUTOTUNE)
  )


def _images(settings: dict[str, Any]) -> tf.data.Dataset:
  count, size = settings["images"], settings["size"]
  images = np.random.default_rng(0).integers(
    256, size=(count, size, size, 3), dtype=np.uint8
  )
  images = tf.data.Dataset.from_tensor_slices(images)
  return images.shuffle(count, seed=0).repeat()


def _to_float(image: tf.Tensor) -> tf.Tensor:
  return tf.image.convert_image_dtype(image, tf.float32)


def _view(image: tf.Tensor, settings: dict[str, Any]) -> tf.Tensor:
  """One view of f32[S, S, 3], but for the blur."""
  size = settings["size"]
  start, extent, _ = tf.image.sample_distorted_bounding_box(
    tf.shape(image),
    bounding_boxes=tf.zeros((1, 0, 4)),
    aspect_ratio_range=(3 / 4, 4 / 3),
    area_range=tuple(settings["crop_scale"]),
    use_image_if_no_bounding_boxes=True,
  )
  image = tf.image.resize(
    tf.slice(image, start, extent), (size, size), tf.image.ResizeMethod.BICUBIC
  )
  image = tf.image.random_flip_left_right(
    tf.ensure_shape(image, [size] * 2 + [3])
  )
  jittered = lambda: _jitter(image, settings["jitter_strength"])  # noqa: E731
  image = _sometimes(settings["jitter_prob"], jittered, image)
  grey = tf.image.rgb_to_grayscale
  image = _sometimes(
    settings["grey"], lambda: tf.tile(grey(image), (1, 1, 3)), image
  )
  return tf.clip_by_value(image, 0.0, 1.0)


def _sometimes(
  probability: float, change: Callable[[], tf.Tensor], image: tf.Tensor
) -> tf.Tensor:
  return tf.cond(tf.random.uniform(()) < probability, change, lambda: image)


def _jitter(image: tf.Tensor, strength: float) -> tf.Tensor:
  """Brightness, contrast, saturation and hue in random order."""
  reach = 0.8 * strength
  low, high = 1 - reach, 1 + reach
  changes = [
    lambda x: x * tf.random.uniform((), low, high),
    lambda x: tf.image.random_contrast(x, low, high),
    lambda x: tf.image.random_saturation(x, low, high),
    lambda x: tf.image.random_hue(x, 0.2 * strength),
  ]
  order = tf.random.shuffle(tf.range(4))
  for place in range(4):
    branches = [lambda x=image, change=change: change(x) for change in changes]
    image = tf.clip_by_value(tf.switch_case(order[place], branches), 0.0, 1.0)
  return image


def _blur(batch: tf.Tensor, settings: dict[str, Any]) -> tf.Tensor:
  """Blurs both views of f32[N, S, S, 6], each image with a probability."""
  radius = settings["size"] // 20
  reach = tf.range(-radius, radius + 1, dtype=tf.float32)
  blurred = []
  for view in tf.split(batch, 2, axis=-1):
    sigma = tf.random.uniform((), *settings["blur_sigma"])
    taps = tf.exp(-tf.square(reach / sigma) / 2)
    taps = tf.tile(
      (taps / tf.reduce_sum(taps))[:, None, None, None], (1, 1, 3, 1)
    )
    soft = view
    for kernel in (taps, tf.transpose(taps, (1, 0, 2, 3))):
      soft = tf.nn.depthwise_conv2d(soft, kernel, (1, 1, 1, 1), "SAME")
    chosen = tf.random.uniform((tf.shape(view)[0], 1, 1, 1)) < settings["blur"]
    blurred.append(tf.where(chosen, soft, view))
  return tf.clip_by_value(tf.concat(blurred, axis=-1), 0.0, 1.0)
