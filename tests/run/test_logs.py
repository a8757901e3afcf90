"""Files of a run: atomic, readable, without duplicate lines or points."""

import errno
import json
import os
import re
import struct
import sys
import time
import types

import jax
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from alexnet_jax import columns
from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import statistics
from alexnet_jax.model import AlexNet
from alexnet_jax.run import dashboards, logs, status, workdir
from alexnet_jax.run.record import Record
from configs import default


def test_metrics_beyond_a_restored_step_and_broken_lines_go(tmp_path):
    lines = [json.dumps({"step": step, "train/loss": 1.0}) for step in (5, 10, 15)]
    (tmp_path / logs.METRICS).write_text("\n".join(lines) + '\n{"step": 16, "tra')
    logs.drop_metrics_after(tmp_path, 10)
    assert [line["step"] for line in logs.read_metrics(tmp_path)] == [5, 10]
    logs.drop_metrics_after(tmp_path, 0)
    assert logs.read_metrics(tmp_path) == []


def test_a_line_without_its_end_is_not_kept_even_if_it_reads_as_one(tmp_path):
    (tmp_path / logs.METRICS).write_text('{"step": 1}\n{"step": 2}')
    logs.drop_metrics_after(tmp_path, 10)
    assert (tmp_path / logs.METRICS).read_text() == '{"step": 1}\n'


def test_writing_leaves_no_parts_behind(tmp_path):
    files.write_text(tmp_path / "a.json", "old")
    files.write_text(tmp_path / "a.json", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"


def on_mesh(values):
    """An array like the parameters in training: float32, on a mesh."""
    mesh = columns.make_mesh(1, 1)
    return jax.device_put(np.asarray(values, np.float32), NamedSharding(mesh, columns.REPLICATED))


def events_of(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory)).Reload()


def test_events_are_what_tensorboard_reads(tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(2, 11, 11, 3, 48)).astype(np.float32)
    config = configs.resolve(default.get_config())
    log = status.open_log(tmp_path, Record(), range(10), config, AlexNet())
    log.metrics(5, 0.5, {"train/loss": 2.25})
    log.weights(5, {"conv1": {"kernel": on_mesh(values), "bias": on_mesh(np.ones(96))}})
    log.close()
    events = events_of(tmp_path)
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (5, 2.25)
    (image,) = events.Images("conv1")
    assert (image.width, image.height) == (16 * 35, 2 * 3 * 35 + 6)
    (histogram,) = events.Tensors("weights/conv1/kernel")
    left, right, counts = tensor_util.make_ndarray(histogram.tensor_proto).T
    expected, edges = np.histogram(values, len(counts))
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose([*left, right[-1]], edges, atol=1e-6)
    assert logs.read_metrics(tmp_path) == [{"step": 5, "epoch": 0.5, "train/loss": 2.25}]
    assert "step 5/10  epoch 0.50  loss 2.250" in capsys.readouterr().err


def test_tensorboard_has_config_net_hyperparameters_and_common_charts(tmp_path):
    config = configs.resolve(default.get_config(), {"data.image_size": 224, "data.resize_size": 256})
    status.open_log(tmp_path, Record(), range(10), config, AlexNet()).close()
    events = events_of(tmp_path)
    text = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in ("config", "net")}
    assert json.loads(text["config"].removeprefix("```json").removesuffix("```")) == json.loads(
        config.to_json()
    )
    assert re.search(r"^\| total .* 60,965,224 ", text["net"], re.MULTILINE)
    assert set(events.PluginTagToContent("text")) == {"config", "net"}
    (layout,) = events.Tensors("custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart
    assert list(charts[0].multiline.tag) == ["train/top1_error", "eval/top1_error", "eval/top5_error"]
    assert "custom_scalars__config__" in events.PluginTagToContent("custom_scalars")
    contents = events.PluginTagToContent("hparams")
    data = {tag: plugin_data_pb2.HParamsPluginData.FromString(text) for tag, text in contents.items()}
    hparams = data["_hparams_/session_start_info"].session_start_info.hparams
    table = data["_hparams_/experiment"].experiment
    assert {info.name for info in table.hparam_infos} == set(hparams)
    # A group of "" is the run itself; TensorBoard's own guess is wrong where --logdir is the run.
    assert next((info.name.group, info.name.tag) for info in table.metric_infos) == ("", "eval/top1_error")
    assert hparams["optimizer.learning_rate"].number_value == config.optimizer.learning_rate
    assert hparams["augment.mirror"].bool_value is config.augment.mirror
    assert hparams["model.variant"].string_value == config.model["variant"]


def test_curves_have_no_point_twice_after_an_interruption(tmp_path):
    config = configs.resolve(default.get_config())
    for first_step, points in ((0, (5, 10, 15)), (10, (15, 20))):
        record = Record(evaluated_step=first_step)
        log = status.open_log(tmp_path, record, range(first_step, 20), config, AlexNet())
        for step in points:
            log.metrics(step, 0.5, {"train/loss": float(step)})
        log.close()
    events = events_of(tmp_path)
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [5, 10, 15, 20]
    assert [line["step"] for line in logs.read_metrics(tmp_path)] == [5, 10, 15, 20]


def test_an_evaluation_made_again_after_an_interruption_is_one_point(tmp_path):
    """The run was killed after the evaluation at step 10, whose checkpoint is older than it."""
    config = configs.resolve(default.get_config())
    for steps, trained in ((range(20), (5, 10)), (range(10, 20), ())):
        log = status.open_log(tmp_path, Record(), steps, config, AlexNet())
        for step in trained:
            log.metrics(step, 0.5, {"train/loss": float(step)})
        log.metrics(10, 0.5, {"eval/loss": 3.0})
        log.weights(
            10, {"conv1": {"kernel": on_mesh(np.ones((2, 3, 3, 3, 16))), "bias": on_mesh(np.ones(96))}}
        )
        log.close()
    events = events_of(tmp_path)
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [5, 10]
    assert [scalar.step for scalar in events.Scalars("eval/loss")] == [10]
    assert [image.step for image in events.Images("conv1")] == [10]
    names = [set(line) - {"step", "epoch"} for line in logs.read_metrics(tmp_path)]
    assert names == [{"train/loss"}, {"train/loss"}, {"eval/loss"}]


def test_histograms_are_of_a_sample_spread_over_the_array():
    kernel = on_mesh(np.arange(400_000).reshape(2, 100, 2000))
    sample = logs.weight_samples({"fc6": {"kernel": kernel, "bias": on_mesh(np.arange(7))}})
    np.testing.assert_array_equal(sample["weights/fc6/kernel"], np.arange(0, 400_000, 7))
    np.testing.assert_array_equal(sample["weights/fc6/bias"], np.arange(7))


def test_weights_and_biases_without_its_package_is_refused(tmp_path, monkeypatch):
    config = with_wandb()
    (tmp_path / "wandb").mkdir()  # a folder of offline runs is not the package
    for modules in ({"wandb": None}, {"wandb": types.ModuleType("wandb")}):
        monkeypatch.setitem(sys.modules, "wandb", modules["wandb"])
        with pytest.raises(
            UserError, match=r'run\.wandb_project=alexnet: needs wandb: pip install "\.\[wandb\]"'
        ):
            status.open_log(tmp_path, Record(), range(10), config, AlexNet())


def with_wandb():
    values = default.get_config()
    values.run.wandb_project = "alexnet"
    return configs.resolve(values)


def records_in(path):
    """The records of a .wandb file, which is a LevelDB log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Line

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := -place % 2**15) and left < 7:
            place += left  # no room for a record's header: padding up to the next block
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Line.FromString(parts)
            parts = b""


def offline_runs(workdir):
    """Project and id of each start in wandb's offline files, and the steps with an error in the test."""
    ids, history = [], []
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        for line in records_in(path):
            if line.WhichOneof("record_type") == "run":
                ids.append((line.run.project, line.run.run_id))
            if line.WhichOneof("record_type") == "history":
                found = {item.key or item.nested_key[0]: item.value_json for item in line.history.item}
                if "eval/top1_error" in found:
                    names = ("train/loss", "eval/top1_error", "_step")
                    history.append({name: json.loads(found[name]) for name in names})
    return ids, history


@pytest.mark.slow
def test_weights_and_biases_mirrors_the_values_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (requirements-wandb.txt)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = with_wandb()
    for first_step in (0, 10):
        time.sleep(1)  # wandb names the folder of an offline run by the second
        record = Record(evaluated_step=first_step)
        log = status.open_log(tmp_path, record, range(first_step, 20), config, AlexNet())
        log.metrics(first_step + 5, 0.5, {"train/loss": 2.0, "train/learning_rate": 0.5})
        log.metrics(first_step + 5, 0.5, {"eval/top1_error": 40.0})
        log.close()
    deadline = time.monotonic() + 30  # on a busy machine wandb's own process is late
    ids, history = offline_runs(tmp_path)
    while (len(ids) < 2 or len(history) < 2) and time.monotonic() < deadline:
        time.sleep(0.5)
        ids, history = offline_runs(tmp_path)
    assert set(ids) == {("alexnet", (tmp_path / dashboards.WANDB_ID).read_text())} and len(ids) >= 2
    assert history == [{"train/loss": 2.0, "eval/top1_error": 40.0, "_step": step} for step in (5, 15)]


def test_filters_show_the_first_column_above_the_second():
    kernel = np.zeros((2, 11, 11, 3, 16), np.float32)
    kernel[0, ..., 0] = 1.0  # red, green and blue alike: white
    kernel[1, ..., 0] = -1.0
    picture = logs.filters_image(kernel, across=16, zoom=1)
    assert picture.shape == (13 + 2 + 13, 16 * 13, 3)
    assert (picture[1:12, 1:12] == 255).all()
    assert (picture[16:27, 1:12] == 0).all()
    assert (picture[1:12, 14:25] == 128).all()  # a filter of zeros is mid-grey


def test_the_lock_names_its_holder(tmp_path):
    config = configs.resolve(default.get_config())
    again = workdir.locked(tmp_path, config)
    with workdir.locked(tmp_path, config), pytest.raises(UserError, match="another run is using it"), again:
        pass
    with workdir.locked(tmp_path, config):
        pass


def test_running_without_the_lock_is_read_as_failed(tmp_path):
    """As after kill -9, which leaves the last status written; the kernel takes the lock away."""
    with workdir.locked(tmp_path, configs.resolve(default.get_config())):
        assert workdir.read_status(tmp_path) == {"status": "running"}
    found = workdir.read_status(tmp_path)
    assert found["status"] == "failed"
    assert "was killed; start the same command again" in found["message"]
    (tmp_path / workdir.LOCK).unlink()
    assert workdir.read_status(tmp_path) == found
    logs.write_status(tmp_path, "done", step=4)
    assert workdir.read_status(tmp_path) == {"status": "done", "step": 4}


def test_a_look_at_the_status_does_not_keep_a_run_from_starting(tmp_path, monkeypatch):
    (tmp_path / workdir.LOCK).touch()
    with open(tmp_path / workdir.LOCK) as look:
        workdir.fcntl.flock(look, workdir.fcntl.LOCK_SH)
        monkeypatch.setattr(workdir.time, "sleep", lambda seconds: look.close())
        with workdir.locked(tmp_path, configs.resolve(default.get_config())):
            assert look.closed and workdir.read_status(tmp_path) == {"status": "running"}


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with workdir.locked(tmp_path, configs.resolve(default.get_config())):
        assert (tmp_path / "config.json").exists()
    assert workdir.read_status(tmp_path)["status"] == "running"  # nobody knows better
    assert "cannot be locked" in capsys.readouterr().err


def test_statistics_round_trip_and_refuse_pickle(tmp_path):
    image = np.random.default_rng(0).uniform(0, 255, (28, 28, 3)).astype(np.float32)
    mine = statistics.Statistics(
        mean_colour=image.mean((0, 1)),
        pca_sqrt_eigenvalues=np.ones(3, np.float32),
        pca_eigenvectors=np.eye(3, dtype=np.float32),
        mean_image=image,
    )
    mine.save(tmp_path)
    back = statistics.Statistics.load(tmp_path)
    np.testing.assert_array_equal(back.mean_image, image)
    assert back.mean("colour", 56) is back.mean_colour
    resized = back.mean("image", 56)
    assert resized.shape == (56, 56, 3)
    np.testing.assert_allclose(resized.mean((0, 1)), image.mean((0, 1)), rtol=0.02)
    np.savez(tmp_path / statistics.FILE_NAME, mean_colour=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="not a statistics file"):
        statistics.Statistics.load(tmp_path)
    with pytest.raises(UserError, match=r"augment\.mean=image"):
        statistics.ILSVRC.mean("image", 256)


RESULT = {"step": 938, "top1_error": 15.1004, "top5_error": 0.3, "loss": 0.43211, "views": 10}
RESULT |= {"examples": 2000, "bad_images": 0}


def test_results_of_a_test_are_rounded_and_have_units():
    assert logs.as_table(RESULT, 10).splitlines() == [
        "step         938",
        "top-1 error  15.10 %",
        "top-5 error  0.30 %",
        "loss         0.4321",
        "views        10",
        "examples     2,000",
        "bad images   0",
    ]


def test_long_names_and_weights_are_aligned():
    values = {"members": 2, "equal_weights_top1_error": 12.345, "equal_weights_loss": 0.5}
    assert logs.as_table({**values, "member_weights": [0.25, 0.75]}, 10).splitlines() == [
        "members                   2",
        "equal weights top-1 error 12.35 %",
        "equal weights loss        0.5000",
        "member weights            0.25,0.75",
    ]
    assert logs.as_table({"equal_weights_top5_error": 1.0}, 5) == ""


@pytest.mark.parametrize("num_classes", [2, 5, 6])
def test_the_top_5_error_of_five_classes_is_not_shown(num_classes, tmp_path, capsys):
    shown = num_classes > 5
    assert ("top-5" in logs.as_table(RESULT, num_classes)) == shown
    log = logs.RunLog(tmp_path, range(10), num_classes=num_classes)
    log.metrics(5, 0.5, {"eval/top1_error": 12.5, "eval/top5_error": 0.0, "eval/loss": 1.0})
    log.close()
    line = capsys.readouterr().err
    assert "top-1 error 12.50 %" in line and ("top-5 error 0.00 %" in line) == shown
    assert logs.read_metrics(tmp_path)[0]["eval/top5_error"] == 0.0
    summary = status.farewell(tmp_path, "done", Record(evaluation=RESULT, best_top1_error=14.0), num_classes)
    start = "top-1 error 15.10 %, top-5 error 0.30 %" if shown else "top-1 error 15.10 %"
    assert summary[0] == f"{start} on 2,000 images (10 views); best top-1 error 14.00 %"


@pytest.mark.parametrize("length", ["total_epochs", "total_steps"])
def test_the_last_line_names_the_key_that_ended_the_run(length, tmp_path):
    *_, more = status.farewell(tmp_path, "done", Record(), 10, length)
    assert more.endswith(f"and a larger run.{length}")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask_whatever_their_writer_does(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        with files.replacing(tmp_path / "private") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        with files.replacing(tmp_path / "w.safetensors") as temporary:
            safetensors.numpy.save_file({"weight": np.ones(3, np.float32)}, temporary)
        files.write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ("private", "w.safetensors", "text"), mode
    )
