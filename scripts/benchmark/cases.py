"""Benchmarked work: its kinds and cases, and the systems compared.

A case is one piece of work with its settings; a system is one way to do it.
All systems of a case get the same settings, so that batch, views, precision,
temperature and optimizer are the same by construction.
"""

import fnmatch
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dbl_jax.runtime.environment import cores

FOLDER = Path(__file__).resolve().parent
_PEERS = FOLDER / "peers"
# Kind of work -> unit of its figures.
UNITS = {
  "step": "s/step",  # SimCLR training step on given views
  "augment": "views/s",  # SimCLR's views of resident images
  "input": "images/s",  # the input, alone or with views and step
  "phase2": "s",  # classifier on a frozen encoder
  "nt_xent": "ms",  # loss with gradient, width 128
  "startup": "s",
}


class System(NamedTuple):
  """One way to do a case's work.

  Attributes:
    name: as it is shown.
    side: 'ours' or 'peers', whose Python runs it.
    work: 'FILE:FUNCTION', see `serve`.
    options: added to the case's settings.
  """

  name: str
  side: str
  work: str
  options: dict[str, Any]


class Case(NamedTuple):
  """One piece of work: its kind in `UNITS`, and the settings of all systems.

  The first system is the one that others are compared with.
  """

  kind: str
  name: str
  settings: dict[str, Any]
  systems: Sequence[System]


def make_cases(
  device: str,
  quick: bool = False,
  kinds: Sequence[str] = (*UNITS,),
  names: Sequence[str] = ("*",),
  systems: Sequence[str] = ("*",),
) -> list[Case]:
  """Returns the cases of some kinds for a device, in order.

  `names` and `systems` are patterns as in a shell that select cases and their
  systems. With `quick` cases are small, to see that everything runs.
  """
  makers = (_steps, _augment, _input, _phase2, _nt_xent, _startup)
  by_kind = dict(zip(UNITS, makers, strict=True))
  made = [case for kind in kinds for case in by_kind[kind](device, quick)]
  found = {}
  for pattern, case in itertools.product(names, made):
    chosen = [s for s in case.systems if _matches(s.name, systems)]
    if chosen and _matches(case.name, [pattern]):
      found[case.kind, case.name] = case._replace(systems=chosen)
  return sorted(found.values(), key=lambda case: kinds.index(case.kind))


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _ours(name: str, function: str, **options: Any) -> System:
  return System(name, "ours", f"{FOLDER / 'ours.py'}:{function}", options)


def _plain(name: str, function: str) -> System:
  return System(name, "ours", f"{_PEERS / 'plain_jax.py'}:{function}", {})


def _peer(name: str, file: str, **options: Any) -> System:
  return System(name, "peers", f"{_PEERS / file}.py:build", options)


def _settings(
  device: str, quick: bool, size: int, batch: int, stem: str = "imagenet"
) -> dict[str, Any]:
  on_gpu = device == "gpu"
  return {
    "device": device,
    "dtype": "bfloat16" if on_gpu else "float32",
    "stem": stem,
    "size": size,
    "batch": batch,
    # Enough work between two readings of the clock.
    "steps_per_call": 20 if on_gpu else 1,
    "batches_per_call": 1 if quick else 4,
    "learning_rate": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "temperature": 0.5,
    "images": 64 if quick else 2048,
    # Near RAF-DB's, rarest last.
    "class_shares": (0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02),
    "workers": cores(),
    "views": 2,
    # SimCLR's family for small images (Chen et al. 2020, appendix B.9:
    # strength .5), with the blur that lightly and google-research/simclr have
    # by default.
    "crop_scale": (0.08, 1.0),
    "flip": 0.5,
    "jitter_prob": 0.8,
    "jitter_strength": 0.5,
    "grey": 0.2,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
  }


def _steps(device: str, quick: bool) -> list[Case]:
  # Stem, size, batch, and the systems that are slow to run or to compile.
  shapes = [
    ("imagenet", 32, 64, "flax"),
    ("imagenet", 48, 64, "flax compiled"),
    ("imagenet", 100, 64, "flax compiled"),
    ("small", 32, 64, "flax"),
    ("imagenet", 48, 128, ""),
    ("imagenet", 100, 128, ""),
  ]
  if device == "gpu":  # without cases that exceed the memory of four systems
    shapes = [
      (stem, size, batch, "flax compiled")
      for stem in ("imagenet", "small")
      for size in (48, 100)
      for batch in (64, 256, 1024)
      if (stem, size, batch) != ("small", 100, 1024)
    ]
  if quick:
    shapes = [("imagenet", 32, 8, "flax")]
  eager = _peer("PyTorch", "step", compile=False)
  compiled = _peer("PyTorch compiled", "step", compile=True)
  flax = _plain("plain flax", "step")
  cases = []
  for stem, size, batch, others in shapes:
    systems = [_ours("dbl_jax", "step"), eager]
    systems += [compiled] if "compiled" in others else []
    systems += [flax] if "flax" in others else []
    name = f"{stem} stem, {size} px, N={batch}"
    settings = _settings(device, quick, size, batch, stem)
    cases.append(Case("step", name, settings, systems))
  return cases


def _shapes(device: str, quick: bool) -> list[tuple[str, dict[str, Any]]]:
  """Returns names and settings of cases by size."""
  batch = 8 if quick else (256 if device == "gpu" else 64)
  return [
    (f"{size} px, N={batch}", _settings(device, quick, size, batch))
    for size in ((32,) if quick else (48, 100))
  ]


def _augment(device: str, quick: bool) -> list[Case]:
  systems = [
    _ours("dbl_jax", "augment"),
    _peer("lightly", "augment", implementation="lightly"),
    _peer("kornia", "augment", implementation="kornia"),
    _peer("tf.data", "tf_views", work="augment"),
  ]
  return [Case("augment", *shape, systems) for shape in _shapes(device, quick)]


def _input(device: str, quick: bool) -> list[Case]:
  def peer(name: str, implementation: str, compiles: bool = False) -> System:
    options = {"implementation": implementation, "compile": compiles}
    return _peer(name, "input", **options)

  resident = _ours("dbl_jax", "feed", input="resident")
  alone = [
    resident,
    _ours("dbl_jax, tf_data", "feed", input="tf_data"),
    peer("PyTorch DataLoader", "lightly"),
    _peer("tf.data", "tf_views"),
  ]
  with_step = [resident, peer("lightly", "lightly")]
  if device == "gpu":
    compiled = peer("kornia, compiled", "kornia", compiles=True)
    with_step += [peer("kornia", "kornia"), compiled]
  cases = []
  for name, shared in _shapes(device, quick):
    plain = shared | {"work": "plain"}
    batches = 20 if device == "gpu" else 1
    train = shared | {"work": "train", "batches_per_call": batches}
    both = f"{name}: views and training step"
    cases.append(Case("input", f"{name}: input alone", plain, alone))
    cases.append(Case("input", both, train, with_step))
  return cases


def _phase2(device: str, quick: bool) -> list[Case]:
  full = (30, 2048, 48, 128)
  epochs, images, size, batch = (2, 128, 32, 16) if quick else full
  settings = _settings(device, quick, size, batch) | {
    "images": images,
    "epochs": epochs,
    "total_steps": epochs * images // batch,
    "hidden": 256,
    "learning_rate": 1e-3,
    "input": "resident",
    "steps_per_call": 40 if device == "gpu" else 4,
  }
  systems = [
    _ours("dbl_jax, features once", "phase2", cached_views=1),
    _ours("dbl_jax, each step", "phase2", cached_views=0),
    _peer("PyTorch, each step", "phase2"),
  ]
  name = f"{epochs} epochs of {images} images, {size} px, N={batch}"
  return [Case("phase2", name, settings, systems)]


def _nt_xent(device: str, quick: bool) -> list[Case]:
  systems = [
    _ours("dbl_jax", "nt_xent"),
    _peer("lightly", "nt_xent"),
    _plain("JAX, whole matrix", "nt_xent"),
  ]
  cases = []
  for batch in (64,) if quick else (64, 1024, 4096, 8192):
    settings = _settings(device, quick, 0, batch) | {"width": 128}
    if batch < 1024:
      settings["steps_per_call"] = 20
    cases.append(Case("nt_xent", f"N={batch}", settings, systems))
  return cases


def _startup(device: str, quick: bool) -> list[Case]:
  serve = str(FOLDER / "serve.py")

  def run(name: str, side: str, *arguments: str) -> System:
    return System(name, side, f"{serve}:startup", {"arguments": arguments})

  def first_step(system: System) -> System:
    settings = _settings(device, quick, 48, 64) | system.options
    request = json.dumps({"do": "prepare", "settings": settings})
    return run(system.name, system.side, serve, system.work, request)

  peers = f"import sys; sys.path.append({str(_PEERS)!r}); import torch_views"
  imports = [
    run("dbl_jax", "ours", "-c", "import dbl_jax.train"),
    run("PyTorch, lightly", "peers", "-c", peers),
    run("TensorFlow", "peers", "-c", "import tensorflow"),
  ]
  shown = [run("dbl_jax", "ours", "-m", "dbl_jax.main", "--help")]
  steps = [
    first_step(_ours("dbl_jax", "step")),
    first_step(_peer("PyTorch", "step", compile=False, layout="contiguous")),
  ]
  cases = [
    Case("startup", "import", {"cache": ""}, imports),
    Case("startup", "--help", {"cache": ""}, shown),
  ]
  for cache in () if quick else ("cold", "warm"):
    name = f"first step, 48 px, N=64, compile cache {cache}"
    cases.append(Case("startup", name, {"cache": cache}, steps))
  return cases
