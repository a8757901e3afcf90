"""Files of a run: atomic, readable, without doubled lines."""

import errno
import json
import os

import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import statistics
from alexnet_jax.run import logs, workdir
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


def test_events_are_what_tensorboard_reads(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = logs.RunLog(tmp_path, first_step=0, total_steps=10)
    log.metrics(5, 0.5, {"train/loss": 2.25})
    log.image(5, "conv1", logs.filters_image(np.random.default_rng(0).normal(size=(2, 11, 11, 3, 48))))
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("train/loss")
    assert (scalar.step, scalar.value) == (5, 2.25)
    (image,) = events.Images("conv1")
    assert (image.width, image.height) == (16 * 35, 2 * 3 * 35 + 6)
    assert logs.read_metrics(tmp_path) == [{"step": 5, "epoch": 0.5, "train/loss": 2.25}]
    assert "step 5/10  epoch 0.50  loss 2.250" in capsys.readouterr().err


def test_curves_have_no_point_twice_after_an_interruption(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, points in ((0, (5, 10, 15)), (10, (15, 20))):
        log = logs.RunLog(tmp_path, first_step=first_step, total_steps=20)
        for step in points:
            log.metrics(step, 0.5, {"train/loss": float(step)})
        log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [5, 10, 15, 20]


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
    again = workdir.opened(tmp_path, config)
    with workdir.opened(tmp_path, config), pytest.raises(UserError, match="another run is using it"), again:
        pass
    with workdir.opened(tmp_path, config):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with workdir.opened(tmp_path, configs.resolve(default.get_config())):
        assert (tmp_path / "config.json").exists()
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
