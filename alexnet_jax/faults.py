"""What went wrong outside the program, in a line for the user."""

import errno
import pathlib

from alexnet_jax.errors import Fault, UserError

_MEMORY = (
    "out of memory; lower data.batch_size or data.image_size, or use more devices (mesh.data, mesh.column)"
)


def explain(error: BaseException, workdir: pathlib.Path) -> Fault | UserError | None:
    """The error itself, or its cause, as a `Fault` or `UserError` for the user; None where it is a bug."""
    if isinstance(error, Fault | UserError):
        return error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return Fault(_MEMORY)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fault(f"{workdir}: the disk is full; make room and start the same command again: it goes on")
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EIO):
        return Fault(
            f"{workdir}: cannot be written ({error.strerror}); mend that and start the same command again: "
            "it goes on"
        )
    if not workdir.exists():
        return Fault(f"{workdir}: was removed while the run was using it")
    return None
