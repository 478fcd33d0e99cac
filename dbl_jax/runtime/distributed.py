"""Several hosts as one run: each drives its devices, the first one writes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dbl_jax.errors import UserError


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
  """Joins the processes of a run; called before anything touches a device.

  Args:
    coordinator: 'host:port' of process 0; 'auto' lets JAX ask SLURM, Open MPI
      or Kubernetes; '' means a run of one process, and nothing is done.
    num_processes: of the run; -1 with 'auto'.
    process_id: this process's number, from 0; -1 with 'auto'.

  Raises:
    UserError: if the processes do not find each other.
  """
  if not coordinator:
    return
  own: dict[str, Any] = {}
  if coordinator != "auto":
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"--process_id={process_id} of --num_processes={num_processes}:"
        " processes are numbered from 0. Give each process of the run the same"
        " --coordinator and --num_processes, and a --process_id of its own."
      )
    own = {
      "coordinator_address": coordinator,
      "num_processes": num_processes,
      "process_id": process_id,
    }
  try:
    jax.distributed.initialize(**own)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f"The processes of --coordinator={coordinator} do not find each other:"
      f" {str(error).splitlines()[0]} Start all of them within five minutes,"
      " with an address of process 0 that the others reach."
    ) from error


def is_main() -> bool:
  """Whether this process speaks and writes for all."""
  return jax.process_index() == 0


def is_alone() -> bool:
  """Whether this process is the whole run."""
  return jax.process_count() == 1


@contextlib.contextmanager
def main_first(what: str) -> Iterator[None]:
  """The first process runs a block before the others do.

  Args:
    what: name of the block, the same in all processes.
  """
  if not is_main():
    barrier(what)
  yield
  if is_main():
    barrier(what)


def barrier(what: str) -> None:
  """Waits for all processes to come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def any_asks(wish: bool) -> bool:
  """Whether any process wishes something, the same answer for all."""
  if is_alone():
    return wish
  return bool(np.any(multihost_utils.process_allgather(np.asarray(wish))))


def agreed(decision: bool) -> bool:
  """The first process's decision, for what all must do or none."""
  if jax.process_count() == 1:
    return decision
  return bool(multihost_utils.broadcast_one_to_all(decision))
