"""PyTorch's input: lightly's transforms in a DataLoader, kornia in batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

# isort: split
import torch_setup  # noqa: F401  (before what imports torchvision)

# isort: split
from lightly.transforms import SimCLRTransform
from torchvision.transforms.functional import to_tensor

_PREFETCH = 2  # batches for each worker, PyTorch's default


class Pictures(Dataset):
  """Images in memory, as PIL's, through a transform; without end.

  Attributes:
    images: uint8[n, S, S, 3].
    transform: PIL image -> what the loader collates.
  """

  def __init__(self, images: np.ndarray, transform: Any):
    self.images, self.transform = images, transform

  def __len__(self) -> int:
    return 1 << 24

  def __getitem__(self, index: int) -> Any:
    image = self.images[index % len(self.images)]
    return self.transform(Image.fromarray(image))


class Loader:
  """A DataLoader whose workers run only between `begin` and `end`."""

  def __init__(
    self,
    dataset: Dataset,
    batch: int,
    workers: int,
    pin: bool,
    sampler: Sampler | None = None,
  ):
    self._loader = DataLoader(
      dataset,
      sampler=sampler,
      batch_size=batch,
      num_workers=workers,
      prefetch_factor=_PREFETCH,
      pin_memory=pin,
    )
    self._ready = _PREFETCH * workers
    self._batches: Iterator[Any] = iter(())

  def begin(self) -> None:
    """Starts the workers and drops the batches they have prefetched."""
    self._batches = iter(self._loader)
    for _ in range(self._ready):
      next(self._batches)

  def end(self) -> None:
    """Stops the workers."""
    self._batches = iter(())

  def next(self) -> Any:
    """The next batch."""
    return next(self._batches)


def random_images(settings: dict[str, Any]) -> np.ndarray:
  """uint8[images, S, S, 3], the same for all systems."""
  size = settings["size"]
  return np.random.default_rng(0).integers(
    256, size=(settings["images"], size, size, 3), dtype=np.uint8
  )


def simclr_loader(settings: dict[str, Any]) -> Loader:
  """lightly's SimCLRTransform; batches are two views f32[N, 3, S, S].

  Pixels stay in [0, 1]: the step normalises.
  """
  transform = SimCLRTransform(
    input_size=settings["size"],
    min_scale=settings["crop_scale"][0],
    hf_prob=settings["flip"],
    cj_prob=settings["jitter_prob"],
    cj_strength=settings["jitter_strength"],
    random_gray_scale=settings["grey"],
    gaussian_blur=settings["blur"],
    sigmas=tuple(settings["blur_sigma"]),
    normalize=None,
  )
  return _loader(settings, transform)


def plain_loader(settings: dict[str, Any]) -> Loader:
  """No augmentation; batches are f32[N, 3, S, S]."""
  return _loader(settings, to_tensor)


def _loader(settings: dict[str, Any], transform: Any) -> Loader:
  return Loader(
    Pictures(random_images(settings), transform),
    settings["batch"],
    settings["workers"],
    pin=settings["device"] == "gpu",
  )


class BatchedViews:
  """kornia's form of SimCLR's family, on batches of resident images.

  The blur's kernel is a tenth of the side, as SimCLR has it.
  """

  def __init__(self, settings: dict[str, Any], device: torch.device):
    import kornia.augmentation as ka

    size, jitter = settings["size"], 0.8 * settings["jitter_strength"]
    kernel = 2 * (size // 20) + 1
    # Slices are faster on CPU, one grid for the whole batch on GPU.
    mode = "resample" if device.type == "cuda" else "slice"
    self._augment = torch.nn.Sequential(
      ka.RandomResizedCrop(
        (size, size), scale=tuple(settings["crop_scale"]), cropping_mode=mode
      ),
      ka.RandomHorizontalFlip(p=settings["flip"]),
      ka.ColorJitter(
        jitter,
        jitter,
        jitter,
        0.2 * settings["jitter_strength"],
        p=settings["jitter_prob"],
      ),
      ka.RandomGrayscale(p=settings["grey"]),
      ka.RandomGaussianBlur(
        (kernel, kernel), tuple(settings["blur_sigma"]), p=settings["blur"]
      ),
    )
    images = torch.from_numpy(random_images(settings)).permute(0, 3, 1, 2)
    self._images = images.contiguous().to(device)
    self._batch = settings["batch"]

  @torch.no_grad()
  def next(self) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views, f32[N, 3, S, S] each."""
    drawn = torch.randint(
      len(self._images), (self._batch,), device=self._images.device
    )
    batch = self._images[drawn].float() / 255
    return self._augment(batch), self._augment(batch)
