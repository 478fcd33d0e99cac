"""Alignment: brings the landmarks of a face onto a template."""

import numpy as np
from PIL import Image

from dbl_jax.data import faces
from dbl_jax.data.formats import images
from dbl_jax.runtime.rows import Array

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
# Images from which a template is computed, at most.
_MAX_IMAGES = 200
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
  found = faces.detect(photo)
  if not found:
    return None
  largest = max(found, key=lambda face: face.box[2] - face.box[0])
  return align(np.asarray(photo), largest.landmarks, FALLBACK, image_size)


def template_of(crops: Array) -> np.ndarray | None:
  """The median landmarks of training images, as fractions of their side.

  Args:
    crops: uint8[n, S, S, 3]; at most 200 of them, evenly spaced, are used.

  Returns:
    f64[5, 2], or None if most of the images show no face.
  """
  chosen = crops[:: -(-len(crops) // _MAX_IMAGES)]
  found = [faces.detect(Image.fromarray(i), turns=(0,)) for i in chosen]
  landmarks = [faces_[0].landmarks for faces_ in found if faces_]
  if len(landmarks) < _MIN_FOUND * len(chosen):
    return None
  return np.median(landmarks, axis=0).astype(float) / crops.shape[1]
