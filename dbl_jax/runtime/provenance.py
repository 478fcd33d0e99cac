"""What made a result: versions of packages and of this one's source."""

import functools
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
  "dbl_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
)


@functools.cache
def provenance() -> dict[str, str | bool | None]:
  """Versions and source, as when they were first asked for.

  Returns:
    Package -> version, or None where it is not installed; 'python'; and where
    the package is in a git checkout, its 'revision' and whether its files are
    'modified' since.
  """
  found: dict[str, str | bool | None] = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = None
  return found | revision(Path(__file__).parent)


def revision(package: Path) -> dict[str, str | bool]:
  """Where a package's source stands in git.

  Args:
    package: its folder.

  Returns:
    'revision' and 'modified'; nothing where git does not track the package, as
    in an environment inside of another project's checkout.
  """
  try:
    _git(package, "ls-files", "--error-unmatch", "__init__.py")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return {
      "revision": _git(package, "rev-parse", "HEAD"),
      "modified": bool(changed),
    }
  except (OSError, subprocess.SubprocessError):
    return {}


def _git(folder: Path, *arguments: str) -> str:
  return subprocess.run(
    ["git", "-C", str(folder), *arguments],
    capture_output=True,
    text=True,
    check=True,
    timeout=10,
  ).stdout.strip()


def describe() -> dict[str, Any]:
  """Processor, cores, memory, GPUs, system, and how busy it is.

  Returns:
    Fields for `benchmark.json`; None for what the system does not tell.
  """
  return {
    "cpu": _cpu_model(),
    "cores": cores(),
    "memory_gib": _memory_gib(),
    "gpus": gpus(),
    "system": platform.platform(),
    "load_average": _load(),
  }


def words() -> str:
  """Processor, cores, memory and GPUs in one line."""
  found = describe()
  gpus = ", ".join(found["gpus"]) or "no GPU"
  number = f"{found['cores']} core" + "s" * (found["cores"] != 1)
  return f"{found['cpu']}, {number}, {found['memory_gib']} GiB; {gpus}"


def cores() -> int:
  """How many processors this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def gpus() -> list[str]:
  """Name and memory of each NVIDIA GPU; none where there is no driver."""
  if shutil.which("nvidia-smi") is None:
    return []
  query = [
    "nvidia-smi",
    "--query-gpu=name,memory.total",
    "--format=csv,noheader",
  ]
  done = subprocess.run(query, capture_output=True, text=True, check=False)
  return done.stdout.strip().splitlines() if done.returncode == 0 else []


def is_busy(machine: dict[str, Any]) -> bool:
  """Whether other work was running when the machine was described."""
  load = machine["load_average"]
  return load is not None and load > 0.25 * machine["cores"]


def _cpu_model() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [
    line.split(":")[1] for line in lines if line.startswith("model name")
  ]
  return " ".join(names[0].split()) if names else platform.processor()


def _memory_gib() -> float | None:
  try:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (ValueError, OSError):
    return None
  return round(pages / 2**30, 1)


def _load() -> float | None:
  """Mean number of running processes over the last minute."""
  try:
    return round(os.getloadavg()[0], 2)
  except OSError:
    return None
