"""Training with the images in the device's memory beside main.py's, and section 3.3's record."""

import argparse
import json
import subprocess
import time

import jax
import numpy as np
import pytest

from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.common.errors import Fault, UserError
from alexnet_jax.run import checkpoint
from configs import default
from experiments import conv_local, record
from experiments import in_memory_loop as in_memory
from tests import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), train=5, test=2)


def config_of(images, **overrides):
    base = {
        **tiny.NET,
        "data.source": f"folder:{images}",
        "mesh.data": 1,
        "run.total_steps": 11,
        "run.log_every_steps": 4,
        "run.eval_every_steps": 6,
        "run.save_every_steps": 6,
    }
    return configs.resolve(default.get_config(), {**base, **overrides})


def metrics(workdir):
    """The lines without what depends on the clock, and without the one that a run's early end adds."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    lines = (line for line in lines if line["step"] != 6 or "eval/loss" in line)
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def test_a_run_is_that_of_main_and_each_resumes_the_other(images, tmp_path):
    training.train(config_of(images), tmp_path / "main")
    halves = {"run.total_steps": 6}
    in_memory.train(config_of(images, **halves), tmp_path / "memory")
    training.train(config_of(images, **halves), tmp_path / "other")
    assert in_memory.train(config_of(images), tmp_path / "other") == "done"
    assert training.train(config_of(images), tmp_path / "memory") == "done"
    runs = [tmp_path / name for name in ("main", "memory", "other")]
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ends = [checkpoint.restore_params(run, sharding)[0] for run in runs]
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, ends[0], end)
    assert metrics(runs[2]) == metrics(runs[1]) == metrics(runs[0])
    assert {line["step"] for line in metrics(runs[0])} == {4, 6, 8, 11}


def test_a_program_of_many_steps_does_what_single_steps_do(images, tmp_path):
    run = training.Run(config_of(images), tmp_path)
    loaded = in_memory.load(run.source, run.config.data, print)
    order = np.random.default_rng(0).integers(0, len(run.source), (3, 8))
    ends = [make(run)(run.init_state(), loaded, order) for make in (in_memory.scanned, in_memory.one_by_one)]
    for one, other in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert int(ends[0][0].step) == 3


def test_unreadable_images_are_named(tmp_path, capsys):
    copy = tiny.make_images(tmp_path / "images", train=2, test=1)
    broken = next((copy / "train" / "class3").iterdir())
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 20 images could not be read"):
        in_memory.train(config_of(copy), tmp_path / "run")
    assert f"bad image, left out: class3/{broken.name}" in capsys.readouterr().err
    few = config_of(copy, **{"data.max_bad_fraction": 0.1, "run.total_steps": 4})
    assert in_memory.train(few, tmp_path / "few") == "done"
    assert f"bad image, left out: class3/{broken.name}" in capsys.readouterr().err
    assert metrics(tmp_path / "few")[0]["train/bad_images"] > 0


def test_frozen_convolutions_are_for_main(images, tmp_path):
    frozen = {"augment.crop": False, "augment.mirror": False, "augment.colour": "none"}
    rates = tuple((f"conv{number}", 0.0, 0.0) for number in range(1, 6))
    with pytest.raises(UserError, match=r"optimizer\.layer_rates: with frozen convolutions .*use main\.py"):
        in_memory.train(config_of(images, **frozen, **{"optimizer.layer_rates": rates}), tmp_path / "run")


@pytest.mark.parametrize(
    ("net", "shorter", "epochs"),
    [("13pct", 1, [160, 140, 150]), ("11pct", 1, [520, 500, 510]), ("11pct", 8, [65, 62.5, 63.75])],
)
def test_the_schedules_are_those_of_the_2012_files(net, shorter, epochs):
    assert conv_local.schedule(net, shorter) == epochs


def test_the_table_has_the_errors_of_the_last_test(tmp_path):
    pytest.importorskip("matplotlib")
    args = argparse.Namespace(runs=tmp_path, shorter=1.0, seeds=2)
    errors = {("13pct", 0): 15.0, ("13pct", 1): 16.0, ("11pct", 0): 14.0, ("11pct", 1): 14.6}
    for (net, seed), error in errors.items():
        workdir = conv_local.workdir(args, net, seed)
        workdir.mkdir()
        lines = [{"step": 100, "epoch": 1.0, "train/top1_error": 20.0, "train/images_per_second": 5.0}]
        lines += [{"step": 100, "epoch": 1.0, "eval/top1_error": e} for e in (40.0, error)]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {net: [conv_local.read(args, net, seed) for seed in range(2)] for net in conv_local.NETS}
    text = conv_local.table(found)
    assert "| without normalisation | 1 | 15.00, 16.00 | 15.50 ± 0.71 | 13 | 20.00 |" in text
    # Differences -1.0 and -1.4: mean -1.2, standard error 0.2, Student's t with one degree of freedom 12.706.
    assert "With normalisation -1.20 ± 2.54 points (95 %, paired by seed); the paper: -2." in text
    conv_local.plot(tmp_path / "curves.svg", found)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="--seeds and --at_once must be at least 1"):
        conv_local.main(["--source=embedded", f"--out={tmp_path / 'out'}", "--seeds=0"])
    missing = ["--source=folder:/nowhere", f"--out={tmp_path / 'out'}", f"--runs={tmp_path / 'runs'}"]
    with pytest.raises(UserError, match="11pct-of1-seed0: not trained; the run's own error line says why"):
        conv_local.main(missing)  # that line names the source


def test_a_run_of_other_images_is_not_taken_for_this_one(tmp_path):
    path = tmp_path / "runs" / "11pct-of1-seed0"
    path.mkdir(parents=True)
    (path / "status.json").write_text(json.dumps({"status": "done"}))
    (path / "config.json").write_text(json.dumps({"data": {"source": "embedded"}}))
    args = ["--source=folder:cifar10", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"--source=folder:cifar10: .*11pct-of1-seed0 learnt embedded"):
        conv_local.main(args)
    assert not (tmp_path / "out").exists()


def test_after_a_failure_no_other_run_begins(tmp_path, monkeypatch):
    """Of six runs, two at a time, the second fails while the first goes on for a while."""
    begun = []

    def fail(command, **_):
        begun.append(command)
        if "--config.run.seed=0" in command:
            time.sleep(0.5)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(conv_local.subprocess, "run", fail)
    folders = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(Fault, match="11pct-of1-seed0: the run ended with code 1; the same command goes on"):
        conv_local.main(["--source=embedded", *folders, "--seeds=3", "--at_once=2"])
    assert len(begun) == 2


def test_the_record_s_table_and_curves_follow_from_its_results(tmp_path):
    directory = record.DIRECTORY / "011-conv-local"
    found = json.loads((directory / "results.json").read_text())["runs"]
    assert conv_local.table(found) == (directory / "table.md").read_text()
    conv_local.plot(tmp_path / "curves.svg", found)
    assert (tmp_path / "curves.svg").read_bytes() == (directory / "curves.svg").read_bytes()
