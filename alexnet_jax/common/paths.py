"""Paths that users give in flags and config keys."""

import os
import pathlib
import threading

from alexnet_jax.common.errors import UserError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, with a leading `~` or `~user` replaced by the home directory; `./~` stays as it is.

    Raises:
      UserError: there is no such home directory, nor a file of that name.
    """
    text = os.path.expanduser(os.fspath(path))  # pathlib's would expand ./~
    if text.startswith("~") and not os.path.lexists(text):
        raise UserError(f"{path}: there is no such home directory; write the path in full")
    return pathlib.Path(text)


def temporary(path: pathlib.Path) -> pathlib.Path:
    """The hidden file beside `path` in which this thread writes what becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
