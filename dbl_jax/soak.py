"""Kills runs at random moments and sees that nothing is lost.

A run is started as a process, killed by SIGKILL, started again by the same
command, killed again, until it ends. Then its parameters, `metrics.json` and
`metrics.jsonl` must be, bit for bit, those of a run left alone.
"""

import collections
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dbl_jax.errors import UserError
from dbl_jax.training import checkpoint

# Seconds at most from when a moment is seen until the kill: all of it is hit,
# not its beginning alone.
MOMENTS = {
  "start": 2.0,
  "data": 1.0,
  "compile": 2.0,
  "step": 0.3,
  "save": 0.05,
  "phase change": 0.5,
  "report": 1.0,
}
_PHASES = ("pretrain", "classify")
_POLL = 0.002
_FILES = ("metrics.json", "metrics.jsonl")


class Run(NamedTuple):
  """One command, which may be started many times.

  Attributes:
    command: without --workdir and the cache.
    folder: holds the workdir `run` and a log.
    cache: of prepared data; the path is part of a run's config.
    env: environment of the process.
  """

  command: Sequence[str]
  folder: Path
  cache: Path

  @property
  def workdir(self) -> Path:
    """The workdir."""
    return self.folder / "run"

  @property
  def log(self) -> Path:
    """What the latest start printed."""
    return self.folder / "log"

  def start(self) -> subprocess.Popen:
    """Starts the command, or goes on."""
    self.folder.mkdir(parents=True, exist_ok=True)
    with self.log.open("w") as log:
      return subprocess.Popen(
        [
          *self.command,
          f"--workdir={self.workdir}",
          f"--config.data.cache_dir={self.cache}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
      )


class Tally(NamedTuple):
  """What a soak found.

  Attributes:
    kills: how many hit each moment.
    ended: runs that ended, after how many kills each.
    faults: what was wrong, one line each.
  """

  kills: collections.Counter
  ended: list[int]
  faults: list[str]


def command(*fields: str, config: str = "tests/tiny.py") -> list[str]:
  """The command line of a run, with overrides like 'pretrain.epochs=3'."""
  start = [sys.executable, "-m", "dbl_jax.main", f"--config={config}"]
  return start + [f"--config.{field}" for field in fields]


def soak(
  words: Sequence[str],
  folder: Path,
  kills: int,
  seed: int,
  moments: Sequence[str] = tuple(MOMENTS),
  tell: Callable[[str], None] = print,
) -> Tally:
  """Kills so many times.

  Args:
    words: as returned by `command`.
    folder: for the runs; must not exist or be empty.
    kills: how many.
    seed: of what is random.
    moments: of `MOMENTS`, which are aimed at, in random order.
    tell: where lines of progress go.

  Returns:
    What was hit and found.
  """
  rng = random.Random(seed)
  whole = Run(words, folder / "whole", folder / "cache")
  if whole.start().wait():
    end = whole.log.read_text()[-500:]
    raise UserError(f"The run left alone failed, saying last: {end}")
  finals = {phase: _latest(whole.workdir, phase) for phase in _PHASES}
  tally = Tally(collections.Counter(), [], [])
  while tally.kills.total() < kills and not tally.faults:
    run = whole._replace(folder=folder / f"killed{len(tally.ended)}")
    before = tally.kills.total()
    shutil.rmtree(run.cache, ignore_errors=True)
    while tally.kills.total() < kills:
      hit, status = kill_at(run, rng.choice(moments), finals, rng)
      if hit is None:
        break
      tally.kills[hit] += 1
      tell(f"kill {tally.kills.total()} of {kills}: {hit}")
    else:
      status = run.start().wait()
    tally.ended.append(tally.kills.total() - before)
    tally.faults.extend(
      [f"{run.folder}: status {status}: {run.log.read_text()[-500:]}"]
      if status
      else differences(whole.workdir, run.workdir)
    )
    tell(f"run ended after {tally.ended[-1]} kills: {tally.faults or 'equal'}")
  return tally


def kill_at(
  run: Run, target: str, finals: dict[str, int], rng: random.Random
) -> tuple[str | None, int | None]:
  """Starts a run and kills it when it comes to a moment.

  Args:
    run: the run.
    target: name in `MOMENTS`.
    finals: phase -> its last step.
    rng: says how long after the moment's beginning.

  Returns:
    The moment that was hit and None; or None and the exit status, where the
    run ended before.
  """
  old = _unfinished_saves(run.workdir)
  if target == "data":
    shutil.rmtree(run.cache, ignore_errors=True)
  process = run.start()
  while moment(run, finals, old) != target:
    if process.poll() is not None:
      return None, process.returncode
    time.sleep(_POLL)
  time.sleep(rng.uniform(0, MOMENTS[target]))
  process.send_signal(signal.SIGKILL)
  if process.wait() != -signal.SIGKILL:
    return None, process.returncode
  return moment(run, finals, old), None


def moment(run: Run, finals: dict[str, int], old: set[Path]) -> str:
  """What a run does, as far as its files tell; exact once it is dead.

  Args:
    run: the run.
    finals: phase -> its last step.
    old: unfinished saves from before this start.
  """
  said = run.log.read_text()
  if "classes," not in said:
    preparing = "Preparing " in said and "Prepared " not in said
    return "data" if preparing else "start"
  if _unfinished_saves(run.workdir) - old:
    return "save"
  first, last = _PHASES
  if _latest(run.workdir, last) == finals[last]:
    return "report"
  second = checkpoint.phase_dir(run.workdir, last)
  if _latest(run.workdir, first) == finals[first] and not second.is_dir():
    return "phase change"
  return "step" if "  epoch " in said else "compile"


def _unfinished_saves(workdir: Path) -> set[Path]:
  return set(workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*"))


def _latest(workdir: Path, phase: str) -> int:
  steps = checkpoint.phase_dir(workdir, phase).glob("[0-9]*")
  return max((int(p.name) for p in steps if p.name.isdigit()), default=-1)


def differences(whole: Path, other: Path) -> list[str]:
  """In what two finished workdirs differ, bit for bit; one line each."""
  found = [
    f"{other / name} is another"
    for name in _FILES
    if (whole / name).read_bytes() != (other / name).read_bytes()
  ]
  for phase in _PHASES:
    for keep in ("best", "latest"):
      models = [
        checkpoint.load_model(checkpoint.phase_dir(workdir, phase), keep)
        for workdir in (whole, other)
      ]
      if not _same(*models):
        found.append(f"{other}: the {keep} model of {phase} is another")
  return found


def _same(one: tuple, other: tuple) -> bool:
  same_form = str(jax.tree.structure(one)) == str(jax.tree.structure(other))
  return same_form and all(
    np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )
