"""Devices and hosts of a run.

Data parallelism: one mesh over all devices, parameters replicated. Each host
drives its devices, and the first one writes.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dbl_jax.errors import UserError


def initialize(
  coordinator: str = "", num_processes: int = -1, process_id: int = -1
) -> None:
  """Joins the processes of a run; called before anything uses a device.

  Args:
    coordinator: 'host:port' of process 0; 'auto' lets JAX ask SLURM, Open MPI
      or Kubernetes; '' for a run of one process.
    num_processes: number of processes; -1 with 'auto'.
    process_id: index of this process, from 0; -1 with 'auto'.

  Raises:
    UserError: if the processes do not find each other, or a device is missing.
  """
  arguments: tuple[Any, ...] = ()
  if not coordinator and (num_processes, process_id) != (-1, -1):
    raise UserError(
      "--num_processes and --process_id need --coordinator, the host:port of"
      " process 0; without it each process would train by itself."
    )
  if coordinator not in ("", "auto"):
    arguments = (coordinator, num_processes, process_id)
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"--process_id={process_id} of --num_processes={num_processes}:"
        " processes are numbered from 0. Give each process of the run the same"
        " --coordinator and --num_processes, and a --process_id of its own."
      )
  try:
    if coordinator:
      jax.distributed.initialize(*arguments)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f"The processes of --coordinator={coordinator} do not find each other:"
      f" {str(error).splitlines()[0]} Start all of them within five minutes,"
      " with an address of process 0 that the others reach."
    ) from error
  is_main()


def is_main() -> bool:
  """Whether this process writes and prints for all.

  Raises:
    UserError: if JAX does not find a device of the requested platform.
  """
  try:
    return jax.process_index() == 0
  except (AssertionError, RuntimeError) as error:  # by JAX's version
    platforms = os.environ.get("JAX_PLATFORMS", "")
    raise UserError(
      f"JAX cannot use a device of JAX_PLATFORMS={platforms!r}"
      f" ({str(error) or 'not found'}). Set the variable to a platform of"
      " this machine, such as cpu, or unset it."
    ) from error


def is_alone() -> bool:
  """Whether this process is the whole run."""
  return jax.process_count() == 1


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
  """Runs a block on the first process before the others.

  All processes must run it, with the same name.
  """
  if not is_main():
    multihost_utils.sync_global_devices(name)
  yield
  if is_main() and not is_alone():
    multihost_utils.sync_global_devices(name)


def any_process(request: bool) -> bool:
  """Whether any process makes a request, with the same answer on all."""
  if is_alone():
    return request
  return bool(np.any(multihost_utils.process_allgather(np.asarray(request))))


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Makes a mesh with the axis "data" over `devices`, by default all."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays that every device holds whole, such as parameters."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Sharding of batches: one axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(tree: Any, placement: NamedSharding) -> Any:
  """Places arrays that every host holds whole on the devices of all hosts."""

  def place(array: Any) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, placement, lambda index: array[index]
    )

  return jax.tree.map(place, tree)


def local_share(batch_size: int, mesh: Mesh) -> slice:
  """The rows of a batch that belong to the devices of this host."""
  per_device, process = batch_size // mesh.size, jax.process_index()
  owners = [device.process_index for device in mesh.devices.flat]
  first, count = owners.index(process), owners.count(process)
  return slice(first * per_device, (first + count) * per_device)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises UserError unless a batch splits evenly over the devices."""
  if batch_size % mesh.size:
    raise UserError(
      f"batch_size={batch_size} does not divide over {mesh.size} devices."
      f" Set it to a multiple of {mesh.size}, for example"
      f" {max(1, batch_size // mesh.size) * mesh.size}."
    )


def padded_size(n: int, mesh: Mesh) -> int:
  """Rounds n up to a multiple of the number of devices."""
  return -(-n // mesh.size) * mesh.size
