"""Worker of the benchmark: a process that does one piece of work on request.

  PYTHON serve.py FILE:FUNCTION DESCRIPTOR|REQUEST

FUNCTION takes the settings of a case and returns a dict:

  run    does the work once and waits for it
  units  amount of work in one call: steps, views or images
  begin  optional: starts background work before a round, untimed
  end    optional: stops it after a round
  peak   optional: peak memory in bytes, if not that of this process
  close  optional: called last
  facts  optional: what was configured, for the record

Requests and answers are dicts on a `multiprocessing` connection, DESCRIPTOR:

  {"do": "prepare", "settings": {...}}  builds the work and runs it once
  {"do": "round", "calls": n}           runs it n times

A REQUEST, as JSON, is only prepared. This file also runs in the peers'
environment and imports only the standard library.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

# Where JAX and PyTorch cache compiled programs.
_CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


class Worker:
  """One piece of work and its memory."""

  def __init__(self, build: Callable[[dict[str, Any]], dict[str, Any]]):
    self._build = build
    self._work: dict[str, Any] = {}
    self._peak = 0

  def answer(self, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a request; an exception becomes 'error'."""
    try:
      if request["do"] == "prepare":
        return self.prepare(request["settings"])
      return self._round(request["calls"])
    except Exception as error:
      traceback.print_exc()
      first = (str(error).strip().splitlines() or [""])[0]
      return {"error": f"{type(error).__name__}: {first}"}

  def prepare(self, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds the work and runs it once."""
    started = time.perf_counter()
    self._work = self._build(settings)
    self.call("begin")
    before = self._reset_peak()
    built = time.perf_counter()
    self._work["run"]()
    done = time.perf_counter()
    growth = None if before is None else _peak_memory() - before
    self.call("end")
    return {
      "prepare_seconds": done - started,
      "seconds": done - built,
      "growth_bytes": growth,
      "units": self._work["units"],
      "facts": self._work.get("facts", {}),
      "versions": _versions(),
    }

  def _round(self, calls: int) -> dict[str, Any]:
    self.call("begin")
    run, seconds = self._work["run"], []
    for _ in range(calls):
      started = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - started)
    self.call("end")
    own_peak = max(self._peak, _peak_memory())
    return {
      "seconds": seconds,
      "peak_bytes": self._work.get("peak", lambda: own_peak)(),
    }

  def call(self, name: str) -> None:
    """Calls an optional function of the work."""
    self._work.get(name, lambda: None)()

  def _reset_peak(self) -> int | None:
    """Resets the kernel's peak, if it can; returns the memory in use."""
    self._peak = max(self._peak, _peak_memory())
    try:
      Path("/proc/self/clear_refs").write_text("5")
    except OSError:
      return None
    return _peak_memory()


def _peak_memory() -> int:
  """Returns the peak resident memory in bytes."""
  status = Path("/proc/self/status").read_text()
  line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
  return int(line.split()[1]) << 10


def load(work: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
  """Returns the function of 'FILE:FUNCTION'."""
  name, _, function = work.rpartition(":")
  path = Path(name)
  # Works import their neighbours, which must not hide other modules.
  sys.path += [str(path.parent), str(Path(__file__).parent)]
  return getattr(importlib.import_module(path.stem), function)


def _versions() -> dict[str, str]:
  """Returns the version of each imported distribution."""
  modules = importlib.metadata.packages_distributions()
  names = {n for m, found in modules.items() if m in sys.modules for n in found}
  versions = {name: importlib.metadata.version(name) for name in sorted(names)}
  return {"python": sys.version.split()[0]} | versions


def startup(settings: dict[str, Any]) -> dict[str, Any]:
  """Times a command: `arguments` of this process's Python.

  With cache='cold' each call has an empty folder for compiled programs, with
  'warm' all calls share one that is filled first, with '' it is the user's.
  """
  root = Path(tempfile.mkdtemp(prefix="dbl_jax_benchmark_"))
  command, cache = [sys.executable, *settings["arguments"]], settings["cache"]

  def run() -> None:
    env = dict(os.environ)
    if cache:
      folder = str(root / cache)
      if cache == "cold":
        shutil.rmtree(folder, ignore_errors=True)
      env |= dict.fromkeys(_CACHES, folder)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)

  if cache == "warm":
    run()
  return {
    "run": run,
    "units": 1,
    "peak": lambda: getrusage(RUSAGE_CHILDREN).ru_maxrss << 10,
    "close": lambda: shutil.rmtree(root, ignore_errors=True),
  }


def main(argv: list[str]) -> None:
  """Answers requests until the connection is closed."""
  here = str(Path(__file__).parent)  # Python puts it first
  sys.path[:] = [entry for entry in sys.path if entry != here]
  worker = Worker(lambda settings: load(argv[1])(settings))
  if not argv[2].isdigit():
    worker.prepare(json.loads(argv[2])["settings"])
    return
  connection = Connection(int(argv[2]))
  with contextlib.suppress(EOFError):
    while True:
      connection.send(worker.answer(connection.recv()))
  worker.call("close")


if __name__ == "__main__":
  main(sys.argv)
