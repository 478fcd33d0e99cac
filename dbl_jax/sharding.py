"""One mesh over all devices: data parallel, parameters on every device."""

from collections.abc import Sequence

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


def batched(mesh: Mesh) -> NamedSharding:
  """Placement of batches: the leading axis is split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


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
