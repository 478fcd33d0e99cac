"""SimCLR's views by lightly in a DataLoader, or by kornia in batches."""

from typing import Any

import torch_views
from torch_setup import set_up, wait


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: implementation ('lightly' or 'kornia'), family."""
  device, facts = set_up(settings["device"])
  work = {
    "units": settings["batches_per_call"] * 2 * settings["batch"],
    "facts": {"set": facts},
  }
  if settings["implementation"] == "lightly":
    loader = torch_views.simclr_loader(settings)
    draw = loader.next
    facts["workers"] = settings["workers"]
    work |= {"begin": loader.begin, "end": loader.end}
  else:
    draw = torch_views.BatchedViews(settings, device).next
    facts["images"] = "resident"

  def run() -> None:
    for _ in range(settings["batches_per_call"]):
      draw()
    wait(device)

  return work | {"run": run}
