"""Finds the newest intact checkpoint: checksums of its files show damage before orbax reads them.

CRC-32 is the fastest checksum of the standard library that notices every short burst of wrong bits.
"""

import importlib.metadata
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import tensorstore

from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError, one_line
from alexnet_jax.run import processes

CHECKSUMS = "checksums.json"
METADATA = "_CHECKPOINT_METADATA"  # orbax's file with the run's record, config and versions
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint")  # on whose versions results depend
_CHUNK_BYTES = 2**20


def orbax() -> Any:
    """The library; not imported at the top, as commands that read other weights can do without its second."""
    from orbax.checkpoint import v1

    return v1


def write_checksums(directory: pathlib.Path) -> None:
    """Writes `checksums.json` into `directory`: the CRC-32 of each file below it, and of that list."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    sums = {path.relative_to(directory).as_posix(): _crc32(path) for path in paths}
    files.write_text(directory / CHECKSUMS, json.dumps({"files": sums, "crc32": _crc32_of_list(sums)}))


def verify(directory: pathlib.Path, only: str | None = None) -> tuple[bool, str | None]:
    """Whether a checkpoint has checksums, and a phrase that names its first missing or changed file.

    Args:
      only: the one file to check; None for all.
    """
    try:
        saved = json.loads((directory / CHECKSUMS).read_text())
        sums = saved["files"]
        intact = saved["crc32"] == _crc32_of_list(sums)
    except FileNotFoundError:  # killed before they were written, or saved by an older version of this package
        return False, None if (directory / METADATA).is_file() else f"{METADATA} is missing"
    except (ValueError, KeyError, TypeError, IsADirectoryError):
        intact = False
    if not intact:
        return True, f"{CHECKSUMS} has changed"
    for name in sums if only is None else [only]:
        if not (directory / name).is_file():
            return True, f"{name} is missing"
        if _crc32(directory / name) != sums.get(name):
            return True, f"{name} has changed"
    return True, None


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _crc32_of_list(sums: dict[str, int]) -> int:
    return zlib.crc32(json.dumps(sums).encode())


def steps(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a directory, in order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def steps_for_all(directory: pathlib.Path) -> list[int]:
    """Process 0's list of checkpoint steps, returned in all processes."""
    return json.loads(processes.from_first(json.dumps(steps(directory))))


def load_newest(
    directory: pathlib.Path,
    load: Callable[[pathlib.Path], Any],
    say: Callable[[str], None],
    move_to: pathlib.Path | None = None,
) -> tuple[Any, int] | None:
    """Loads the newest intact checkpoint; returns it and its step, or None if `directory` has none.

    Process 0 verifies the checksums. A checkpoint without them is used if orbax can read it. A damaged one is
    moved to the directory `move_to`, if given, with a warning.

    Raises:
      UserError: every checkpoint is damaged; or, in all processes, one of them cannot load a checkpoint whose
        files have not changed.
    """
    found = steps_for_all(directory)
    for step in reversed(found):
        path = directory / str(step)
        found_damage = verify(path) if processes.is_first() else None
        verified, damage = json.loads(processes.from_first(json.dumps(found_damage)))
        if damage is None:
            other = _other_versions(path)
            loaded, error = _try(load, path, unverified=not (verified or other))
            if processes.all_of(error is None):
                if not verified:
                    say(f"warning: checkpoint {step} has no checksums, so it is used unverified")
                return loaded, step
            damage = "another process cannot read it" if error is None else one_line(error)[:200]
            if verified or other:
                raise UserError(
                    f"{path}: cannot be read, but shows no damage ({damage}); it was saved "
                    f"with {other or 'the same versions'}; use those, or move it away to use the one before"
                ) from error
        where = f"{path} is skipped" if move_to is None else f"it is now in {_move(path, move_to)}"
        say(f"warning: checkpoint {step} is damaged ({damage}); {where}")
    if not found:
        return None
    if move_to is None:
        raise UserError(f"{directory}: every checkpoint is damaged")
    raise UserError(
        f"{directory}: every checkpoint was damaged (they are now in {move_to}); start the run again "
        "to train from the beginning, or choose another --workdir"
    )


def _try(
    load: Callable[[pathlib.Path], Any], path: pathlib.Path, unverified: bool
) -> tuple[Any, Exception | None]:
    """What `load` returns, and the error that may be due to damage."""
    try:
        if unverified:
            _read_one_by_one(path)
        with _reading_alone():
            return load(path), None
    except (UserError, PermissionError, MemoryError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # too little memory
            raise
        return None, error


def _read_one_by_one(path: pathlib.Path) -> None:
    """Reads a checkpoint's files of metadata and arrays; raises what is wrong with them.

    Orbax reads all at once. Where one fails, it closes its event loop and each other read prints a traceback.
    """
    for file in (*path.glob("**/_*"), *path.glob("state/array_metadatas/*")):
        json.loads(file.read_bytes())
    store: Any = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/state/"}}
    keys = tensorstore.KvStore.open(store).result().list().result()
    arrays = [key.decode() for key in keys if key.endswith(b"/zarr.json")]
    if not arrays:
        raise ValueError("it has no arrays")
    for name in arrays:
        kvstore = {**store, "path": name.removesuffix("zarr.json")}
        tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()


def _reading_alone() -> Any:
    """Makes orbax read without waiting for other processes, which may have failed."""
    context, index = orbax().Context(), jax.process_index()
    if jax.process_count() > 1:
        context.multiprocessing.primary_host = None
        context.multiprocessing.active_processes = {index}
        context.multiprocessing.barrier_sync_key_prefix = f"process{index}"
    return context


def _other_versions(path: pathlib.Path) -> str:
    """The versions with which a checkpoint was saved, as far as they differ from those installed."""
    try:
        saved = json.loads((path / METADATA).read_text())["custom_metadata"]["versions"]
        versions = [(name, saved[name], importlib.metadata.version(name)) for name in LIBRARIES]
    except Exception:  # unreadable
        return ""
    return ", ".join(f"{name} {there} (here {here})" for name, there, here in versions if there != here)


def _move(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Moves a checkpoint into `folder`, under a name that is still free; returns the new path."""
    target = next(t for n in range(1000) if not (t := folder / f"{path.name}.{n}").exists())
    if processes.is_first():
        folder.mkdir(exist_ok=True)
        path.rename(target)
    return target
