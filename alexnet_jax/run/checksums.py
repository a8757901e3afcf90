"""Checksums of a checkpoint's files, to find damage before orbax reads them.

CRC-32 is the fastest checksum of the standard library that notices every short burst of wrong bits.
"""

import json
import pathlib
import zlib

from alexnet_jax.common import files

FILE = "checksums.json"
_CHUNK_BYTES = 2**20


def write(directory: pathlib.Path) -> None:
    """Writes `checksums.json` into `directory`: the CRC-32 of each file below it, and their own."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {path.relative_to(directory).as_posix(): _crc32(path) for path in paths}
    sums.pop(FILE, None)
    files.write_text(directory / FILE, json.dumps({"files": sums, "crc32": _of(sums)}))


def damage(directory: pathlib.Path, only: str | None = None) -> str | None:
    """The first file below `directory` that is not as it was, and how; None if all are intact.

    Args:
      only: the only file to look at; None for all.

    Raises:
      FileNotFoundError: there are no checksums.
    """
    try:
        saved = json.loads((directory / FILE).read_text())
        sums = saved["files"]
        intact = saved["crc32"] == _of(sums)
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        intact = False
    if not intact:
        return f"{FILE} has changed"
    for name, crc in sums.items() if only is None else [(only, sums.get(only))]:
        if not (directory / name).is_file():
            return f"{name} is missing"
        if _crc32(directory / name) != crc:
            return f"{name} has changed"
    return None


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _of(sums: dict[str, int]) -> int:
    return zlib.crc32(json.dumps(sums).encode())
