"""The parts of scripts/gpu.sh that are more than one command.

gpu.py pack DATA           makes carry/data.npz of a folder in RAF-DB's layout
gpu.py check OUT           trains every config for two steps in each precision
gpu.py table OUT SECONDS   trains the table, and collects what is finished
"""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbl_jax import config as configs
from dbl_jax.cli import load_config
from dbl_jax.data import datasets, sources
from dbl_jax.data.datasets import Dataset, Split
from dbl_jax.runtime.environment import cores

_WORK = Path("runs/gpu")
_PACKED = Path("carry/data.npz")
_REHEARSAL = bool(os.environ.get("GPU_REHEARSAL"))
_DTYPES = ("bfloat16", "float32")
# Allowed relative difference of a phase's first loss between precisions.
_TOLERANCE = 0.05
_SIZE = 48  # pixels
_TABLE = [
  "--systems=basic,dbl_plus,dbl,dbl:three_phases,resampling,reweighting,"
  "decoupling,logit_adjustment,center_loss,dcnn,dlp_cnn,regions",
  "--seeds=0,1,2",
  "--epochs=100",
  *(
    f"--set={system}.pretrain.{field}"  # the same, so that they share it
    for system in ("dbl", "dbl:three_phases")
    for field in ("epochs=400", "batch_size=512", "evaluate_every=20.0")
  ),
]
_TINY_TABLE = [
  "--systems=basic,dbl",
  "--epochs=1",
  "--head_epochs=1",
  "--batch_size=32",
  "--set=dbl.pretrain.batch_size=64",
]
# Processes that train at once: one small network does not fill a GPU.
_PROCESSES = 1 if _REHEARSAL else 4
# To stop the processes, write the table and collect.
_RESERVE = 45.0


def pack(folder: str) -> None:
  """Writes a data set, prepared at 48 px, to one small file.

  Green is stored as differences to the left neighbour, red and blue as
  differences to green, which are 0 for grey images and compress well.
  """
  with tempfile.TemporaryDirectory() as cache:
    options = configs.base().data
    options.update(name="raf_db", dir=folder, image_size=_SIZE, cache_dir=cache)
    sources.load(options)
    (path,) = Path(cache).glob("*.npz")
    dataset = datasets.load(path)
    parts = {name: part.images[:] for name, part in dataset.splits.items()}
  meta = dataset._asdict() | {"splits": {}}
  content: dict[str, Any] = {"meta": np.array(json.dumps(meta))}
  for name, (_, labels) in dataset.splits.items():
    red, green, blue = np.moveaxis(parts[name], -1, 0)
    left = np.pad(green, ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    channels = [green - left, red - green, blue - green]
    content[f"{name}_images"] = np.stack(channels)
    content[f"{name}_labels"] = labels
  _PACKED.parent.mkdir(exist_ok=True)
  np.savez_compressed(_PACKED, **content)
  size = _PACKED.stat().st_size / 2**20
  print(f"{_PACKED}: {size:.1f} MiB")
  if size > 50:
    raise SystemExit(f"{_PACKED} has {size:.0f} MiB, more than 50.")


def unpack(packed: Path, path: Path, every: int = 1) -> Dataset:
  """Writes the prepared file that `pack` was given, or a smaller one.

  Args:
    packed: the small file.
    path: of the prepared file.
    every: stride of images, above 1 for a rehearsal; the stride of pixels is
      a twentieth of it.

  Returns:
    The data set.
  """
  with np.load(packed) as content:
    meta, parts = json.loads(str(content["meta"])), {}
    for name in [key[:-7] for key in content if key.endswith("_labels")]:
      green, red, blue = content[f"{name}_images"]
      green = np.cumsum(green, axis=2, dtype=np.uint8)
      images = np.stack([red + green, green, blue + green], axis=-1)
      step = max(every // 20, 1)
      images = images[::every, ::step, ::step].copy()
      parts[name] = Split(images, content[f"{name}_labels"][::every])
  dataset = Dataset(**meta | {"splits": parts})
  datasets.save(path, dataset)
  return dataset


def check(out: Path) -> None:
  """Trains every config for two steps, and compares bfloat16 with float32.

  Writes check.json: config -> phase -> losses by precision, and whether those
  of the first step agree; or why the config failed.
  """
  names = sorted(path.stem for path in Path("configs").glob("*.py"))
  names.remove("classifier")  # needs a finished run; dbl has the same phase
  if _REHEARSAL:
    names = os.environ.get("GPU_CONFIGS", "basic").split(",")
  runs: dict[str, dict[str, Any]] = {name: {} for name in names}
  workers = 1 if _REHEARSAL else cores()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = {
      pool.submit(_two_steps, name, dtype): (name, dtype)
      for dtype in _DTYPES
      for name in names
    }
    try:
      for future in concurrent.futures.as_completed(futures):
        name, dtype = futures[future]
        runs[name][dtype] = future.result()
        if len(runs[name]) == len(_DTYPES):
          runs[name] = _compare(runs[name])
          print(f"check: {name}: {runs[name]['verdict']}", flush=True)
        (out / "check.json").write_text(json.dumps(runs, indent=1) + "\n")
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
  bad = [name for name, run in runs.items() if run["verdict"] != "ok"]
  print(f"check: {len(names) - len(bad)} of {len(names)} ok", *bad)


def _two_steps(name: str, dtype: str) -> dict[str, list[float]] | str:
  """Returns the losses of each phase, or how the run failed."""
  config = load_config(f"configs/{name}.py")
  size, images, batch = (16, 40, 16) if _REHEARSAL else (_SIZE, 160, 64)
  fields = {
    "data.image_size": size,
    "data.num_train": images,
    "data.num_test": 28,
    "data.cache_dir": str(_WORK / "cache"),
    "model.dtype": dtype,
    "log_every": 1,
  }
  for phase in configs.phases(config):
    fields[f"{phase}.batch_size"] = batch
    if config[phase].epochs != 0:
      fields[f"{phase}.epochs"] = 1
  workdir = _WORK / "check" / f"{name}-{dtype}"
  done = subprocess.run(
    [
      *(sys.executable, "-m", "dbl_jax.main", f"--config=configs/{name}.py"),
      *(f"--config.{field}={value}" for field, value in fields.items()),
      f"--workdir={workdir}",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    return done.stderr[-500:]
  losses: dict[str, list[float]] = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if "loss" in row:
      losses.setdefault(row["phase"], []).append(row["loss"])
  return losses


def _compare(run: dict[str, Any]) -> dict[str, Any]:
  """Adds a verdict to the results of both precisions."""
  half, full = (run[dtype] for dtype in _DTYPES)
  for losses in (half, full):
    if isinstance(losses, str):
      return run | {"verdict": f"failed: {losses}"}
  for phase in full:
    one, other = half[phase][0], full[phase][0]
    if not abs(one - other) <= _TOLERANCE * abs(other):
      return run | {"verdict": f"{phase}: {one} is not {other}"}
  finite = np.isfinite([x for losses in half.values() for x in losses]).all()
  return run | {"verdict": "ok" if finite else "not finite"}


def table(out: Path, seconds: float) -> None:
  """Trains the table in several processes, and collects every half minute.

  Args:
    out: gets table.tar.xz and scores.tar.xz.
    seconds: time limit.
  """
  end = time.monotonic() + seconds - _RESERVE
  path = _WORK / "data.npz"
  dataset = unpack(_PACKED, path, every=60 if _REHEARSAL else 1)
  command = [
    *(sys.executable, "scripts/make_table.py"),
    *(_TINY_TABLE if _REHEARSAL else _TABLE),
    f"--data.name={dataset.name}",
    f"--data.dir={path}",
    f"--data.image_size={dataset.image_size}",
    f"--out={_WORK / 'table'}",
  ]
  print("== table:", *command, flush=True)
  workers = [subprocess.Popen(command) for _ in range(_PROCESSES)]
  try:
    while time.monotonic() < end and any(w.poll() is None for w in workers):
      time.sleep(5 if _REHEARSAL else 30)
      collect(out)
  finally:
    for worker in workers:
      worker.send_signal(signal.SIGINT)
    _wait(workers, _RESERVE / 3)
    _wait([subprocess.Popen([*command, "--notrain"])], _RESERVE / 2)
    collect(out)


def _wait(processes: Sequence[subprocess.Popen], seconds: float) -> None:
  """Waits for all processes, and kills those that take longer."""
  end = time.monotonic() + seconds
  for process in processes:
    try:
      process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()


def collect(out: Path) -> None:
  """Packs metrics and journals into one file, scores into another."""
  stages = _WORK / "table" / "stages"
  texts = [
    *(_WORK / "table").glob("table.*"),
    *(stages.glob("*/*.json")),
    *(stages.glob("*/metrics.jsonl")),
  ]
  for name, files in (("table", texts), ("scores", stages.glob("*/*.npz"))):
    partial = out / f"{name}.partial"
    with tarfile.open(partial, "w:xz") as archive:
      for file in files:
        archive.add(file, file.relative_to(_WORK))
    partial.replace(out / f"{name}.tar.xz")


if __name__ == "__main__":
  part, where, *rest = sys.argv[1:]
  if part == "pack":
    pack(where)
  elif part == "check":
    check(Path(where))
  else:
    table(Path(where), float(rest[0]))
