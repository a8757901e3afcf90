"""Checkpoints: written and read with orbax; checksums of their files are verified before orbax reads them.

`checkpoints/<step>` contains the device state (parameters, momentum, step) and, as metadata, the run's record
(plateau rule, last evaluation), the config and the versions. Orbax renames a directory to its final name when
everything is written; then the checksums are added. A checkpoint whose files have changed since is damaged:
it is moved to `damaged/`, and the previous one is used.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
from absl import flags

from alexnet_jax.common import paths
from alexnet_jax.common.errors import Fault, UserError, one_line
from alexnet_jax.run import intact, processes

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
      metadata: saved with every checkpoint, as `status.about` gives it.
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
        self._workdir, self._metadata, self._say = workdir, metadata or {}, say
        self._directory, self._damaged = workdir.absolute() / DIRECTORY, workdir.absolute() / DAMAGED
        policies: Any = intact.orbax().training.preservation_policies
        self._best = _Best()
        kept = [policies.LatestN(keep), self._best]
        if keep_every_steps is not None:
            kept.append(policies.EveryNSteps(keep_every_steps, exact_interval=False))
        self._policy = policies.AnyPreservationPolicy(kept)
        self._open: Any = None  # orbax's Checkpointer
        self._thread = futures.ThreadPoolExecutor(1, "checksums")
        self._unfinished: futures.Future[None] | None = None  # the save in the background
        self._failed_saves = 0  # in a row
        self.saved_step: int | None = None

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest good checkpoint: the state, with the given shapes and shardings, and record.

        None if there is no checkpoint. Damaged checkpoints are moved to `workdir/damaged`, with a warning.

        Raises:
          UserError: every checkpoint is damaged, or the newest has arrays of other shapes or dtypes, or orbax
            cannot read it although its files have not changed.
        """

        def load(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
            saved: Any = intact.orbax().metadata(str(path))
            _refuse_other_arrays(path, saved.metadata, abstract_state)
            return intact.orbax().load(str(path), abstract_state), saved.custom_metadata["record"]

        found = intact.load_newest(self._directory, load, self._say, move_to=self._damaged)
        restored, self.saved_step = found or (None, None)
        return restored

    def save(self, step: int, state: Any, record: dict[str, Any], *, last: bool = False) -> None:
        """Starts saving in the background, unless `step` is saved already.

        A failed save is only a warning: earlier checkpoints exist, and a later save may succeed.

        Args:
          record: saved with the state; the checkpoint of step `record["best_step"]` is never deleted.
          last: whether this save ends the run; then it waits until the checkpoint is on disk.

        Raises:
          Fault: the last checkpoint, or the second in a row, could not be written.
        """

        def write() -> None:
            self._start(step, state, record)
            if last:
                self.wait()

        for part in (self.wait, write):  # try this save even if the previous one failed
            try:
                part()
            except SaveError as reason:
                message = f"{self._workdir}: a checkpoint could not be written ({reason}); {self.last_good()}"
                if (last and part is write) or self._failed_saves > 1:
                    raise Fault(f"{message}; make room and start the same command again") from reason
                self._say(f"warning: {message}; training goes on")

    def wait(self) -> None:
        """Waits until all saves are on disk; raises `SaveError` if one could not be written."""
        if self._unfinished is not None:
            unfinished, self._unfinished = self._unfinished, None
            with self._save_errors():
                unfinished.result()
            self._failed_saves = 0

    def close(self) -> None:
        """Waits for the last save and frees orbax; only `wait` raises its errors."""
        self._thread.shutdown()
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.close()

    def last_good(self) -> str:
        """A phrase for messages: the newest checkpoint from which the run can resume."""
        with contextlib.suppress(SaveError):  # then the previous checkpoint counts
            self.wait()
        if self.saved_step is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is of step {self.saved_step}"

    def _start(self, step: int, state: Any, record: dict[str, Any]) -> None:
        if self.saved_step == step:
            return
        self._best.step = record.get("best_step")
        metadata = {"record": record, **self._metadata}
        with self._save_errors():
            self._check_room(state)
            orbax, path = self._orbax(), self._directory / str(step)
            saving = orbax.save_async(step, state, force=True, overwrite=True, custom_metadata=metadata)
            self._unfinished = self._thread.submit(self._finish, saving, path)
            self.saved_step = step

    def _check_room(self, state: Any) -> None:
        """Raises `OSError` in all processes if the disk is full or read-only, before orbax tries to write."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # compression saves less than a tenth
        problem = 0
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            temporary = paths.temporary(self._directory / "save")
            temporary.touch()
            temporary.unlink()
            if shutil.disk_usage(self._directory).free < size:
                problem = errno.ENOSPC
        except OSError as error:
            problem = error.errno or errno.EIO
        if not processes.all_of(problem == 0):
            problem = problem or errno.EIO  # of another process
            raise OSError(problem, os.strerror(problem))

    def _finish(self, saving: Any, path: pathlib.Path) -> None:
        """Waits until orbax has written the checkpoint, then adds the checksums."""
        saving.result()
        if processes.is_first():
            intact.write_checksums(path)

    def _orbax(self) -> Any:
        if self._open is None:
            # Use the JAX runtime's barriers, which need no devices and have a timeout.
            if (barrier := "experimental_orbax_use_distributed_barrier") in flags.FLAGS:
                flags.FLAGS[barrier].value = True
            context = intact.orbax().Context()
            # If this failed in the background, orbax's other threads would wait for it for 20 minutes.
            context.asynchronous.create_directories_asynchronously = False
            self._open = intact.orbax().training.Checkpointer(
                str(self._directory),
                context=context,
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                lightweight_initialize=True,
            )
        return self._open

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
            self._failed_saves += 1
            self.saved_step = max(intact.steps_for_all(self._directory), default=None)
            known = _REASON.search(str(error))
            reason = "another process could not" if error is None else one_line(error)[:200]
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
      UserError: there is no checkpoint, every one is damaged, orbax cannot read an intact one, or a parameter
        is not finite.
    """
    directory = pathlib.Path(workdir).absolute() / DIRECTORY
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such directory; give the workdir of a run that has saved a checkpoint"
        )

    def load(path: pathlib.Path) -> Any:
        saved: Any = intact.orbax().metadata(str(path)).metadata
        wanted = {
            key: jax.tree.map(lambda _: intact.orbax().PLACEHOLDER, value) for key, value in saved.items()
        }
        wanted["params"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved["params"]
        )
        loaded: Any = intact.orbax().load(str(path), wanted)
        return loaded["params"]

    found = intact.load_newest(directory, load, say)
    if found is None:
        raise UserError(f"{directory}: no finished checkpoint; let the run save one first")
    for path, array in jax.tree.leaves_with_path(found[0]):
        if not (np if array.is_fully_addressable else jax.numpy).isfinite(array).all():  # NumPy: no compiling
            raise UserError(
                f"{workdir}: {_key(path)} has NaN or infinity; no run saves such weights, so checkpoint "
                f"{found[1]} was edited: restore it, or move it away"
            )
    return found


def exist(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return bool(intact.steps(workdir / DIRECTORY))


def metadata(workdir: str | pathlib.Path) -> dict[str, Any]:
    """What the newest checkpoint says of its run: that of `status.about`, and the `record`.

    Raises:
      UserError: there is no checkpoint, or the newest is damaged.
    """
    directory = pathlib.Path(workdir).absolute() / DIRECTORY
    try:
        path = directory / str(intact.steps(directory)[-1])
        if damage := intact.verify(path, only=intact.METADATA)[1]:
            raise ValueError(damage)
        return dict(intact.orbax().metadata(str(path)).custom_metadata)
    except Exception as error:
        raise UserError(f"{directory}: no readable checkpoint ({one_line(error)[:200]})") from error


def _refuse_other_arrays(path: pathlib.Path, saved: Any, wanted: Any) -> None:
    """Raises `UserError` if the arrays differ in shape or dtype."""
    there, here = _arrays(saved), _arrays(wanted)
    if not there:
        raise ValueError("it has no arrays")
    different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if not different:
        return
    key, number = different[0], f"({len(different)} differ)"
    (old_shape, old_dtype), (shape, dtype) = (arrays.get(key, (None, "")) for arrays in (there, here))
    if old_shape != shape:
        raise UserError(
            f"{path}: is of another net: {key} is {old_shape} there and {shape} by the config {number}; "
            "use the run's own config or choose another --workdir"
        )
    raise UserError(
        f"{path}: was saved with other dtypes: {key} is {old_dtype} there and {dtype} in this process "
        f"{number}; set JAX_ENABLE_X64 as it was when the run began"
    )


def _arrays(tree: Any) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of each array of a tree, by its path, such as `params/conv1/kernel`."""
    return {_key(path): (list(x.shape), str(x.dtype)) for path, x in jax.tree.leaves_with_path(tree)}


def _key(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
