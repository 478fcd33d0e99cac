"""What a convolution of one shape of images with one of kernels comes to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerShapes:
  """Shapes of a convolution.

  Attributes:
    x_shape: (any, H, W, C).
    kernel_shape: (K, K, C, F).
    stride: step in both directions, in pixels.
    padding: zeros on each of the four sides, in pixels.
  """

  x_shape: tuple[int, ...]
  kernel_shape: tuple[int, ...]
  stride: int
  padding: int

  @property
  def output_size(self) -> tuple[int, int]:
    """Height and width of the output, in pixels."""
    _, height, width, _ = self.x_shape
    room = 2 * self.padding - self.kernel_shape[0]
    return (
      (height + room) // self.stride + 1,
      (width + room) // self.stride + 1,
    )
