"""Provenance of a result: versions, revision of the source, and hardware."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
  "dbl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
)  # fmt: skip


@functools.cache
def provenance() -> dict[str, str | bool | None]:
  """Returns versions and revision, as of the first call in the process.

  Package -> version, or None if it is not installed; 'python'; and, if the
  package is in a git checkout, 'revision' and 'modified'.
  """
  found: dict[str, str | bool | None] = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = None
  return found | revision(Path(__file__).parent)


def revision(package: Path) -> dict[str, str | bool]:
  """Returns the git 'revision' of a package's folder and whether 'modified'.

  Nothing if git does not track the package, as in an environment inside
  another project's checkout.
  """
  git = ("git", "-C", str(package))
  try:
    _run(*git, "ls-files", "--error-unmatch", "__init__.py")
    changed = _run(*git, "status", "--porcelain", "--", ".")
    head = _run(*git, "rev-parse", "HEAD")
  except (OSError, subprocess.SubprocessError):
    return {}
  return {"revision": head, "modified": bool(changed)}


def _run(*command: str) -> str:
  """The output of a command, which may be missing, fail or hang."""
  return subprocess.run(
    command, capture_output=True, text=True, check=True, timeout=30
  ).stdout.strip()


def describe() -> dict[str, Any]:
  """Returns CPU, cores, memory, GPUs, system and load; None where unknown."""
  cpu = first_value(Path("/proc/cpuinfo"), "model name")
  memory = first_value(Path("/proc/meminfo"), "MemTotal")
  load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
  return {
    "cpu": " ".join(cpu.split()) or platform.processor(),
    "cores": cores(),
    "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
    "gpus": gpus(),
    "system": platform.platform(),
    "load_average": load,
  }


def available_memory() -> int | None:
  """Returns the bytes that can still be allocated; None if unknown.

  The least of what the system has left, swap included, and what the limit of a
  container leaves, where cached files do not count.
  """
  meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
  free = [first_value(meminfo, f"{k}:") for k in ("MemAvailable", "SwapFree")]
  left = [sum(int(value.split()[0]) << 10 for value in free if value)]
  try:
    limit, used = (
      int((group / f"memory.{name}").read_text()) for name in ("max", "current")
    )
    stat = (group / "memory.stat").read_text().split()
    left.append(max(limit - used + int(stat[stat.index("file") + 1]), 0))
  except (OSError, ValueError):  # no such file, or no limit
    pass
  return min(filter(None, left), default=None)


def first_value(path: Path, *names: str) -> str:
  """Returns the value of a file's first line 'name: value'; '' without one."""
  lines = path.read_text().splitlines() if path.is_file() else []
  found = (line for line in lines if line.startswith(names))
  return next(found, "").partition(":")[2].strip()


def words() -> str:
  """Returns CPU, cores, memory and GPUs in one line."""
  found = describe()
  gpus = ", ".join(found["gpus"]) or "no GPU"
  number = f"{found['cores']} core" + "s" * (found["cores"] != 1)
  return f"{found['cpu']}, {number}, {found['memory_gib']} GiB; {gpus}"


def cores() -> int:
  """Returns the number of CPUs this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def gpus() -> list[str]:
  """Returns name and memory of each NVIDIA GPU; none without a driver."""
  query = ["--query-gpu=name,memory.total", "--format=csv,noheader"]
  try:
    found = _run("nvidia-smi", *query)
  except (OSError, subprocess.SubprocessError):
    return []
  return found.splitlines()
