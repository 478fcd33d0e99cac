"""Times pieces of work: one program for dbl_jax and for its peers.

  PYTHON serve.py WORK [REQUEST]

WORK is a module, by dotted name or by path, with a function `build(settings)`
that returns a dict:

  run    function without arguments: does the work once and waits for it
  units  how much work that is: steps, views or images
  begin  optional, called before a round: starts the background, untimed
  end    optional, called after a round: stops it again
  peak   optional: the most memory used, in bytes, if not this process's
  close  optional, called last
  facts  optional: what was set, and what is known of the work

It reads requests from stdin and answers on stdout, one JSON object a line:

  {"do": "prepare", "settings": {...}}  builds the work and runs it once
  {"do": "round", "calls": n}           runs it n times

Given a REQUEST on the command line, a prepare, it does that alone and ends.

Started by path, in the peers' environment too, it needs the standard library
alone. What libraries print to stdout goes to stderr.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Distributions whose versions are told where they are in use.
_LIBRARIES = (
  "dbl_jax",
  "flax",
  "jax",
  "jaxlib",
  "kornia",
  "lightly",
  "numpy",
  "optax",
  "pillow",
  "tensorflow",
  "tensorflow_cpu",
  "torch",
  "torchvision",
)
_MODULES = {"pillow": "PIL", "tensorflow_cpu": "tensorflow"}


class _Worker:
  """One piece of work, its memory and its answers."""

  def __init__(self, module: str):
    self._module = module
    self._work: dict[str, Any] = {}
    self._peak = 0

  def answer(self, request: dict[str, Any]) -> dict[str, Any]:
    """What a request gets, an error included."""
    try:
      if request["do"] == "prepare":
        return self.prepare(request["settings"])
      return self._round(request["calls"])
    except Exception as error:
      traceback.print_exc()
      said = str(error).strip().splitlines() or [""]
      return {"error": f"{type(error).__name__}: {said[0]}"}

  def prepare(self, settings: dict[str, Any]) -> dict[str, Any]:
    """Builds the work and does it once."""
    started = time.perf_counter()
    self._work = _load(self._module).build(settings)
    self._phase("begin")
    before = self._restart_peak()
    built = time.perf_counter()
    self._work["run"]()
    done = time.perf_counter()
    grown = None if before is None else _peak_memory() - before
    self._phase("end")
    return {
      "prepare_seconds": done - started,
      "seconds": done - built,
      "growth_bytes": grown,
      "units": self._work["units"],
      "facts": self._work.get("facts", {}),
      "versions": _versions(),
    }

  def _round(self, calls: int) -> dict[str, Any]:
    self._phase("begin")
    run, seconds = self._work["run"], []
    for _ in range(calls):
      started = time.perf_counter()
      run()
      seconds.append(time.perf_counter() - started)
    self._phase("end")
    own_peak = max(self._peak, _peak_memory())
    peak = self._work.get("peak", lambda: own_peak)
    return {"seconds": seconds, "peak_bytes": peak()}

  def close(self) -> None:
    """Cleans up."""
    self._phase("close")

  def _phase(self, name: str) -> None:
    self._work.get(name, _nothing)()

  def _restart_peak(self) -> int | None:
    """Has the system forget the peak, if it can; the memory in use now."""
    self._peak = max(self._peak, _peak_memory())
    try:
      Path("/proc/self/clear_refs").write_text("5")
    except OSError:
      return None
    return _peak_memory()


def _nothing() -> None:
  pass


def _peak_memory() -> int:
  """Bytes of resident memory at the highest so far."""
  try:
    status = Path("/proc/self/status").read_text()
  except OSError:  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
  line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
  return int(line.split()[1]) << 10


def _load(name: str) -> ModuleType:
  if not name.endswith(".py"):
    return importlib.import_module(name)
  path = Path(name)
  sys.path.append(str(path.parent))  # for its neighbours
  spec = importlib.util.spec_from_file_location(f"work_{path.stem}", path)
  assert spec is not None  # it ends in .py
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # where pickle looks for its classes
  spec.loader.exec_module(module)
  return module


def _versions() -> dict[str, str]:
  found = {"python": sys.version.split()[0]}
  for name in _LIBRARIES:
    if _MODULES.get(name, name) not in sys.modules:
      continue
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _private_stdout() -> Callable[[dict[str, Any]], None]:
  """Keeps stdout for answers; what else is printed goes to stderr."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def send(answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()

  return send


def main(argv: list[str]) -> None:
  """Answers requests until stdin ends."""
  # Python put this file's folder first; its neighbours are not for others.
  here = str(Path(__file__).parent)
  sys.path[:] = [entry for entry in sys.path if entry != here]
  worker = _Worker(argv[1])
  if len(argv) > 2:
    worker.prepare(json.loads(argv[2])["settings"])
    return
  send = _private_stdout()
  for line in sys.stdin:
    send(worker.answer(json.loads(line)))
  worker.close()


if __name__ == "__main__":
  main(sys.argv)
