"""A step that does not fit into memory is refused before it starts, with the figures."""

import dataclasses
import json
import sys
import types

import pytest

from alexnet_jax import columns, train
from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline, sources
from alexnet_jax.run import memory, status
from configs import default
from tests import tiny


def compiled(temp, output=0.0, alias=0.0):
    """A compiled program that needs this many bytes."""
    stats = types.SimpleNamespace(
        temp_size_in_bytes=int(temp), output_size_in_bytes=int(output), alias_size_in_bytes=int(alias)
    )
    return types.SimpleNamespace(memory_analysis=lambda: stats)


@pytest.mark.parametrize(
    ("devices", "micro_batches", "free", "words"),
    [
        # On each device 10 + 3 - 1 GB and 50,000 images of 100 x 100 x 3 bytes, 1.5 GB.
        (1, 1, 13.6e9, None),
        (1, 1, 13.4e9, "needs 13.5 GB of memory on cpu, and 13.4 GB are free"),
        # 13.5 / 4 < 0.8 * 6; 3 does not divide 50,000.
        (1, 1, 6e9, "lower data.batch_size or set data.micro_batches=4$"),
        (1, 4, 8e9, "set data.micro_batches=10$"),  # 13.5 * 4 / 8 > 6.4
        (1, 1, 1e4, "lower data.batch_size$"),
        (2, 1, 25.4e9, "needs 25.5 GB of memory"),  # both share the host's memory, and split the batch
        (2, 1, 25.6e9, None),
    ],
)
def test_a_step_is_compared_with_the_free_memory(devices, micro_batches, free, words, monkeypatch):
    data = configs.resolve(default.get_config()).data
    sizes = {"batch_size": 50_000, "resize_size": 100, "micro_batches": micro_batches}
    data = dataclasses.replace(data, **sizes)
    monkeypatch.setattr(memory, "free_memory", lambda: int(free))
    step, mesh = compiled(10e9, output=3e9, alias=1e9), columns.make_mesh(devices, 1)
    if words is None:
        memory.check_memory(step, data, mesh)
    else:
        with pytest.raises(UserError, match=rf"^data\.batch_size=50000: a training step .*{words}"):
            memory.check_memory(step, data, mesh)


def test_a_backend_that_does_not_know_its_memory_is_trusted():
    data = configs.resolve(default.get_config()).data
    step = types.SimpleNamespace(memory_analysis=lambda: None)
    memory.check_memory(step, data, columns.make_mesh(1, 1))


MEMINFO = "MemTotal:  24000 kB\nMemAvailable:  9000 kB\nSwapTotal: 0 kB\nSwapFree:  1000 kB\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (None, {}, 10_000 * 1024),
        ("0::/job_7/step: 0\n", {"job_7/step: 0/memory.max": "5000000\n"}, 5_000_000),  # Slurm
        ("0::/\n", {"memory.max": "4000000\n"}, 4_000_000),  # a container
        ("0::/\n", {"memory.max": "max\n"}, 10_000 * 1024),
        ("4:memory:/a\n1:cpu:/\n", {"memory/a/memory.limit_in_bytes": "3000000"}, 3_000_000),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(2**63 - 4096)}, 10_000 * 1024),
    ],
)
def test_free_memory_is_the_least_of_the_host_s_and_the_group_s(
    groups, files, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    if groups:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert memory.free_memory() == expected


def test_free_memory_where_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert memory.free_memory() == sys.maxsize


@pytest.mark.slow
def test_training_is_refused_before_a_batch_is_read_and_the_same_directory_takes_a_smaller_one(
    tmp_path, monkeypatch
):
    values = {**tiny.NET, "run.total_steps": 2, "mesh.data": 1, "run.eval_every_steps": 99}
    values |= {"optimizer.drop_epochs": (), "augment.mean": "image", "data.batch_size": 24}
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda: 100_000)
        patch.setattr(pipeline, "load_batch", None)
        with pytest.raises(UserError, match=r"data\.batch_size=24: a training step needs 0\.0 GB"):
            train.train(configs.resolve(default.get_config(), values), tmp_path / "run")
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "failed"

    smaller = {**values, "data.batch_size": 16, "augment.mean": "colour"}
    assert train.train(configs.resolve(default.get_config(), smaller), tmp_path / "run") == "done"
    net = json.loads((tmp_path / "run/net.json").read_text())
    assert len(net["preprocess"]["mean"]) == 3  # the colour, not what the refused run wrote
    with pytest.raises(UserError, match=r"contains a run with another config .*batch_size: 16 -> 24"):
        train.train(configs.resolve(default.get_config(), values), tmp_path / "run")


@pytest.mark.parametrize(("size", "warned"), [(20, False), (21, True)])
def test_a_batch_larger_than_the_data_is_warned_of(size, warned, tmp_path):
    source = sources.open_source(f"folder:{tiny.make_images(tmp_path, train=2, test=1)}", "train")
    config = configs.resolve(default.get_config(), {"data.batch_size": size})
    lines = status.greeting(config, source, columns.make_mesh(1, 1), {}, (), range(5))
    words = f"warning: data.batch_size={size} is more than the 20 training images"
    assert any(line.startswith(words) for line in lines) == warned
