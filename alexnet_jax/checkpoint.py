"""Checkpoints with orbax: what a run needs to go on as if never stopped.

A checkpoint holds the device state (parameters, momentum, step) and the run's own record: plateau rule, last
evaluation, counts. A directory appears under its final name only when it is whole.
"""

import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from alexnet_jax.errors import UserError

DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of a run, under `workdir/checkpoints/<step>`."""

    def __init__(self, workdir: pathlib.Path, keep: int = 1):
        policies: Any = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            str(workdir.resolve() / DIRECTORY),
            preservation_policy=policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts to save; training goes on meanwhile. A checkpoint of this step is not made twice."""
        if self.latest_step() != step:
            self._orbax.save_async(step, state, force=True, custom_metadata=record)

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint's state, in the shapes and shardings of `abstract_state`, and its record."""
        step = self.latest_step()
        record: Any = self._orbax.metadata(step).custom_metadata
        return self._orbax.load(step, abstract_state), record

    def wait(self) -> None:
        """Until what was saved is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        """Waits and lets go."""
        self._orbax.close()


def exist(workdir: pathlib.Path) -> bool:
    """Whether a run has saved a checkpoint."""
    return any(path.name.isdigit() for path in (workdir / DIRECTORY).glob("*"))


def restore_params(workdir: str | pathlib.Path, sharding: jax.sharding.Sharding) -> tuple[Any, int]:
    """The parameters of a run's newest checkpoint, placed by `sharding`, and its step.

    Raises:
      UserError: there is no checkpoint.
    """
    directory = pathlib.Path(workdir) / DIRECTORY
    if not directory.is_dir():
        raise UserError(f"{directory}: not there; give the workdir of a run that has saved a checkpoint")
    with ocp.training.Checkpointer(str(directory.resolve())) as orbax:
        if orbax.latest is None:
            raise UserError(f"{directory}: holds no finished checkpoint; let the run save one first")
        step = orbax.latest.step
        saved = orbax.metadata(step).metadata
        wanted = {key: jax.tree.map(lambda _: ocp.PLACEHOLDER, value) for key, value in saved.items()}
        wanted["params"] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), saved["params"]
        )
        return orbax.load(step, wanted)["params"], step
