"""Checkpoints: written and read with orbax, verified when they are restored.

`checkpoints/<step>` contains the device state (parameters, momentum, step) and, as metadata, the run's record
(plateau rule, last evaluation), the config, the versions and fingerprints of the arrays. Orbax renames a
directory to its final name only when everything is written. A checkpoint that does not match its
fingerprints is damaged: it is moved to `damaged/`, and the previous one is used.
"""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import flags
from orbax.checkpoint import v1 as ocp

from alexnet_jax.common.errors import UserError
from alexnet_jax.run import fingerprints, processes, quiet
from alexnet_jax.run.fingerprints import fingerprint

DIRECTORY, DAMAGED = "checkpoints", "damaged"
# The operating system's reason, extracted from the libraries' longer messages.
_REASON = re.compile("No space left on device|Disk quota exceeded|File too large|Read-only file system")


class SaveError(Exception):
    """A checkpoint could not be written; earlier ones are unchanged."""


class Checkpoints:
    """The checkpoints of a run.

    Args:
      workdir: the run's directory.
      keep: how many of the newest checkpoints to keep, besides the best by validation error.
      keep_every_steps: also keep one checkpoint per `keep_every_steps` steps; None for none.
      metadata: `config`, `versions` and `device`, saved with every checkpoint.
      say: prints a line for the user.

    Attributes:
      saved_step: step of the newest good checkpoint, None if there is none.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep: int = 1,
        keep_every_steps: int | None = None,
        metadata: dict[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ):
        self._workdir, self._metadata, self._say = workdir.resolve(), metadata or {}, say
        policies: Any = ocp.training.preservation_policies
        self._best = _Best()
        kept = [policies.LatestN(keep), self._best]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps, exact_interval=False))
        self._policy = policies.AnyPreservationPolicy(kept)
        self._open: ocp.training.Checkpointer | None = None
        self._quiet = contextlib.ExitStack()  # while saves may run in the background
        self.saved_step: int | None = None

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest good checkpoint: the state, with the given shapes and shardings, and record.

        None if there is no checkpoint. Damaged checkpoints are moved to `workdir/damaged`, with a warning.

        Raises:
          UserError: every checkpoint is damaged, or the newest belongs to another net.
          SaveError: a save in the background failed.
        """
        self.wait()
        directory = self._workdir / DIRECTORY
        steps = _steps_for_all(directory)
        found = None

        def load(step: int) -> tuple[Any, dict[str, Any]]:
            metadata = _read_metadata(directory / str(step))
            if found is not None:  # check only the metadata of older ones
                return None, metadata
            self._refuse_other_shapes(metadata["shapes"], shapes(abstract_state), step)
            return _load(directory / str(step), abstract_state), metadata

        for step in reversed(steps):
            try:
                state, metadata = _checked(functools.partial(load, step), "state")
                if state is not None:
                    found, self.saved_step = (state, metadata["record"]), step
            except Exception as error:  # each kind of damage raises a different type
                if _is_no_damage(error):
                    raise
                self._set_aside(step, error)
        if steps and found is None:
            raise UserError(
                f"{directory}: every checkpoint was damaged (they are now in {self._workdir / DAMAGED}); "
                "start the run again to train from the beginning, or choose another --workdir"
            )
        return found

    def save(self, step: int, state: Any, record: dict[str, Any], best_step: int | None = None) -> None:
        """Starts saving in the background; does nothing if `step` is already saved.

        Args:
          best_step: step of the best checkpoint so far, which is never deleted.

        Raises:
          SaveError: this or the previous save could not be written.
        """
        if self.saved_step == step:
            return
        self._best.step = best_step
        prints = fingerprints.of_state(state)
        metadata = {"record": record, "fingerprints": prints, "shapes": shapes(state), **self._metadata}
        metadata = fingerprints.signed(metadata)
        with self._save_errors():
            self._orbax().save_async(step, state, force=True, overwrite=True, custom_metadata=metadata)
            self.saved_step = step

    def wait(self) -> None:
        """Waits until all saves are on disk; raises `SaveError` if one could not be written."""
        if self._open is not None:
            with self._save_errors():
                self._open.wait()

    def close(self) -> None:
        """Waits for the last save and frees orbax; only `wait` raises its errors."""
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.close()
        self._quiet.close()

    def _orbax(self) -> ocp.training.Checkpointer:
        if self._open is None:
            # Use the JAX runtime's barriers, which need no devices and have a timeout.
            if (barrier := "experimental_orbax_use_distributed_barrier") in flags.FLAGS:
                flags.FLAGS[barrier].value = True
            self._quiet.enter_context(quiet.logs())
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
                f"there and {wanted.get(key)} by the config ({len(different)} differ); use the run's own "
                "config or choose another --workdir"
            )

    def _set_aside(self, step: int, error: Exception) -> None:
        if not processes.is_first():
            return
        damaged = self._workdir / DAMAGED
        damaged.mkdir(exist_ok=True)
        target = next(t for n in range(1000) if not (t := damaged / f"{step}.{n}").exists())
        (self._workdir / DIRECTORY / str(step)).rename(target)
        self._say(f"warning: checkpoint {step} is damaged ({_one_line(error)}); it is now in {target}")

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Raises `SaveError` in all processes if the write failed in any of them."""
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        if not processes.all_of(error is None):
            self._open = None  # orbax's record of the directory may be wrong
            self.saved_step = max(_steps_for_all(self._workdir / DIRECTORY), default=None)
            known = _REASON.search(str(error))
            reason = "another process could not" if error is None else _one_line(error)
            raise SaveError(known.group() if known else reason) from error


class _Best:
    """An orbax policy that keeps the checkpoint of `step`."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


def restore_params(
    workdir: str | pathlib.Path, sharding: jax.sharding.Sharding, say: Callable[[str], None] = print
) -> tuple[Any, int]:
    """Reads the parameters of a run's newest good checkpoint, placed by `sharding`, and its step.

    Read-only, so the run may still be training.

    Raises:
      UserError: there is no checkpoint, or every one is damaged.
    """
    directory = pathlib.Path(workdir).resolve() / DIRECTORY
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; give the workdir of a run that has saved a checkpoint"
        )
    steps = _steps_for_all(directory)

    def load(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
        return _load_params(path, sharding), _read_metadata(path)

    for step in reversed(steps):
        try:
            return _checked(functools.partial(load, directory / str(step)), "params")[0], step
        except Exception as error:
            if _is_no_damage(error):
                raise
            say(f"warning: checkpoint {directory / str(step)} is damaged ({_one_line(error)})")
    problem = "every checkpoint is damaged" if steps else "no finished checkpoint; let the run save one first"
    raise UserError(f"{directory}: {problem}")


def exist(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return bool(_steps(workdir / DIRECTORY))


def metadata(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The `config`, `versions` and `device` of a run, from its newest checkpoint.

    Raises:
      UserError: there is no checkpoint, or the newest is damaged.
    """
    directory = pathlib.Path(workdir).resolve() / DIRECTORY
    try:
        saved = _read_metadata(directory / str(_steps(directory)[-1]))
    except Exception as error:
        raise UserError(f"{directory}: no readable checkpoint ({_one_line(error)})") from error
    return {key: saved[key] for key in ("config", "versions", "device")}


def shapes(state: Any) -> dict[str, list[int]]:
    """The shape of each array of a tree, by its path, such as `params/conv1/kernel`."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(x.shape) for path, x in leaves}


def _is_no_damage(error: Exception) -> bool:
    """Whether the error has another cause than a damaged checkpoint, which is then left in place."""
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
    with quiet.stderr(), _by_itself():
        return ocp.load(str(path), wanted)


def _checked(load: Callable[[], tuple[Any, dict[str, Any]]], part: str) -> tuple[Any, dict[str, Any]]:
    """Calls `load` and checks the arrays (if any) it returns against the fingerprint in the metadata.

    Raises:
      Exception: of any kind, in every process, if the checkpoint is damaged in one of them.
    """
    loaded, error = None, None
    try:
        loaded = load()
    except Exception as caught:
        if _is_no_damage(caught):
            raise
        error = caught
    if not processes.all_of(error is None):  # before the fingerprint, which all processes compute together
        raise error or ValueError("another process could not read it")
    assert loaded is not None
    arrays, metadata = loaded
    if arrays is not None and (read := fingerprint(arrays)) != (saved := metadata["fingerprints"][part]):
        raise ValueError(f"its arrays have the fingerprint {read}, not {saved} as when they were saved")
    return arrays, metadata


def _steps_for_all(directory: pathlib.Path) -> list[int]:
    """Process 0's list of checkpoint steps, returned in all processes."""
    return json.loads(processes.from_first(json.dumps(_steps(directory))))


@contextlib.contextmanager
def _by_itself() -> Iterator[None]:
    """Makes orbax read without logging and without waiting for other processes, which may have failed."""
    context: Any = contextlib.nullcontext()
    if jax.process_count() > 1:
        me = jax.process_index()
        prefix = f"process{me}"
        options = {"primary_host": None, "active_processes": {me}, "barrier_sync_key_prefix": prefix}
        context = ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(**options))
    with quiet.reads(), context:
        yield


def _read_metadata(path: pathlib.Path) -> dict[str, Any]:
    with _by_itself():
        metadata: Any = ocp.metadata(str(path)).custom_metadata
    return fingerprints.verified(metadata)
