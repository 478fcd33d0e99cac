"""Regions of the face (Lian et al. 2020, "Expression Analysis Based on Face
Regions in Real-world Conditions", arXiv 1911.05188).

Their six areas, so that a network can be trained on each and compared with one
that sees the whole face. Here a region is one box for all images of a data
set, which suits faces that are aligned, as RAF-DB's are, or cropped by a
detector, as FER2013's are.
"""

import numpy as np
from PIL import Image

from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.errors import UserError
from dbl_jax.runtime import rows

# Top, left, bottom, right, as fractions of the height or width.
Box = tuple[float, float, float, float]


def _union(one: Box, other: Box) -> Box:
  return (
    min(one[0], other[0]),
    min(one[1], other[1]),
    max(one[2], other[2]),
    max(one[3], other[3]),
  )


# Chosen on the mean faces of FER2013, of grey faces of 100 pixels in RAF-DB's
# layout, and of the synthetic ones: eyes lie at 0.34 to 0.39 of the height,
# nostrils at 0.55 to 0.6 and lips at 0.7 to 0.77. Brows count as eyes; raised
# brows and a dropped jaw stay inside. Each box is symmetric, so that a mirrored
# region is the region of the mirrored face.
_EYES: Box = (0.12, 0.08, 0.5, 0.92)
_NOSE: Box = (0.42, 0.28, 0.68, 0.72)
_MOUTH: Box = (0.62, 0.18, 0.96, 0.82)

REGIONS: dict[str, Box] = {
  "face": (0.0, 0.0, 1.0, 1.0),
  "eyes": _EYES,
  "nose": _NOSE,
  "mouth": _MOUTH,
  "nose_to_eyes": _union(_NOSE, _EYES),
  "nose_to_mouth": _union(_NOSE, _MOUTH),
  "mouth_to_eyes": _union(_MOUTH, _EYES),
}

# Between the fingerprint of the faces and the name of a region.
_REGION = ", region "


def crop(images: np.ndarray, region: str) -> np.ndarray:
  """Crops images to a region and resizes it to their size.

  The box is stretched to a square (antialiased, bilinear). As it is the same
  for all images, shapes stay comparable among them; padding would fill up to
  half of the square, and random crops would land on it. Enlarging adds no
  detail: of an image of 32 pixels the nose is 14 x 8. For regions, images of
  64 pixels or more are better.

  Args:
    images: uint8[n, S, S, 3], aligned faces.
    region: a name in `REGIONS`.

  Returns:
    uint8[n, S, S, 3].

  Raises:
    UserError: if there is no such region.
  """
  if region not in REGIONS:
    raise UserError(
      f"There is no face region {region!r}; expected one of"
      f" {', '.join(REGIONS)}. Correct the name."
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
  """Crops all splits to a region; 'face' changes nothing.

  Returns:
    The data set, with a fingerprint of its own.

  Raises:
    UserError: if there is no such region.
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
  """Returns the fingerprint of the faces, given that of a region of them."""
  return fingerprint.partition(_REGION)[0]
