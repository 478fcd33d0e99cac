"""Image files, decoded to square RGB arrays."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dbl_jax.data.formats import stored
from dbl_jax.errors import UserError

MAX_PIXELS = 64_000_000
_T = TypeVar("_T")
_R = TypeVar("_R")

# Listed, since Pillow would pass PostScript to an interpreter.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_CONVERT = "Convert it to JPEG or PNG."
# First bytes of images that are not read -> their format.
_OTHER_FORMATS = {
  rb".{4}ftyp(hei|hev|mif1|msf1)": "HEIC",
  rb".{4}ftypavi": "AVIF",
  rb".{4}jP  ": "JPEG 2000",
  rb"\xff\x0a|.{4}JXL ": "JPEG XL",
  rb".{128}DICM": "DICOM",
}


# Edges of a region of an image, in pixels: left, top, right, bottom.
Box = tuple[float, float, float, float]


def decode(
  data: bytes, image_size: int, origin: str, box: Box | None = None
) -> np.ndarray:
  """Decodes an image file as a viewer shows it, cropped to a square.

  EXIF rotation is applied, transparency becomes white, an animation gives its
  first frame. The largest central square is used: stretching would change the
  shapes of mouths and brows, which make the expression, and padding would
  reveal the source of an image. The square is resized (antialiased, bilinear)
  unless it has the size already.

  Args:
    data: content of the file (JPEG, PNG, BMP, GIF, WebP, TIFF or PPM).
    image_size: height and width to return, in pixels.
    origin: path of the file, for messages.
    box: the region to use. It grows to a square, and is moved into the image.

  Returns:
    uint8[image_size, image_size, 3], RGB.

  Raises:
    UserError: if it is empty, truncated, too large or not an image, or the
      box lies outside.
  """
  with opened(data, origin) as image:
    if box is None:
      # JPEG can be decoded at a half, a quarter or an eighth: much faster.
      image.draft(None, (2 * image_size, 2 * image_size))
    rgb = to_rgb(image, origin)
    square = _square(rgb.size, box, origin)
    if square != (0, 0, *rgb.size) or rgb.size != (image_size, image_size):
      size = (image_size, image_size)
      rgb = rgb.resize(size, Image.Resampling.BILINEAR, square)
    return np.array(rgb)


def _square(size: tuple[int, int], box: Box | None, origin: str) -> Box:
  if box is None:
    box = (0, 0, *size)
    side = min(size)
  else:
    left, top, right, bottom = box
    if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
      raise UserError(
        f"{origin} is {size[0]} x {size[1]} pixels, but its box, left {left:g},"
        f" top {top:g}, right {right:g}, bottom {bottom:g}, lies outside;"
        " expected a box in the picture. Correct or remove its label."
      )
    side = min(*size, max(1, round(max(right - left, bottom - top))))
  left, top = (
    min(max(round((low + high - side) / 2), 0), int(length - side))
    for low, high, length in zip(box[:2], box[2:], size, strict=True)
  )
  return left, top, left + side, top + side


def cut(image: Image.Image, box: Box | None, origin: str) -> Image.Image:
  """Cuts out the square of a box, as `decode` does; None is all of it."""
  return image if box is None else image.crop(_square(image.size, box, origin))


@contextlib.contextmanager
def opened(data: bytes, origin: str) -> Iterator[Image.Image]:
  """Opens an image file; errors while it is decoded become UserError."""
  if not data:
    raise UserError(
      f"{origin} is empty; expected an image. Copy the file again."
    )
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise _too_large(origin, f"{image.width} x {image.height}")
      yield image
  except (UserError, MemoryError):
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise _too_large(origin, "many more") from None
  except UnidentifiedImageError:
    what, advice = _named(data)
    raise UserError(
      f"{origin} is {what}; expected {', '.join(_FORMATS)}. {advice}"
    ) from None
  # Pillow's decoders raise any error for damaged files.
  except Exception as error:
    raise UserError(
      f"{origin} is damaged or cut off ({error}); expected a whole image."
      " Copy the file again."
    ) from error


def _named(data: bytes) -> tuple[str, str]:
  """Describes a file that cannot be read as an image, and the remedy."""
  for pattern, name in _OTHER_FORMATS.items():
    if re.match(pattern, data[:132], re.DOTALL):
      return f"in the format {name}, which is not read", _CONVERT
  return stored.stand_in(data[:64]) or (
    f"not an image that can be read ({len(data)} bytes, first {data[:8]!r})",
    "Replace or convert the file.",
  )


def in_threads(
  work: Callable[[_T], _R],
  items: Sequence[_T],
  progress: Callable[[int, int], None] | None = None,
) -> list[_R]:
  """Maps a function that releases the GIL over items, on all cores.

  `progress` is called with the number of items done, and of all.
  """
  threads = min(os.cpu_count() or 1, 16)
  # A task has its cost, which counts for images that decode quickly.
  size = min(32, -(-len(items) // (4 * threads))) or 1

  def several(start: int) -> list[_R]:
    some = range(start, min(start + size, len(items)))
    return [work(items[i]) for i in some]

  results: list[_R] = []
  with ThreadPoolExecutor(threads) as pool:
    for some in pool.map(several, range(0, len(items), size)):
      results += some
      if progress is not None:
        progress(len(results), len(items))
  return results


def to_rgb(image: Image.Image, origin: str) -> Image.Image:
  """Converts an opened image to RGB, upright, on white."""
  # Loaded before the block below, which must not swallow a decoder's error.
  image.load()
  # Viewers show an intact image in spite of broken EXIF.
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(image, in_place=True)
  if image.mode.startswith(("I", "F")):
    image = _to_8_bit(image, origin)
  if image.has_transparency_data:
    bitmap = image.format == "BMP"
    image = image.convert("RGBA")
    # Programs without transparency leave the fourth byte 0.
    if bitmap and image.getchannel("A").getextrema() == (0, 0):
      return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  if image.mode == "LAB":  # Pillow converts it by a profile alone
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert converted is not None  # it is, unless inPlace
    return converted
  return image.convert("RGB")


# Bits of a channel that files store in 16 or 32: of cameras and scanners.
_BIT_DEPTHS = (8, 10, 12, 14, 16)


def _to_8_bit(image: Image.Image, origin: str) -> Image.Image:
  """Converts one channel of 16 or 32 bits, or of fractions, to 8 bits.

  Pillow's own conversion clips at 255. The white point is the least that holds
  the values: 1 for fractions, else the maximum of a usual number of bits.
  """
  values = np.asarray(image).astype(np.float64)
  fractions = image.mode == "F"
  low, high = values.min(), values.max()
  white = next((2**n - 1 for n in _BIT_DEPTHS if high < 2**n), None)
  if fractions and high <= 1:
    white = 1
  # Written so that values that are not a number fail, too.
  if not (low >= 0 and white):
    raise UserError(
      f"{origin} has values from {low:g} to {high:g}; expected 8 to 16 bits a"
      " channel, or fractions from 0 to 1. Save it as an 8-bit image."
    )
  scaled = np.floor(np.minimum(values / white, 1) * 255 + 0.5)
  return Image.fromarray(scaled.astype(np.uint8))


def _too_large(origin: str, size: str) -> UserError:
  return UserError(
    f"{origin} has {size} pixels; at most {MAX_PIXELS // 10**6} million are"
    " read. Make it smaller first."
  )
