"""SimCLR in PyTorch: torchvision's ResNet-18 with lightly's head and loss."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch_setup  # noqa: F401  (before what imports torchvision)

# isort: split
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead

LAYOUTS = {
  "channels_last": torch.channels_last,
  "contiguous": torch.contiguous_format,
}


def make_encoder(stem: str) -> torch.nn.Module:
  """ResNet-18 without its classifier: f32[B, 3, S, S] -> [B, 512]."""
  encoder = torchvision.models.resnet18()
  encoder.fc = torch.nn.Identity()
  if stem == "small":
    encoder.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    encoder.maxpool = torch.nn.Identity()
  return encoder


class SimCLRStep:
  """A training step on the two views of N images.

  Both views go through the network as one batch, as in dbl_jax.

  Attributes:
    layout: 'channels_last' or 'contiguous'.
    model: encoder and head.
  """

  def __init__(
    self, settings: dict[str, Any], layout: str, device: torch.device
  ):
    self.layout = layout
    self.model = torch.nn.Sequential(
      make_encoder(settings["stem"]), SimCLRProjectionHead(512, 512, 128)
    ).to(device, memory_format=LAYOUTS[layout])
    self._device, self._dtype = device, settings["dtype"]
    self._embed = torch.compile(self.model) if settings["compile"] else None
    self._loss = NTXentLoss(temperature=settings["temperature"])
    self._optimizer = torch.optim.SGD(
      self.model.parameters(),
      lr=settings["learning_rate"],
      momentum=settings["momentum"],
      weight_decay=settings["weight_decay"],
      fused=True,
    )

  def place(self, views: torch.Tensor) -> torch.Tensor:
    """The views on the device, in the layout."""
    return views.to(self._device, memory_format=LAYOUTS[self.layout])

  def __call__(self, views: torch.Tensor) -> torch.Tensor:
    """One step; f32[2N, 3, S, S] in [0, 1], first views first -> loss."""
    embed = self._embed or self.model
    half = self._dtype == "bfloat16"
    with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
      first, second = embed((views - 0.5) / 0.25).chunk(2)
    loss = self._loss(first.float(), second.float())
    self._optimizer.zero_grad()
    loss.backward()
    self._optimizer.step()
    return loss


def make_step(
  settings: dict[str, Any], device: torch.device
) -> tuple[SimCLRStep, dict[str, Any]]:
  """The step in the layout that is faster here, and how that was found.

  Args:
    settings: stem, size, batch, dtype, compile, learning_rate, momentum,
      weight_decay, temperature; layout, if it is not to be found out.
    device: where it runs.

  Returns:
    The step and what was set.
  """

  def make(layout: str) -> Callable[[], torch.Tensor]:
    step = SimCLRStep(settings | {"compile": False}, layout, device)
    views = step.place(random_views(settings))
    return lambda: step(views)

  if "layout" in settings:
    chosen = settings["layout"]
    tried: dict[str, float] = {}
  else:
    chosen, tried = faster_layout(make, device)
  facts = {
    "layout": chosen,
    "seconds_by_layout": tried,
    "compile": settings["compile"],
    "autocast": settings["dtype"] if settings["dtype"] != "float32" else "",
    "fused_optimizer": True,
  }
  return SimCLRStep(settings, chosen, device), facts


def random_views(settings: dict[str, Any]) -> torch.Tensor:
  """f32[2N, 3, S, S] in [0, 1]."""
  size = settings["size"]
  return torch.rand(2 * settings["batch"], 3, size, size)


def faster_layout(
  make: Callable[[str], Callable[[], Any]], device: torch.device
) -> tuple[str, dict[str, float]]:
  """The memory layout to use: on GPU channels_last, on CPU the faster one.

  Args:
    make: name of a layout -> the work to be done in it.
    device: where it is done.

  Returns:
    'channels_last' or 'contiguous', and the seconds each took: the better of
    two calls after a first.
  """
  if device.type == "cuda":
    return "channels_last", {}
  tried = {}
  for layout in LAYOUTS:
    work = make(layout)
    tried[layout] = min([_seconds(work) for _ in range(3)][1:])
  return min(tried, key=tried.__getitem__), tried


def _seconds(work: Callable[[], Any]) -> float:
  started = time.perf_counter()
  work()
  return time.perf_counter() - started
