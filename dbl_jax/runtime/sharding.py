"""Data parallelism: one mesh over all devices, parameters replicated."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dbl_jax.errors import UserError


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
  per_device, own = batch_size // mesh.size, jax.process_index()
  owners = [device.process_index for device in mesh.devices.flat]
  first, count = owners.index(own), owners.count(own)
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
  return int(np.ceil(n / mesh.size)) * mesh.size
