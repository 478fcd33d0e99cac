"""The process and its machine: settings, versions, hardware.

Settings are made before JAX is imported. No function here raises an error.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from dbl_jax.errors import UserError
from dbl_jax.runtime import files

logger = logging.getLogger(__name__)

# Limit of the compilation cache. A run has about ten programs of 1 MB and less.
# JAX's own limit (jax_compilation_cache_max_size) keeps failing once a program
# lacks its file of access times, as after SIGKILL, and retains empty files.
CACHE_BYTES = 1 << 30
# Parameters of malloc.h. Large buffers come from the heap, which does not
# shrink and grows by 256 MB; one heap, as others cannot hold a large buffer.
_MALLOC = {
  -4: 0,  # M_MMAP_MAX
  -1: -1,  # M_TRIM_THRESHOLD
  -2: 1 << 28,  # M_TOP_PAD
  -8: 1,  # M_ARENA_MAX
}
# Variables that would change random numbers or types, and with them results.
_RESULTS = (
  "JAX_DEFAULT_DTYPE_BITS",
  "JAX_DEFAULT_PRNG_IMPL",
  "JAX_ENABLE_X64",
  "JAX_NUMPY_DTYPE_PROMOTION",
  "JAX_RANDOM_SEED_OFFSET",
  "JAX_THREEFRY_PARTITIONABLE",
)
# Their versions are in every result.
_PACKAGES = (
  "dbl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy",
)  # fmt: skip


def prepare() -> None:
  """Enables the compilation cache, tunes malloc, removes some variables.

  JAX's variables that would change results are ignored, with a warning.
  `DBL_JAX_CACHE=off` and `DBL_JAX_MALLOC=off` disable either, as do JAX's and
  glibc's own variables.
  """
  # Notebooks set a backend that only they have; plots do not need it.
  os.environ["MPLBACKEND"] = "agg"
  for name in _RESULTS:
    if (value := os.environ.pop(name, None)) is not None:
      logger.warning("%s=%s is ignored: it would change results.", name, value)
  for name, enable in (
    ("DBL_JAX_CACHE", enable_compilation_cache),
    ("DBL_JAX_MALLOC", tune_malloc),
  ):
    value = os.environ.get(name, "").strip().lower()
    if value not in ("0", "false", "no", "off"):
      enable()


def user_cache() -> Path:
  """Returns the folder for prepared data and compiled programs."""
  home = os.environ.get("XDG_CACHE_HOME")
  return (Path(home) if home else Path.home() / ".cache") / "dbl_jax"


def enable_compilation_cache() -> None:
  """Lets JAX store compiled programs, in a folder for each kind of CPU.

  A program may crash on another CPU, and hosts may share a home folder.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  try:
    directory = user_cache() / "programs" / _cpu_name()
    files.make_writable(directory, "jax_compilation_cache_dir")
    _prune(directory)
  except (UserError, OSError, RuntimeError) as error:  # the last: no home
    logger.warning(
      "Compiled programs are not stored; each start compiles again. %s", error
    )
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
  """Sixteen hex digits that identify the features of the CPU."""
  features = sorted(first_value(cpuinfo, "flags", "Features").split())
  what = [platform.machine(), *(features or [platform.processor()])]
  return hashlib.sha256(" ".join(what).encode()).hexdigest()[:16]


def _prune(directory: Path) -> None:
  """Deletes empty programs, which a full disk leaves, and the oldest."""
  total, programs = 0, []
  for path in directory.glob("*-cache"):
    try:
      programs.append((path.stat().st_mtime, path.stat().st_size, path))
    except FileNotFoundError:  # deleted by another run
      continue
  for _, size, path in sorted(programs, reverse=True):
    total += size
    if not size or total > CACHE_BYTES:
      path.unlink(missing_ok=True)


def tune_malloc() -> None:
  """Lets glibc retain memory that JAX frees on the CPU for the next step.

  By default it is returned to the system and mapped again page by page at each
  step, which takes a tenth of the time. Other C libraries are left unchanged.
  """
  if any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
    return
  try:
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "gnu_get_libc_version"):
      for parameter, value in _MALLOC.items():
        libc.mallopt(parameter, value)
  except (OSError, TypeError, AttributeError):
    return


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

  Empty if git does not track the package, as in an environment inside
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

  The minimum of what the system has left, swap included, and what the limit of
  a container leaves, where cached files do not count.
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
  """Returns name and memory of each NVIDIA GPU that the driver reports."""
  query = ["--query-gpu=name,memory.total", "--format=csv,noheader"]
  try:
    return _run("nvidia-smi", *query).splitlines()
  except (OSError, subprocess.SubprocessError):
    return []
