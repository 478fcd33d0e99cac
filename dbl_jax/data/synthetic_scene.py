"""How faces are drawn: canvas, surroundings, head, features and camera.

Coordinates are head units: the image spans [-1, 1] in x (right) and y (down)
before the pose is undone. In every function `p` is a block's nuisances and
`au` its expression (see `synthetic`). A plane is float32[B, S, S], a
per-image parameter float32[B, 1, 1], a colour float32[B, 3, 1, 1] in [0, 1].

Numbers of action units are FACS's: 1 and 2 raise the inner and outer brow, 4
lowers and knits the brows, 5 raises the upper lid, 6 raises the cheek, 7
tightens the lids, 9 wrinkles the nose, 10 raises the upper lip, 12 pulls and 15
depresses the lip corners, 17 raises the chin, 20 stretches and 23 tightens the
lips, 25 parts them, 26 drops the jaw, 43 closes the eyes.
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


def features(f: Frame, p: Values, au: ActionUnits) -> None:
  """Paints folds, nose, eyes, brows, beard and mouth onto the bare head.

  Their geometry, `g`, is made from nuisances and expression.
  """
  g = Values(nose_y=p.nose_y - 0.035 * au[9] - 0.01 * au[10])
  _upper_geometry(g, p, au)
  _mouth_geometry(g, p, au)
  _upper_folds(f.rows(0.05, 0.75), p, au, g)
  _lower_folds(f.rows(0.3, 1), p, au, g)
  _cheeks(f, p, au)
  _beard(f.rows(0.4, 1), p)
  _nose(f.rows(0.2, 0.85), p, au, g)
  _eyes(f.rows(0.1, 0.78), p, g)
  _mouth(f.rows(0.42, 1), p, g)
  _brows(f.rows(0, 0.7), p, g)


def _upper_geometry(g: Values, p: Values, au: ActionUnits) -> None:
  # Together with 4, unit 1 wins: the inner brow goes up, not down.
  lowered = au[4] * (1 - 0.65 * np.clip(au[1], 0, 1)) + 0.35 * au[9]
  g.inner = 0.145 * au[1] - 0.145 * lowered
  g.outer = 0.135 * au[2] - 0.015 * lowered - 0.03 * au[1] * (1 - au[2])
  g.brow_y = p.brow_y - 0.5 * (g.inner + g.outer)
  g.brow_x = p.brow_x - 0.035 * au[4]
  # The brow pulls the lid along: inner corners up in grief, down in anger.
  g.lid_slant = 0.65 * lowered - 0.35 * au[1] * (1 - np.clip(au[2], 0, 1))
  narrow = 1 - 0.42 * au[7] - 0.30 * au[6] - 0.30 * au[9] - 0.55 * au[43]
  g.lid_up = np.clip(p.lid * narrow + 0.46 * au[5], 0.03, 1.0)
  squint = 1 - 0.55 * au[7] - 0.60 * au[6] - 0.40 * au[9] - 0.2 * au[43]
  g.lid_low = np.clip(0.33 * squint + 0.14 * au[5], 0.02, 0.6)


def _mouth_geometry(g: Values, p: Values, au: ActionUnits) -> None:
  g.mouth_y = p.mouth_y - 0.02 * (au[9] + au[10] + au[17])
  widen = 0.36 * au[12] + 0.34 * au[20] + 0.12 * au[10]
  purse = 0.08 * au[17] + 0.10 * au[23] + 0.20 * au[26]
  g.mouth_w = p.mouth_w * (1 + widen - purse)
  # The lips' line is a parabola; depressed corners bend down at the end.
  g.corner = (
    p.mouth_bias - 0.125 * au[12] + 0.045 * au[15] + 0.02 * (au[17] + au[23])
  )
  g.corner_end = 0.075 * au[15] + 0.025 * au[20]
  gape = 0.29 * au[26] + au[25] * (0.045 + 0.05 * (au[12] + au[20]))
  g.open_up = 0.22 * gape + 0.035 * au[10] * au[25]
  g.open_low = 0.78 * gape + 0.045 * au[12] * au[25]
  g.square_lips = np.clip(0.9 * au[20] + 0.5 * au[10] + 0.5 * au[23], 0, 1)
  thin = np.clip(1 - 0.70 * au[23] - 0.25 * au[12] - 0.2 * au[20], 0.15, 1)
  g.lip_up = p.lip_t * thin
  g.lip_bottom = 1.35 * p.lip_t * thin * (1 + 0.25 * au[17])
  g.lip_low = g.mouth_y + g.open_low + g.lip_bottom
  bared = np.clip(au[12] + au[20] + au[10] + 0.4, 0, 1) * (au[25] > 0.25)
  g.teeth = np.clip(0.5 * g.open_up + 0.055 - 0.03 * au[26], 0, 1) * bared
  g.low_teeth = 0.035 * np.clip(au[20] + au[23], 0, 1) * (au[25] > 0.4)


def _upper_folds(f: Frame, p: Values, au: ActionUnits, g: Values) -> None:
  """Forehead, glabella, sockets, bags, crow's feet and nose wrinkles."""
  m, v, s = np.abs(f.u), f.v, np.square
  raised = np.clip(0.5 * (au[1] + au[2]), 0, 1) + 0.05 * p.age
  fade = np.clip(1.25 - m / 0.34, 0, 1) * (0.42 * raised)
  arch = v + 0.25 * s(f.u) - g.brow_y
  dark = fade * (f.stroke(arch + 0.15, 0.022) + f.stroke(arch + 0.235, 0.02))
  knit = 0.65 * np.clip(au[4] + 0.5 * au[9], 0, 1)
  between = f.stroke(m - 0.05, 0.022) * f.stroke(v - g.brow_y - 0.05, 0.10)
  dark += knit * between
  ex, ey = m - p.eye_x, v - p.eye_y
  dark += 0.17 * np.exp(-s(ex / 0.19) - s((ey + 0.05) / 0.12))
  bag = np.clip(0.04 + 0.25 * p.age + 0.6 * au[6] + 0.4 * au[7], 0, 0.7)
  reach = np.clip(2.5 - np.abs(ex) / 0.07, 0, 1)
  dark += 0.6 * bag * reach * f.stroke(ey - 0.12 + 0.9 * s(ex), 0.022)
  feet = np.clip(1 - np.abs(ex - 0.23) / 0.07, 0, 1)
  feet = feet * (0.45 * np.clip(au[6], 0, 1))
  dark += feet * f.stroke(np.abs(ey + 0.01) - 0.35 * (ex - 0.14), 0.016)
  wrinkled = np.clip(1.2 - m / 0.15, 0, 1) * (0.62 * np.clip(au[9], 0, 1.1))
  for offset in (-0.10, -0.035, 0.03):
    dark += wrinkled * f.stroke(v - offset - 3.2 * s(m), 0.018)
  f.darken(np.clip(dark, 0, 0.8))


def _lower_folds(f: Frame, p: Values, au: ActionUnits, g: Values) -> None:
  """Nasolabial folds, the line above the chin, marionette lines."""
  m, v = np.abs(f.u), f.v
  start = g.nose_y - 0.05
  along = np.clip((v - start) / (g.mouth_y - start), 0, 1.2)
  path = 0.10 + (g.mouth_w - 0.045) * along * (1.7 - 0.7 * along)
  fold = 0.06 + 0.22 * p.age + 0.55 * au[12] + 0.65 * au[9] + 0.55 * au[10]
  ends = np.clip(along * 8, 0, 1) * np.clip((1.2 - along) * 6, 0, 1)
  dark = 0.6 * np.clip(fold, 0, 0.8) * ends * f.stroke(m - path, 0.024)
  line = f.stroke(v - g.lip_low - 0.055 - 0.8 * np.square(f.u), 0.03)
  dark += (0.16 + 0.3 * au[17]) * line * np.clip(2 - m / 0.1, 0, 1)
  droop = f.stroke(m - g.mouth_w - 0.02, 0.022)
  droop = droop * f.stroke(v - g.mouth_y - 0.13, 0.07)
  dark += 0.5 * np.clip(au[15], 0, 1) * droop
  f.darken(np.clip(dark, 0, 0.8))


def _cheeks(f: Frame, p: Values, au: ActionUnits) -> None:
  """Rosy apples, which a raised cheek lifts and lights."""
  across = np.square((np.abs(f.u) - 0.34) / 0.15)
  apple = np.exp(-across - np.square((f.v - 0.19 + 0.05 * au[6]) / 0.12))
  rosy = apple * (p.rosy + 0.10 * au[12])
  f.rgb[:, 0] += 0.05 * apple * au[6]
  f.rgb[:, 1] *= 1 - 0.5 * rosy
  f.rgb[:, 2] *= 1 - 0.45 * rosy


def _nose(f: Frame, p: Values, au: ActionUnits, g: Values) -> None:
  """Bridge shaded on the side away from the light, wings and nostrils."""
  s = np.square
  u = f.u - 0.35 * p.yaw * np.clip(f.v + 0.2, 0, 0.5)
  m, v = np.abs(u), f.v - g.nose_y
  width = p.nose_w * (1 + 0.18 * au[9])
  bridge = np.clip((v + 0.34) * 6, 0, 1) * np.clip((0.04 - v) * 14, 0, 1)
  ridge = 0.35 * width + 0.3 * width * np.clip(1 + v / 0.3, 0, 1)
  away = np.where(u > 0, -p.light_x, p.light_x)
  dark = (0.20 + 0.5 * away) * bridge * f.stroke(m - ridge, 0.03)
  wing = np.sqrt(s((m - width * 0.72) / 0.9) + s(v - 0.005))
  dark += 0.42 * f.stroke(wing - 0.045, 0.015) * (m > 0.7 * width)
  dark += 0.30 * f.stroke(v - 0.062 + 0.5 * m, 0.022) * (m < width)
  dark += 0.72 * np.exp(-s((m - 0.5 * width) / 0.032) - s((v - 0.035) / 0.02))
  f.darken(np.clip(dark, 0, 0.85))
  shine = np.exp(-s((u - 0.1 * p.light_x) / 0.03) - s(v / 0.03))
  shine += 0.6 * bridge * np.exp(-s(u / 0.022))
  f.rgb += (0.10 * shine)[:, None] * (1 - f.rgb)


def _eyes(f: Frame, p: Values, g: Values) -> None:
  """Almond whites with iris, pupil, highlight, lids and crease."""
  s, k = np.square, np.float32(1) / p.eye_w
  side = np.sign(f.u)
  a = (np.abs(f.u) - p.eye_x) * k
  b = (f.v - p.eye_y) * k + p.eye_tilt * a
  arc = np.clip(1 - s(a), 0, 1)
  upper = -g.lid_up * (1 + 0.5 * p.asym * side) * arc * (1 + g.lid_slant * a)
  lower = g.lid_low * arc
  across = f.fill((1 - np.abs(a)) * p.eye_w)
  white = f.fill(np.minimum(b - upper, lower - b) * p.eye_w) * across
  tint = 0.93 - 0.38 * np.exp(-s((b - upper) / 0.16))
  f.paint(white, tint[:, None] * p.eye_white)
  ax = a * side - p.gaze_x
  r = np.sqrt(s(ax) + s(b - p.gaze_y))
  ring = np.clip(1.2 - 0.9 * s(r / 0.44), 0.3, 1.1)
  f.paint(white * f.fill((0.44 - r) * p.eye_w), p.iris * ring[:, None])
  f.paint(white * f.fill((0.2 - r) * p.eye_w), p.iris * 0.12)
  glint = np.sqrt(s(ax - 0.35 * p.light_x - 0.06) + s(b - p.gaze_y + 0.17))
  f.paint(white * f.fill((0.13 - glint) * p.eye_w), p.eye_white)
  lash = f.stroke((b - upper) * p.eye_w, 0.020) * across
  f.paint(np.clip(1.15 * lash, 0, 1), p.iris * 0.15 + 0.04)
  crease = f.stroke((b - 1.15 * upper + 0.2) * p.eye_w, 0.014) * across
  rim = f.stroke((b - lower) * p.eye_w, 0.013) * across
  f.darken(np.clip(0.40 * crease + 0.45 * rim, 0, 0.8))


def _brows(f: Frame, p: Values, g: Values) -> None:
  """Tapered arcs whose inner and outer ends move on their own."""
  side = np.sign(f.u)
  t = (np.abs(f.u) - g.brow_x) / p.brow_w
  inner, outer = np.square((1 - t) / 2), np.square((1 + t) / 2)
  rise = g.inner * inner + g.outer * (1 + p.asym * side) * outer
  line = p.brow_y + 0.02 * outer - rise - p.arch * (1 - np.square(t))
  thick = p.brow_t * (1 - 0.55 * np.clip(t, 0, 1))
  hair = f.fill(thick - np.abs(f.v - line)) * f.fill((1 - np.abs(t)) * 0.3)
  f.paint(hair * p.brow_dense, p.brow_colour)


def _beard(f: Frame, p: Values) -> None:
  """Moustache and beard of a random density, on some faces."""
  m = np.abs(f.u)
  inside = np.sqrt(np.square(f.x / (p.head_w - 0.02)) + np.square(f.y / 0.8))
  # Below a line that rises from the upper lip to the sideburns.
  field = f.v - 0.33 + 3.2 * np.square(np.maximum(m - 0.20, 0))
  mask = np.clip(field * 7, 0, 1) * np.clip((1.02 - inside) * 9, 0, 1)
  f.paint(mask * p.beard, p.hair * 0.85)


def _mouth(f: Frame, p: Values, g: Values) -> None:
  """Lips around a dark opening with teeth and tongue."""
  t = f.u / g.mouth_w
  t2 = np.clip(np.square(t), 0, 1.3)
  skew = 1 + p.asym * np.clip(t, -1, 1)
  line = g.mouth_y + skew * t2 * (g.corner + g.corner_end * t2)
  bow = np.clip(1 - t2, 0, 1)
  gap = bow * (1 + g.square_lips * t2)
  lip_top = (
    line
    - g.open_up * gap
    - g.lip_up * bow * (1 - 0.25 * np.exp(-np.square(t / 0.2)))
  )
  low_inner = line + g.open_low * gap
  lip_end = low_inner + g.lip_bottom * bow
  ends = f.fill((1 - np.abs(t)) * g.mouth_w)
  lips = f.fill(np.minimum(f.v - lip_top, lip_end - f.v)) * ends
  lit = np.where(f.v < line, np.float32(0.82), np.float32(1.0))
  f.paint(lips * 0.9, p.lip * lit[:, None])
  top_inner = line - g.open_up * gap
  hole = f.fill(np.minimum(f.v - top_inner, low_inner - f.v)) * ends
  hole *= np.clip((g.open_up + g.open_low) * 40, 0, 1)
  f.paint(hole, p.mouth_dark)
  tongue = f.v - low_inner + g.open_low * 0.55 - 0.25 * np.square(f.u)
  f.paint(hole * f.fill(tongue) * 0.85, p.tongue)
  teeth = f.fill(top_inner + g.teeth * gap - f.v)
  teeth = np.maximum(teeth, f.fill(f.v - low_inner + g.low_teeth * gap))
  f.paint(hole * teeth * (np.abs(t) < 0.93), p.teeth)
  ends = f.fill((1.04 - np.abs(t)) * g.mouth_w)
  seam = f.stroke(f.v - top_inner, 0.016) * ends
  f.darken(np.clip(0.8 * seam, 0, 0.8))


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

  The painted canvas and the standard normal `noise` are float32[B, 3, S, S],
  the result is uint8[B, S, S, 3].
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
