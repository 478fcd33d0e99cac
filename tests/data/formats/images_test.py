"""Image files: decoded as a viewer shows them, or refused by name."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from dbl_jax.data.formats import images
from dbl_jax.errors import UserError


def encode(image, image_format="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  return buffer.getvalue()


def pixels(shape=(8, 8, 3), seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_an_image_of_the_right_size_is_left_as_it_is():
  expected = pixels()
  decoded = images.decode(encode(Image.fromarray(expected)), 8, "a.png")
  np.testing.assert_array_equal(decoded, expected)
  assert decoded.dtype == np.uint8
  assert decoded.flags.writeable


def test_resize_takes_the_square_in_the_middle_and_averages():
  stripes = np.zeros((40, 80, 3), np.uint8)
  stripes[:, ::2] = 200
  stripes[:20] //= 2
  stripes[:, :20], stripes[:, 60:] = 255, 255
  for picture in (stripes, stripes.transpose(1, 0, 2)):
    decoded = images.decode(encode(Image.fromarray(picture)), 4, "a.png")
    assert decoded.shape == (4, 4, 3)
    if picture is not stripes:
      decoded = decoded.transpose(1, 0, 2)
    # Not the columns at the edge, which blend with what lies beyond it.
    np.testing.assert_allclose(decoded[0, 1:3], 50, atol=4)
    np.testing.assert_allclose(decoded[3, 1:3], 100, atol=4)


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ((4, 6, 12, 14), (4, 6)),  # as it is
    ((4, 9, 12, 11), (4, 6)),  # grows to a square about its centre
    ((-3, -2, 5, 6), (0, 0)),  # juts out: moves in
    ((30, 18, 38, 26), (24, 12)),
    ((4, 6, 12.4, 13), (4, 6)),
  ],
)
def test_a_box_becomes_a_square_in_the_picture(box, expected):
  picture = pixels((20, 32, 3))
  left, top = expected
  decoded = images.decode(encode(Image.fromarray(picture)), 8, "a.png", box)
  np.testing.assert_array_equal(
    decoded, picture[top : top + 8, left : left + 8]
  )


def test_a_box_larger_than_the_picture_is_the_middle_of_it():
  picture = pixels((8, 20, 3))
  data = encode(Image.fromarray(picture))
  decoded = images.decode(data, 8, "a.png", (-5, -5, 25, 15))
  np.testing.assert_array_equal(decoded, picture[:, 6:14])


def test_a_box_outside_is_refused():
  with pytest.raises(UserError, match=r"a\.png is 8 x 8 .* left 9, .* outside"):
    images.decode(encode(Image.fromarray(pixels())), 8, "a.png", (9, 0, 20, 9))


def test_a_large_jpeg_looks_the_same_as_a_large_png():
  ramp = np.linspace(0, 255, 512).astype(np.uint8)
  picture = Image.fromarray(np.stack([np.tile(ramp, (600, 1))] * 3, axis=-1))
  png = images.decode(encode(picture), 16, "a.png")
  jpeg = images.decode(encode(picture, "JPEG", quality=95), 16, "a.jpg")
  np.testing.assert_allclose(jpeg.astype(int), png, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(orientation):
  upright = pixels((8, 8, 3))
  # What a camera stores so that the tag brings it upright again.
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.transpose(1, 0, 2),
    6: np.rot90(upright),
    7: np.rot90(upright.transpose(1, 0, 2), 2),
    8: np.rot90(upright, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  image = Image.fromarray(np.ascontiguousarray(stored))
  decoded = images.decode(encode(image, exif=exif), 8, "a.png")
  np.testing.assert_array_equal(decoded, upright)


def test_broken_exif_does_not_lose_the_picture():
  data = encode(Image.fromarray(pixels()), "JPEG", exif=b"Exif\0\0garbage")
  assert images.decode(data, 8, "a.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_becomes_rgb_and_16_bit_are_scaled_not_clipped(
  dtype, image_format
):
  values = np.array([[0, 1], [128, 255]], dtype)
  grey = values if dtype == np.uint8 else np.array([[0, 257], [32768, 65535]])
  image = Image.fromarray(grey.astype(dtype))
  decoded = images.decode(encode(image, image_format), 2, "a")
  np.testing.assert_array_equal(decoded, np.stack([values] * 3, axis=-1))


@pytest.mark.parametrize(
  ("dtype", "values", "expected"),
  [
    (np.int32, [0, 100, 255], [0, 100, 255]),  # 8 bits in 32
    (np.int32, [0, 2048, 4095], [0, 128, 255]),  # 12 bits
    (np.int32, [0, 32768, 65535], [0, 128, 255]),
    (np.uint16, [0, 100, 255], [0, 100, 255]),
    (np.uint16, [0, 2048, 4095], [0, 128, 255]),
    (np.float32, [0, 0.5, 1], [0, 128, 255]),
    (np.float32, [0, 100, 255], [0, 100, 255]),
    (np.int32, [0, 70000], "has values from 0 to 70000"),
    (np.int32, [-1, 100], "has values from -1 to 100"),
    (np.float32, [-0.5, 0.5], "has values from -0.5 to 0.5"),
    (np.float32, [0, 1e9], r"has values from 0 to 1e\+09"),
    (np.float32, [0, np.nan], "has values from nan to nan"),
    (np.float32, [0, np.inf], "has values from 0 to inf"),
  ],
)
def test_wide_channels_are_scaled_by_their_range_or_refused(
  dtype, values, expected
):
  size = len(values)
  image = Image.fromarray(np.array([values] * size, dtype))
  data = encode(image, "TIFF")
  if isinstance(expected, str):
    with pytest.raises(UserError, match=f"a.tif {expected}; expected 8 to 16"):
      images.decode(data, size, "a.tif")
  else:
    decoded = images.decode(data, size, "a.tif")
    np.testing.assert_array_equal(decoded[0], np.transpose([expected] * 3))


def test_a_bitmap_whose_fourth_byte_is_unused_is_opaque():
  """Of versions 4 and 5, which Pillow reads and does not write."""
  expected = pixels((4, 4, 3))
  rgb = np.ascontiguousarray(expected[::-1, :, ::-1])
  rows = np.concatenate([rgb, np.zeros((4, 4, 1), np.uint8)], axis=-1)
  masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
  header = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0)
  header += struct.pack("<4I4s", *masks, b"BGRs") + bytes(48)
  data = struct.pack("<2sIII", b"BM", 14 + 108 + 64, 0, 14 + 108)
  data += header + rows.tobytes()
  np.testing.assert_array_equal(images.decode(data, 4, "a.bmp"), expected)


def palette(*colours):
  """An image in the last of some colours."""
  image = Image.new("P", (4, 4), len(colours) - 1)
  image.putpalette(sum(colours, ()))
  return image


def in_colour(mode, *colour):
  return Image.new(mode, (4, 4), colour)


RED, BLUE = (200, 0, 0), (0, 0, 200)
ANIMATED = {"save_all": True, "append_images": [in_colour("RGB", *BLUE)]}
# Image, format, options -> the colour, and how far it may be off.
COLOURS = [
  (in_colour("LAB", 136, 208, 195), "TIFF", {}, (255, 0, 0), 12),  # sRGB red
  (in_colour("CMYK", 0, 255, 255, 0), "JPEG", {"quality": 95}, (255, 0, 0), 6),
  (palette((0, 0, 0), (10, 20, 30)), "PNG", {}, (10, 20, 30), 0),
  (palette((0, 0, 0)), "PNG", {"transparency": 0}, (255, 255, 255), 0),
  (in_colour("RGBA", 0, 0, 0, 0), "PNG", {}, (255, 255, 255), 0),
  (in_colour("LA", 0, 0), "PNG", {}, (255, 255, 255), 0),
  (in_colour("RGBA", 0, 0, 0, 128), "PNG", {}, (127, 127, 127), 1),
  (in_colour("RGB", *RED), "GIF", ANIMATED, RED, 2),
  (in_colour("RGB", *RED), "PNG", ANIMATED, RED, 2),
  (in_colour("RGB", *RED), "WEBP", ANIMATED | {"lossless": True}, RED, 2),
]


@pytest.mark.parametrize(
  ("image", "image_format", "options", "expected", "atol"), COLOURS
)
def test_colours_are_those_of_a_viewer_on_white(
  image, image_format, options, expected, atol
):
  """Of an animation, those of the first frame."""
  decoded = images.decode(encode(image, image_format, **options), 4, "a")
  np.testing.assert_allclose(decoded[2, 2], expected, atol=atol)


@pytest.mark.parametrize(
  "image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]
)
def test_a_cut_off_image_is_refused(image_format):
  data = encode(Image.fromarray(pixels((64, 64, 3))), image_format)
  with pytest.raises(UserError, match=r"dir/a\.jpg is (damaged|not an image)"):
    images.decode(data[: len(data) // 2], 64, "dir/a.jpg")
