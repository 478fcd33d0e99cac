"""Canvas, surroundings, head, hair, accessories and camera of drawn faces.

Coordinates are head units: the image spans [-1, 1] in x (right) and y (down)
before the pose is undone. In every function `p` is a block's nuisances and
`au` its expression (see `faces`). A plane is float32[B, S, S], a
per-image parameter float32[B, 1, 1], a colour float32[B, 3, 1, 1] in [0, 1].
"""

import dataclasses
from types import SimpleNamespace

import numpy as np

# Named parameters of a block, float32[B, 1, 1] or float32[B, 3, 1, 1].
Values = SimpleNamespace
# Action unit -> its intensity on each face, float32[B, 1, 1].
ActionUnits = dict[int, np.ndarray]

# Largest blur sigma as a fraction of the image size.
BLUR_MAX = 0.016


@dataclasses.dataclass
class Frame:
  """Pixels of a block (or of a window of it) and where they lie on the face.

  Attributes:
    rgb: float32[B, 3, h, w] canvas in [0, 1], painted in place.
    x, y: planes, head coordinates with roll, scale and shift undone.
    u, v: planes, coordinates on the turned face (yaw and pitch undone too).
    pixel: size of a pixel in head units.
  """

  rgb: np.ndarray
  x: np.ndarray
  y: np.ndarray
  u: np.ndarray
  v: np.ndarray
  pixel: float

  def rows(self, first: float, last: float) -> "Frame":
    """A view of the rows between two fractions of the image height."""
    size = self.x.shape[1]
    part = slice(int(first * size), int(np.ceil(last * size)))
    x, y, u, v = (a[:, part] for a in (self.x, self.y, self.u, self.v))
    return Frame(self.rgb[:, :, part], x, y, u, v, self.pixel)

  def fill(self, distance: np.ndarray) -> np.ndarray:
    """Anti-aliased coverage of {distance > 0}; distance in head units."""
    mask = distance * np.float32(1 / self.pixel)
    mask += np.float32(0.5)
    return np.clip(mask, 0, 1, out=mask)

  def stroke(
    self, distance: np.ndarray, width: float | np.ndarray
  ) -> np.ndarray:
    """A soft line of the given width, fainter where thinner than a pixel."""
    wide = np.sqrt(np.square(width) + (0.6 * self.pixel) ** 2)
    return (width / wide) * np.exp(-np.square(distance / wide))

  def paint(self, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lays a colour over the canvas with a mask's opacity."""
    self.rgb += mask[:, None] * (colour - self.rgb)

  def darken(self, amount: np.ndarray) -> None:
    """Darkens skin; blood keeps the red up, so red falls less."""
    for channel, weight in enumerate((0.72, 0.96, 1.0)):
      self.rgb[:, channel] *= 1 - np.float32(weight) * amount


def frame_of(p: Values, size: int) -> Frame:
  """Undoes each image's pose on the pixel grid."""
  grid = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(
    np.float32
  )
  x, y = grid[None, None, :] - p.shift_x, grid[None, :, None] - p.shift_y
  cos, sin = np.cos(p.roll) / p.scale, np.sin(p.roll) / p.scale
  x, y = cos * x + sin * y, cos * y - sin * x
  # A feature moves with its depth: most in the middle of the face.
  depth = np.maximum(1 - np.square(x / 0.66) - np.square(y / 0.85), 0)
  rgb = np.zeros((len(x), 3, size, size), np.float32)
  return Frame(rgb, x, y, x - p.yaw * depth, y - p.pitch * depth, 2 / size)


def background(f: Frame, p: Values) -> None:
  """Two-colour gradient, waves, a soft disc and a slanted bar."""
  blend = 0.5 + 0.4 * (p.bg_cos * f.x + p.bg_sin * f.y)
  blend += p.bg_wave * np.sin(p.bg_fx * f.x + p.bg_fy * f.y + p.bg_phase)
  f.rgb[:] = p.bg_first + np.clip(blend, 0, 1)[:, None] * (
    p.bg_second - p.bg_first
  )
  disc = np.sqrt(np.square(f.x - p.disc_x) + np.square(f.y - p.disc_y))
  f.paint(0.8 * f.fill((p.disc_r - disc) * 0.4), p.disc_colour)
  bar = np.abs(p.bg_sin * f.x - p.bg_cos * f.y - p.bar_at)
  f.paint(0.7 * f.fill(p.bar_w - bar), p.bar_colour)


def _head_field(f: Frame, p: Values, au: ActionUnits) -> np.ndarray:
  """Plane that is 0 at the head's centre, 1 on its outline (elliptic)."""
  jaw = np.maximum(f.y, 0)
  tall = np.where(f.y > 0, p.chin * (1 + 0.15 * au[26]), np.float32(0.80))
  wide = p.head_w * (1 - p.taper * np.square(jaw))
  across, along = np.square(f.x / wide), np.square(f.y / tall)
  # The cross term squares the skull off; the jaw stays an oval.
  cross = np.where(f.y > 0, np.float32(0.12), np.float32(0.42))
  return np.sqrt(np.maximum(across + along - cross * across * along, 0))


def body(f: Frame, p: Values, au: ActionUnits) -> np.ndarray:
  """Shoulders, back hair, neck, ears and the lit head; returns the head."""
  low = f.rows(0.5, 1)
  shoulder = 0.78 + 0.55 * np.square(low.x) + 0.03 * p.chin
  cloth = low.fill(low.y - shoulder)
  head = _head_field(f, p, au)
  long = np.where(f.y > 0, p.hair_len, np.float32(0.86))
  back = np.square(f.x / (p.head_w * p.hair_full)) + np.square(f.y / long)
  f.paint(f.fill((1 - np.sqrt(back)) * 0.6) * p.haired, p.hair * 0.72)
  low.paint(cloth, p.cloth)
  neck = low.fill(0.30 - np.abs(low.x)) * low.fill(0.93 - low.y)
  shadow = np.clip(1.25 * (low.y - 0.35), 0.42, 0.8)
  low.paint(neck, p.skin * shadow[:, None])
  mx = np.abs(f.x) - p.head_w - 0.015
  ear = np.square(mx / 0.075) + np.square((f.y + 0.02) / 0.15)
  inner = 0.62 + 0.25 * np.clip(ear, 0, 1)
  f.paint(f.fill((1 - np.sqrt(ear)) * 0.09), p.skin * inner[:, None])
  nz = np.sqrt(np.clip(1.02 - np.square(head), 0.02, 1))
  lit = p.light_x * f.x * 1.5 + p.light_y * f.y * 1.1 + (0.9 * nz + 0.1)
  lit = np.clip(p.ambient + (1 - p.ambient) * lit, 0.25, 1.12)
  f.paint(f.fill((1 - head) * 0.62), p.skin * lit[:, None])
  return head


def hair_front(f: Frame, p: Values, head: np.ndarray) -> None:
  """Hair over the forehead: parting, fringe, sideburns, strands; or a hat."""
  sides = np.square(np.square(f.x / p.head_w))
  line = p.hairline + p.parting * f.x + p.sideburn * sides
  line += p.fringe * np.sin(p.fringe_f * f.x + p.bg_phase)
  across = np.square(f.x / (p.head_w * (1.04 + 0.06 * p.hair_full)))
  along = np.square(f.y / (0.86 + p.hair_top))
  crown = 1 - np.sqrt(np.maximum(across + along - 0.5 * across * along, 0))
  mask = f.fill(np.minimum(crown * 0.7, line - f.y)) * p.haired
  comb = f.x * (1.2 - 0.5 * f.y) + p.parting * f.y
  strand = 0.92 + 0.05 * np.sin(41 * comb + 3 * np.sin(4 * f.y + p.bg_phase))
  strand += 0.06 * np.sin(17 * comb + p.bg_fx)
  gloss = 0.32 * np.exp(
    -np.square((f.y + 0.70) / 0.09) - np.square((f.x - 0.7 * p.light_x) / 0.3)
  )
  f.paint(mask, p.hair * (strand + gloss)[:, None])
  # The hair's own shadow on the forehead sets it off from the skin.
  below = np.clip(1 - (f.y - line) / 0.07, 0, 1) * (f.y > line) * (head < 1)
  f.darken(0.22 * below * p.haired)


def accessories(f: Frame, p: Values) -> None:
  """Glasses, a hand or bar before the face, a scarf: each on a few faces."""
  up = f.rows(0.1, 0.75)
  m = np.abs(up.u)
  lens = np.square((m - p.eye_x) / p.lens_w)
  lens = np.sqrt(lens + np.square((up.v - p.eye_y - 0.02) / p.lens_h))
  inside = up.fill((1 - lens) * p.lens_h)
  up.paint(inside * p.lens_dark, p.frame_colour)
  rim = up.fill(p.rim_w - np.abs(lens - 1) * p.lens_h)
  level = np.abs(up.v - p.eye_y + 0.02)
  bridge = up.fill(p.rim_w - level) * (m < p.eye_x - 0.9 * p.lens_w)
  temple = up.fill(p.rim_w - level) * (m > p.eye_x + p.lens_w)
  temple *= np.abs(up.x) < p.head_w
  up.paint(np.maximum(np.maximum(rim, bridge), temple) * p.glasses,
           p.frame_colour)  # fmt: skip
  low = f.rows(0.5, 1)
  edge = p.scarf_y + 0.10 * np.square(low.x) + 0.03 * np.sin(6 * low.x)
  knit = 0.85 + 0.2 * np.sin(40 * low.y + 3 * np.sin(9 * low.x))
  low.paint(low.fill(low.y - edge) * p.scarf, p.cloth * knit[:, None])
  # Fingers are the bar's long axis cut by periodic grooves.
  a = p.hand_cos * f.x + p.hand_sin * f.y - p.hand_at
  b = p.hand_cos * f.y - p.hand_sin * f.x - p.hand_along
  groove = np.abs(np.sin(19 * b))
  tip = a - 0.05 * (1 - groove) * p.fingers
  mask = f.fill(np.minimum(tip, 0.33 - np.abs(b))) * p.hand
  relief = 1 - p.fingers * 0.35 * (1 - np.sqrt(groove))
  f.paint(mask, p.hand_colour * relief[:, None])


def camera(rgb: np.ndarray, p: Values, noise: np.ndarray) -> np.ndarray:
  """Takes the picture: light, colour cast, grey, blur, noise and contrast.

  Args:
    rgb: float32[B, 3, S, S] painted canvas.
    p: nuisances of the block.
    noise: float32[B, 3, S, S] standard normal.

  Returns:
    uint8[B, S, S, 3].
  """
  size = rgb.shape[-1]
  grid = np.linspace(-1, 1, size, dtype=np.float32)
  ramp = 1 + p.fall_x * grid[None, None, :] + p.fall_y * grid[None, :, None]
  rgb = rgb * (p.gain[:, None] * p.cast * ramp[:, None])
  grey = 0.30 * rgb[:, :1] + 0.59 * rgb[:, 1:2] + 0.11 * rgb[:, 2:]
  rgb += p.grey[:, None] * (grey - rgb)
  soft = np.flatnonzero(p.blur.ravel() > 0)
  if soft.size:
    rgb[soft] = _blur(rgb[soft], p.blur.ravel()[soft] * size)
  rgb += p.noise[:, None] * noise
  rgb = 0.5 + p.contrast[:, None] * (rgb - 0.5)
  return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _blur(rgb: np.ndarray, sigma: np.ndarray) -> np.ndarray:
  """Separable Gaussian of a sigma (in pixels) per image."""
  reach = max(1, int(np.ceil(2.5 * BLUR_MAX * rgb.shape[-1])))
  taps = np.arange(-reach, reach + 1)
  weights = np.exp(-0.5 * np.square(taps[None] / sigma[:, None]))
  weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
  for axis in (2, 3):
    pad = [(0, 0)] * 4
    pad[axis] = (reach, reach)
    wide, length = np.pad(rgb, pad, mode="edge"), rgb.shape[axis]
    rgb = np.zeros_like(rgb)
    for tap in range(2 * reach + 1):
      window = [slice(None)] * 4
      window[axis] = slice(tap, tap + length)
      rgb += weights[:, tap, None, None, None] * wide[tuple(window)]
  return rgb
