"""Test-wide settings: simulated devices, and shapes that must be spelt out."""

import os
import tempfile

# Compiling takes most of the suite's time, and less without optimisation.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Also in processes that tests start.
jax.config.update("jax_debug_key_reuse", True)
os.environ["JAX_DEBUG_KEY_REUSE"] = "1"
# Tests build the same small programs again and again.
_CACHE = os.path.join(tempfile.gettempdir(), "dbl_jax_test_programs")
jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


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
