"""Face detection by MTCNN, in NumPy and Pillow.

Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded
Convolutional Networks". A small network proposes boxes at every position of
the photo in several sizes; two larger ones reject and refine them, and the last
finds five landmarks. A dense layer is a convolution of the size of its input,
so each network is a list of convolutions.
"""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Sides of the max-pooling after the first layers.
POOLS = {"pnet": (2,), "rnet": (3, 3), "onet": (3, 3, 2)}
SIZES = {"rnet": 24, "onet": 48}  # of their inputs, in pixels
# Low at first, as tilted faces score well only after they are turned upright.
THRESHOLDS = {"pnet": 0.6, "rnet": 0.5, "onet": 0.4}
FINAL_THRESHOLD = 0.7
MIN_FACE = 40  # height in pixels of the smallest face searched for
CELL, STRIDE = 12, 2  # receptive field and stride of the first network
PYRAMID_FACTOR = 0.709  # area halves from level to level
# Sides of a photo during the search, and of the black border around it, which
# helps with faces that fill a picture. In pixels.
SHORTEST, LONGEST, BORDER = 160, 1280, 32
# Tried in turn while no face is found, in degrees counterclockwise.
TURNS = (0, 30, -30, 60, -60, 90, -90, 180)
# Landmarks of an upright face in the input of the last network, as fractions.
UPRIGHT = ((0.335, 0.4), (0.705, 0.4), (0.52, 0.61), (0.37, 0.79), (0.69, 0.79))
_BILINEAR = Image.Resampling.BILINEAR


@dataclasses.dataclass(frozen=True)
class Face:
  """A face in a photo. Coordinates are in pixels, from the upper left corner.

  Attributes:
    box: left, top, right, bottom; may reach beyond the photo.
    score: confidence of the detector, from 0 to 1.
    landmarks: f32[5, 2], x and y of the eyes, the nose and the corners of the
      mouth; of each pair the left one in the photo is first.
  """

  box: tuple[float, ...]
  score: float
  landmarks: np.ndarray


def detect(
  photo: Image.Image, turns: tuple[int, ...] = TURNS, longest: int = LONGEST
) -> list[Face]:
  """Finds faces of at least 40 pixels.

  The search runs on a copy that is at most `longest` pixels long, and at least
  160 high and wide where that allows it. It is turned until a face is found.

  Args:
    photo: RGB.
    turns: angles in degrees to try until a face is found.
    longest: longest side of the copy, in pixels.

  Returns:
    The faces by descending height.
  """
  enlarged = min(1, min(photo.size) / SHORTEST)
  shrink = max(enlarged, max(photo.size) / longest)
  size = [max(1, round(side / shrink)) for side in photo.size]
  small = photo.resize(size, _BILINEAR, reducing_gap=2.0)
  small = ImageOps.expand(small, BORDER)
  for angle in turns:
    turned = small.rotate(angle, _BILINEAR, expand=True)
    boxes, scores, points = _cascade(np.asarray(turned))
    if len(boxes):
      back = _rotation(angle, turned.size, small.size)
      back = shrink * (back - [[0, 0, BORDER]])
      boxes, points = _moved_boxes(back, boxes), _moved(back, points)
      break
  found = [
    Face(tuple(map(float, box)), float(score), landmarks.astype(np.float32))
    for box, score, landmarks in zip(boxes, scores, points, strict=True)
  ]
  return sorted(found, key=lambda face: face.box[1] - face.box[3])


def warp(
  pixels: np.ndarray, matrix: np.ndarray, size: int, sharpness: float = 1.0
) -> np.ndarray:
  """Cuts a square out of a photo by an affine map.

  Beyond the photo its border is repeated.

  Args:
    pixels: uint8[H, W, 3].
    matrix: f64[2, 3], maps (x, y, 1) of the square to x, y in the photo.
    size: side of the square in pixels.
    sharpness: 1 avoids aliasing; with s, a photo that is larger by up to the
      factor s is sampled without smoothing.

  Returns:
    uint8[size, size, 3].
  """
  corners = matrix[:, :2] @ (size * np.array([[0, 1, 0, 1], [0, 0, 1, 1]]))
  corners += matrix[:, 2:]
  low = np.floor(corners.min(axis=1)).astype(int) - 1
  high = np.ceil(corners.max(axis=1)).astype(int) + 1
  columns, rows = (
    np.arange(low[i], high[i]).clip(0, pixels.shape[1 - i] - 1) for i in (0, 1)
  )
  patch = Image.fromarray(pixels[rows[:, None], columns])
  shrink = _scale(matrix) / sharpness
  if shrink > 1:
    sides = [max(1, round(side / shrink)) for side in patch.size]
    patch = patch.resize(sides, _BILINEAR, reducing_gap=2.0)
  scale = np.divide(patch.size, high - low)[:, None]
  inside = np.hstack([matrix[:, :2], matrix[:, 2:] - low[:, None]]) * scale
  return np.asarray(
    patch.transform(
      (size, size), Image.Transform.AFFINE, tuple(inside.ravel()), _BILINEAR
    )
  )


def similarity(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The rotation, scaling and shift that fits points to targets best.

  Least squares without reflection (Umeyama 1991), with points as complex
  numbers: targets = a * points + b. Points, [n, 2], must not all be equal.

  Returns:
    f64[2, 3], maps (x, y, 1) to x, y.
  """
  z, w = (np.asarray(p, np.float64) @ [1, 1j] for p in (points, targets))
  centred = z - z.mean()
  a = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred)
  b = w.mean() - a * z.mean()
  return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


# Boxes f64[n, 4], scores f32[n], landmarks f64[n, 5, 2].
_Found = tuple[np.ndarray, ...]


def _cascade(pixels: np.ndarray) -> _Found:
  """Faces in a photo that are upright or somewhat tilted.

  Unlike in MTCNN the last network runs twice: the second time on the faces,
  turned upright by the landmarks of the first. On faces tilted by up to 30
  degrees this more than halves the error of the landmarks.
  """
  boxes = _propose(pixels)
  for name in ("rnet", "onet"):
    found = _refine(name, pixels, _crops(boxes, SIZES[name]))
    found = _kept(found, THRESHOLDS[name], 0.7, nested=name == "onet")
    boxes = _squares(found[0])
  targets = SIZES["onet"] * np.array(UPRIGHT)
  maps = [similarity(targets, points) for points in found[2]]
  found = _refine("onet", pixels, np.reshape(maps, (-1, 2, 3)))
  return _kept(found, FINAL_THRESHOLD, 0.5, nested=True)


def _refine(name: str, pixels: np.ndarray, maps: np.ndarray) -> _Found:
  """Runs a network on squares of a photo, given as maps f64[n, 2, 3]."""
  size, count = SIZES[name], len(maps)
  if not count:
    return np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
  patches = [warp(pixels, one, size, sharpness=3.0) for one in maps]
  outputs = run(name, np.stack(patches))[:, 0, 0]
  boxes = size * (outputs[:, 1:5] + [0, 0, 1, 1])
  points = size * outputs[:, 5:].reshape(count, 2, -1).transpose(0, 2, 1)
  return (
    np.concatenate(
      [_moved_boxes(m, b[None]) for m, b in zip(maps, boxes, strict=True)]
    ),
    _sigmoid(outputs[:, 0]),
    np.stack([_moved(m, p) for m, p in zip(maps, points, strict=True)]),
  )


def _crops(boxes: np.ndarray, size: int) -> np.ndarray:
  """Maps from a square of a size to each square box: f64[n, 2, 3]."""
  maps = np.zeros((len(boxes), 2, 3))
  maps[:, 0, 0] = maps[:, 1, 1] = (boxes[:, 2] - boxes[:, 0]) / size
  maps[:, :, 2] = boxes[:, :2]
  return maps


def _scale(matrix: np.ndarray) -> float:
  return math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def _moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Points [..., 2] mapped by f64[2, 3]."""
  return points @ matrix[:, :2].T + matrix[:, 2]


def _moved_boxes(matrix: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Boxes f64[n, 4] mapped by a similarity; they stay upright."""
  centre = _moved(matrix, (boxes[:, :2] + boxes[:, 2:]) / 2)
  half = _scale(matrix) * (boxes[:, 2:] - boxes[:, :2]) / 2
  return np.hstack([centre - half, centre + half])


def _propose(pixels: np.ndarray) -> np.ndarray:
  """Square boxes f64[n, 4] that may hold faces."""
  image, scale = Image.fromarray(pixels), CELL / MIN_FACE
  levels: list[_Found] = [(np.zeros((0, 4)), np.zeros(0))]
  while min(image.size) * scale >= CELL:
    size = [round(side * scale) for side in image.size]
    level = np.asarray(image.resize(size, _BILINEAR, reducing_gap=2.0))
    outputs = run("pnet", level[None])[0]
    scores = _sigmoid(outputs[..., 0])
    y, x = np.nonzero(scores > THRESHOLDS["pnet"])
    boxes = STRIDE * np.stack([x, y, x, y], axis=1)
    boxes = boxes + [0, 0, CELL, CELL] + CELL * outputs[y, x, 1:5]
    levels.append(_kept((boxes / scale, scores[y, x]), 0, 0.5, nested=False))
    scale *= PYRAMID_FACTOR
  every = tuple(map(np.concatenate, zip(*levels, strict=True)))
  return _squares(_kept(every, 0, 0.7, nested=False)[0])


@functools.cache
def layers(name: str) -> list[tuple[np.ndarray, ...]]:
  """Kernel f32[k, k, in, out], bias and slope f32[out] of each layer."""
  path = Path(__file__).with_name("mtcnn.npz")
  with path.open("rb") as file, np.load(file) as arrays:
    count = sum(key.startswith(f"{name}_") for key in arrays) // 3
    parts = ("kernel", "bias", "slope")
    return [
      tuple(arrays[f"{name}_{i}_{p}"].astype(np.float32) for p in parts)
      for i in range(count)
    ]


def run(name: str, images: np.ndarray) -> np.ndarray:
  """Runs a network on uint8[n, H, W, 3].

  Returns:
    f32[n, h, w, 5 or 15]: logit of a face, four offsets of the box as parts of
    its side and, of the last network, x of five landmarks, then y.
  """
  x = (images.astype(np.float32) - 127.5) / 128
  for i, (kernel, bias, slope) in enumerate(layers(name)):
    x = _convolve(x, kernel) + bias
    x = np.maximum(x, 0) + slope * np.minimum(x, 0)
    if i < len(POOLS[name]):
      x = _max_pool(x, POOLS[name][i])
  return x


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
  """Convolution without padding: one product with all windows as rows."""
  side, _, _, out = kernel.shape
  n, height, width = (x.shape[0], x.shape[1] - side + 1, x.shape[2] - side + 1)
  shifts = itertools.product(range(side), repeat=2)
  windows = [x[:, i : i + height, j : j + width] for i, j in shifts]
  rows = np.concatenate(windows, axis=-1).reshape(n * height * width, -1)
  return (rows @ kernel.reshape(-1, out)).reshape(n, height, width, out)


def _max_pool(x: np.ndarray, side: int) -> np.ndarray:
  """Maxima of windows at every second pixel; the last one may be cut off."""
  extra = [(length - side) % STRIDE for length in x.shape[1:3]]
  x = np.pad(x, ((0, 0), *((0, e) for e in extra), (0, 0)), mode="edge")
  end = [length - side + 1 for length in x.shape[1:3]]
  shifts = itertools.product(range(side), repeat=2)
  windows = (
    x[:, i : end[0] + i : STRIDE, j : end[1] + j : STRIDE] for i, j in shifts
  )
  return functools.reduce(np.maximum, windows)


def _kept(
  found: _Found, threshold: float, overlap: float, nested: bool
) -> _Found:
  """Non-maximum suppression of boxes with a score above a threshold.

  If the intersection of two boxes exceeds the part `overlap` of their union (of
  the smaller box, if nested), the one with the lower score is left out.

  Takes boxes f64[n, 4], scores f32[n] and any others [n, ...]; returns the rows
  that remain, by descending score.
  """
  boxes, scores = found[:2]
  areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  order, kept = np.argsort(-scores, kind="stable"), []
  order = order[scores[order] > threshold]
  while len(order):
    first, rest = order[0], order[1:]
    kept.append(first)
    low = np.maximum(boxes[first, :2], boxes[rest, :2])
    high = np.minimum(boxes[first, 2:], boxes[rest, 2:])
    common = np.maximum(high - low, 0).prod(axis=1)
    whole = areas[first] + areas[rest] - common
    if nested:
      whole = np.minimum(areas[first], areas[rest])
    order = rest[common <= overlap * whole]
  return tuple(part[np.array(kept, int)] for part in found)


def _squares(boxes: np.ndarray) -> np.ndarray:
  """Boxes grown about their centres to squares of their longer side."""
  centre = (boxes[:, :2] + boxes[:, 2:]) / 2
  half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
  return np.hstack([centre - half, centre + half])


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return 1 / (1 + np.exp(-x))


def _rotation(
  angle: float, turned: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
  """Maps points in a photo turned by `Image.rotate` back: f64[2, 3]."""
  cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
  linear = np.array([[cos, -sin], [sin, cos]])
  offset = np.array(size) / 2 - linear @ (np.array(turned) / 2)
  return np.hstack([linear, offset[:, None]])
