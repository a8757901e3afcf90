"""Finds the newest checkpoint that is not damaged, and reads it with orbax."""

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from alexnet_jax.common.errors import UserError, one_line
from alexnet_jax.run import checksums, processes

METADATA = "_CHECKPOINT_METADATA"  # orbax's file with the run's record, config and versions


def newest(
    directory: pathlib.Path,
    load: Callable[[pathlib.Path], Any],
    say: Callable[[str], None],
    on_damage: Callable[[pathlib.Path, str], None],
    all_damaged: str,
) -> tuple[Any, int] | None:
    """Loads the newest undamaged checkpoint; returns it and its step, or None if `directory` has none.

    Process 0 verifies the checksums. A checkpoint without them is used if orbax can read it.

    Raises:
      UserError: `all_damaged`; or, in all processes, one of them cannot load a checkpoint whose files have
        not changed.
    """
    found = steps_for_all(directory)
    for step in reversed(found):
        path = directory / str(step)
        verified, damage = json.loads(processes.from_first(json.dumps(_verify(path))))
        loaded, error = None, None
        if damage is None:
            try:
                with _reading_alone():
                    loaded = load(path)
            except Exception as caught:
                if _is_no_damage(caught):
                    raise
                error = caught
            if processes.all_of(error is None):
                if not verified:
                    say(f"warning: checkpoint {step} has no checksums, so it is used unverified")
                return loaded, step
            damage = "another process cannot read it" if error is None else one_line(error)[:200]
            other = _other_versions(path)
            if verified or other:
                raise UserError(
                    f"{path}: cannot be read, but shows no damage ({damage}); it was saved "
                    f"with {other or 'the same versions'}; use those, or move it away to use the one before"
                ) from error
        on_damage(path, damage)
    if found:
        raise UserError(f"{directory}: {all_damaged}")
    return None


def _verify(path: pathlib.Path) -> tuple[bool, str | None]:
    """Whether there are checksums, and which file is missing or has changed."""
    if not processes.is_first():
        return False, None
    try:
        return True, checksums.damage(path)
    except FileNotFoundError:  # killed before they were written, or saved by an older version of this package
        return False, None if (path / METADATA).is_file() else f"{METADATA} is missing"


def _reading_alone() -> contextlib.AbstractContextManager[Any]:
    """Makes orbax read without waiting for other processes, which may have failed."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    me = jax.process_index()
    options = {"primary_host": None, "active_processes": {me}, "barrier_sync_key_prefix": f"process{me}"}
    return ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(**options))


def refuse_other_arrays(path: pathlib.Path, saved: Any, wanted: Any) -> None:
    """Raises `UserError` if the arrays differ in shape or dtype."""
    there, here = _arrays(saved), _arrays(wanted)
    if not there:
        raise ValueError("it has no arrays")
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not different:
        return
    key = different[0]
    (shape, dtype), (new_shape, new_dtype) = there.get(key, (None, "")), here.get(key, (None, ""))
    if shape != new_shape:
        raise UserError(
            f"{path}: is of another net: {key} is {shape} there and {new_shape} by the config "
            f"({len(different)} differ); use the run's own config or choose another --workdir"
        )
    raise UserError(
        f"{path}: was saved with other dtypes: {key} is {dtype} there and {new_dtype} in this process "
        f"({len(different)} differ); set JAX_ENABLE_X64 as it was when the run began"
    )


def _arrays(tree: Any) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of each array of a tree, by its path, such as `params/conv1/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (list(x.shape), str(x.dtype))
        for path, x in jax.tree.leaves_with_path(tree)
    }


def _other_versions(path: pathlib.Path) -> str:
    """The versions with which a checkpoint was saved, as far as they differ from those installed."""
    try:
        with _reading_alone():
            metadata: Any = ocp.metadata(str(path))
        saved = metadata.custom_metadata["versions"]
    except Exception:  # unreadable
        return ""
    here = {name: importlib.metadata.version(name) for name in saved if name != "python"}
    return ", ".join(
        f"{name} {saved[name]} (here {here[name]})" for name in here if saved[name] != here[name]
    )


def _is_no_damage(error: Exception) -> bool:
    """Whether the error has another cause than a damaged checkpoint, which is then left in place."""
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return out_of_memory or isinstance(error, UserError | PermissionError)


def steps(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a directory, in order."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def steps_for_all(directory: pathlib.Path) -> list[int]:
    """Process 0's list of checkpoint steps, returned in all processes."""
    return json.loads(processes.from_first(json.dumps(steps(directory))))
