"""Settings of the process, made before JAX is imported.

Nothing here stops a program.
"""

import ctypes
import hashlib
import logging
import os
import platform
import sys
from pathlib import Path

from dbl_jax.errors import UserError
from dbl_jax.runtime import files
from dbl_jax.runtime.provenance import first_value

logger = logging.getLogger(__name__)

# Limit of the compilation cache. A run has about ten programs of 1 MB and less.
# JAX's own limit (jax_compilation_cache_max_size) fails for good once a program
# lacks its file of access times, as after SIGKILL, and retains empty files.
CACHE_BYTES = 1 << 30
# Parameters of malloc.h. Large buffers come from the heap, which does not
# shrink and grows by 256 MB; one heap, as others cannot hold a large buffer.
_MALLOC = {
  "M_MMAP_MAX": (-4, 0),
  "M_TRIM_THRESHOLD": (-1, -1),
  "M_TOP_PAD": (-2, 1 << 28),
  "M_ARENA_MAX": (-8, 1),
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


def prepare() -> None:
  """Enables the compilation cache, tunes malloc, removes some variables.

  JAX's variables that would change results are ignored, with a warning.
  `DBL_JAX_CACHE=off` and `DBL_JAX_MALLOC=off` disable either, as do JAX's and
  glibc's own variables.
  """
  # Notebooks set a backend that only they have; pages need none.
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
      "Compiled programs are not stored, so each start compiles anew. %s", error
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
  step, a tenth of the time. Without glibc nothing is done.
  """
  if any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
    return
  try:
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "gnu_get_libc_version"):
      for parameter, value in _MALLOC.values():
        libc.mallopt(parameter, value)
  except (OSError, TypeError, AttributeError):
    return
