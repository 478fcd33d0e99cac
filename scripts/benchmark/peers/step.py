"""A SimCLR training step in PyTorch, on views that are given."""

from typing import Any

from torch_model import make_step, random_views
from torch_setup import peak_bytes, set_up, wait


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: those of `make_step`, steps_per_call, device."""
  device, facts = set_up(settings["device"])
  step, chosen = make_step(settings, device)
  views = step.place(random_views(settings))

  def run() -> None:
    for _ in range(settings["steps_per_call"]):
      step(views)
    wait(device)

  run()  # compiles
  facts = {"set": facts | chosen} | peak_bytes(device)
  return {"run": run, "units": settings["steps_per_call"], "facts": facts}
