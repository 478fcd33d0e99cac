"""What is compared: the parts of the benchmark, their cases, who takes part.

A case is one piece of work with its settings; a system is one way to do it.
All systems of a case get the same settings, so that batch, views, precision,
temperature and optimizer are the same by construction.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dbl_jax.runtime import provenance


class Split(NamedTuple):
  """A part of the benchmark.

  Attributes:
    title: what is done.
    unit: of the figures shown.
    rate: whether figures are units per second, else seconds per unit.
    scale: of the figures: 1000 for milliseconds.
    memory: whether temporaries are shown.
  """

  title: str
  unit: str
  rate: bool = False
  scale: float = 1.0
  memory: bool = False


PARTS = {
  "step": Split("SimCLR training step, views given", "s/step"),
  "augment": Split("SimCLR's views of images in memory", "views/s", rate=True),
  "input": Split("Images through the input", "images/s", rate=True),
  "phase2": Split("Classifier on a frozen encoder", "s"),
  "nt_xent": Split(
    "NT-Xent with gradient, width 128", "ms", scale=1e3, memory=True
  ),
  "startup": Split("Start-up", "s"),
}


class System(NamedTuple):
  """One way to do a case's work.

  Attributes:
    name: as it is shown.
    side: 'ours' or 'peers', whose environment it runs in.
    work: the module of that side that does it; see `runner.command`.
    options: settings of its own, beside the case's.
  """

  name: str
  side: str
  work: str
  options: dict[str, Any]


class Case(NamedTuple):
  """One piece of work.

  Attributes:
    part: name in `PARTS`.
    name: as it is shown.
    settings: the same for all systems.
    systems: who does it; the first is what others are compared with.
    seconds: about how long it takes on two cores, to say how much is left.
  """

  part: str
  name: str
  settings: dict[str, Any]
  systems: tuple[System, ...]
  seconds: float


# SimCLR's family for small images (Chen et al. 2020, appendix B.9: strength
# .5), with the blur that lightly and google-research/simclr have by default.
_FAMILY = {
  "crop_scale": (0.08, 1.0),
  "flip": 0.5,
  "jitter_prob": 0.8,
  "jitter_strength": 0.5,
  "grey": 0.2,
  "blur": 0.5,
  "blur_sigma": (0.1, 2.0),
}
_OPTIMIZER = {
  "learning_rate": 0.03,
  "momentum": 0.9,
  "weight_decay": 1e-4,
  "temperature": 0.5,
}
# Near RAF-DB's, rarest last.
_CLASS_SHARES = (0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02)


def make_cases(device: str, quick: bool, parts: Sequence[str]) -> list[Case]:
  """The cases of some parts.

  Args:
    device: 'cpu' or 'gpu'.
    quick: small ones, to see that everything runs.
    parts: names in `PARTS`.

  Returns:
    The cases, in order.
  """
  makers = {
    "step": _steps,
    "augment": _augment,
    "input": _input,
    "phase2": _phase2,
    "nt_xent": _nt_xent,
    "startup": _startup,
  }
  return [case for part in parts for case in makers[part](device, quick)]


def _step_settings(device: str, stem: str, size: int, batch: int) -> dict:
  return _OPTIMIZER | {
    "device": device,
    "dtype": "bfloat16" if device == "gpu" else "float32",
    "stem": stem,
    "size": size,
    "batch": batch,
    # Enough work between two looks at the clock.
    "steps_per_call": 20 if device == "gpu" else 1,
  }


def _steps(device: str, quick: bool) -> list[Case]:
  # Stem, size, batch, whether flax and compiled PyTorch take part (slow to
  # run, slow to compile), seconds.
  shapes = {
    "cpu": [
      ("imagenet", 32, 64, "flax", 50),
      ("imagenet", 48, 64, "flax compiled", 120),
      ("imagenet", 100, 64, "flax compiled", 160),
      ("small", 32, 64, "flax", 150),
      ("imagenet", 48, 128, "", 50),
      ("imagenet", 100, 128, "", 100),
    ],
    "gpu": [
      ("imagenet", 48, 256, "flax compiled", 90),
      ("imagenet", 100, 256, "flax compiled", 90),
      ("imagenet", 100, 1024, "flax compiled", 120),
      ("small", 32, 512, "flax compiled", 120),
    ],
  }[device]
  if quick:
    shapes = [("imagenet", 32, 8, "flax", 30)]
  cases = []
  for stem, size, batch, others, seconds in shapes:
    systems = [
      System("dbl_jax", "ours", "step", {"implementation": "dbl_jax"}),
      System("PyTorch", "peers", "step", {"compile": False}),
    ]
    if "compiled" in others:
      jit_eval_step = {"compile": True}
      systems.append(System("PyTorch compiled", "peers", "step", jit_eval_step))
    if "flax" in others:
      plain = {"implementation": "flax"}
      systems.append(System("flax as it comes", "ours", "step", plain))
    name = f"{stem} stem, {size} px, N={batch}"
    settings = _step_settings(device, stem, size, batch)
    cases.append(Case("step", name, settings, tuple(systems), seconds))
  return cases


def _views_settings(device: str, size: int, batch: int, quick: bool) -> dict:
  return _FAMILY | {
    "device": device,
    "size": size,
    "batch": batch,
    "images": 64 if quick else 2048,
    "views": 2,
    "batches_per_call": 1 if quick else 4,
    "workers": provenance.cores(),
  }


def _augment(device: str, quick: bool) -> list[Case]:
  systems = (
    System("dbl_jax", "ours", "augment", {}),
    System("lightly", "peers", "augment", {"implementation": "lightly"}),
    System("kornia", "peers", "augment", {"implementation": "kornia"}),
    System("tf.data", "peers", "tf_views", {"work": "augment"}),
  )
  batch = 8 if quick else (256 if device == "gpu" else 64)
  return [
    Case(
      "augment",
      f"{size} px, N={batch}",
      _views_settings(device, size, batch, quick),
      systems,
      50,
    )
    for size in ((32,) if quick else (48, 100))
  ]


def _input(device: str, quick: bool) -> list[Case]:
  batch = 8 if quick else (256 if device == "gpu" else 64)
  cases = []
  for size in (32,) if quick else (48, 100):
    shared = _views_settings(device, size, batch, quick) | _step_settings(
      device, "imagenet", size, batch
    )
    shared["class_shares"] = _CLASS_SHARES
    plain = shared | {"work": "plain"}
    name = f"{size} px, N={batch}"
    cases.append(Case("input", f"{name}: input alone", plain, _FEEDS, 55))
    train = shared | {
      "work": "train",
      "batches_per_call": 20 if device == "gpu" else 1,
    }
    systems = [_FEEDS[0], System("lightly", "peers", "input", _LIGHTLY)]
    if device == "gpu":
      systems.append(System("kornia, compiled", "peers", "input", _KORNIA))
    name = f"{name}: views and training step"
    cases.append(Case("input", name, train, tuple(systems), 15 + size))
  return cases


_LIGHTLY = {"implementation": "lightly", "compile": False}
_KORNIA = {"implementation": "kornia", "compile": True}
_FEEDS = (
  System("dbl_jax", "ours", "input", {"input": "resident"}),
  System("dbl_jax, tf_data", "ours", "input", {"input": "tf_data"}),
  System("PyTorch DataLoader", "peers", "input", _LIGHTLY),
  System("tf.data", "peers", "tf_views", {}),
)


def _phase2(device: str, quick: bool) -> list[Case]:
  epochs, images, size, batch = (
    (2, 128, 32, 16) if quick else (30, 2048, 48, 128)
  )
  settings = _views_settings(device, size, batch, quick) | _step_settings(
    device, "imagenet", size, batch
  )
  settings |= {
    "images": images,
    "class_shares": _CLASS_SHARES,
    "epochs": epochs,
    "total_steps": epochs * images // batch,
    "hidden": 256,
    "learning_rate": 1e-3,
    "input": "resident",
    "steps_per_call": 40 if device == "gpu" else 4,
  }
  name = f"{epochs} epochs of {images} images, {size} px, N={batch}"
  systems = (
    System("dbl_jax, features once", "ours", "phase2", {"cached_views": 1}),
    System("dbl_jax, each step", "ours", "phase2", {"cached_views": 0}),
    System("PyTorch, each step", "peers", "phase2", {}),
  )
  return [Case("phase2", name, settings, systems, 70)]


def _nt_xent(device: str, quick: bool) -> list[Case]:
  systems = (
    System("dbl_jax", "ours", "nt_xent", {"implementation": "dbl_jax"}),
    System("lightly", "peers", "nt_xent", {}),
    System("JAX, whole matrix", "ours", "nt_xent", {"implementation": "plain"}),
  )
  sizes = {64: 15, 1024: 15, 4096: 35, 8192: 100}
  if quick:
    sizes = {64: 10}
  return [
    Case(
      "nt_xent",
      f"N={batch}",
      {
        "device": device,
        "batch": batch,
        "width": 128,
        "temperature": 0.5,
        "steps_per_call": 20 if device == "gpu" or batch < 1024 else 1,
      },
      systems,
      seconds,
    )
    for batch, seconds in sizes.items()
  ]


_IMPORT_PEERS = (
  "import sys; sys.path.append(sys.argv[1]); import torch_model, torch_views"
)


def _startup(device: str, quick: bool) -> list[Case]:
  def case(name: str, seconds: float, *systems: System) -> Case:
    return Case("startup", name, {"cache": ""}, systems, seconds)

  def run(name: str, side: str, *arguments: str) -> System:
    return System(name, side, "startup", {"arguments": arguments})

  imports = case(
    "import",
    35,
    run("dbl_jax", "ours", "-c", "import dbl_jax.train"),
    run("PyTorch, lightly", "peers", "-c", _IMPORT_PEERS, "{where}"),
    run("TensorFlow", "peers", "-c", "import tensorflow"),
  )
  on_help = case(
    "--help", 10, run("dbl_jax", "ours", "-m", "dbl_jax.main", "--help")
  )
  if quick:
    return [imports, on_help]
  step = _step_settings(device, "imagenet", 48, 64)
  ours = step | {"implementation": "dbl_jax"}
  peers = step | {"compile": False, "layout": "contiguous"}
  return [imports, on_help] + [
    Case(
      "startup",
      f"first step, 48 px, N=64, compile cache {cache}",
      {"cache": cache, "first": "step"},
      (
        System("dbl_jax", "ours", "startup", {"settings": ours}),
        System("PyTorch", "peers", "startup", {"settings": peers}),
      ),
      seconds,
    )
    for cache, seconds in (("cold", 90), ("warm", 75))
  ]
