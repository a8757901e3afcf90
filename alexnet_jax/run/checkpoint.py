"""Checkpoints with orbax: what a run needs to go on as if never stopped.

A checkpoint, `checkpoints/<step>`, holds the device state (parameters, momentum, step) and, in its metadata,
the run's own record (plateau rule, last evaluation), the config, the versions and fingerprints of what was
saved. A directory gets its final name only when it is whole; one that is damaged later does not match its
fingerprints, is set aside, and the one before is used.
"""

import contextlib
import functools
import json
import logging
import os
import pathlib
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
from absl import flags
from orbax.checkpoint import v1 as ocp

from alexnet_jax.common.errors import UserError
from alexnet_jax.run import processes

DIRECTORY, DAMAGED = "checkpoints", "damaged"
LATE_SECONDS = 0.3  # until the last read of a load that failed has ended, mostly
# The words of the system in what several libraries wrap around them.
_WHY = re.compile("No space left on device|Disk quota exceeded|File too large|Read-only file system")
# Orbax logs each error several times, with tracebacks, before it raises it; users are told once, in a line.
absl.logging.set_verbosity(absl.logging.FATAL)


# A read of a damaged checkpoint that ends when nobody waits for it any more, on a busy machine at any time,
# is told of by the interpreter and by asyncio; neither says anything that the one line does not.
def _but_late_reads(before: Callable[[Any], Any], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        before(unraisable)


def _is_no_late_read(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "tensorstore_spec" in str(record.exc_info[1]))


sys.unraisablehook = functools.partial(_but_late_reads, sys.unraisablehook)
logging.getLogger("asyncio").addFilter(_is_no_late_read)
Array = jax.Array


class SaveError(Exception):
    """A checkpoint could not be written; what was saved before is as it was."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
      workdir: of the run.
      keep: the newest so many stay, besides the best by validation error.
      keep_every_steps: one each so many steps stays for good; None for none.
      about: what else the metadata tells, such as the config and versions.
      say: takes a line for the user.

    Attributes:
      saved_step: of the newest good checkpoint, None where there is none.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int = 1,
        keep_every_steps: int | None = None,
        about: dict[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ):
        self._workdir, self._about, self._say = workdir.resolve(), about or {}, say
        policies: Any = ocp.training.preservation_policies
        self._best = _Best()
        kept = [policies.LatestN(keep), self._best]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps, exact_interval=False))
        self._policy = policies.AnyPreservationPolicy(kept)
        self._open: ocp.training.Checkpointer | None = None
        self.saved_step: int | None = None

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest good checkpoint's state, in the shapes and shardings given, and its record.

        None where nothing was ever saved. What is damaged is moved to `workdir/damaged`, which is said.

        Raises:
          UserError: there are checkpoints, but none that is whole, or the newest is of another net.
          SaveError: a save that was under way could not be written.
        """
        self.wait()
        directory = self._workdir / DIRECTORY
        steps = _steps_for_all(directory)
        found = None

        def load(step: int) -> tuple[Any, dict[str, Any]]:
            about = _read_about(directory / str(step))
            if found is not None:
                return None, about
            self._refuse_other_shapes(about["shapes"], shapes(abstract_state), step)
            return _load(directory / str(step), abstract_state), about

        for step in reversed(steps):
            try:
                state, about = _checked(functools.partial(load, step), "state")
                if state is not None:
                    found, self.saved_step = (state, about["record"]), step
            except Exception as error:  # as many kinds as there are kinds of damage
                if _is_no_damage(error):
                    raise
                self._set_aside(step, error)
        if steps and found is None:
            raise UserError(
                f"{directory}: every checkpoint was damaged (they are in {self._workdir / DAMAGED} now); "
                "start the run again to train from the beginning, or in another --workdir"
            )
        return found

    def save(self, step: int, state: Any, record: dict[str, Any], best_step: int | None = None) -> None:
        """Starts to save; training goes on meanwhile. A step that is saved already is not saved again.

        Args:
          best_step: the checkpoint of this step stays, for it is the best so far.

        Raises:
          SaveError: this or the last save could not be written.
        """
        if self.saved_step == step:
            return
        self._best.step = best_step
        whole, params = _state_and_params(state)
        prints = {"state": _hexadecimal(whole), "params": _hexadecimal(params)}
        about = {"record": record, "fingerprints": prints, "shapes": shapes(state), **self._about}
        with self._save_errors():
            self._orbax().save_async(step, state, force=True, overwrite=True, custom_metadata=_signed(about))
            self.saved_step = step

    def wait(self) -> None:
        """Until what was saved is on disk. Raises `SaveError` where it could not be written."""
        if self._open is not None:
            with self._save_errors():
                self._open.wait()

    def close(self) -> None:
        """Waits and lets go; whether the last save succeeded is for `wait` to say."""
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.close()

    def _orbax(self) -> ocp.training.Checkpointer:
        if self._open is None:
            if (barrier := "experimental_orbax_use_distributed_barrier") in flags.FLAGS:
                flags.FLAGS[
                    barrier
                ].value = True  # the runtime's, which need no devices and do not last for ever
            self._open = ocp.training.Checkpointer(
                str(self._workdir / DIRECTORY), preservation_policy=self._policy, cleanup_tmp_directories=True
            )
        return self._open

    def _refuse_other_shapes(self, saved: dict[str, Any], wanted: dict[str, Any], step: int) -> None:
        different = [key for key in {**saved, **wanted} if saved.get(key) != wanted.get(key)]
        if different:
            key = different[0]
            raise UserError(
                f"{self._workdir / DIRECTORY / str(step)}: is of another net: {key} is {saved.get(key)} "
                f"there and {wanted.get(key)} by the config ({len(different)} differ); go on with the config "
                "that it was begun with, or choose another --workdir"
            )

    def _set_aside(self, step: int, error: Exception) -> None:
        if not processes.is_first():
            return
        damaged = self._workdir / DAMAGED
        damaged.mkdir(exist_ok=True)
        target = next(t for n in range(1000) if not (t := damaged / f"{step}.{n}").exists())
        (self._workdir / DIRECTORY / str(step)).rename(target)
        self._say(f"warning: checkpoint {step} is damaged ({_one_line(error)}); it is in {target} now")

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Turns whatever a failed write raises into `SaveError`, in all processes alike."""
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        if not processes.all_of(error is None):
            self._open = None  # orbax's own view of the directory is in doubt
            self.saved_step = max(_steps_for_all(self._workdir / DIRECTORY), default=None)
            known = _WHY.search(str(error))
            why = "another process could not" if error is None else _one_line(error)
            raise SaveError(known.group() if known else why) from error


class _Best:
    """Keeps the checkpoint of `step`; orbax asks it before it deletes."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def restore_params(
    workdir: str | pathlib.Path, sharding: jax.sharding.Sharding, say: Callable[[str], None] = print
) -> tuple[Any, int]:
    """The parameters of a run's newest good checkpoint, placed by `sharding`, and its step.

    Nothing is moved or changed, so that a run may be going on meanwhile.

    Raises:
      UserError: there is no checkpoint, or none that is whole.
    """
    directory = pathlib.Path(workdir).resolve() / DIRECTORY
    if not directory.is_dir():
        raise UserError(f"{directory}: not there; give the workdir of a run that has saved a checkpoint")
    steps = _steps_for_all(directory)

    def load(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
        return _load_params(path, sharding), _read_about(path)

    for step in reversed(steps):
        try:
            return _checked(functools.partial(load, directory / str(step)), "params")[0], step
        except Exception as error:
            if _is_no_damage(error):
                raise
            say(f"warning: checkpoint {directory / str(step)} is damaged ({_one_line(error)})")
    state = (
        "every checkpoint is damaged" if steps else "holds no finished checkpoint; let the run save one first"
    )
    raise UserError(f"{directory}: {state}")


def exist(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return bool(_steps(workdir / DIRECTORY))


def about(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What the newest checkpoint of a run tells besides: its `config`, `versions` and `device`.

    Raises:
      UserError: there is no checkpoint, or the newest is damaged.
    """
    directory = pathlib.Path(workdir).resolve() / DIRECTORY
    try:
        told = _read_about(directory / str(_steps(directory)[-1]))
    except Exception as error:
        raise UserError(f"{directory}: no checkpoint to be read ({_one_line(error)})") from error
    return {key: told[key] for key in ("config", "versions", "device")}


def shapes(state: Any) -> dict[str, list[int]]:
    """The shape of each array of a tree, by its path in it."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(x.shape) for path, x in leaves}


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Keeps quiet the reads that a failed load leaves behind, which print dozens of tracebacks.

    They come from threads outside Python, so that only the descriptor itself stops them. Those that come
    later still are Python's to tell of (`_but_late_reads`, `_is_no_late_read`).
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except Exception:
        time.sleep(LATE_SECONDS)
        raise
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _is_no_damage(error: Exception) -> bool:
    """Whether what failed is not the checkpoint: setting it aside would lose it for nothing."""
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return out_of_memory or isinstance(error, UserError | PermissionError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def _load_params(path: pathlib.Path, sharding: jax.sharding.Sharding) -> Any:
    with _by_itself():
        saved: Any = ocp.metadata(str(path)).metadata
    wanted = {key: jax.tree.map(lambda _: ocp.PLACEHOLDER, value) for key, value in saved.items()}
    wanted["params"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved["params"]
    )
    return _load(path, wanted)["params"]


def _load(path: pathlib.Path, wanted: Any) -> Any:
    with _one_error(), _by_itself():
        return ocp.load(str(path), wanted)


def _checked(load: Callable[[], tuple[Any, dict[str, Any]]], part: str) -> tuple[Any, dict[str, Any]]:
    """The arrays (None for none) and the metadata that `load` gives, if whole: in all processes, or in none.

    Raises:
      Exception: of any kind, where it is damaged.
    """
    loaded, error = None, None
    try:
        loaded = load()
    except Exception as caught:
        if _is_no_damage(caught):
            raise
        error = caught
    if not processes.all_of(error is None):  # asked before what all must do together
        raise error or ValueError("another process could not read it")
    assert loaded is not None
    arrays, about = loaded
    if arrays is not None:
        _compare(about["fingerprints"][part], fingerprint(arrays))
    return arrays, about


def _steps_for_all(directory: pathlib.Path) -> list[int]:
    """The checkpoints' steps as process 0 sees them."""
    return json.loads(processes.from_first(json.dumps(_steps(directory))))


def _by_itself() -> contextlib.AbstractContextManager[Any]:
    """Has orbax read without waiting for other processes, which may have failed to."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.Context(multiprocessing_options=options)


# --- What was saved is what is read -----------------------------------------------------------------------


def fingerprint(tree: Any) -> str:
    """A number that changes with any bit of any array of `tree`, the same on any mesh, as hexadecimal."""
    return _hexadecimal(_fingerprint(tree))


def _hexadecimal(words: Array) -> str:
    return "".join(f"{int(word):08x}" for word in jax.device_get(words))


@jax.jit
def _state_and_params(state: Any) -> tuple[Array, Array]:
    # In one program, which scrambles the parameters once for both.
    return _fingerprint(state), _fingerprint(state.params)


@jax.jit
def _fingerprint(tree: Any) -> Array:
    # Sums of scrambled words: whole numbers add up to the same in any order, so each device takes its share.
    total = jnp.zeros(2, jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        total = total * jnp.uint32(0x01000193) + _scrambled_sum(leaf)
    return total


def _scrambled_sum(leaf: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)

    def mix(seed: int, factor: int) -> Array:
        word = (bits ^ (place * jnp.uint32(seed))) * jnp.uint32(factor)
        word ^= word >> 15
        word *= jnp.uint32(0xC2B2AE35)
        return jnp.sum(word ^ (word >> 13), dtype=jnp.uint32)

    return jnp.stack([mix(0x9E3779B1, 0x85EBCA6B), mix(0x7FEB352D, 0x846CA68B)])


def _compare(saved: str, read: str) -> None:
    if saved != read:
        raise ValueError(f"its arrays have the fingerprint {read}, not {saved} as when they were saved")


def _signed(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "crc32": zlib.crc32(_canonical(about))}


def _read_about(path: pathlib.Path) -> dict[str, Any]:
    with _by_itself():
        about: Any = ocp.metadata(str(path)).custom_metadata
    crc = about.pop("crc32")
    if zlib.crc32(_canonical(about)) != crc:
        raise ValueError("its metadata does not match its checksum")
    return about


def _canonical(about: dict[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode()
