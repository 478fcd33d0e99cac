"""What a program sets before anything heavy is loaded.

Nothing here imports JAX, and nothing here stops a program.
"""

import ctypes
import hashlib
import logging
import os
import platform
import sys
from pathlib import Path

log = logging.getLogger(__name__)

# Oldest programs go first. A run has about ten, of 1 MB and less.
PROGRAMS_BYTES = 1 << 30
_OFF = ("0", "false", "no", "off")


def prepare() -> None:
  """Keeps compiled programs and freed memory for later use.

  `DBL_JAX_CACHE=off` and `DBL_JAX_MALLOC=off` in the environment leave either
  as it was, as do JAX's and glibc's own variables where they are set.
  """
  if not _is_off("DBL_JAX_CACHE"):
    enable_compilation_cache()
  if not _is_off("DBL_JAX_MALLOC"):
    tune_malloc()


def user_cache() -> Path:
  """Folder for what can be made again: prepared data, compiled programs."""
  home = os.environ.get("XDG_CACHE_HOME")
  return (Path(home) if home else Path.home() / ".cache") / "dbl_jax"


def enable_compilation_cache() -> None:
  """Lets JAX keep compiled programs between runs, before it is imported.

  Programs for CPUs may crash on another CPU, and a home folder may be shared:
  each kind of CPU has a folder of its own.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  try:
    directory = user_cache() / "programs" / _cpu_name()
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
      raise PermissionError(f"{directory} cannot be written")
    _prune(directory)
  except (OSError, RuntimeError) as error:  # the latter: no home folder
    log.warning(
      "Compiled programs are not kept, so each start compiles anew: %s."
      " Set XDG_CACHE_HOME to a folder you may write to.",
      error,
    )
    return
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def tune_malloc() -> None:
  """Lets glibc keep the memory that JAX frees on the CPU, for the next step.

  By default it goes back to the system and comes again at each step, page by
  page: about a tenth of the time. Where there is no glibc nothing is done.
  """
  if "GLIBC_TUNABLES" in os.environ or any(
    name.startswith("MALLOC_") for name in os.environ
  ):
    return
  try:
    libc = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(libc, "gnu_get_libc_version"):
      return
    for parameter, value in _MALLOC.values():
      libc.mallopt(parameter, value)
  except (OSError, TypeError, AttributeError):
    return


# From malloc.h. Big buffers come from the heap, the heap does not shrink, and
# grows by a quarter GB; one heap, because others cannot hold a big buffer.
_MALLOC = {
  "M_MMAP_MAX": (-4, 0),
  "M_TRIM_THRESHOLD": (-1, -1),
  "M_TOP_PAD": (-2, 1 << 28),
  "M_ARENA_MAX": (-8, 1),
}


def _is_off(name: str) -> bool:
  return os.environ.get(name, "").strip().lower() in _OFF


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
  """Sixteen letters and digits that differ between kinds of CPU."""
  try:
    lines = cpuinfo.read_text().splitlines()
  except OSError:
    lines = []
  found = next((x for x in lines if x.startswith(("flags", "Features"))), "")
  features = sorted(found.partition(":")[2].split())
  what = [platform.machine(), *(features or [platform.processor()])]
  return hashlib.sha256(" ".join(what).encode()).hexdigest()[:16]


def _prune(directory: Path) -> None:
  """Deletes empty files, and the oldest until the rest is small enough.

  Empty ones are what a full disk leaves; JAX would never write them again.
  """
  files = []
  for path in directory.glob("*-cache"):
    try:
      status = path.stat()
    except FileNotFoundError:  # another run has just deleted it
      continue
    if status.st_size:
      files.append((status.st_mtime, status.st_size, path))
    else:
      path.unlink(missing_ok=True)
  excess = sum(size for _, size, _ in files) - PROGRAMS_BYTES
  for _, size, path in sorted(files):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size
