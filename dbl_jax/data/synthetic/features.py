"""Features of drawn faces: folds, nose, eyes, brows, beard and mouth.

`p` holds identity and nuisances, `au` the action units (see
`faces`), `g` the geometry made from both. Numbers of action units
are FACS's: 1 and 2 raise the inner and outer brow, 4 lowers and knits the
brows, 5 raises the upper lid, 6 raises the cheek, 7 tightens the lids, 9
wrinkles the nose, 10 raises the upper lip, 12 pulls and 15 depresses the lip
corners, 17 raises the chin, 20 stretches and 23 tightens the lips, 25 parts
them, 26 drops the jaw, 43 closes the eyes.
"""

import numpy as np

from dbl_jax.data.synthetic.scene import ActionUnits, Frame, Values


def draw(f: Frame, p: Values, au: ActionUnits) -> None:
  """Paints all features onto a head.

  Args:
    f: canvas with the bare head on it, painted in place.
    p: nuisances of the block.
    au: expression of the block.
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
  seam = f.stroke(f.v - top_inner, 0.016) * f.fill(
    (1.04 - np.abs(t)) * g.mouth_w
  )
  f.darken(np.clip(0.8 * seam, 0, 0.8))
