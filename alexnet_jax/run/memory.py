"""Whether a training step fits into memory, according to the compiled program."""

import contextlib
import functools
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns
from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import cached_features, processes

_PROC, _CGROUPS = pathlib.Path("/proc"), pathlib.Path("/sys/fs/cgroup")


def batch_shapes(config: configs.Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Shapes, dtypes and shardings of a batch of images on the mesh; None if batches are cached features."""
    if cached_features.is_frozen(config):
        return None
    data = config.data
    size, side, sharding = data.batch_size, data.resize_size, NamedSharding(mesh, columns.BATCH)
    shapes = {"image": ((size, side, side, 3), np.uint8), "label": ((size,), np.int32)}
    shapes["weight"] = ((size,), np.float32)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


def check_memory(step: jax.stages.Compiled, data: configs.DataConfig, mesh: Mesh) -> None:
    """Raises `UserError` in all processes if one has too little memory for a step.

    Without it, a run that takes more than a host's memory is killed without a word. The state must be on the
    devices already: counted are a batch and what the step allocates.
    """
    processes.together(functools.partial(_check, step, data, mesh))


def _check(step: jax.stages.Compiled, data: configs.DataConfig, mesh: Mesh) -> None:
    if (stats := step.memory_analysis()) is None:  # this backend does not know
        return
    images = data.batch_size // mesh.shape[columns.DATA]
    needed = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    needed += images * data.resize_size**2 * 3
    device = mesh.local_devices[0]
    if device.platform == "cpu":  # all devices of a host share its memory
        needed, free = needed * len(mesh.local_devices), free_memory()
    else:
        known = device.memory_stats() or {}
        free = known.get("bytes_limit", sys.maxsize) - known.get("bytes_in_use", 0)
    if needed <= free:
        return
    parts = range(data.micro_batches + 1, images + 1)
    fitting = (n for n in parts if images % n == 0 and needed * data.micro_batches / n < 0.8 * free)
    advice = f" or set data.micro_batches={n}" if (n := next(fitting, None)) else ""
    raise UserError(
        f"data.batch_size={data.batch_size}: a training step needs {needed / 1e9:.1f} GB of memory on "
        f"{device.device_kind}, and {free / 1e9:.1f} GB are free; lower data.batch_size{advice}"
    )


def free_memory() -> int:
    """Bytes that this host can still give to a process, in a container or batch job at most that one's limit.

    More than any program needs where the system does not say.
    """
    limits = [sys.maxsize]
    with contextlib.suppress(OSError, KeyError, ValueError):  # not Linux
        lines = (_PROC / "meminfo").read_text().splitlines()
        kilobytes = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
        limits.append(1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]))
    with contextlib.suppress(OSError):
        lines = (_PROC / "self/cgroup").read_text().splitlines()
        for group in (*(line.split(":", 2)[2] for line in lines), "/"):
            for file in (f"{group}/memory.max", f"memory/{group}/memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((_CGROUPS / file.strip("/")).read_text()))
    return min(limits)
