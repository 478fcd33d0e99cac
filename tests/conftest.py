"""Test-wide settings: simulated devices, and shapes that must be spelt out."""

import os
import tempfile

# Compiling takes most of the suite's time, and less without optimisation. Set
# in any case: workers of xdist inherit what is replaced below.
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest
from matplotlib.figure import Figure

from dbl_jax.models import layers
from dbl_jax.runtime import distributed

jax.config.update("jax_numpy_rank_promotion", "raise")
# Also in processes that tests start.
jax.config.update("jax_debug_key_reuse", True)
os.environ["JAX_DEBUG_KEY_REUSE"] = "1"
# Tests build the same small programs again and again.
_CACHE = os.path.join(tempfile.gettempdir(), "dbl_jax_test_programs")
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# One device, which compiles and runs sooner, unless a test asks for the eight;
# processes that tests start have no other.
distributed.make_mesh.__defaults__ = (jax.devices()[:1],)
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("=8", "=1")
# Pictures, a third of a small run's time, are drawn where a test asks for it.
_BLANK = bytes.fromhex(
  "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
  "3a7e9b550000000a49444154789c636000000002000148afa471"
  "0000000049454e44ae426082"
)
_savefig = Figure.savefig
Figure.savefig = lambda _, file, **__: file.write(_BLANK)


@pytest.fixture
def rendered(monkeypatch):
  """Figures are rendered, not blank."""
  monkeypatch.setattr(Figure, "savefig", _savefig)


@pytest.fixture
def drawn(monkeypatch):
  """Lists figures as they are rendered."""
  figures = []

  def savefig(figure, file, **options):
    figures.append(figure)
    _savefig(figure, file, **options)

  monkeypatch.setattr(Figure, "savefig", savefig)
  return figures


@pytest.fixture
def eight_devices(monkeypatch):
  """A mesh is of all eight devices."""
  monkeypatch.setattr(distributed.make_mesh, "__defaults__", (None,))


@pytest.fixture
def lax_conv(monkeypatch):
  """The accelerator's convolution, which compiles sooner."""
  monkeypatch.setattr(layers, "conv2d", layers._lax_conv)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """A folder for prepared data."""
  return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def debug_nans():
  """What is not a number stops the test where it comes from."""
  with jax.debug_nans(True):
    yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """Config and workdir of a finished run, which no test changes."""
  import tiny
  from dbl_jax import train

  folder = tmp_path_factory.mktemp("finished")
  config = tiny.get_run(folder / "cache")
  train.train_and_evaluate(config, folder / "run")
  return config, folder / "run"
