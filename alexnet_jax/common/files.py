"""Atomic file writes: readers see the old file or the new one, never a partial one, even after a crash."""

import contextlib
import io
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.common import paths
from alexnet_jax.common.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path next to `path`; then flushes that file to disk and renames it to `path`."""
    path = pathlib.Path(path)
    temporary = paths.temporary(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors makes files that only their owner reads
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: str | os.PathLike[str]) -> None:
    """Flushes a file to disk, so it survives a power cut."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def refuse_url(path: object) -> None:
    """Raises `UserError` if `path` is a URL: only files and folders of this machine are read."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):  # pathlib turns gs://bucket into gs:/bucket
        raise UserError("is a URL, and only files and folders are read; download it first")


def write_npz(path: str | os.PathLike[str], arrays: dict[str, Any], *, compress: bool = False) -> None:
    """Writes arrays by name; raises `UserError` unless `path` ends in .npz."""
    if pathlib.Path(path).suffix.lower() != ".npz":
        raise UserError(f"{path}: must end in .npz")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def as_png(pixels: np.ndarray) -> bytes:
    """`[H, W, 3]` uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
