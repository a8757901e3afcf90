"""Transfer by the number of photographs: what is drawn and chosen, and the record from its results alone."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from alexnet_jax import UserError
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.data import sources
from alexnet_jax.data.decode import decode_square
from alexnet_jax.weights import pretrained
from experiments import record, sweep_plan, transfer, transfer_data, transfer_features, transfer_table
from tests import tiny

RECORD = record.DIRECTORY / "009-transfer"
PHOTOGRAPHS = {
    "ants": [f"train/ants/{i}.jpg" for i in range(13)],
    "bees": [f"train/bees/{i}.jpg" for i in range(11)],
}


def of_class(names, name):
    return sum(pathlib.Path(one).parts[1] == name for one in names)


def test_each_photograph_is_held_out_once_and_never_learnt_from_then():
    parts = transfer_data.folds(PHOTOGRAPHS, 5)
    everything = sorted(transfer_data.together(PHOTOGRAPHS))
    assert sorted(name for part in parts for name in part.test) == everything
    for part in parts:
        assert sorted(part.train + part.test) == everything
        assert of_class(part.test, "ants") in (2, 3) and of_class(part.test, "bees") in (2, 3)


def test_a_seed_draws_the_same_photographs_and_larger_draws_hold_the_smaller():
    drawn = {size: transfer_data.draw(PHOTOGRAPHS, ["val/ants/x.jpg"], size, 1) for size in (3, 5, None)}
    assert drawn[3] == transfer_data.draw(PHOTOGRAPHS, ["val/ants/x.jpg"], 3, 1)
    assert set(drawn[3].train) < set(drawn[5].train) < set(drawn[None].train)
    assert set(drawn[None].train) == set(transfer_data.together(PHOTOGRAPHS))
    assert [of_class(drawn[5].train, name) for name in PHOTOGRAPHS] == [5, 5]
    assert drawn[3].train != transfer_data.draw(PHOTOGRAPHS, [], 3, 2).train


@pytest.fixture
def photographs(tmp_path):
    """Three noisy JPEGs of each class and part."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ants", "bees"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{i}.jpg")
    return tmp_path / "photos"


def test_a_run_reads_the_split_and_shrunk_photographs_have_the_same_pixels(photographs, tmp_path):
    train, val = (transfer_data.classes(photographs, part) for part in ("train", "val"))
    split = transfer_data.draw(train, transfer_data.together(val), 2, 0)
    small = transfer_data.shrunk(photographs, 73, tmp_path / "small")
    for data in (photographs, small):
        for _ in range(2):  # again, as after an interruption
            folder = transfer_data.link(data, split, tmp_path / f"links-{data.name}")
        source: Any = sources.open_source(f"folder:{folder}", "train")
        assert source.labels.tolist() == [0, 0, 1, 1]
        encoded, _ = source.read(np.arange(4))
        for name, data_read in zip(sorted(split.train), encoded, strict=True):
            expected = decode_square((photographs / name).read_bytes(), 73)
            np.testing.assert_array_equal(decode_square(data_read, 73), expected)
        assert len(sources.open_source(f"folder:{folder}", "test")) == 6


def test_both_arms_of_a_size_get_as_many_steps_and_see_the_test_photographs_once(photographs, tmp_path):
    args = argparse.Namespace(data=photographs, runs=tmp_path / "runs", weights="weights.npz")
    split = transfer_data.draw(transfer_data.classes(photographs, "train"), [], 3, 7)
    for arm in ("trained", "scratch"):
        run = transfer.plan(arm, split, 7, next(iter(transfer.ARMS[arm].candidates)), args)
        config = run.config
        assert (config.run.total_steps, config.run.eval_every_steps) == (transfer.STEPS, transfer.STEPS)
        assert (config.data.batch_size, config.run.seed) == (6, 7)
        (drop,) = config.optimizer.drop_epochs
        assert drop * 6 / 6 == pytest.approx(0.7 * transfer.STEPS)
        assert (config.init.path is None) == (arm == "scratch")


@pytest.mark.slow
def test_new_layers_on_cached_features_end_as_by_the_training_command(photographs, tmp_path):
    net = {**tiny.NET, "model.variant": "original", "data.source": f"folder:{photographs}", "mesh.data": 1}
    steps = {f"run.{what}_steps": 5 for what in ("total", "eval_every", "save_every")}
    epochs = {f"run.{what}_epochs": None for what in ("total", "eval_every", "save_every")}
    overrides = {**net, **steps, **epochs, "data.batch_size": 4, "optimizer.drop_epochs": (2.0,)}
    config = configs.resolve(sweep_plan.read_config(transfer.CONFIG), {**overrides, "init.path": None})
    built = training.Run(config, tmp_path)
    weights, params = tmp_path / "weights.safetensors", built.init_state().params
    pretrained.save_pretrained(weights, built.model, {"params": params}, built.preprocess, ("x", "y"))

    overrides |= {"init.path": str(weights), "run.seed": 3}
    config = configs.resolve(sweep_plan.read_config(transfer.CONFIG), overrides)
    run = sweep_plan.Run("trained", 3, tmp_path / "run", transfer.CONFIG, overrides, config)
    names = [transfer_data.together(transfer_data.classes(photographs, part)) for part in ("train", "val")]
    points = transfer_features.pool5(dataclasses.replace(run, workdir=tmp_path / "pool5"))
    end = transfer_features.learn(run, points, transfer_data.Split("all", tuple(names[0]), tuple(names[1])))
    assert training.train(config, run.workdir) == "done"
    evaluation = run.status()["eval"]
    assert evaluation["examples"] == 6 and end["error"] == round(evaluation["top1_error"], 2)
    assert end["loss"] == pytest.approx(evaluation["loss"], abs=1e-3)


def test_the_lowest_error_is_chosen_and_of_equal_ones_the_lowest_loss():
    def ends(*pairs):
        return [{"error": error, "loss": loss} for error, loss in pairs]

    tried = {
        "a": ends((10, 0.1), (30, 0.1)),
        "b": ends((15, 0.6), (20, 0.4)),
        "c": ends((20, 0.3), (15, 0.2)),
    }
    assert transfer.choose(tried) == "c"


def test_runs_of_other_photographs_or_weights_are_not_taken_for_these(photographs, tmp_path):
    """The folder may have got a photograph more: then the folds, whose links lie in --runs, are others."""
    args = argparse.Namespace(data=photographs, runs=tmp_path / "runs", weights="torchvision")
    transfer.claim(args, ["train/ants/0.jpg"])
    transfer.claim(args, ["train/ants/0.jpg"])
    args.weights = "weights.npz"
    with pytest.raises(UserError, match=r"--runs=.*runs: its runs had other weights and photographs; choose"):
        transfer.claim(args, ["train/ants/0.jpg", "train/ants/1.jpg"])


def test_the_record_is_made_from_its_results_alone(tmp_path, capsys):
    (tmp_path / transfer.RESULTS).write_bytes((RECORD / transfer.RESULTS).read_bytes())
    assert transfer.main([f"--out={tmp_path}"]) == 0
    for name in ("table.md", "errors.svg"):
        assert (tmp_path / name).read_text() == (RECORD / name).read_text()
    assert capsys.readouterr().out == (RECORD / "table.md").read_text()
    with pytest.raises(UserError, match=r"has no results\.json; give --data"):
        transfer.main([f"--out={tmp_path / 'none'}"])


def test_the_record_s_intervals_by_scipy():
    """Student's intervals over seeds, paired for the difference, and the binomial one of 153 photographs."""
    results = json.loads((RECORD / transfer.RESULTS).read_text())
    scratch, trained = (transfer_table.errors(results, arm, 5) for arm in ("scratch", "trained"))
    values = list(trained.values())
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    p, photographs = np.mean(values) / 100, sum(results["test"].values())
    sample = 100 * 1.96 * np.sqrt(p * (1 - p) / photographs)
    expected = f"{100 * p:.1f} ± {(high - low) / 2:.1f} (± {sample:.1f}), n = {len(values)}"
    assert transfer_table.cell(results, "trained", 5) == expected
    seeds = sorted(set(scratch) & set(trained))
    of_scratch, of_trained = ([one[seed] for seed in seeds] for one in (scratch, trained))
    paired = stats.ttest_rel(of_scratch, of_trained).confidence_interval(0.95)
    difference = f"{(paired.low + paired.high) / 2:+.1f} ± {(paired.high - paired.low) / 2:.1f} ("
    assert transfer_table.gap(results, 5).startswith(difference)
    assert photographs == 153 and sum(results["train"].values()) == 245 and len(values) >= 5
