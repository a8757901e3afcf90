"""Places batches on the mesh and reports unreadable images."""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns
from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.pipeline import Batch
from alexnet_jax.data.sources import Source

DeviceBatch = dict[str, jax.Array]


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises `UserError` if a batch does not divide over the devices and then into micro-batches."""
    parts = mesh.shape[columns.DATA]
    if batch_size % parts:
        raise UserError(
            f"data.batch_size={batch_size}: does not divide over the {parts} devices of mesh.data; "
            f"use a multiple, such as {-(-batch_size // parts) * parts}"
        )
    if batch_size // parts % micro_batches:
        raise UserError(
            f"data.micro_batches={micro_batches}: does not divide the {batch_size // parts} images per device"
        )


def on_device(batches: Iterable[Batch], mesh: Mesh) -> Iterator[tuple[Batch, DeviceBatch]]:
    """Yields each host batch with its arrays on the mesh, one transfer ahead of the consumer."""
    sharding = NamedSharding(mesh, columns.BATCH)
    ahead = collections.deque[tuple[Batch, DeviceBatch]]()
    for batch in batches:
        arrays = {
            key: jax.make_array_from_process_local_data(sharding, batch[key])
            for key in ("image", "label", "weight")
        }
        ahead.append((batch, arrays))
        if len(ahead) > 1:
            yield ahead.popleft()
    yield from ahead


def bad_images(batch: Batch, source: Source, named: set[int]) -> Iterator[str]:
    """One line per unreadable image of a host batch not yet in `named`; adds it to `named`."""
    for index in batch["index"][batch["weight"] == 0].tolist():
        if index >= 0 and index not in named:  # -1 marks padding in the last test batch
            named.add(index)
            yield f"bad image, left out: {source.name(index)}"


def too_many_bad(data: configs.DataConfig, bad: int, images: str) -> UserError:
    """The error for too many unreadable images, `bad` of `images`, such as `50 test images`."""
    return UserError(
        f"data.source={data.source}: {bad} of {images} could not be read, more than "
        f"data.max_bad_fraction={data.max_bad_fraction}; fix the files named above, or raise it"
    )


def process_slice(mesh: Mesh) -> tuple[int, int]:
    """The slice of each batch that this process reads: its index and the number of slices.

    Processes with devices in the same row of the mesh (the columns of one data shard) read the same slice.

    Raises:
      UserError: the columns do not divide evenly over the processes' devices.
    """
    owners = np.array([device.process_index for device in mesh.devices.flat]).reshape(mesh.devices.shape)
    here = owners == jax.process_index()
    rows = np.flatnonzero(here.any(axis=1))
    own, total = len(rows), mesh.shape[columns.DATA]
    if total % own or rows[0] % own or here.any(axis=0).sum() * own != here.sum():
        raise UserError(
            f"mesh.column={mesh.shape[columns.COLUMN]}: does not fit the {here.sum()} devices of a process; "
            "one must be a multiple of the other"
        )
    return int(rows[0]) // own, total // own
