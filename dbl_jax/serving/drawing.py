"""Photos with the faces found in them, their labels and scores."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dbl_jax.data.formats import images
from dbl_jax.data.formats.stored import StoredFile
from dbl_jax.serving.predict import Prediction, Predictor

_BARS = 3  # classes shown
_COLOUR, _PAPER, _INK = "#0072b2", "#ffffff", "#111111"
_SMALLEST = 480  # smaller photos are enlarged, for legible text


def draw_all(
  photos: Sequence[StoredFile],
  predictions: Sequence[Prediction],
  predictor: Predictor,
  folder: Path,
) -> None:
  """Writes each photo that has predictions as a JPEG with them.

  Args:
    photos: the files.
    predictions: those of `predictor.predict(photos)`.
    predictor: made them.
    folder: exists. Photos of equal names get a number.
  """
  groups = itertools.groupby(predictions, key=lambda one: one.photo)
  by_origin = {photo.origin: photo for photo in photos}
  taken: set[str] = set()
  for origin, group in groups:
    found = [(p.box, p.scores) for p in group if p.scores is not None]
    if not found:
      continue
    stem, number = Path(origin).stem, 1
    while (name := stem if number == 1 else f"{stem}-{number}") in taken:
      number += 1
    taken.add(name)
    picture = draw(
      by_origin[origin], found, predictor.class_names, predictor.calibrated
    )
    picture.save(folder / f"{name}.jpg", quality=90)


def draw(
  photo: StoredFile,
  faces: Sequence[tuple[tuple[float, ...] | None, np.ndarray]],
  class_names: Sequence[str],
  calibrated: bool,
) -> Image.Image:
  """Draws boxes, labels and the scores of the first classes as bars.

  Args:
    photo: the file.
    faces: box, or None for the whole picture, and scores f32[C].
    class_names: C names.
    calibrated: whether the scores are probabilities, so that they have a unit.

  Returns:
    RGB, upright.

  Raises:
    UserError: if the photo cannot be read.
  """
  with images.opened(photo.read(), photo.origin) as image:
    canvas = images.to_rgb(image, photo.origin)
  scale = max(1.0, _SMALLEST / max(canvas.size))
  canvas = canvas.resize([round(side * scale) for side in canvas.size])
  text_size = max(12, round(max(canvas.size) / 60))
  folder = Path(matplotlib.get_data_path(), "fonts/ttf")
  font = ImageFont.truetype(folder / "DejaVuSans.ttf", text_size)
  pen = ImageDraw.Draw(canvas)
  for box, scores in faces:
    edges = [e * scale for e in box] if box else [0, 0, *canvas.size]
    pen.rectangle(edges, outline=_COLOUR, width=max(2, text_size // 5))
    _bars(pen, canvas.size, edges, scores, class_names, font, calibrated)
  return canvas


def _bars(
  pen: ImageDraw.ImageDraw,
  canvas: tuple[int, int],
  edges: Sequence[float],
  scores: np.ndarray,
  class_names: Sequence[str],
  font: ImageFont.FreeTypeFont,
  calibrated: bool,
) -> None:
  """Draws a panel below a box, or at its lower edge if there is no room."""
  first = np.argsort(-scores)[:_BARS]
  lengths = scores if calibrated else np.exp(scores - scores.max())
  names = [" ".join(class_names[c].split()) for c in first]  # in one line
  lines = [
    f"{name} {scores[c]:.0%}" if calibrated else name
    for c, name in zip(first, names, strict=True)
  ]
  height = font.size * 1.4
  width = max(edges[2] - edges[0], *(pen.textlength(x, font) for x in lines))
  left = max(0, min(edges[0], canvas[0] - width))
  top = min(edges[3], canvas[1] - height * len(lines))
  for row, (c, line) in enumerate(zip(first, lines, strict=True)):
    y = top + row * height
    pen.rectangle((left, y, left + width, y + height), fill=_PAPER)
    share = float(lengths[c]) * width
    pen.rectangle((left, y + height * 0.85, left + share, y + height), _COLOUR)
    pen.text((left, y), line, _INK, font)
