"""Regions of the face: Lian et al. 2020, "Expression Analysis Based on Face
Regions in Real-world Conditions" (arXiv 1911.05188).

Their six areas, so that a network can be trained on each and compared with one
that sees the whole face. Here a region is one box for all images of a data
set, which suits faces that are aligned, as RAF-DB's are,
or cut by a detector, as FER2013's are.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError


class Box(NamedTuple):
  """Edges of a part of an image, as fractions of its height or width."""

  top: float
  left: float
  bottom: float
  right: float


def _around(*boxes: Box) -> Box:
  """The smallest box that holds all of some."""
  tops, lefts, bottoms, rights = zip(*boxes, strict=True)
  return Box(min(tops), min(lefts), max(bottoms), max(rights))


# Chosen on the mean faces of FER2013, of grey faces of 100 pixels in RAF-DB's
# layout, and of our drawn ones: eyes lie at 0.34 to 0.39 of the height,
# nostrils at 0.55 to 0.6 and lips at 0.7 to 0.77. Brows count as eyes; raised
# brows and a dropped jaw stay inside. Each box is symmetric, so that a mirrored
# region is the region of the mirrored face.
_EYES = Box(0.12, 0.08, 0.5, 0.92)
_NOSE = Box(0.42, 0.28, 0.68, 0.72)
_MOUTH = Box(0.62, 0.18, 0.96, 0.82)

REGIONS: dict[str, Box] = {
  "face": Box(0.0, 0.0, 1.0, 1.0),
  "eyes": _EYES,
  "nose": _NOSE,
  "mouth": _MOUTH,
  "nose_to_eyes": _around(_NOSE, _EYES),
  "nose_to_mouth": _around(_NOSE, _MOUTH),
  "mouth_to_eyes": _around(_MOUTH, _EYES),
}

# Between the fingerprint of the faces and a region's name.
_REGION = ", region "


def crop(images: np.ndarray, region: str) -> np.ndarray:
  """Cuts out a region and brings it to the size of the image.

  The aspect ratio is not kept: the box is stretched to a square (resized
  antialiased and bilinear). As the box is the same for all images, shapes stay
  comparable among them. Bars beside it would fill up to half of the square,
  take resolution from the region, and random crops would land on them.

  Enlarging adds no detail: of an image of 32 pixels the nose is 14 x 8. For
  regions, images of 64 pixels or more are better.

  Args:
    images: uint8[n, S, S, 3], aligned faces.
    region: a name in `REGIONS`.

  Returns:
    uint8[n, S, S, 3].

  Raises:
    UserError: if there is no such region.
  """
  top, left, bottom, right = _box(region)
  height, width = images.shape[1:3]
  edges = (left * width, top * height, right * width, bottom * height)
  bilinear = Image.Resampling.BILINEAR
  regions = np.empty_like(images)
  for image, out in zip(images, regions, strict=True):
    out[:] = Image.fromarray(image).resize((width, height), bilinear, edges)
  return regions


def apply(dataset: Dataset, region: str) -> Dataset:
  """A data set of one region of each of its faces.

  Args:
    dataset: of aligned faces.
    region: a name in `REGIONS`; 'face' changes nothing.

  Returns:
    The data set with all its parts cut to the region, and a fingerprint of its
    own; for 'face' the data set itself.

  Raises:
    UserError: if there is no such region.
  """
  if region == "face":
    return dataset
  _box(region)
  return dataset._replace(
    parts={
      name: Split(crop(images, region), labels)
      for name, (images, labels) in dataset.parts.items()
    },
    fingerprint=f"{dataset.fingerprint}{_REGION}{region}",
  )


def whole(fingerprint: str) -> str:
  """The fingerprint of the faces, given that of one of their regions."""
  return fingerprint.partition(_REGION)[0]


def _box(region: str) -> Box:
  if region not in REGIONS:
    raise UserError(
      f"There is no face region {region!r}; expected one of"
      f" {', '.join(REGIONS)}. Correct the name."
    )
  return REGIONS[region]
