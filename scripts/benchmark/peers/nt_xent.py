"""lightly's NT-Xent with its gradient."""

from typing import Any

import numpy as np
import torch
from torch_setup import peak_bytes, set_up

# isort: split
from lightly.loss import NTXentLoss


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: batch, width, temperature, steps_per_call."""
  device, found = set_up(settings["device"])
  z = np.random.default_rng(0).standard_normal(
    (settings["batch"], 2, settings["width"]), np.float32
  )
  first, second = (
    torch.tensor(z[:, view], device=device, requires_grad=True)
    for view in (0, 1)
  )
  function = NTXentLoss(temperature=settings["temperature"])
  facts: dict[str, Any] = {"set": found}

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      first.grad = second.grad = None
      loss = function(first, second)
      loss.backward()
    facts["loss"] = loss.item()
    facts.update(peak_bytes(device))

  return {"run": run, "units": settings["steps_per_call"], "facts": facts}
