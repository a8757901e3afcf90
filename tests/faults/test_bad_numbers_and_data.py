"""Non-finite numbers, a flat loss, vanished or changed data, out of memory."""

import math
import shutil

import pytest

from alexnet_jax import steps
from alexnet_jax import train as training
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import Fault, UserError
from alexnet_jax.run import faults, logs, meter
from tests.faults.conftest import status

pytestmark = pytest.mark.slow


def test_numbers_that_are_not_finite_end_a_run(config, outcome, tmp_path, monkeypatch, capsys):
    blow_up_from(monkeypatch, 7)
    assert command_line.EXIT_CODES[training.train(config(), tmp_path)] == 3
    final = status(tmp_path)
    assert final["status"] == "diverged"
    assert "the last good checkpoint is of step 6" in final["message"]
    assert final["message"].endswith("try a lower optimizer.learning_rate")
    assert outcome(tmp_path).step == 6
    assert [line["step"] for line in logs.read_metrics(tmp_path)] == [3, 5, 6]
    assert final["message"] in capsys.readouterr().err


def blow_up_from(monkeypatch, step):
    """Makes fc8's bias NaN from `step` on."""
    import jax.numpy as jnp

    def make(*args, **kwargs):
        train_step = original(*args, **kwargs)

        def hooked(state, batch):
            bad = state.step >= step - 1
            state, metrics = train_step(state, batch)
            head = state.params["fc8"]
            bias = jnp.where(bad, jnp.nan, head["bias"])
            return state.replace(params={**state.params, "fc8": {**head, "bias": bias}}), metrics

        hooked.lower = train_step.lower  # the memory that it needs is looked at before the first step
        return hooked

    original = steps.make_train_step
    monkeypatch.setattr(steps, "make_train_step", make)


def test_a_loss_that_stays_flat_is_a_warning_with_the_usual_causes(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(meter, "FLAT_STEPS", 6)
    monkeypatch.setattr(meter, "FLAT_WITHIN", 1.0)
    training.train(config(**{"optimizer.learning_rate": 0.0}), tmp_path)
    said = capsys.readouterr().err
    assert said.count("warning: step 6: for 6 steps the loss has stayed at ln(10) = 2.30") == 1
    for cause in ("unit variance", "std of conv3 to conv5", "learning rate", "labels"):
        assert cause in said


def test_a_loss_that_moves_is_none(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(meter, "FLAT_STEPS", 6)
    training.train(config(**{"optimizer.layer_rates": (("fc8", 0.1, 1.0),)}), tmp_path)
    losses = [line["train/loss"] for line in logs.read_metrics(tmp_path) if "train/loss" in line]
    assert min(abs(loss - math.log(10)) for loss in losses[1:]) > meter.FLAT_WITHIN * math.log(10)
    assert "warning" not in capsys.readouterr().err


@pytest.fixture
def own_images(images, tmp_path):
    return shutil.copytree(images, tmp_path / "images")


def test_images_that_vanish_in_mid_run(config, outcome, whole, own_images, tmp_path, after_step):
    away = own_images.with_name("away")
    mine = config(**{"data.source": f"folder:{own_images}"})
    after_step(5, lambda: own_images.rename(away))
    with pytest.raises(Fault, match=f"{own_images}/.*: disappeared during the run; restore it") as caught:
        training.train(mine, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert status(tmp_path / "run")["status"] == "failed"
    with pytest.raises(UserError, match=f"{own_images} does not exist"):
        training.train(mine, tmp_path / "run")
    away.rename(own_images)
    assert training.train(mine, tmp_path / "run") == "done"
    assert outcome(tmp_path / "run") == whole[1]


def test_fewer_images_than_before(config, own_images, tmp_path):
    mine = {"data.source": f"folder:{own_images}"}
    training.train(config(**mine, **{"run.total_steps": 3}), tmp_path / "run")
    next(own_images.glob("train/*/*")).unlink()
    with pytest.raises(UserError, match=r"99 training images, but the run in .* started with 100; use"):
        training.train(config(**mine), tmp_path / "run")
    assert status(tmp_path / "run")["status"] == "failed"
    changes = config(**mine, **{"run.allow_changes": True})
    assert training.train(changes, tmp_path / "run") == "done"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes."),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_to_lower(config, tmp_path, after_step, error):
    def fail():
        raise error

    after_step(4, fail)
    with pytest.raises(Fault, match=r"out of memory; raise data\.micro_batches, lower data\.batch_size"):
        training.train(config(), tmp_path)
    assert status(tmp_path)["status"] == "failed"


def test_a_bug_is_not_explained_away(tmp_path):
    assert faults.explain(KeyError("a bug"), tmp_path) is None
    assert faults.explain(FileNotFoundError(2, "No such file", "/somewhere/else"), tmp_path) is None
