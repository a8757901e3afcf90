"""Paths that users give in flags and config keys."""

import os
import pathlib
import threading

from alexnet_jax.common.errors import UserError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, with a leading `~` or `~user` replaced by the home directory.

    Raises:
      UserError: there is no such home directory.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home directory; write the path in full") from error


def temporary(path: pathlib.Path) -> pathlib.Path:
    """The hidden file beside `path` in which this thread writes what becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
