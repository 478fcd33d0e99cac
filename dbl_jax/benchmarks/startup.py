"""How long a command takes from its start to its end.

The work of both sides, loaded by path: the standard library alone.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Where JAX and PyTorch keep compiled programs.
_CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def build(settings: dict[str, Any]) -> dict[str, Any]:
  """See `serve`.

  Settings:
    where: package or folder of the side's work.
    arguments: of the side's Python; '{where}' stands for that.
    first: in place of arguments: a work of the side, to be done once with
      `settings`.
    cache: 'cold' gives each call an empty folder for compiled programs,
      'warm' all calls one, filled before; '' leaves the user's.
  """
  root = Path(tempfile.mkdtemp(prefix="dbl_jax_benchmark_"))
  command = [sys.executable, *_arguments(settings)]

  def call() -> None:
    env = dict(os.environ)
    if settings["cache"]:
      folder = str(root / settings["cache"])
      if settings["cache"] == "cold":
        shutil.rmtree(folder, ignore_errors=True)
      env |= dict.fromkeys(_CACHES, folder)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)

  if settings["cache"] == "warm":
    call()
  return {
    "run": call,
    "units": 1,
    "peak": _peak_of_children,
    "close": lambda: shutil.rmtree(root, ignore_errors=True),
    "facts": {"set": {"cache": settings["cache"]}},
  }


def _arguments(settings: dict[str, Any]) -> list[str]:
  where, first = settings["where"], settings.get("first")
  if first is None:
    return [word.replace("{where}", where) for word in settings["arguments"]]
  folder = Path(where).is_dir()
  work = str(Path(where) / f"{first}.py") if folder else f"{where}.{first}"
  request = json.dumps({"settings": settings["settings"]})
  return [str(Path(__file__).with_name("serve.py")), work, request]


def _peak_of_children() -> int:
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
  return peak if sys.platform == "darwin" else peak << 10
