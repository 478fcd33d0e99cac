"""Phase 2 as peers do it: augment and run the frozen encoder at each step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_views
from torch.utils.data import WeightedRandomSampler
from torch_model import LAYOUTS, faster_layout, make_encoder
from torch_setup import peak_bytes, set_up, wait
from torchvision import transforms


class Faces(torch_views.Pictures):
  """Images with labels."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any):
    super().__init__(images, transform)
    self.labels = labels

  def __getitem__(self, index: int) -> Any:
    return super().__getitem__(index), int(self.labels[index])


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. A unit is the whole phase, of which a few steps are done.

  Settings: images, size, batch, class_shares, crop_scale, flip, hidden,
  learning_rate, steps_per_call, total_steps, workers, dtype, device.
  """
  device, facts = set_up(settings["device"])
  facts["workers"] = settings["workers"]
  batches = _Batches(settings)
  encoder = make_encoder(settings["stem"]).eval().to(device)
  half = settings["dtype"] == "bfloat16"
  size = settings["size"]
  blank = torch.zeros(settings["batch"], 3, size, size)

  @torch.no_grad()
  def encode(images: torch.Tensor, layout: str) -> torch.Tensor:
    images = images.to(device, memory_format=LAYOUTS[layout])
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
      return encoder((images - 0.5) / 0.25).float()

  def trial(layout: str) -> Callable[[], torch.Tensor]:
    encoder.to(memory_format=LAYOUTS[layout])
    return lambda: encode(blank, layout)

  layout, facts["seconds_by_layout"] = faster_layout(trial, device)
  facts["layout"] = layout
  encoder.to(memory_format=LAYOUTS[layout])
  classes, hidden = len(settings["class_shares"]), settings["hidden"]
  head = torch.nn.Sequential(
    torch.nn.Linear(512, hidden),
    torch.nn.ReLU(),
    torch.nn.Linear(hidden, classes),
  ).to(device)
  optimizer = torch.optim.AdamW(head.parameters(), settings["learning_rate"])

  def step(images: torch.Tensor, labels: torch.Tensor) -> None:
    features = encode(images, layout)
    loss = torch.nn.functional.cross_entropy(head(features), labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      step(*batches.next())
    wait(device)

  return {
    "run": run,
    "begin": batches.begin,
    "end": batches.end,
    "units": settings["steps_per_call"] / settings["total_steps"],
    "facts": {"set": facts} | peak_bytes(device),
  }


class _Batches(torch_views.Loader):
  """Class-balanced batches, lightly augmented."""

  def __init__(self, settings: dict[str, Any]):
    shares = settings["class_shares"]
    labels = np.random.default_rng(0).choice(
      len(shares), settings["images"], p=shares
    )
    transform = transforms.Compose(
      [
        transforms.RandomResizedCrop(
          settings["size"], scale=tuple(settings["crop_scale"])
        ),
        transforms.RandomHorizontalFlip(settings["flip"]),
        transforms.ToTensor(),
      ]
    )
    faces = Faces(torch_views.random_images(settings), labels, transform)
    counts = np.bincount(labels, minlength=len(shares))
    drawn = WeightedRandomSampler(1 / counts[labels], 1 << 16)
    super().__init__(
      faces,
      settings["batch"],
      settings["workers"],
      pin=settings["device"] == "gpu",
      sampler=drawn,
    )
