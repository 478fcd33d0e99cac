"""The process made ready as a run of dbl_jax makes itself ready."""

import jax

from dbl_jax.runtime import environment


def prepare(device: str, as_it_comes: bool = False) -> dict[str, str]:
  """Checks where JAX runs, and sets what `dbl_jax.main` sets.

  Args:
    device: 'cpu' or 'gpu', as the benchmark was asked for.
    as_it_comes: set nothing.

  Returns:
    What was found and set, for the record.

  Raises:
    RuntimeError: JAX runs on another device, as without its GPU plugin.
  """
  found = jax.default_backend()
  if found != device:
    raise RuntimeError(f"JAX runs on {found} here, not on {device}")
  if as_it_comes:
    return {"platform": found}
  environment.tune_malloc()
  return {"platform": found, "malloc": "keeps freed memory"}
