"""Files that are whole or not there at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place once everything is written."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Waits until the disk has a file, so that no power cut can leave its name without its bytes."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
