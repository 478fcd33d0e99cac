"""Alignment: brings the landmarks of a face onto a template."""

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from dbl_jax.data import faces
from dbl_jax.data.formats import images
from dbl_jax.runtime import files
from dbl_jax.runtime.logs import Progress
from dbl_jax.runtime.rows import Array

logger = logging.getLogger(__name__)

# Median landmarks of the film and news stills in muxspace/facial_expressions,
# cropped about as RAF-DB's images: where a run's own are not known.
FALLBACK = np.array(
  [
    [0.323, 0.394],
    [0.687, 0.383],
    [0.516, 0.605],
    [0.355, 0.804],
    [0.665, 0.798],
  ]
)
FILE = "template.json"  # in the workdir
_FIRST_LONGEST = 640  # side in pixels of the first search for training
# Images from which a template is computed, at most.
_MAX_IMAGES = 100
# Fraction of them in which a face must be found.
_MIN_FOUND = 0.5


def align(
  pixels: np.ndarray, landmarks: np.ndarray, template: np.ndarray, size: int
) -> np.ndarray:
  """Cuts out a face such that its landmarks lie on the template.

  Args:
    pixels: uint8[H, W, 3], a photo.
    landmarks: [5, 2], in pixels, see `faces.Face`.
    template: [5, 2], as fractions of the side of the result.
    size: side of the result in pixels.

  Returns:
    uint8[size, size, 3].
  """
  return faces.warp(pixels, faces.similarity(template * size, landmarks), size)


def decode(
  data: bytes, image_size: int, origin: str, box: images.Box | None = None
) -> np.ndarray | None:
  """Decodes an image file and cuts out its largest face, aligned.

  Args:
    data: content of the file.
    image_size: side of the result in pixels.
    origin: path of the file, for messages.
    box: region of the image that is searched, in pixels; None is all of it.

  Returns:
    uint8[image_size, image_size, 3], its landmarks on `FALLBACK`; None if no
    face is found.

  Raises:
    UserError: if the file cannot be read, see `images.decode`.
  """
  with images.opened(data, origin) as image:
    photo = images.cut(images.to_rgb(image, origin), box, origin)
  # The largest face is seldom small, and found sooner in a small copy.
  found = faces.detect(photo, (0,), _FIRST_LONGEST) or faces.detect(photo)
  if not found:
    return None
  largest = max(found, key=lambda face: face.box[2] - face.box[0])
  return align(np.asarray(photo), largest.landmarks, FALLBACK, image_size)


def template_of(crops: np.ndarray) -> np.ndarray | None:
  """Computes the median landmarks of images, as fractions of their side.

  Args:
    crops: uint8[n, S, S, 3].

  Returns:
    f64[5, 2], or None if most of the images show no face.
  """
  line = Progress("faces in training images", len(crops))
  found = images.in_threads(
    lambda crop: faces.detect(Image.fromarray(crop), turns=(0,)),
    [*crops],
    lambda n, total: line.show(n, f"{n}/{total}", last=n == total),
  )
  landmarks = [faces_[0].landmarks for faces_ in found if faces_]
  if len(landmarks) < _MIN_FOUND * len(crops):
    return None
  return np.median(landmarks, axis=0).astype(float) / crops.shape[1]


def store(
  workdir: Path, crops: Array, aligned: bool
) -> tuple[np.ndarray | None, bool]:
  """Computes the template of a run and stores it in its workdir.

  Args:
    workdir: workdir of the run.
    crops: uint8[n, S, S, 3], training images; at most 100 of them, evenly
      spaced, are used.
    aligned: whether they are aligned to `FALLBACK`, see `decode`.

  Returns:
    As `load`.
  """
  chosen = np.asarray(crops[:: -(-len(crops) // _MAX_IMAGES)])
  if aligned:
    template: np.ndarray | None = FALLBACK
  else:
    logger.info("Finding faces in training images, once for this run")
    template = template_of(chosen)
  grey = bool((chosen.min(axis=-1) == chosen.max(axis=-1)).all())
  landmarks = None if template is None else template.round(4).tolist()
  path = workdir / FILE
  content = json.dumps({"landmarks": landmarks, "grey": grey})
  try:
    files.write(path, content.encode())
  except OSError as error:
    logger.warning("%s cannot be written (%s).", path, error.strerror)
  return template, grey


def load(workdir: Path) -> tuple[np.ndarray | None, bool] | None:
  """Reads what `store` has stored.

  Returns:
    The template, f64[5, 2] or None if the images show no faces; and whether
    they are grey. None if it is not stored, or damaged.
  """
  path = workdir / FILE
  try:
    found = json.loads(path.read_bytes())
    landmarks = found["landmarks"]
    template = None if landmarks is None else np.reshape(landmarks, (5, 2))
    return template, bool(found["grey"])
  except FileNotFoundError:
    pass
  except (ValueError, TypeError, KeyError):
    logger.warning("%s is damaged; it is computed anew.", path)
  return None
