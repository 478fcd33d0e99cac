"""Faces with the seven basic expressions, drawn by code.

The default data set: no download, no image files, any size, any number of
images, and the long-tailed class proportions of RAF-DB. A face is a vector of
FACS action units (the expression) and of nuisances (identity, light, camera).
Expressions vary in strength, lose or gain units and mix, so that neighbours
(fear and surprise, disgust and anger, sadness and neutral) are confusable as
in real photographs.

All parameters of a block of B faces come from one random generator, in an
order that does not depend on the labels: the label changes the expression and
leaves the identity, the picture and the other faces unchanged.
"""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dbl_jax.data import sampling
from dbl_jax.data import synthetic_scene as scene
from dbl_jax.data.datasets import RAF_DB_COUNTS, RAF_DB_NAMES
from dbl_jax.data.synthetic_scene import ActionUnits, Values
from dbl_jax.errors import UserError

# Part of the data set's fingerprint. Raise it when the pixels change.
VERSION = 1
CLASS_NAMES = RAF_DB_NAMES

# Faces are drawn in fixed blocks of consecutive indices, so that a face, and
# the floating-point operations that draw it, do not depend on how many are.
_BLOCK = 8
# Split -> random stream.
_STREAMS = {"train": 0, "test": 1}

_ACTION_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 25, 26, 43)
# Usual and second form of each class: action unit -> intensity. After the
# emotion predictions of EMFACS (Friesen and Ekman, 1983) and table 1 of the
# CK+ paper (Lucey et al., CVPR workshops 2010).
_PROTOTYPES: tuple[tuple[dict[int, float], dict[int, float]], ...] = (
  # surprise
  ({1: 1, 2: 1, 5: 0.9, 25: 0.6, 26: 0.9},
   {1: 0.9, 2: 1, 5: 0.7, 25: 0.5, 26: 0.35}),
  # fear
  ({1: 1, 2: 0.5, 4: 0.8, 5: 1, 20: 1, 25: 0.7, 26: 0.2},
   {1: 0.9, 2: 0.6, 4: 0.7, 5: 0.9, 7: 0.3, 20: 0.7, 25: 0.7, 26: 0.6}),
  # disgust
  ({4: 0.5, 7: 0.5, 9: 0.95, 10: 0.7, 15: 0.4, 17: 0.6},
   {4: 0.3, 6: 0.3, 9: 0.6, 10: 1, 25: 0.7, 26: 0.15}),
  # happiness
  ({6: 0.9, 12: 1, 25: 0.8}, {6: 0.6, 12: 0.9}),
  # sadness
  ({1: 1, 4: 0.7, 15: 1, 17: 0.5, 43: 0.35},
   {1: 0.7, 4: 0.5, 15: 0.8, 17: 0.9, 43: 0.6}),
  # anger
  ({4: 1.2, 5: 0.4, 7: 0.7, 17: 0.4, 23: 1},
   {4: 1.2, 5: 0.3, 7: 0.7, 10: 0.5, 20: 0.3, 23: 0.4, 25: 1, 26: 0.4}),
  # neutral
  ({}, {25: 0.2}),
)  # fmt: skip

# Uniform ranges of identity, pose, light and camera: lengths in units of half
# the image, angles in radians.
_RANGES = {
  'scale': (1.5, 1.75), 'roll': (-0.15, 0.15),
  'shift_x': (-0.06, 0.06), 'shift_y': (-0.18, -0.06),
  'yaw': (-0.15, 0.15), 'pitch': (-0.06, 0.06),
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

# Probability of properties that only some faces have.
_CHANCES = {
  'bald': 0.06, 'long': 0.4, 'hat': 0.06, 'dyed': 0.03, 'beard': 0.2,
  'lipstick': 0.15, 'glasses': 0.16, 'sunglasses': 0.15, 'scarf': 0.03,
  'hand': 0.08, 'fingers': 0.6, 'grey': 0.12, 'blur': 0.15,
}  # fmt: skip

# Palettes; the colour of a face lies between two neighbours.
_Palette = tuple[tuple[int, int, int], ...]
_SKIN: _Palette = (
  (255, 222, 196), (241, 200, 166), (222, 170, 128), (186, 130, 92),
  (140, 92, 62), (98, 64, 46),
)  # fmt: skip
_HAIR: _Palette = (
  (24, 20, 20), (52, 36, 28), (98, 64, 38), (142, 74, 38), (206, 170, 104),
  (148, 146, 144), (222, 214, 204),
)  # fmt: skip
_IRIS: _Palette = ((52, 32, 20), (96, 60, 32), (92, 104, 60), (84, 122, 152))


def long_tailed_counts(n: int, profile: Sequence[int]) -> np.ndarray:
  """Distributes n images over classes in the proportions of a profile.

  Args:
    n: number of images, at least the number of classes.
    profile: relative class frequencies, each positive.

  Returns:
    int64[C] counts, each at least 1, that sum to n (largest remainders).

  Raises:
    UserError: if n is smaller than the number of classes.
  """
  if n < len(profile):
    raise UserError(
      f"{n} images cannot cover {len(profile)} classes; ask for at least"
      f" {len(profile)}."
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
  stream: int = 0,
  rows: range | None = None,
) -> np.ndarray:
  """Draws one face per label, or those of some rows.

  Face i depends only on seed, stream, i, labels[i] and image_size: streams of
  one seed are independent.

  Args:
    labels: int[n], classes in the order of `CLASS_NAMES`.
    seed, stream: pick the faces.
    image_size: side S in pixels.
    rows: which of the n faces to draw; None is all of them.

  Returns:
    uint8[n, S, S, 3], RGB.
  """
  rows = range(len(labels)) if rows is None else rows
  first, last = rows.start // _BLOCK, -(-rows.stop // _BLOCK)
  # Blocks are drawn whole, and the excess is discarded.
  shape = ((last - first) * _BLOCK, image_size, image_size, 3)
  images = np.empty(shape, np.uint8)
  labels = np.pad(labels, (0, _BLOCK))

  def draw(block: int) -> None:
    inside = labels[block * _BLOCK : (block + 1) * _BLOCK]
    rng = sampling.philox(seed, 0, stream, block)
    place = (block - first) * _BLOCK
    images[place : place + _BLOCK] = _draw_block(inside, rng, image_size)

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    list(pool.map(draw, range(first, last)))
  return images[rows.start - first * _BLOCK :][: len(rows)]


def make_split(
  split: str,
  num_images: int,
  image_size: int,
  seed: int,
  rows: range | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a long-tailed split, 'train' or 'test', in shuffled order.

  Returns:
    Images uint8[n, S, S, 3] and labels int32[n], of the rows; see `render`.

  Raises:
    UserError: if the split is smaller than the number of classes.
  """
  stream = _STREAMS[split]
  counts = long_tailed_counts(num_images, RAF_DB_COUNTS[split])
  labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  # Block numbers never reach this one, so the order has its own stream.
  sampling.philox(seed, 0, stream, 2**63).shuffle(labels)
  rows = range(num_images) if rows is None else rows
  images = render(labels, seed, image_size, stream, rows)
  return images, labels[rows.start : rows.stop]


def _draw_block(
  labels: np.ndarray, rng: np.random.Generator, image_size: int
) -> np.ndarray:
  au = _expression(labels, rng)
  p = _nuisances(len(labels), rng)
  # Noise is drawn last, so that identity does not depend on the size.
  shape = (len(labels), 3, image_size, image_size)
  noise = rng.standard_normal(shape, np.float32)
  f = scene.frame_of(p, image_size)
  scene.background(f, p)
  head = scene.body(f, p, au)
  scene.features(f, p, au)
  scene.hair_front(f, p, head)
  scene.accessories(f, p)
  return scene.camera(f.rgb, p, noise)


def _expression(labels: np.ndarray, rng: np.random.Generator) -> ActionUnits:
  """Draws the intensity, 0 to 1.3, of each action unit of each face."""
  table = np.zeros((len(_PROTOTYPES), 2, len(_ACTION_UNITS)))
  for (c, forms), k in itertools.product(enumerate(_PROTOTYPES), range(2)):
    for unit, intensity in forms[k].items():
      table[c, k, _ACTION_UNITS.index(unit)] = intensity
  size, shape = len(labels), (len(labels), len(_ACTION_UNITS))
  form = (rng.random(size) < 0.35).astype(int)
  strength = rng.uniform(0.85, 1.3, size)
  strength *= np.where(rng.random(size) < 0.08, 0.5, 1)
  # Units vary on their own and now and then one is missing, ...
  gains = rng.uniform(0.65, 1.25, shape) * (rng.random(shape) > 0.05)
  au = strength[:, None] * gains * table[labels, form]
  # ... some faces mix in a second emotion, and a stray unit may move.
  other = table[rng.integers(len(_PROTOTYPES), size=size), 0]
  mixed = rng.uniform(0.15, 0.4, size) * (rng.random(size) < 0.08)
  stray = rng.uniform(0, 0.3, shape) * (rng.random(shape) < 0.08)
  au = np.clip(au + mixed[:, None] * other + stray, 0, 1.3)
  return {unit: _plane(au[:, k]) for k, unit in enumerate(_ACTION_UNITS)}


def _nuisances(size: int, rng: np.random.Generator) -> Values:
  """Draws all parameters of the pictures of B faces but their expressions.

  Returns:
    Namespace of float32[B, 1, 1] values, one per entry of `_RANGES` and of
    `_CHANCES` and a few more, and of float32[B, 3, 1, 1] colours in [0, 1].
  """
  p = Values()
  for name, (low, high) in _RANGES.items():
    setattr(p, name, _plane(rng.uniform(low, high, size)))
  for name, chance in _CHANCES.items():
    setattr(p, name, _plane(rng.random(size) < chance))
  p.haired = 1 - p.bald
  p.hair_len = 0.55 + 1.05 * p.long
  p.beard = p.beard * _plane(rng.uniform(0.25, 0.85, size))
  p.lens_dark = p.glasses * (0.08 + 0.77 * p.sunglasses)
  p.blur = p.blur * _plane(rng.uniform(0.006, scene.BLUR_MAX, size))
  p.bg_cos, p.bg_sin = np.cos(p.bg_angle), np.sin(p.bg_angle)
  p.hand_cos, p.hand_sin = np.cos(p.hand_angle), np.sin(p.hand_angle)
  _surroundings(p, size, rng)
  _complexion(p, size, rng)
  return p


def _surroundings(p: Values, size: int, rng: np.random.Generator) -> None:
  """Adds the colours of backdrop, clothes, glasses and light."""
  for name in ('bg_first', 'bg_second', 'disc_colour', 'bar_colour', 'cloth',
               'dye', 'object_colour'):  # fmt: skip
    colour = rng.random((size, 3, 1, 1), np.float32)
    # Half the saturation: cloth and walls are seldom pure red or green.
    grey = colour.mean(1, keepdims=True)
    setattr(p, name, 0.45 * grey + 0.5 * colour)
  p.frame_colour = 0.45 * rng.random((size, 3, 1, 1), np.float32)
  p.cast = 0.92 + 0.16 * rng.random((size, 3, 1, 1), np.float32)


def _complexion(p: Values, size: int, rng: np.random.Generator) -> None:
  """Adds the colours of skin, hair, eyes, mouth and hand."""
  # Powers above 1 favour the start of a palette.
  p.skin = _palette(_SKIN, rng.random(size) ** 1.4)
  p.hair = _palette(_HAIR, rng.random(size) ** 1.3)
  p.brow_colour = 0.75 * p.hair * (0.35 + 0.65 * p.skin)
  dyed = np.maximum(p.hat, p.dyed)[:, None]
  p.hair = p.hair + dyed * (p.dye - p.hair)
  p.iris = _palette(_IRIS, rng.random(size))
  rouge = _plane(rng.uniform(0.2, 0.5, size)) + 0.4 * p.lipstick
  p.lip = 0.88 * p.skin
  p.lip = p.lip + rouge[:, None] * (_rgb(0.72, 0.16, 0.20) - p.lip)
  p.hand_colour = np.where(
    p.fingers[:, None] > 0, 0.95 * p.skin, p.object_colour
  )
  p.eye_white = _rgb(0.97, 0.96, 0.94)
  p.teeth = _rgb(0.96, 0.94, 0.88)
  p.tongue = _rgb(0.72, 0.30, 0.32)
  p.mouth_dark = _rgb(0.20, 0.06, 0.07)


def _palette(colours: _Palette, place: np.ndarray) -> np.ndarray:
  """Colours float32[B, 3, 1, 1] at fractional places in [0, 1]."""
  stops = np.linspace(0, 1, len(colours))
  channels = [np.interp(place, stops, c) / 255 for c in np.transpose(colours)]
  return np.stack(channels, 1).astype(np.float32)[:, :, None, None]


def _plane(values: np.ndarray) -> np.ndarray:
  return np.asarray(values, np.float32)[:, None, None]


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
  return np.array([red, green, blue], np.float32)[None, :, None, None]
