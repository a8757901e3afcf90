"""Checkpoints: written and read with orbax; checksums of their files are verified before orbax reads them.

`checkpoints/<step>` contains the device state (parameters, momentum, step) and, as metadata, the run's record
(plateau rule, last evaluation), the config and the versions. Orbax renames a directory to its final name when
everything is written; then the checksums are added. A checkpoint whose files have changed since is damaged:
it is moved to `damaged/`, and the previous one is used.
"""

import contextlib
import functools
import importlib.metadata
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checksums, processes

DIRECTORY, DAMAGED = "checkpoints", "damaged"
_METADATA = "_CHECKPOINT_METADATA"  # written by orbax; has the run's record in it
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
      failed_saves: how many saves in a row have failed.
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
        self._workdir, self._metadata, self._say = workdir.absolute(), metadata or {}, say
        policies: Any = ocp.training.preservation_policies
        self._best = _Best()
        kept = [policies.LatestN(keep), self._best]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps, exact_interval=False))
        self._policy = policies.AnyPreservationPolicy(kept)
        self._open: ocp.training.Checkpointer | None = None
        self._thread = futures.ThreadPoolExecutor(1, "checksums")
        self._unfinished: futures.Future[None] | None = None  # the save in the background
        self.saved_step: int | None = None
        self.failed_saves = 0

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest good checkpoint: the state, with the given shapes and shardings, and record.

        None if there is no checkpoint. Damaged checkpoints are moved to `workdir/damaged`, with a warning.

        Raises:
          UserError: every checkpoint is damaged, or the newest has arrays of other shapes or dtypes, or orbax
            cannot read it although its files have not changed.
          SaveError: a save in the background failed.
        """
        self.wait()
        directory = self._workdir / DIRECTORY
        steps = _steps_for_all(directory)

        def load(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
            saved: Any = ocp.metadata(str(path))
            _refuse_other_arrays(path, saved.metadata, abstract_state)
            return ocp.load(str(path), abstract_state), saved.custom_metadata["record"]

        found = _newest(directory, load, self._say, self._set_aside)
        if found is not None:
            restored, self.saved_step = found
            return restored
        if steps:
            raise UserError(
                f"{directory}: every checkpoint was damaged (they are now in {self._workdir / DAMAGED}); "
                "start the run again to train from the beginning, or choose another --workdir"
            )
        return None

    def save(self, step: int, state: Any, record: dict[str, Any], best_step: int | None = None) -> None:
        """Starts saving in the background; does nothing if `step` is already saved.

        Args:
          best_step: step of the best checkpoint so far, which is never deleted.

        Raises:
          SaveError: this or the previous save could not be written.
        """
        if self.saved_step == step:
            return
        self.wait()
        self._best.step = best_step
        metadata = {"record": record, **self._metadata}
        with self._save_errors():
            saving = self._orbax().save_async(
                step, state, force=True, overwrite=True, custom_metadata=metadata
            )
            self._unfinished = self._thread.submit(
                self._finish, saving, self._workdir / DIRECTORY / str(step)
            )
            self.saved_step = step

    def wait(self) -> None:
        """Waits until all saves are on disk; raises `SaveError` if one could not be written."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            with self._save_errors():
                unfinished.result()
            self.failed_saves = 0

    def close(self) -> None:
        """Waits for the last save and frees orbax; only `wait` raises its errors."""
        self._thread.shutdown()
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.close()

    def _finish(self, saving: Any, path: pathlib.Path) -> None:
        """Waits until orbax has written the checkpoint, then adds the checksums."""
        saving.result()
        if processes.is_first():
            checksums.write(path)

    def _orbax(self) -> ocp.training.Checkpointer:
        if self._open is None:
            # Use the JAX runtime's barriers, which need no devices and have a timeout.
            if (barrier := "experimental_orbax_use_distributed_barrier") in flags.FLAGS:
                flags.FLAGS[barrier].value = True
            # Orbax logs every failed save with several tracebacks; `SaveError` says it in one line.
            absl_logging.set_verbosity(absl_logging.FATAL)
            self._open = ocp.training.Checkpointer(
                str(self._workdir / DIRECTORY),
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
            )
        return self._open

    def _set_aside(self, path: pathlib.Path, damage: str) -> None:
        damaged = self._workdir / DAMAGED
        target = next(t for n in range(1000) if not (t := damaged / f"{path.name}.{n}").exists())
        if processes.is_first():
            damaged.mkdir(exist_ok=True)
            path.rename(target)
        self._say(f"warning: checkpoint {path.name} is damaged ({damage}); it is now in {target}")

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
            self.failed_saves += 1
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
      UserError: there is no checkpoint, every one is damaged, or orbax cannot read an intact one.
    """
    directory = pathlib.Path(workdir).absolute() / DIRECTORY
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; give the workdir of a run that has saved a checkpoint"
        )
    steps = _steps_for_all(directory)

    def load(path: pathlib.Path) -> Any:
        saved: Any = ocp.metadata(str(path)).metadata
        wanted = {key: jax.tree.map(lambda _: ocp.PLACEHOLDER, value) for key, value in saved.items()}
        wanted["params"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved["params"]
        )
        loaded: Any = ocp.load(str(path), wanted)
        return loaded["params"]

    def skip(path: pathlib.Path, damage: str) -> None:
        say(f"warning: checkpoint {path} is damaged ({damage})")

    if (found := _newest(directory, load, say, skip)) is not None:
        return found
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
    directory = pathlib.Path(workdir).absolute() / DIRECTORY
    try:
        path = directory / str(_steps(directory)[-1])
        with contextlib.suppress(FileNotFoundError):  # an old checkpoint, without checksums
            if damage := checksums.damage(path, only=_METADATA):
                raise ValueError(damage)
        saved = _saved_metadata(path)
        return {key: saved[key] for key in ("config", "versions", "device")}
    except Exception as error:
        raise UserError(f"{directory}: no readable checkpoint ({_one_line(error)})") from error


def _newest(
    directory: pathlib.Path,
    load: Callable[[pathlib.Path], Any],
    say: Callable[[str], None],
    on_damage: Callable[[pathlib.Path, str], None],
) -> tuple[Any, int] | None:
    """Loads the newest undamaged checkpoint below `directory`; returns it and its step, or None.

    Process 0 verifies the checksums. A checkpoint without them is used if orbax can read it.

    Raises:
      Exception: in all processes, if one of them cannot load a checkpoint whose files have not changed.
    """
    for step in reversed(_steps_for_all(directory)):
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
            damage = "another process cannot read it" if error is None else _one_line(error)
            other = _other_versions(path)
            if verified or other:
                raise UserError(
                    f"{path}: cannot be read, but shows no damage ({damage}); it was saved "
                    f"with {other or 'the same versions'}; use those, or move it away to use the one before"
                ) from error
        on_damage(path, damage)
    return None


def _verify(path: pathlib.Path) -> tuple[bool, str | None]:
    """Whether there are checksums, and which file is missing or has changed."""
    if not processes.is_first():
        return False, None
    try:
        return True, checksums.damage(path)
    except FileNotFoundError:  # killed before they were written, or saved by an older version of this package
        return False, None if (path / _METADATA).is_file() else f"{_METADATA} is missing"


@contextlib.contextmanager
def _reading_alone() -> Iterator[None]:
    """Makes orbax read without waiting for other processes, which may have failed."""
    if jax.process_count() == 1:
        yield
        return
    me = jax.process_index()
    options = {"primary_host": None, "active_processes": {me}, "barrier_sync_key_prefix": f"process{me}"}
    with ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(**options)):
        yield


def _refuse_other_arrays(path: pathlib.Path, saved: Any, wanted: Any) -> None:
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
    leaves = jax.tree.leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): (list(x.shape), str(x.dtype)) for path, x in leaves}


def _other_versions(path: pathlib.Path) -> str:
    """The versions with which a checkpoint was saved, as far as they differ from those installed."""
    try:
        saved = _saved_metadata(path)["versions"]
    except Exception:  # unreadable, so nothing is known of them
        return ""
    here = {name: importlib.metadata.version(name) for name in saved if name != "python"}
    return ", ".join(
        f"{name} {saved[name]} (here {here[name]})" for name in here if saved[name] != here[name]
    )


def _saved_metadata(path: pathlib.Path) -> dict[str, Any]:
    saved: Any = ocp.metadata(str(path)).custom_metadata
    return saved


def _is_no_damage(error: Exception) -> bool:
    """Whether the error has another cause than a damaged checkpoint, which is then left in place."""
    out_of_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return out_of_memory or isinstance(error, UserError | PermissionError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def _steps_for_all(directory: pathlib.Path) -> list[int]:
    """Process 0's list of checkpoint steps, returned in all processes."""
    return json.loads(processes.from_first(json.dumps(_steps(directory))))
