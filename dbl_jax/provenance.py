"""What made a result: versions of packages and of this one's source."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

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
