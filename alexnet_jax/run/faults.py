"""Recognises failures outside the program and explains them in one line."""

import errno
import os
import pathlib
import re

from alexnet_jax.common.errors import Fault, UserError, one_line

RESUME = "start the same command again in all processes to resume from the last checkpoint"
_COLLECTIVE = re.compile("Gloo|NCCL|coordination ?service|barrier timed out", re.IGNORECASE)
_MEMORY = (
    "out of memory; raise data.micro_batches, lower data.batch_size or data.image_size, or use more devices "
    "(mesh.data, mesh.column)"
)


def explain(error: BaseException, workdir: pathlib.Path) -> Fault | UserError | None:
    """The `Fault` or `UserError` that explains `error`; None if it is a bug in the program."""
    if isinstance(error, Fault | UserError):
        return error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return Fault(_MEMORY)
    if (lost := lost_process(error)) is not None:
        return lost
    if not workdir.exists() or (isinstance(error, FileNotFoundError) and _is_within(error, workdir)):
        return Fault(f"{workdir}: was removed while the run was using it")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Fault(f"{workdir}: the disk is full; make room and start the same command again to resume")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
        return Fault(
            f"{workdir if _is_within(error, workdir) else error.filename}: cannot be read or written "
            f"({error.strerror}); fix that and start the same command again to resume"
        )
    return None


def lost_process(error: BaseException) -> Fault | None:
    """The `Fault` that explains a failed exchange with the other processes; None for other errors."""
    if isinstance(error, Fault | UserError) or not _COLLECTIVE.search(str(error)):
        return None
    reason = one_line(error)[:200]
    return Fault(f"another process died or failed, so this one ends, too ({reason}); {RESUME}")


def _is_within(error: OSError, workdir: pathlib.Path) -> bool:
    """Whether the error concerns a file in `workdir`; one without a name is a write to an open file there."""
    if error.filename is None:
        return True
    return pathlib.Path(os.fsdecode(error.filename)).resolve().is_relative_to(workdir.resolve())
