"""Phase 2 on features extracted once, or augmenting and encoding each step."""

from typing import Any

from dbl_jax.benchmarks.ours import devices, training


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. A unit is the whole phase.

  With cached_views = 0 only steps_per_call steps of it are done: each takes as
  long as any other.
  """
  found = devices.prepare(settings["device"])
  run = training.classifying(settings)
  total = run.trainer.total
  facts = {"set": found | {"steps": total}}
  if settings["cached_views"]:
    phase = training.cached_phase(run)
    phase()  # compiles
    return {"run": phase, "units": 1, "facts": facts}
  stepper, count = training.Stepper(run), settings["steps_per_call"]
  stepper.begin()
  stepper.advance(count)
  stepper.end()
  return {
    "run": lambda: stepper.advance(count),
    "begin": stepper.begin,
    "end": stepper.end,
    "units": count / total,
    "facts": facts,
  }
