"""Faces with the seven basic expressions, drawn by this module's own code.

The default data set: no download, no image files, any size, any number of
images, and RAF-DB's long-tailed class proportions. A face is a vector of
FACS action units (what the expression is) and of nuisances (whose face, in
which light, seen by which camera). Expressions vary in strength, lose or
gain units and mix, so that neighbours (fear and surprise, disgust and anger,
sadness and neutral) are confusable as in real photographs.
"""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

from dbl_jax.data import face_features, face_scene

CLASS_NAMES = (
  'surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral',
)  # fmt: skip
RAF_DB_TRAIN_COUNTS = (1290, 281, 717, 4772, 1982, 705, 2524)
RAF_DB_TEST_COUNTS = (329, 74, 160, 1185, 478, 162, 680)

# Faces are made in fixed blocks of consecutive indices, whatever range is
# asked for: so a face does not depend on the range, and neither do the
# floating-point operations that draw it.
_BLOCK = 16
_STREAMS = {'train': 0, 'test': 1}

ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 25, 26, 43)
# Usual and second form of each class: action unit -> intensity. After the
# emotion predictions of EMFACS (Friesen and Ekman, 1983) and table 1 of the
# CK+ paper (Lucey et al., CVPR workshops 2010).
PROTOTYPES = (
  ({1: 1, 2: 1, 5: 0.9, 25: 0.6, 26: 0.9}, {1: 0.9, 2: 1, 5: 0.7, 25: 0.5, 26: 0.3}),
  ({1: 1, 2: 0.5, 4: 0.8, 5: 1, 20: 1, 25: 0.7, 26: 0.2}, {1: 0.9, 2: 0.6, 4: 0.7, 5: 0.9, 7: 0.3, 20: 0.7, 25: 0.7, 26: 0.6}),
  ({9: 1, 10: 0.6, 4: 0.5, 7: 0.5, 17: 0.6, 15: 0.4}, {9: 0.7, 10: 1, 4: 0.3, 6: 0.3, 25: 0.7, 26: 0.15}),
  ({6: 0.9, 12: 1, 25: 0.8}, {6: 0.6, 12: 0.9}),
  ({1: 1, 4: 0.7, 15: 1, 17: 0.5, 43: 0.35}, {1: 0.7, 4: 0.5, 15: 0.8, 17: 0.9, 43: 0.6}),
  ({4: 1.1, 5: 0.4, 7: 0.7, 17: 0.4, 23: 1}, {4: 1.1, 5: 0.3, 7: 0.7, 10: 0.7, 20: 0.3, 23: 0.4, 25: 1, 26: 0.4}),
  ({}, {25: 0.3}),
)  # fmt: skip

# Uniform ranges of identity, pose, light and camera. Lengths are in units of
# half the image, angles in radians.
RANGES = {
  'scale': (1.0, 1.22), 'roll': (-0.20, 0.20),
  'shift_x': (-0.07, 0.07), 'shift_y': (-0.07, 0.07),
  'yaw': (-0.17, 0.17), 'pitch': (-0.08, 0.08),
  'head_w': (0.56, 0.66), 'chin': (0.74, 0.84), 'taper': (0.20, 0.48),
  'eye_x': (0.245, 0.285), 'eye_y': (-0.12, -0.07), 'eye_w': (0.135, 0.165),
  'eye_tilt': (-0.12, 0.06), 'lid': (0.34, 0.47), 'gaze_x': (-0.2, 0.2),
  'gaze_y': (-0.08, 0.06), 'brow_x': (0.25, 0.28), 'brow_y': (-0.32, -0.27),
  'brow_w': (0.15, 0.19), 'brow_t': (0.020, 0.042), 'arch': (0.0, 0.035),
  'brow_dense': (0.7, 1.0), 'nose_y': (0.13, 0.18), 'nose_w': (0.085, 0.125),
  'mouth_y': (0.40, 0.45), 'mouth_w': (0.205, 0.255), 'lip_t': (0.032, 0.058),
  'mouth_bias': (-0.04, 0.01), 'asym': (-0.3, 0.3), 'age': (0.0, 0.6),
  'rosy': (0.0, 0.25), 'hairline': (-0.62, -0.42), 'parting': (-0.45, 0.45),
  'sideburn': (0.2, 0.55), 'fringe': (0.0, 0.04), 'fringe_f': (5.0, 22.0),
  'hair_top': (0.0, 0.08), 'hair_full': (1.06, 1.28), 'light_x': (-0.4, 0.4),
  'light_y': (-0.4, 0.05), 'ambient': (0.35, 0.7), 'gain': (0.75, 1.15),
  'contrast': (0.8, 1.1), 'fall_x': (-0.15, 0.15), 'fall_y': (-0.1, 0.1),
  'noise': (0.0, 0.022), 'bg_fx': (-9.0, 9.0), 'bg_fy': (-9.0, 9.0),
  'bg_phase': (0.0, 6.28), 'bg_wave': (0.0, 0.35), 'bg_angle': (0.0, 6.28),
  'disc_x': (-1.1, 1.1), 'disc_y': (-1.1, 1.1), 'disc_r': (0.1, 0.6),
  'bar_at': (-1.2, 1.2), 'bar_w': (0.0, 0.2), 'lens_w': (0.17, 0.20),
  'lens_h': (0.13, 0.17), 'rim_w': (0.010, 0.022), 'scarf_y': (0.48, 0.68),
  'hand_angle': (0.0, 6.28), 'hand_at': (0.42, 0.75),
  'hand_along': (-0.4, 0.4),
}  # fmt: skip


def long_tailed_counts(n: int, profile: Sequence[int]) -> np.ndarray:
  """Splits n images over classes in a profile's proportions.

  Args:
    n: number of images, at least the number of classes.
    profile: relative class frequencies, each positive.

  Returns:
    int64[C] counts, each at least 1, that sum to n (largest remainders).

  Raises:
    ValueError: n is smaller than the number of classes.
  """
  profile = np.asarray(profile, np.float64)
  if n < len(profile):
    raise ValueError(
      f'{n} images cannot cover {len(profile)} classes; ask for at least '
      f'{len(profile)}.'
    )
  share = profile / profile.sum() * n
  counts = np.maximum(np.floor(share), 1).astype(np.int64)
  # Raising a rare class to 1 can overshoot: then the largest pays.
  while counts.sum() > n:
    counts[np.argmax(counts)] -= 1
  order = np.argsort(counts - share, kind='stable')
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
  """
  profile = {'train': RAF_DB_TRAIN_COUNTS, 'test': RAF_DB_TEST_COUNTS}[split]
  counts = long_tailed_counts(num_images, profile)
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  stream = _STREAMS[split]
  # Block numbers never reach this one, so the order is a stream of its own.
  _generator(seed, stream, 2**63).shuffle(labels)
  return render(labels, seed, image_size, stream=stream), labels


def _generator(seed: int, stream: int, block: int) -> np.random.Generator:
  key = np.array([seed, stream], np.uint64)
  counter = np.array([0, 0, 0, block], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _draw_block(
  labels: np.ndarray, rng: np.random.Generator, size: int
) -> np.ndarray:
  au, p = _expression(labels, rng), _nuisances(rng)
  noise = rng.standard_normal((_BLOCK, 3, size, size), np.float32)
  f = face_scene.frame_of(p, size)
  g = face_features.shape(p, au)
  face_scene.background(f, p)
  head = face_scene.body(f, p, au)
  face_features.folds(f, p, au, g)
  face_features.beard(f, p)
  face_features.nose(f, p, au, g)
  face_features.eyes(f, p, g)
  face_features.mouth(f, p, g)
  face_features.brows(f, p, g)
  face_scene.hair_front(f, p, head)
  face_scene.accessories(f, p)
  return face_scene.camera(f.rgb, p, noise)


def _expression(labels: np.ndarray, rng: np.random.Generator) -> dict:
  """Action unit -> float32[B, 1, 1] intensity of each face of a block."""
  table = np.zeros((len(PROTOTYPES), 2, len(ACTION_UNITS)), np.float32)
  for (c, forms), k in itertools.product(enumerate(PROTOTYPES), range(2)):
    for unit, intensity in forms[k].items():
      table[c, k, ACTION_UNITS.index(unit)] = intensity
  shape = (_BLOCK, len(ACTION_UNITS))
  form = (rng.random(_BLOCK) < 0.35).astype(int)
  strength = rng.uniform(0.5, 1.15, _BLOCK)
  weak = rng.random(_BLOCK) < 0.10
  strength = np.where(weak, 0.45 * strength, strength)[:, None]
  gains = rng.uniform(0.65, 1.25, shape) * (rng.random(shape) > 0.08)
  other = table[rng.integers(len(PROTOTYPES), size=_BLOCK), 0]
  mixed = (rng.random(_BLOCK) < 0.12) * rng.uniform(0.15, 0.45, _BLOCK)
  stray = rng.uniform(0, 0.35, shape) * (rng.random(shape) < 0.12)
  au = strength * gains * table[labels, form]
  au = np.clip(au + mixed[:, None] * other + stray, 0, 1.3).astype(np.float32)
  return {
    unit: au[:, k, None, None] for k, unit in enumerate(ACTION_UNITS)
  }


def _nuisances(rng: np.random.Generator) -> SimpleNamespace:
  """Identity, pose, light, surroundings and camera of a block's faces."""
  p = SimpleNamespace()
  for name, (low, high) in RANGES.items():
    setattr(p, name, _plane(rng.uniform(low, high, _BLOCK)))
  chance = {name: rng.random(_BLOCK) for name in (
    'bald', 'long', 'hat', 'beard', 'glasses', 'dark', 'scarf', 'hand',
    'fingers', 'grey', 'blur', 'lipstick', 'dyed',
  )}  # fmt: skip
  amount = {name: rng.random(_BLOCK) for name in ('beard', 'blur', 'lip')}
  p.haired = _plane(chance['bald'] > 0.06)
  p.hair_len = _plane(np.where(chance['long'] < 0.4, 1.6, 0.55))
  p.beard = _plane((chance['beard'] < 0.2) * (0.25 + 0.6 * amount['beard']))
  p.glasses = _plane(chance['glasses'] < 0.16)
  p.lens_dark = p.glasses * _plane(np.where(chance['dark'] < 0.15, 0.85, 0.08))
  p.scarf = _plane(chance['scarf'] < 0.05)
  p.hand = _plane(chance['hand'] < 0.12)
  p.fingers = _plane(chance['fingers'] < 0.6)
  p.grey = _plane(chance['grey'] < 0.12)
  p.blur = _plane(
    (chance['blur'] < 0.25) * (0.006 + (face_scene.BLUR_MAX - 0.006) * amount['blur'])
  )
  p.bg_cos, p.bg_sin = np.cos(p.bg_angle), np.sin(p.bg_angle)
  p.hand_cos, p.hand_sin = np.cos(p.hand_angle), np.sin(p.hand_angle)
  _colours(p, rng, chance, amount)
  return p


def _colours(p: SimpleNamespace, rng: np.random.Generator, chance, amount):
  """Adds the colours, float32[B, 3, 1, 1] each, to a block's nuisances."""
  for name in ('bg_first', 'bg_second', 'disc_colour', 'bar_colour', 'cloth',
               'frame_colour', 'hand_colour', 'cast', 'wild'):  # fmt: skip
    setattr(p, name, rng.random((_BLOCK, 3, 1, 1), np.float32))
  p.cast = 0.92 + 0.16 * p.cast
  for name in ('bg_first', 'bg_second', 'disc_colour', 'bar_colour', 'cloth',
               'wild'):  # fmt: skip
    colour = getattr(p, name)
    dull = colour.mean(1, keepdims=True) * 0.9
    setattr(p, name, dull + 0.5 * (colour - dull))
  p.frame_colour = 0.45 * p.frame_colour
  p.skin = face_scene.palette(face_scene.SKIN, rng.random(_BLOCK) ** 1.4)
  p.hair = face_scene.palette(face_scene.HAIR, rng.random(_BLOCK) ** 1.3)
  hat = _plane(chance['hat'] < 0.06)
  wild = np.maximum(hat, _plane(chance['dyed'] < 0.03))[:, None]
  p.brow_colour = 0.75 * p.hair * (0.35 + 0.65 * p.skin)
  p.hair = p.hair + wild * (p.wild - p.hair)
  p.iris = face_scene.palette(face_scene.IRIS, rng.random(_BLOCK))
  rouge = _plane(0.2 + 0.3 * amount['lip'])[:, None]
  rouge = rouge + 0.4 * _plane(chance['lipstick'] < 0.15)[:, None]
  red = np.float32([0.72, 0.16, 0.20])[None, :, None, None]
  p.lip = 0.88 * p.skin + rouge * (red - 0.88 * p.skin)
  p.hand_colour = np.where(p.fingers[:, None] > 0, p.skin * 0.95, p.hand_colour)
  p.eye_white = np.float32([0.97, 0.96, 0.94])[None, :, None, None]
  p.teeth = np.float32([0.96, 0.94, 0.88])[None, :, None, None]
  p.tongue = np.float32([0.72, 0.30, 0.32])[None, :, None, None]
  p.mouth_dark = np.float32([0.20, 0.06, 0.07])[None, :, None, None]


def _plane(values: np.ndarray) -> np.ndarray:
  return np.asarray(values, np.float32)[:, None, None]
