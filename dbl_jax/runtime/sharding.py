"""One mesh over all devices: data parallel, parameters on every device."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dbl_jax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-axis mesh named 'data' over `devices` (all of them by default)."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Placement of what every device holds whole: parameters, resident images."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Placement of batches: one axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put(tree: Any, placement: NamedSharding) -> Any:
  """Puts arrays that every host holds whole onto the devices of all."""

  def place(array: Any) -> jax.Array:
    array = np.asarray(array)
    return jax.make_array_from_callback(
      array.shape, placement, lambda index: array[index]
    )

  return jax.tree.map(place, tree)


def local_share(batch_size: int, mesh: Mesh) -> slice:
  """Which rows of a batch this host's devices work on."""
  per_device = batch_size // mesh.size
  owners = [device.process_index for device in mesh.devices.flat]
  first = owners.index(jax.process_index())
  count = owners.count(jax.process_index())
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
  """The smallest multiple of the device count that is at least n."""
  return int(np.ceil(n / mesh.size)) * mesh.size
