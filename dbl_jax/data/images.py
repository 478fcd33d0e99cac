"""Image files, decoded to square RGB arrays."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dbl_jax.errors import UserError

MAX_PIXELS = 64_000_000

# Named, since Pillow would else hand PostScript to an interpreter.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def decode(data: bytes, image_size: int, origin: str) -> np.ndarray:
  """Decodes an image file the way a viewer shows it, and makes it square.

  EXIF rotation is honoured, transparency lies on white, an animation gives
  its first frame. The whole picture is resized (antialiased, bilinear), not
  cropped; one that has the size already is left as it is.

  Args:
    data: the file's content (JPEG, PNG, BMP, GIF, WebP, TIFF or PPM).
    image_size: height and width to return, in pixels.
    origin: the file's name, for messages.

  Returns:
    uint8[image_size, image_size, 3], RGB.

  Raises:
    UserError: if it is empty, truncated, too large or not an image.
  """
  if not data:
    raise UserError(
      f"{origin} is empty; expected an image. Copy the file again."
    )
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise _too_large(origin, f"{image.width} x {image.height}")
      rgb = _to_rgb(image, origin)
      if rgb.size != (image_size, image_size):
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
      return np.array(rgb)
  except UserError:
    raise
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise _too_large(origin, "many more") from None
  except UnidentifiedImageError:
    raise UserError(
      f"{origin} is not an image that can be read ({len(data)} bytes, first"
      f" {data[:8]!r}); expected {', '.join(_FORMATS)}. Replace or convert"
      " the file."
    ) from None
  # Pillow's decoders raise whatever their parsing trips over.
  except Exception as error:
    raise UserError(
      f"{origin} is damaged or cut off ({error}); expected a whole image."
      " Copy the file again."
    ) from error


def decode_all(
  records: Sequence[tuple[str, Callable[[], bytes]]],
  image_size: int,
  progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
  """Decodes many image files, on all cores.

  Args:
    records: for each image its name and a function that reads its content.
    image_size: height and width to return, in pixels.
    progress: called with the number of images done, and of all.

  Returns:
    uint8[n, image_size, image_size, 3], RGB, in the order of the records.

  Raises:
    UserError: for the first image, in that order, that cannot be read.
  """
  images = np.empty((len(records), image_size, image_size, 3), np.uint8)

  def decode_one(index: int) -> None:
    origin, read = records[index]
    try:
      data = read()
    except OSError as error:
      raise UserError(
        f"{origin} cannot be read ({error.strerror or error}). Check that it"
        " exists and that you may read it."
      ) from error
    images[index] = decode(data, image_size, origin)

  workers = min(os.cpu_count() or 1, 16)
  with ThreadPoolExecutor(workers) as pool:
    done = pool.map(decode_one, range(len(records)))
    for count, _ in enumerate(done, start=1):
      if progress is not None:
        progress(count, len(records))
  return images


def _to_rgb(image: Image.Image, origin: str) -> Image.Image:
  # Loaded before the block below, which must not swallow a decoder's error.
  image.load()
  # Broken EXIF beside a sound picture: viewers show the picture.
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(image, in_place=True)
  if image.mode.startswith("I"):
    image = _to_8_bit(image, origin)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def _to_8_bit(image: Image.Image, origin: str) -> Image.Image:
  # Pillow's own conversion clips 16 bits at 255: nearly all turns white.
  values = np.asarray(image).astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise UserError(
      f"{origin} has values from {values.min()} to {values.max()}; expected"
      " 8 or 16 bits a channel. Save it as an 8-bit image."
    )
  return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _too_large(origin: str, size: str) -> UserError:
  return UserError(
    f"{origin} has {size} pixels; at most {MAX_PIXELS // 10**6} million are"
    " read. Make it smaller first."
  )
