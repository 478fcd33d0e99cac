"""What a result was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


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
