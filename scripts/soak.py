"""Kills training runs at random moments and checks that nothing is lost.

python scripts/soak.py --kills=200 --seed=0 [--phase=save,report] [--data=faces]

A run of three phases is started as a process, ended by SIGKILL and started
again by the same command, until it finishes. Its parameters, metrics.json and
metrics.jsonl must then equal, bit for bit, those of an uninterrupted run. Its
data is drawn (`faces`), a `folder` of images or the same `streamed` from disk,
in several shards. Prints a line per kill and how many kills hit each moment;
status 1 if a run differs.
"""

import collections
import dataclasses
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image

from dbl_jax.cli import parse_flags, run_main
from dbl_jax.errors import UserError
from dbl_jax.training import checkpoint
from dbl_jax.training.phase import PHASES

# Seconds at most from the start of a moment to the kill, so that kills hit all
# of it.
MOMENTS = {
  "start": 2.0,
  "data": 1.0,
  "compile": 2.0,
  "step": 0.3,
  "save": 0.05,
  "phase change": 0.5,
  "report": 1.0,
}
_POLL = 0.002  # seconds
_TINY = Path(__file__).resolve().parent.parent / "tests" / "tiny.py"
# More saves than in the run of the tests.
_FIELDS = (
  "pretrain.epochs=4",
  "pretrain.evaluate_every=1.",
  "finetune.epochs=3",
  "finetune.evaluate_every=1.",
  "classify.epochs=4",
)
_FOLDER = ("data.name=image_folder", "data.dir={images}", "classify.q=0.5")
DATA = {
  "faces": ("data.num_train=900",),
  "folder": _FOLDER,
  "streamed": (*_FOLDER, "data.input=tf_data"),
}


def command(*fields: str, config: str = "tests/tiny.py") -> list[str]:
  """A command line of main, with overrides such as 'pretrain.epochs=3'."""
  start = [sys.executable, "-m", "dbl_jax.main", f"--config={config}"]
  return start + [f"--config.{field}" for field in fields]


@dataclasses.dataclass
class Run:
  """A command that may be started several times.

  Attributes:
    command: without workdir and cache.
    folder: holds the workdir and the output of the latest start.
    cache: folder of prepared data; its path is part of the config.
  """

  command: Sequence[str]
  folder: Path
  cache: Path

  @property
  def workdir(self) -> Path:
    """Workdir of the run."""
    return self.folder / "run"

  @property
  def output(self) -> str:
    """Standard output and error of the latest start."""
    return (self.folder / "log").read_text()

  def start(self) -> subprocess.Popen:
    """Starts or resumes the run."""
    self.folder.mkdir(parents=True, exist_ok=True)
    options = (
      f"--workdir={self.workdir}",
      f"--config.data.cache_dir={self.cache}",
    )
    with (self.folder / "log").open("w") as log:
      return subprocess.Popen(
        [*self.command, *options], stdout=log, stderr=subprocess.STDOUT
      )

  def moment(self, finals: dict[str, int], started: float) -> str:
    """What the run is doing according to its files; exact if it is dead.

    Args:
      finals: as returned by `last_steps`.
      started: time of the latest start, in seconds.

    Returns:
      A key of `MOMENTS`.
    """

    def is_new(path: Path) -> bool:
      try:
        return path.stat().st_mtime > started
      except FileNotFoundError:  # a complete save is renamed
        return False

    first, last = next(iter(finals)), next(reversed(finals))
    if not is_new(self.workdir / f"parameters_{first}.txt"):
      preparing = "Preparing " in self.output and "Prepared " not in self.output
      return "data" if preparing else "start"
    names = [*self.workdir.glob("checkpoints/*/*")]
    if any(is_new(p) for p in names if ".orbax-checkpoint-tmp" in p.name):
      return "save"
    steps = {phase: _latest(self.workdir, phase) for phase in finals}
    if steps[last] == finals[last]:
      return "report"
    for one, following in itertools.pairwise(finals):
      directory = checkpoint.phase_dir(self.workdir, following)
      if steps[one] == finals[one] and not directory.is_dir():
        return "phase change"
    row = _last_row(self.workdir)
    ahead = row is not None and row["step"] > steps.get(row["phase"], -1)
    return "step" if ahead or any(map(is_new, names)) else "compile"


def last_steps(workdir: Path) -> dict[str, int]:
  """The last step of each phase of a finished run, in their order."""
  found = {path.name for path in workdir.glob("checkpoints/*")}
  return {name: _latest(workdir, name) for name in PHASES if name in found}


def _latest(workdir: Path, phase: str) -> int:
  paths = checkpoint.phase_dir(workdir, phase).glob("*")
  return max((int(p.name) for p in paths if p.name.isdecimal()), default=-1)


def _last_row(workdir: Path) -> dict | None:
  """The last complete row of metrics.jsonl."""
  path = workdir / "metrics.jsonl"
  text = path.read_text() if path.exists() else ""
  lines = text[: text.rfind("\n") + 1].splitlines()
  return json.loads(lines[-1]) if lines else None


def kill_at(
  run: Run, target: str, finals: dict[str, int], rng: random.Random
) -> tuple[str | None, int | None]:
  """Starts a run and kills it at a moment.

  Args:
    run: the run.
    target: a key of `MOMENTS`.
    finals: as returned by `last_steps`.
    rng: draws the time between the start of the moment and the kill.

  Returns:
    The moment that was hit and None; or None and the exit status, if the run
    ended before.
  """
  if target == "data":
    shutil.rmtree(run.cache, ignore_errors=True)
  started, process = time.time(), run.start()
  while run.moment(finals, started) != target:
    if process.poll() is not None:
      return None, process.returncode
    time.sleep(_POLL)
  time.sleep(rng.uniform(0, MOMENTS[target]))
  process.send_signal(signal.SIGKILL)
  if process.wait() != -signal.SIGKILL:
    return None, process.returncode
  return run.moment(finals, started), None


def differences(whole: Path, other: Path) -> list[str]:
  """Bitwise differences between two finished workdirs, one line each."""
  found = [
    f"{other / name} differs"
    for name in ("metrics.json", "metrics.jsonl")
    if (whole / name).read_bytes() != (other / name).read_bytes()
  ]
  for phase, keep in itertools.product(last_steps(whole), ("best", "latest")):
    one, two = (
      _content(checkpoint.phase_dir(workdir, phase), keep)
      for workdir in (whole, other)
    )
    if one != two:
      found.append(f"{other}: the {keep} model of {phase} differs")
  return found


def _content(directory: Path, keep: str) -> tuple[int, dict]:
  """Step and arrays of a checkpoint, comparable by ==."""
  model, step = checkpoint.load_model(directory, keep)
  return step, jax.tree.map(lambda x: (x.dtype, x.shape, x.tobytes()), model)


def soak(
  words: Sequence[str], folder: Path, kills: int, seed: int, moments: list[str]
) -> tuple[collections.Counter, list[str]]:
  """Kills runs until there were enough kills or a run differs.

  Args:
    words: as returned by `command`.
    folder: new folder for the runs.
    kills: number of kills.
    seed: seed of the moments.
    moments: keys of `MOMENTS`, hit in random order.

  Returns:
    Number of kills by moment, and what differs, one line each.
  """
  rng = random.Random(seed)
  whole = Run(words, folder / "whole", folder / "cache")
  if whole.start().wait():
    raise UserError(f"The uninterrupted run failed: {whole.output[-500:]}")
  finals = last_steps(whole.workdir)
  hits: collections.Counter = collections.Counter()
  faults: list[str] = []
  while hits.total() < kills and not faults:
    run = Run(words, folder / f"killed{hits.total()}", whole.cache)
    shutil.rmtree(run.cache, ignore_errors=True)
    status = None
    while hits.total() < kills and status is None:
      hit, status = kill_at(run, rng.choice(moments), finals, rng)
      if hit is not None:
        hits[hit] += 1
        print(f"kill {hits.total()} of {kills}: {hit}", flush=True)
    if run.start().wait() if status is None else status:
      faults = [f"{run.folder} failed: {run.output[-500:]}"]
    else:
      faults = differences(whole.workdir, run.workdir)
    print(f"run ended: {faults or 'equal'}", flush=True)
  return hits, faults


def _write_images(folder: Path) -> Path:
  """A folder with 450, 225, 112 and 56 images of noise in class folders."""
  rng = np.random.default_rng(0)
  for label in range(4):
    (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for number in range(450 >> label):
      pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
  return folder


def main(argv: Sequence[str]) -> None:
  """Soaks as the flags request."""
  # Defined here, because tests import this module.
  kills = flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1)
  seed = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
  data = flags.DEFINE_enum("data", "faces", [*DATA], "Data of the run.")
  phase = flags.DEFINE_list("phase", [], "Moments to hit. Default: all.")
  out = flags.DEFINE_string(
    "out", "", "Folder to retain the runs. Default: none."
  )
  parse_flags(argv)
  moments = phase.value or list(MOMENTS)
  unknown = set(moments) - set(MOMENTS)
  if unknown:
    raise UserError(
      f"--phase={','.join(sorted(unknown))}: no such moment. There are"
      f" {', '.join(MOMENTS)}."
    )
  if not _TINY.exists():
    raise UserError(f"{_TINY} is missing: it is the config of the runs.")
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(out.value or temporary).resolve()
    images = _write_images(folder / "images")
    fields = (field.format(images=images) for field in DATA[data.value])
    words = command(*_FIELDS, *fields, config=f"{_TINY}:soak")
    hits, faults = soak(words, folder, kills.value, seed.value, moments)
  print(
    *(f"{name}: {count} kills" for name, count in hits.most_common()), sep="\n"
  )
  print(f"{hits.total()} kills, {len(faults)} faults", *faults, sep="\n")
  sys.exit(bool(faults))


if __name__ == "__main__":
  run_main(main)
