"""The two-GPU layout of section 3.2: device mesh, shardings, and the exchange between columns.

Every parameter has a leading axis of columns. On a mesh `(data, column)` the batch is split over `data`
and, with `column` = 2, each device holds one column of the net, like each GPU in 2012.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alexnet_jax.common.errors import UserError

DATA, COLUMN = "data", "column"

BATCH = P(DATA)  # split over the data axis, replicated over the columns
PARAMETERS = P(COLUMN)  # split along the leading axis of every parameter
REPLICATED = P()


def make_mesh(data: int = -1, column: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes `(data, column)`; -1 for one of them means all remaining devices.

    Raises:
      UserError: a size is impossible, needs too many devices, or leaves a process without one.
    """
    devices = list(jax.devices() if devices is None else devices)
    devices.sort(key=lambda device: (device.process_index, device.id))  # keeps a process's devices together
    for key, size in (("mesh.data", data), ("mesh.column", column)):
        if size != -1 and size < 1:
            raise UserError(f"{key}={size}: must be a positive number of devices, or -1 for all that remain")
    if data == -1 and column == -1:
        raise UserError("mesh.data and mesh.column are both -1: only one of them can be")
    if data == -1:
        data = max(len(devices) // column, 1)
    if column == -1:
        column = max(len(devices) // data, 1)
    needed, used = f"mesh.data={data} times mesh.column={column} needs", devices[: data * column]
    if data * column > len(devices):
        raise UserError(f"{needed} {data * column} devices, but there are {len(devices)}; lower one of them")
    if unused := {device.process_index for device in devices} - {device.process_index for device in used}:
        raise UserError(
            f"{needed} {data * column} devices, which leaves process {min(unused)} without any; use all "
            f"{len(devices)}, as with mesh.data=-1, or start fewer processes"
        )
    grid = np.asarray(used).reshape(data, column)
    return Mesh(grid, (DATA, COLUMN), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def on_mesh(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """Runs `function` on each device's shard of the arguments.

    Outputs must be equal along mesh axes missing from their spec, as logits are after the last exchange; this
    is not checked (`check_vma=False`).
    """
    if mesh.size == 1:  # nothing to split; an all-reduce over one device would copy all gradients
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def exchange(xs: Sequence[jax.Array], axis_name: str | None = None) -> list[jax.Array]:
    """All-gathers the columns' channels: `[B, ..., C]` per column to `[B, ..., columns * C]`.

    Args:
      xs: the columns held on this device, in order.
      axis_name: mesh axis of the columns, or None if this device holds them all.
    """
    joined = jnp.concatenate(xs, axis=-1) if len(xs) > 1 else xs[0]
    if axis_name is not None:
        joined = jax.lax.all_gather(joined, axis_name, axis=joined.ndim - 1, tiled=True)
    return [joined] * len(xs)


def add(xs: Sequence[jax.Array], axis_name: str | None = None) -> jax.Array:
    """The sum over all columns, on this device and along `axis_name`: adds partial logits."""
    total = sum(xs[1:], xs[0])
    return total if axis_name is None else jax.lax.psum(total, axis_name)
