"""Batches from the project's feeds, alone or through augmentation and step."""

from typing import Any

from dbl_jax.benchmarks.ours import devices, training


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`. Settings: work ('plain' or 'train') and a trainer's."""
  found = devices.prepare(settings["device"])
  run = training.pretraining(settings)
  count = settings["batches_per_call"]
  if settings["work"] == "train":
    stepper = training.Stepper(run)
    source: training.Stepper | training.Batches = stepper

    def work() -> None:
      stepper.advance(count)

  else:
    batches = training.Batches(run, settings["size"])
    source = batches

    def work() -> None:
      for _ in range(count):
        pictures = batches.next()
      pictures.block_until_ready()

  source.begin()
  work()  # compiles
  source.end()
  return {
    "run": work,
    "begin": source.begin,
    "end": source.end,
    "units": count * settings["batch"],
    "facts": {
      "set": found
      | {
        "input": settings["input"],
        "steps_per_dispatch": run.trainer.most,
      }
    },
  }
