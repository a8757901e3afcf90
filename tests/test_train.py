"""The loop on real images and a narrow net: resume, evaluation, schedules, bad images, divergence."""

import dataclasses
import functools
import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import columns, evaluate, steps
from alexnet_jax import config as configs
from alexnet_jax import optimizer as optimizers
from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.data.batches import on_device
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.statistics import ILSVRC
from alexnet_jax.run import cached_features, checkpoint, inputs, logs
from alexnet_jax.run import meter as meter_module
from alexnet_jax.run.record import PlateauState, Record
from configs import default
from tests import tiny as narrow

TWO_STEPS = {"mesh.data": 1, "run.total_steps": 2}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 60 training and 30 test images out of the embedded set, as PNG files."""
    return narrow.make_images(tmp_path_factory.mktemp("images"), train=6, test=3)


@pytest.fixture(scope="session")
def tiny(images):
    """A config that trains a narrow net on the folder in a second; `tiny(**{"run.seed": 1})` overrides."""

    def make(**overrides):
        base = {
            "data.source": f"folder:{images}",
            **narrow.NET,
            "run.total_steps": 12,
            "run.log_every_steps": 4,
            "run.eval_every_steps": 6,
            "run.save_every_steps": 6,
        }
        return configs.resolve(default.get_config(), {**base, **overrides})

    return make


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """The workdir of two steps on one device, for tests that only read it or take a copy."""
    workdir = tmp_path_factory.mktemp("trained")
    training.train(tiny(**TWO_STEPS), workdir)
    return workdir


def status(workdir):
    return json.loads((workdir / logs.STATUS).read_text())


def untimed(metrics):
    """Metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in metrics]


def final_params(workdir):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_get(checkpoint.restore_params(workdir, sharding)[0])


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_trains_evaluates_saves_and_says_so(tiny, tmp_path):
    config = tiny(**{"mesh.data": 1})
    assert training.train(config, tmp_path) == "done"

    lines = logs.read_metrics(tmp_path)
    assert [(line["step"], "eval/loss" in line) for line in lines] == [
        (4, False), (6, True), (8, False), (12, False), (12, True),
    ]  # fmt: skip
    assert lines[0]["epoch"] == pytest.approx(4 * 8 / 60, abs=1e-4)
    assert {"train/loss", "train/top1_error", "train/images_per_second", "train/input_wait_seconds"} <= set(
        lines[0]
    )
    names = "train/learning_rate", "train/learning_rate_biases"
    rates = [tuple(line[name] for name in names) for line in lines if "train/loss" in line]
    own = config.optimizer
    expected = (own.learning_rate, own.learning_rate * own.bias_rate_factor)
    np.testing.assert_allclose(rates, [expected] * len(rates), rtol=1e-6)
    end = status(tmp_path)
    assert (end["status"], end["step"], end["epoch"]) == ("done", 12, pytest.approx(1.6))
    assert (end["eval"]["views"], end["eval"]["examples"]) == (1, 30)
    assert end["eval"]["top1_error"] == lines[-1]["eval/top1_error"]
    assert configs.of_workdir(tmp_path) == config
    assert list(tmp_path.glob("events.out.tfevents*"))
    # The test of the saved weights by hand gives what the loop said.
    result, step = evaluate.evaluate_workdir(config, tmp_path)
    assert step == 12
    assert result.top1_error == end["eval"]["top1_error"]
    assert result.loss == pytest.approx(end["eval"]["loss"], rel=1e-6)


def test_rates_are_of_the_steps_that_are_done(tiny, monkeypatch):
    """A run goes on from step 10; a step takes a second, a test of the net a hundred."""
    config, now, lines = tiny(**{"mesh.data": 1, "run.log_every_steps": 4}), [0.0], {}
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: now[0])
    log = types.SimpleNamespace(
        metrics=lambda step, epoch, values: lines.update({step: values}), restart_clock=lambda step: None
    )
    batches = types.SimpleNamespace(wait_seconds=0.0)
    meter = meter_module.Meter(
        config, Images(range(60)), log, batches, 10, 100, lambda step: (1.0 * step, 2.0 * step)
    )
    metrics = {"loss": jnp.float32(1), "top1_error": jnp.float32(90), "bad_images": jnp.int32(0)}
    for step in range(11, 23):
        if step not in (11, 12, 15):  # else the step before has been waited for
            now[0] += 1.0
        batches.wait_seconds += 0.25
        meter.after_step(step, metrics)
        if step == 14:
            meter.flush()
            now[0] += 100.0
            meter.restart(step)
    assert list(lines) == [12, 16, 20]
    assert [line["train/images_per_second"] for line in lines.values()] == 3 * [config.data.batch_size]
    assert [line["train/input_wait_seconds"] for line in lines.values()] == [0.5, 0.75, 1.0]
    assert [line["train/learning_rate"] for line in lines.values()] == [12.0, 16.0, 20.0]
    assert [line["train/learning_rate_biases"] for line in lines.values()] == [24.0, 32.0, 40.0]


def test_the_logged_rates_are_those_of_the_step_just_done():
    section = configs.resolve(default.get_config()).optimizer
    section = dataclasses.replace(section, schedule="epochs", drop_epochs=(2.0,), learning_rate=0.5)
    rates = optimizers.make_rates(section, lambda epoch: round(10 * epoch))
    at = [Record().learning_rates(rates, step)[0] for step in (1, 20, 21)]
    np.testing.assert_allclose(at, [0.5, 0.5, 0.5 * section.drop_factor])
    dropped = Record(plateau=PlateauState(drops=2))
    rates = optimizers.make_rates(dataclasses.replace(section, schedule="plateau"), round)
    np.testing.assert_allclose(dropped.learning_rates(rates, 5)[0], 0.5 * section.drop_factor**2, rtol=1e-6)


class Images(list):
    num_classes = 10


WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None  # what imports it finds none
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def test_without_tensorflow_one_line_says_what_to_install(tmp_path):
    """As in Colab's TPU runtime before the notebook has installed it."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, f"--workdir={tmp_path / 'run'}"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: TensorFlow is not installed, and tf.data reads the images: pip install tensorflow-cpu, or "
        "tensorflow where there is no such wheel (macOS, ARM)\n"
    )


def test_a_profile_on_request(tiny, tmp_path):
    config = tiny(**{"mesh.data": 1, "run.profile_steps": 2, "run.total_steps": 8, "run.eval_every_steps": 8})
    assert training.train(config, tmp_path) == "done"
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    names = {
        event.get("name", "") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    }
    assert any("train_step" in name for name in names)


def test_ten_views_are_an_override_of_the_same_workdir(trained):
    config = configs.of_workdir(trained, {"run.eval_views": 10})
    result, _ = evaluate.evaluate_workdir(config, trained)
    assert (result.views, result.examples) == (10, 30)


def test_evaluation_counts_every_image_once_whatever_the_batch(trained):
    results = [
        evaluate.evaluate_workdir(configs.of_workdir(trained, {"data.batch_size": size}), trained)[0]
        for size in (1, 7, 30, 64)
    ]
    assert {r.examples for r in results} == {30}
    assert {r.top1_error for r in results} == {results[0].top1_error}
    np.testing.assert_allclose([r.loss for r in results], results[0].loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"model.activation": "tanh"}, "model.activation"),
        ({"model.fc_widths": (16, 16)}, "model.fc_widths"),
        ({"data.image_size": 56}, "data.image_size"),
        ({"data.source": "embedded", "model.norm": False}, "model.norm"),
    ],
)
def test_a_net_is_tested_as_it_was_trained(trained, overrides, named):
    with pytest.raises(UserError, match=named) as caught:
        evaluate.evaluate_workdir(configs.of_workdir(trained, overrides), trained)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_goes_on_to_the_same_bits(tiny, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.train(tiny(**{"mesh.data": 1}), whole)
    # 7 is between two lines of the log, two evaluations and two saves.
    training.train(tiny(**{"mesh.data": 1, "run.total_steps": 7}), parts)
    training.train(tiny(**{"mesh.data": 1}), parts)
    assert_same_bits(final_params(whole), final_params(parts))
    lines = [line for line in logs.read_metrics(parts) if line["step"] != 7]  # the shorter run's last test
    assert untimed(lines) == untimed(logs.read_metrics(whole))


def test_a_finished_run_is_left_as_it_is(tiny, trained, tmp_path):
    workdir = copy_of(trained, tmp_path / "run")
    assert training.train(tiny(**TWO_STEPS), workdir) == "done"
    assert (workdir / logs.METRICS).read_bytes() == (trained / logs.METRICS).read_bytes()
    assert_same_bits(final_params(workdir), final_params(trained))


@pytest.mark.slow
def test_any_mesh_trains_alike_and_reads_the_others_checkpoints(tiny, tmp_path):
    losses = {}
    for data, column in ((1, 1), (2, 1), (1, 2), (4, 2)):
        workdir = tmp_path / f"{data}x{column}"
        training.train(tiny(**{"mesh.data": data, "mesh.column": column}), workdir)
        losses[data, column] = [
            line["train/loss"] for line in logs.read_metrics(workdir) if "train/loss" in line
        ]
    for mesh, values in losses.items():
        np.testing.assert_allclose(values, losses[1, 1], rtol=1e-4, err_msg=str(mesh))
    # A run of 4 x 2 tested on one device, and gone on with on 1 x 2.
    result, _ = evaluate.evaluate_workdir(
        configs.of_workdir(tmp_path / "4x2", {"mesh.data": 1, "mesh.column": 1}), tmp_path / "4x2"
    )
    assert result.loss == pytest.approx(status(tmp_path / "4x2")["eval"]["loss"], rel=1e-5)
    on = tiny(**{"mesh.data": 1, "mesh.column": 2, "run.total_steps": 14})
    assert training.train(on, tmp_path / "4x2") == "done"
    assert status(tmp_path / "4x2")["step"] == 14


@pytest.mark.slow
def test_the_plateau_rule_lowers_the_rate_and_then_ends_the_run(tiny, tmp_path):
    # At rate 0 the error cannot improve: evaluations at 2 (the best), 4 (drop), 6 (the end).
    config = tiny(
        **{
            "mesh.data": 1,
            "optimizer.schedule": "plateau",
            "optimizer.learning_rate": 0.0,
            "optimizer.patience_evals": 1,
            "optimizer.max_drops": 1,
            "run.eval_every_steps": 2,
            "run.total_steps": 40,
        }
    )
    assert training.train(config, tmp_path) == "done"
    assert status(tmp_path)["step"] == 6
    _, record = checkpoint.Checkpoints(tmp_path).restore(training.Run(config, tmp_path).abstract_state)
    assert (record["plateau"]["drops"], record["plateau"]["finished"]) == (1, True)


@pytest.mark.slow
def test_a_run_that_diverges_says_so_and_keeps_the_last_good_checkpoint(tiny, tmp_path, capsys):
    training.train(tiny(**{"mesh.data": 1, "run.total_steps": 2}), tmp_path)
    good = final_params(tmp_path)
    config = configs.of_workdir(tmp_path, {"run.total_steps": 40})
    (tmp_path / configs.FILE_NAME).unlink()
    (tmp_path / logs.STATUS).unlink()
    wild = configs.resolve(json.loads(config.to_json()), {"optimizer.learning_rate": 1e12})
    assert training.train(wild, tmp_path) == "diverged"
    end = status(tmp_path)
    assert end["status"] == "diverged"
    assert "last good checkpoint is of step 2" in end["message"]
    assert_same_bits(final_params(tmp_path), good)


def test_bad_images_are_counted_and_named(tiny, images, tmp_path, capsys):
    folder = copy_of(images, tmp_path / "images")
    victims = sorted((folder / "train").rglob("*.png"))[:2]
    victims[0].write_bytes(b"not an image")
    victims[1].write_bytes(victims[1].read_bytes()[:100])
    config = tiny(
        **{
            "mesh.data": 1,
            "data.source": f"folder:{folder}",
            "data.max_bad_fraction": 0.1,
            "run.total_steps": 16,
        }
    )
    training.train(config, tmp_path / "run")
    said = capsys.readouterr().err
    for victim in victims:
        assert said.count(f"bad image, left out: {victim.parent.name}/{victim.name}") == 1
    # 16 steps of 8 images are two epochs of 60 and 8 more.
    assert logs.read_metrics(tmp_path / "run")[-2]["train/bad_images"] in (4, 5, 6)


def test_too_many_bad_images_stop_the_run(tiny, images, tmp_path):
    folder = copy_of(images, tmp_path / "images")
    for victim in sorted((folder / "train").rglob("*.png"))[:20]:
        victim.write_bytes(b"")
    config = tiny(**{"mesh.data": 1, "data.source": f"folder:{folder}", "run.total_steps": 40})
    with pytest.raises(UserError, match="max_bad_fraction"):
        training.train(config, tmp_path / "run")
    assert status(tmp_path / "run")["status"] == "failed"


def test_bad_test_images_are_named_and_limited(tiny, images, tmp_path, capsys):
    folder = copy_of(images, tmp_path / "images")
    config = tiny(**{"mesh.data": 1, "data.source": f"folder:{folder}", "run.total_steps": 2})
    victims = sorted(set(folder.rglob("*.png")) - set((folder / "train").rglob("*.png")))
    assert len(victims) == 30
    whole = [victim.read_bytes() for victim in victims]
    for victim in victims:
        victim.write_bytes(b"")
    with pytest.raises(UserError, match=f"{len(victims)} of {len(victims)} test images .*max_bad_fraction"):
        training.train(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert all(said.count(f"bad image, left out: {v.parent.name}/{v.name}") == 1 for v in victims)
    # Nothing of the training is lost: mended, the run ends with the test that could not be made.
    for victim, data in zip(victims, whole, strict=True):
        victim.write_bytes(data)
    assert training.train(config, tmp_path / "run") == "done"
    said = capsys.readouterr().err
    assert "loss" not in said and "top-1 error" in said
    assert logs.read_metrics(tmp_path / "run")[-1]["eval/examples"] == len(victims)


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


def test_a_second_run_in_the_same_workdir_is_refused(tiny, tmp_path):
    import os

    from alexnet_jax.run import workdir as workdirs

    config = tiny(**{"mesh.data": 1})
    longer = tiny(**{"mesh.data": 1, "run.total_steps": 99})
    with workdirs.locked(tmp_path, config):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            training.train(longer, tmp_path)
        assert configs.of_workdir(tmp_path) == config  # the first one's, still
    # The lock of a process that is gone holds nobody up.
    assert training.train(tiny(**{"mesh.data": 1, "run.total_steps": 1}), tmp_path) == "done"


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"data.batch_size": 9, "mesh.data": 2}, "data.batch_size=9"),
        ({"data.micro_batches": 3}, "data.micro_batches=3"),
        ({"mesh.data": 64}, "mesh.data=64"),
        ({"mesh.column": 4}, "mesh.column"),
        ({"data.num_classes": 7}, "data.num_classes=7"),
        ({"data.image_size": 30}, "too small"),
        ({"augment.mean": "image"}, "augment.mean=image"),
        ({"data.source": "folder:/nowhere"}, "/nowhere"),
        ({"data.source": "tfds:no_such_set"}, "data.source=tfds:no_such_set"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(tiny, tmp_path, overrides, named):
    with pytest.raises(UserError, match=named) as caught:
        training.train(tiny(**overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_config_is_refused_with_the_difference(tiny, trained, tmp_path):
    workdir = copy_of(trained, tmp_path / "run")
    with pytest.raises(UserError, match=r"run\.seed: 0 -> 1; optimizer|optimizer.*run\.seed: 0 -> 1"):
        training.train(tiny(**TWO_STEPS, **{"run.seed": 1, "optimizer.momentum": 0.8}), workdir)


def test_colour_noise_ends_at_its_epoch(tiny):
    config = tiny(**{"augment.colour_until_epochs": 1.0, "augment.crop": False, "augment.mirror": False})
    source = sources.open_configured(config.data, "train")
    preprocess = Preprocess(60, 60, mean=np.zeros(3, np.float32))
    steps_at = functools.partial(configs.steps_of, num_examples=len(source), batch_size=8)
    view = inputs.training_view(config.augment, preprocess, sources.statistics_of(source), steps_at)
    images = jnp.full((8, 60, 60, 3), 100, jnp.uint8)
    until = configs.steps_of(1.0, len(source), 8)
    before, after = (view(images, jax.random.key(0), jnp.arange(8), step=step) for step in (until - 1, until))
    assert np.abs(np.asarray(before) - 100).max() > 1
    np.testing.assert_array_equal(after, 100)


@pytest.mark.parametrize("mean_crop", ["centre", "same"])
def test_a_run_cuts_its_mean_image_by_the_config(tiny, mean_crop):
    """From the key to the training view and to the net's own preprocessing, which a test uses."""
    config = tiny(**{"augment.mean_crop": mean_crop, "augment.colour": "none"})
    side, size = config.data.resize_size, config.data.image_size
    image = np.random.default_rng(0).uniform(90, 130, (side, side, 3)).astype(np.float32)
    config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, mean="image"))
    statistics = dataclasses.replace(ILSVRC, mean_image=image)
    preprocess = inputs.new_preprocess(config, statistics)
    view = inputs.training_view(config.augment, preprocess, statistics, lambda epochs: 0)
    black = jnp.zeros((64, side, side, 3), jnp.uint8)
    start = (side - size) // 2
    centre = -image[start : start + size, start : start + size]
    for views in (
        view(black, jax.random.key(0), jnp.arange(64), step=0),
        preprocess.views(black[:1], 10)[:, 0],
    ):
        is_centre = np.all(np.asarray(views) == centre, axis=(1, 2, 3))
        assert np.all(is_centre) if mean_crop == "centre" else np.mean(is_centre) < 0.5


def test_a_run_reads_in_the_order_of_its_config(tiny, tmp_path):
    """Two epochs of 60 images: the same order twice, or another."""
    for order in ("fixed", "shuffled"):
        run = training.Run(tiny(**{"data.order": order, "data.batch_size": 20, "mesh.data": 1}), tmp_path)
        records = np.zeros(60, [("image", "<f4"), ("label", "<i4"), ("weight", "<f4")])
        for batches in (
            training.open_batches(run, None, 0),
            cached_features.batches(records, 20, run.config.run.seed, order, 0),
        ):
            first, second = ([index for _ in range(3) for index in next(batches)["index"]] for _ in range(2))
            assert sorted(first) == sorted(second) == list(range(60))
            assert (first == second) == (order == "fixed")


def test_state_is_donated(tiny, tmp_path):
    run = training.Run(tiny(**{"mesh.data": 1}), tmp_path)
    state = run.init_state()
    batch = next(on_device([_batch()], run.mesh))[1]
    kernel = state.params["fc6"]["kernel"]
    run.train_step(state, batch)
    assert kernel.is_deleted()


def _batch():
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (8, 60, 60, 3), dtype=np.uint8),
        "label": generator.integers(0, narrow.CLASSES, 8).astype(np.int32),
        "weight": np.ones(8, np.float32),
    }


def test_shardings_are_as_stated(tiny, tmp_path):
    run = training.Run(tiny(**{"mesh.data": 2, "mesh.column": 2}), tmp_path)
    state = run.init_state()
    for leaf in jax.tree.leaves(state.params):
        assert leaf.sharding.spec == columns.PARAMETERS
        assert leaf.addressable_shards[0].data.shape[0] * 2 == leaf.shape[0]
    assert (
        steps.abstract_state(run.init_state, run.mesh).params["fc6"]["kernel"].sharding.spec
        == columns.PARAMETERS
    )
