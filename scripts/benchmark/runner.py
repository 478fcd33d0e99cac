"""Runs a case: each system in a process of its own, in turn, round by round."""

import os
import statistics
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

from cases import FOLDER, UNITS, Case, System
from results import roofline

_MAX_CALLS = 100  # of a round
# (seconds, n): work with longer calls gets at most n rounds.
_SLOW = ((8.0, 2), (4.0, 3))
# Seconds to wait for an answer. Compiling the slowest peer takes minutes.
PATIENCE = 600.0


class Setup(NamedTuple):
  """Where and how systems run.

  Attributes:
    pythons: 'ours' and 'peers' -> Python; a side without one is skipped.
    device: 'cpu' or 'gpu'.
    rounds: number of rounds.
    log: file for the workers' output.
    round_seconds: time in which a round repeats its call.
    together: whether the systems of a case are prepared at the same time.
  """

  pythons: Mapping[str, str]
  device: str
  rounds: int
  log: Path
  round_seconds: float = 1.5
  together: bool = False


class Entrant:
  """A system of a case: its process and its measurements.

  After a failure `skipped` has the reason, and measuring ends.
  """

  def __init__(self, system: System, setup: Setup):
    self.system, self._setup = system, setup
    self.prepared: dict[str, Any] = {}
    self.rounds: list[list[float]] = []
    self.peak_bytes = 0
    self.skipped = ""
    self._process: Any = None
    self._pipe, self._far_end = Pipe()

  def close(self) -> None:
    """Ends the process."""
    self._pipe.close()
    self._far_end.close()
    try:
      if self._process:
        self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()

  def prepare(self, settings: Mapping[str, Any]) -> None:
    """Starts the process, builds its work and runs it once."""
    python = self._setup.pythons.get(self.system.side)
    if python is None:
      self.skipped = "no --peers"
      return
    far_end = self._far_end.fileno()
    serve = str(FOLDER / "serve.py")
    try:
      with self._setup.log.open("a") as log:
        print(f"$ {python} {self.system.work}", file=log, flush=True)
        self._process = subprocess.Popen(
          [python, serve, self.system.work, str(far_end)],
          env=environment(self._setup.device),
          pass_fds=[far_end],
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=log,
        )
    except OSError as error:
      self.skipped = f"{python} cannot be started: {error.strerror}"
    self._far_end.close()  # so that the end of the process is noticed
    settings = {**settings, **self.system.options}
    self.prepared = self._ask({"do": "prepare", "settings": settings})

  def measure(self) -> None:
    """Runs one round."""
    calls = int(self._setup.round_seconds / max(self.seconds(), 1e-9))
    calls = max(1, min(calls, _MAX_CALLS))
    if answer := self._ask({"do": "round", "calls": calls}):
      self.rounds.append(answer["seconds"])
      self.peak_bytes = answer["peak_bytes"]

  def seconds(self) -> float:
    """Returns the seconds of a call: the least so far."""
    calls = [s for r in self.rounds for s in r]
    return min(calls, default=self.prepared.get("seconds", 0.0))

  def is_done(self, number: int) -> bool:
    """Returns whether round `number` is left out."""
    slow = any(self.seconds() > s and number >= most for s, most in _SLOW)
    return bool(self.skipped) or slow

  def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer; empty after a failure."""
    if self.skipped:
      return {}
    try:
      self._pipe.send(request)
      if not self._pipe.poll(PATIENCE):
        self._process.kill()
        self.skipped = f"no answer in {PATIENCE:.0f} s"
        return {}
      answer = self._pipe.recv()
    except (EOFError, OSError):
      answer = {"error": self._last_words()}
    self.skipped = answer.get("error", "")
    return {} if self.skipped else answer

  def _last_words(self) -> str:
    """Returns how the process ended, with the last line of the log."""
    status = self._process.wait()
    lines = self._setup.log.read_text(errors="replace").strip().splitlines()
    return f"ended with status {status}: {lines[-1]}"


def environment(device: str) -> dict[str, str]:
  """Returns the environment of all workers."""
  env = dict(os.environ)
  # Set by `cli` for silence; here TensorFlow's own speed is measured.
  env.pop("TF_ENABLE_ONEDNN_OPTS", None)
  # By default PyTorch's threads spin so long that a DataLoader's workers, or
  # other work, slow it down several times.
  env.setdefault("GOMP_SPINCOUNT", "10000")
  if device == "cpu":
    return env | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  # All systems of a case share the GPU, one at a time at work.
  return env | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def run_case(case: Case, setup: Setup) -> dict[str, Any]:
  """Measures a case; returns it with a row for each system, ready for JSON.

  Each system has its own process for this case, and so its own peak memory.
  Unless `together`, they are prepared one by one, as some time alternatives.
  The order is reversed in every second round: a machine that slows down slows
  all.
  """
  with ExitStack() as stack:
    entrants = [Entrant(system, setup) for system in case.systems]
    for entrant in entrants:
      stack.callback(entrant.close)
    with ThreadPoolExecutor(len(entrants) if setup.together else 1) as pool:
      list(pool.map(lambda entrant: entrant.prepare(case.settings), entrants))
    for number in range(setup.rounds):
      for entrant in entrants if number % 2 == 0 else reversed(entrants):
        if not entrant.is_done(number):
          entrant.measure()
  rows = [_row(entrant, case.kind) for entrant in entrants]
  for row in rows:
    pair = [r["median"] for r in (rows[0], row) if "median" in r]
    row["times_as_fast"] = None
    if len(pair) == 2:
      ratio = pair[0] / pair[1]
      row["times_as_fast"] = ratio if _is_rate(case.kind) else 1 / ratio
  return {
    "part": case.kind,
    "case": case.name,
    "unit": UNITS[case.kind],
    "settings": case.settings,
    "systems": rows,
  }


def _is_rate(kind: str) -> bool:
  return UNITS[kind].endswith("s/s")


def _row(entrant: Entrant, kind: str) -> dict[str, Any]:
  """Returns the measurements of a system, ready for JSON."""
  row: dict[str, Any] = {
    "system": entrant.system.name,
    "side": entrant.system.side,
    "options": entrant.system.options,
  }
  if entrant.skipped:
    return row | {"skipped": entrant.skipped}
  units, facts = entrant.prepared["units"], entrant.prepared["facts"]
  calls = [s / units for r in entrant.rounds for s in r]
  values = [s * (1e3 if UNITS[kind] == "ms" else 1.0) for s in calls]
  if _is_rate(kind):
    # Background work delivers in bursts, so a rate is that of a whole round.
    values = [units / statistics.mean(r) for r in entrant.rounds]
  return row | {
    "median": statistics.median(values),
    "min": min(values),
    "max": max(values),
    "peak_mib": entrant.peak_bytes / 2**20,
    "temporary_mib": _temporary(entrant.prepared, kind),
    "prepare_seconds": entrant.prepared["prepare_seconds"],
    "calls": len(calls),
    "units_per_call": units,
    "seconds_by_round": entrant.rounds,
    "facts": facts,
    "roofline": roofline(facts, statistics.median(calls)),
    "versions": entrant.prepared["versions"],
  }


def _temporary(prepared: dict[str, Any], kind: str) -> float | None:
  """Returns MiB of temporaries: the library's figure, or the growth."""
  if kind != "nt_xent":
    return None
  known = prepared | prepared["facts"]
  names = ("temporary_bytes", "device_peak_bytes", "growth_bytes")
  values = [known[name] for name in names if known.get(name) is not None]
  return values[0] / 2**20 if values else None
