"""Runs cases: the systems of each in turn, round by round."""

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from dbl_jax.benchmarks import roofline
from dbl_jax.benchmarks.cases import PARTS, Case, System
from dbl_jax.benchmarks.workers import SERVE, Worker, WorkerError

# A round is as many calls as fit into about so many seconds.
ROUND_SECONDS = 1.5
_MOST_CALLS = 100
# Calls that take longer than so many seconds get so many rounds at most.
_SLOW = ((8.0, 2), (4.0, 3))
# Work that is the same on both sides.
_SHARED = ("startup",)

Say = Callable[[str], None]


class Setup(NamedTuple):
  """Where and how systems run.

  Attributes:
    pythons: side -> its Python; a side without one is skipped.
    work: side -> where its work lies: a package, or a folder.
    absent: why a side has no Python.
    device: 'cpu' or 'gpu'.
    rounds: how often each system is measured.
    round_seconds: about how long a round is.
    log: file that gets what workers say on stderr.
  """

  pythons: dict[str, str]
  work: dict[str, str]
  absent: str
  device: str
  rounds: int
  round_seconds: float
  log: Path


class _Entrant:
  """A system in a case: its worker, and what was measured so far."""

  def __init__(self, system: System):
    self.system = system
    self.worker: Worker  # from `_start` on
    self.prepared: dict[str, Any] = {}
    self.rounds: list[list[float]] = []
    self.last: dict[str, Any] = {}
    self.skipped = ""

  def seconds(self) -> float:
    """Seconds of a call, as far as is known."""
    first = self.prepared["seconds"]
    return min((s for r in self.rounds for s in r), default=first)


def command(setup: Setup, system: System) -> list[str]:
  """The command line of a system's worker."""
  where = setup.work[system.side]
  if system.work in _SHARED:
    work = str(SERVE.with_name(f"{system.work}.py"))
  elif Path(where).is_dir():
    work = str(Path(where) / f"{system.work}.py")
  else:
    work = f"{where}.{system.work}"
  return [setup.pythons[system.side], str(SERVE), work]


def environment(device: str) -> dict[str, str]:
  """The environment of all workers."""
  env = dict(os.environ)
  # `cli` turns it off for quiet; TensorFlow's own speed is measured here.
  env.pop("TF_ENABLE_ONEDNN_OPTS", None)
  # PyTorch's threads wait for each other spinning, by default so long that a
  # DataLoader's workers or anything else at work slow it down several times.
  env.setdefault("GOMP_SPINCOUNT", "10000")
  if device == "cpu":
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  else:
    # Workers of both sides share the GPU, one at a time at work.
    env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  return env


def run_case(case: Case, setup: Setup, say: Say) -> dict[str, Any]:
  """Measures a case.

  Each system has a process of its own, made for this case, so that its peak
  memory is its own. Round by round each is measured in turn, in the order
  reversed each time: a machine that slows down slows all.

  Args:
    case: what to do.
    setup: where and how.
    say: told what is being done.

  Returns:
    The case with a row for each system, ready for JSON.
  """
  entrants = [_Entrant(system) for system in case.systems]
  with ExitStack() as stack:
    _prepare(entrants, case, setup, stack, say)
    for number in range(setup.rounds):
      for entrant in entrants if number % 2 == 0 else reversed(entrants):
        if _has_enough(entrant, number):
          continue
        say(f"round {number + 1} of {setup.rounds}: {entrant.system.name}")
        _measure(entrant, setup.round_seconds)
  rows = [_row(entrant, case) for entrant in entrants]
  for row in rows:
    row["times_as_fast"] = _ratio(rows[0], row, PARTS[case.part].rate)
  return {
    "part": case.part,
    "case": case.name,
    "unit": PARTS[case.part].unit,
    "settings": case.settings,
    "systems": rows,
  }


def _has_enough(entrant: _Entrant, number: int) -> bool:
  if entrant.skipped:
    return True
  seconds = entrant.seconds()
  return any(seconds > slow and number >= most for slow, most in _SLOW)


def _prepare(
  entrants: Sequence[_Entrant],
  case: Case,
  setup: Setup,
  stack: ExitStack,
  say: Say,
) -> None:
  """Starts the workers and has them build their work.

  On a GPU one by one, and peers on CPU too: they try out what is faster, and
  need the machine for themselves. What then is left is compilation, together.
  """
  together = []
  for entrant in entrants:
    if entrant.system.side not in setup.pythons:
      entrant.skipped = setup.absent
    elif setup.device == "cpu" and entrant.system.side == "ours":
      together.append(entrant)
    else:
      say(f"preparing {entrant.system.name}")
      _start(entrant, case, setup, stack)
      _try(entrant, _receive_prepared)
  say("compiling")
  for entrant in together:
    _start(entrant, case, setup, stack)
  for entrant in together:
    _try(entrant, _receive_prepared)


def _start(
  entrant: _Entrant, case: Case, setup: Setup, stack: ExitStack
) -> None:
  """Starts a worker and asks it to build its work."""
  system = entrant.system
  entrant.worker = stack.enter_context(
    Worker(command(setup, system), environment(setup.device), setup.log)
  )
  where = {"where": setup.work[system.side]}
  settings = case.settings | system.options | where
  request = {"do": "prepare", "settings": settings}
  _try(entrant, lambda entrant: entrant.worker.send(request))


def _receive_prepared(entrant: _Entrant) -> None:
  entrant.prepared = entrant.worker.receive()


def _measure(entrant: _Entrant, round_seconds: float) -> None:
  calls = int(round_seconds / max(entrant.seconds(), 1e-9))

  def ask(entrant: _Entrant) -> None:
    calls_made = max(1, min(calls, _MOST_CALLS))
    entrant.worker.send({"do": "round", "calls": calls_made})
    entrant.last = entrant.worker.receive()
    entrant.rounds.append(entrant.last["seconds"])

  _try(entrant, ask)


def _try(entrant: _Entrant, work: Callable[[_Entrant], None]) -> None:
  """Does it unless the system has failed; a failure is noted."""
  if entrant.skipped:
    return
  try:
    work(entrant)
  except WorkerError as error:
    entrant.skipped = str(error)


def _row(entrant: _Entrant, case: Case) -> dict[str, Any]:
  """What is known of a system, ready for JSON."""
  row: dict[str, Any] = {
    "system": entrant.system.name,
    "side": entrant.system.side,
    "options": entrant.system.options,
  }
  if entrant.skipped:
    return row | {"skipped": entrant.skipped}
  units, facts = entrant.prepared["units"], entrant.prepared["facts"]
  calls = [s for r in entrant.rounds for s in r]
  if PARTS[case.part].rate:
    # What works in the background delivers in bursts: only a whole round says
    # how much it delivers.
    calls = [statistics.mean(r) for r in entrant.rounds]
  per_unit = [s / units for s in calls]
  row |= figures(case.part, per_unit)
  return row | {
    "peak_mib": entrant.last["peak_bytes"] / 2**20,
    "temporary_mib": _temporary(entrant, case.part),
    "prepare_seconds": entrant.prepared["prepare_seconds"],
    "calls": sum(len(r) for r in entrant.rounds),
    "units_per_call": units,
    "seconds_by_round": entrant.rounds,
    "facts": facts,
    "roofline": roofline.shares(facts, statistics.median(per_unit)),
    "versions": entrant.prepared["versions"],
  }


def figures(part: str, seconds: Sequence[float]) -> dict[str, float]:
  """Median, least and greatest in the part's unit.

  Args:
    part: name in `PARTS`.
    seconds: of each measured unit of work.
  """
  rate, scale = PARTS[part].rate, PARTS[part].scale
  values = sorted(scale * (1 / s if rate else s) for s in seconds)
  return {
    "median": statistics.median(values),
    "min": values[0],
    "max": values[-1],
  }


def _ratio(
  ours: dict[str, Any], row: dict[str, Any], rate: bool
) -> float | None:
  """How many times as fast as a system the first one is, by medians."""
  if "median" not in row or "median" not in ours:
    return None
  ratio = ours["median"] / row["median"]
  return ratio if rate else 1 / ratio


def _temporary(entrant: _Entrant, part: str) -> float | None:
  """MiB beyond what lasts: as the library says, or as the process grew."""
  if not PARTS[part].memory:
    return None
  known = entrant.prepared | entrant.prepared["facts"]
  for name in ("temporary_bytes", "device_peak_bytes", "growth_bytes"):
    if known.get(name) is not None:
      return known[name] / 2**20
  return None


def run(
  cases: Sequence[Case],
  setup: Setup,
  progress: Callable[[int, Case, float, str], None],
  show: Callable[[dict[str, Any]], None],
) -> None:
  """Measures all cases.

  Args:
    cases: what to do.
    setup: where and how.
    progress: told the number of the case, the case, the seconds left, and
      what is being done.
    show: given each case, as from `run_case`, when it is done.
  """
  started, done = time.perf_counter(), 0.0
  total = sum(case.seconds for case in cases)
  for number, case in enumerate(cases):
    # Guesses are for two cores; what is done says how this machine compares.
    pace = (time.perf_counter() - started) / done if done else 1.0
    left = pace * (total - done)
    say = functools.partial(progress, number, case, left)
    show(run_case(case, setup, say))
    done += case.seconds
