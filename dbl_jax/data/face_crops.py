"""The part of a picture that is used: an aligned face, or a region of it.

Alignment brings the landmarks of a face onto a template.

Regions are the six of Lian et al. 2020, "Expression Analysis Based on Face
Regions in Real-world Conditions", arXiv 1911.05188, so that a network can be
trained on each and compared with one that sees the whole face. Here a region is
one box for all images of a data set, which suits faces that are aligned, as
RAF-DB's are, or cropped by a detector, as FER2013's are.
"""

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from dbl_jax.data import faces
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.data.formats import images
from dbl_jax.errors import UserError
from dbl_jax.runtime import files, rows
from dbl_jax.runtime.logs import Progress

logger = logging.getLogger(__name__)

# Median landmarks of the film and news stills in muxspace/facial_expressions,
# cropped similarly to RAF-DB's images: used where a run's are unknown.
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
# Maximum number of images from which a template is computed.
_MAX_IMAGES = 100
# Fraction of them in which a face must be found.
_MIN_FOUND = 0.5

# Top, left, bottom, right, as fractions of the height or width.
Box = tuple[float, float, float, float]
# Chosen on the mean faces of FER2013, of grey faces of 100 pixels in RAF-DB's
# layout, and of the synthetic ones: eyes lie at 0.34 to 0.39 of the height,
# nostrils at 0.55 to 0.6 and lips at 0.7 to 0.77. Brows count as eyes; raised
# brows and a dropped jaw stay inside. Each box is symmetric, so that a mirrored
# region is the region of the mirrored face. The last three are unions.
REGIONS: dict[str, Box] = {
  "face": (0.0, 0.0, 1.0, 1.0),
  "eyes": (0.12, 0.08, 0.5, 0.92),
  "nose": (0.42, 0.28, 0.68, 0.72),
  "mouth": (0.62, 0.18, 0.96, 0.82),
  "nose_to_eyes": (0.12, 0.08, 0.68, 0.92),
  "nose_to_mouth": (0.42, 0.18, 0.96, 0.82),
  "mouth_to_eyes": (0.12, 0.08, 0.96, 0.92),
}
# Between the fingerprint of the faces and the name of a region.
_REGION = ", region "


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
  """Decodes an image file and cuts out its largest face, aligned to `FALLBACK`.

  Only the box is searched, if there is one; see `images.decode`.

  Returns:
    uint8[image_size, image_size, 3], or None if no face is found.

  Raises:
    UserError: if the file cannot be read.
  """
  with images.opened(data, origin) as image:
    photo = images.cut(images.to_rgb(image, origin), box, origin)
  # The largest face is seldom small, and found faster in a small copy.
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
  found = images.in_threads(
    lambda crop: faces.detect(Image.fromarray(crop), turns=(0,)),
    [*crops],
    Progress("faces in training images").count,
  )
  landmarks = [faces_[0].landmarks for faces_ in found if faces_]
  if len(landmarks) < _MIN_FOUND * len(crops):
    return None
  return np.median(landmarks, axis=0).astype(float) / crops.shape[1]


def store_template(
  workdir: Path, crops: rows.Array, aligned: bool
) -> tuple[np.ndarray | None, bool]:
  """Computes the template of a run and stores it in its workdir.

  Args:
    workdir: workdir of the run.
    crops: uint8[n, S, S, 3], training images; at most 100 of them, evenly
      spaced, are used.
    aligned: whether they are aligned to `FALLBACK`, see `decode`.

  Returns:
    As `load_template`.
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


def load_template(workdir: Path) -> tuple[np.ndarray | None, bool] | None:
  """Reads what `store_template` has stored.

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
    logger.warning("%s is damaged; it is computed again.", path)
  return None


def crop(images: np.ndarray, region: str) -> np.ndarray:
  """Crops images to a region and resizes it to their size.

  The box is stretched to a square (antialiased, bilinear). It is the same for
  all images, so their shapes stay comparable; padding would fill up to half of
  the square, and random crops would land on it. The nose of an image of 32
  pixels has 14 x 8: for regions, images of 64 pixels or more are better.

  Args:
    images: uint8[n, S, S, 3], aligned faces.
    region: a name in `REGIONS`.

  Returns:
    uint8[n, S, S, 3].

  Raises:
    UserError: if the region does not exist.
  """
  if region not in REGIONS:
    raise UserError(
      f"The face region {region!r} does not exist. Expected one of"
      f" {', '.join(REGIONS)}."
    )
  top, left, bottom, right = REGIONS[region]
  height, width = images.shape[1:3]
  edges = (left * width, top * height, right * width, bottom * height)
  bilinear = Image.Resampling.BILINEAR
  regions = np.empty_like(images)
  for image, out in zip(images, regions, strict=True):
    out[:] = Image.fromarray(image).resize((width, height), bilinear, edges)
  return regions


def apply(dataset: Dataset, region: str) -> Dataset:
  """Crops all splits to a region, which changes the fingerprint.

  For 'face' the data set is returned unchanged.

  Raises:
    UserError: if the region does not exist.
  """
  if region == "face":
    return dataset
  return dataset._replace(
    splits={
      name: Split(rows.apply(lambda some: crop(some, region), images), labels)
      for name, (images, labels) in dataset.splits.items()
    },
    fingerprint=f"{dataset.fingerprint}{_REGION}{region}",
    former=dataset.former and f"{dataset.former}{_REGION}{region}",
  )


def whole(fingerprint: str) -> str:
  """Returns the fingerprint of whole faces from that of a region."""
  return fingerprint.partition(_REGION)[0]
