"""Shared by the in-process fault tests: a folder of images and an undisturbed run."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.run import checkpoint, logs
from configs import default
from tests.faults import runs
from tests.faults.kill import untimed

# Twelve steps; every third is logged and saved, every fifth is followed by an evaluation.
SHORT = {
    "mesh.data": 1,
    "run.total_steps": 12,
    "run.log_every_steps": 3,
    "run.save_every_steps": 3,
    "run.eval_every_steps": 5,
    "run.eval_every_epochs": None,
}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return runs.make_images(tmp_path_factory.mktemp("faults") / "images")


@pytest.fixture(scope="session")
def config(images):
    """`config(**{"run.seed": 1})`: the short run's config with overrides."""

    def make(**overrides: object) -> configs.Config:
        values = {**runs.TINY, "data.source": f"folder:{images}", **SHORT, **overrides}
        return configs.resolve(default.get_config(), values)

    return make


@dataclasses.dataclass
class Outcome:
    """What must be equal for two runs to count as the same."""

    state: str
    step: int
    record: dict[str, Any]
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="session")
def abstract_state(config, tmp_path_factory):
    return training.Run(config(), tmp_path_factory.mktemp("unused")).abstract_state


@pytest.fixture(scope="session")
def outcome(abstract_state):
    """Reads the outcome of a run from its last good checkpoint and its metrics."""

    def read(workdir: pathlib.Path) -> Outcome:
        restored = checkpoint.Checkpoints(workdir).restore(abstract_state)
        assert restored is not None
        state, record = restored
        return Outcome(runs.digest(state), int(state.step), record, untimed(workdir))

    return read


@pytest.fixture(scope="session")
def whole(config, outcome, tmp_path_factory):
    """The undisturbed run: workdir and outcome."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert training.train(config(), workdir) == "done"
    return workdir, outcome(workdir)


def status(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads((workdir / logs.STATUS).read_text())


@pytest.fixture
def after_step(monkeypatch):
    """`after_step(7, f)`: calls `f()` once after step 7, when no save is in progress."""
    happens: dict[int, Any] = {}
    opened: list[checkpoint.Checkpoints] = []
    init, original = checkpoint.Checkpoints.__init__, training.Meter.after_step

    def hooked_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        opened.append(self)

    def hooked(self, step, *args):
        if step in happens:
            opened[-1].wait()
            happens.pop(step)()
        original(self, step, *args)

    monkeypatch.setattr(checkpoint.Checkpoints, "__init__", hooked_init)
    monkeypatch.setattr(training.Meter, "after_step", hooked)
    return happens.__setitem__
