"""Batches from a DataLoader, alone or with augmentation and training step."""

from typing import Any

import torch
import torch_views
from torch_model import make_step
from torch_setup import peak_bytes, set_up, wait


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: work ('plain' or 'train'), those of the parts.

  With 'train', views come from lightly's transforms, or from kornia's on
  resident images (implementation 'kornia').
  """
  device, facts = set_up(settings["device"])
  facts["workers"] = settings["workers"]
  works = {"plain": _plain, "train": _train}
  work = works[settings["work"]](settings, device, facts)
  return work | {
    "units": settings["batches_per_call"] * settings["batch"],
    "facts": {"set": facts} | peak_bytes(device),
  }


def _plain(
  settings: dict[str, Any], device: torch.device, facts: dict[str, Any]
) -> dict[str, Any]:
  loader = torch_views.plain_loader(settings)

  def run() -> None:
    for _ in range(settings["batches_per_call"]):
      loader.next().to(device, non_blocking=True)
    wait(device)

  return {"run": run, "begin": loader.begin, "end": loader.end}


def _train(
  settings: dict[str, Any], device: torch.device, facts: dict[str, Any]
) -> dict[str, Any]:
  step, chosen = make_step(settings, device)
  facts |= chosen
  if settings["implementation"] == "kornia":
    batched = torch_views.BatchedViews(settings, device)
    draw, phases = batched.next, {}
  else:
    loader = torch_views.simclr_loader(settings)
    draw = loader.next
    phases = {"begin": loader.begin, "end": loader.end}

  def run() -> None:
    for _ in range(settings["batches_per_call"]):
      views = [view.to(device, non_blocking=True) for view in draw()]
      step(step.place(torch.cat(views)))
    wait(device)

  return phases | {"run": run}
