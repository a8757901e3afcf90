"""Sweeps: what a file may say, the statistics against others' and by hand, and a sweep that is killed."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from alexnet_jax import UserError
from experiments import sweep, sweep_plan, sweep_statistics, sweep_table
from tests import tiny as narrow
from tests import xla

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return narrow.make_images(tmp_path_factory.mktemp("images"), train=3, test=2)


def write(path, images, rows, seeds=(0, 1), more=""):
    parent = {
        **narrow.NET,
        "data.source": f"folder:{images}",
        "mesh.data": 1,
        "run.total_steps": 6,
        "run.log_every_steps": 2,
        "run.eval_every_steps": 3,
        "run.save_every_steps": 3,
    }
    text = f'"""A small sweep."""\nCONFIG = "configs/default.py"\nPARENT = {parent!r}\nSEEDS = {seeds!r}\n'
    path.write_text(f"{text}ROWS = {rows!r}\n{more}")
    return path


# --- Files ------------------------------------------------------------------------------------------------


def test_the_runs_of_a_sweep(images, tmp_path):
    rows = {"No norm": {"model.norm": False}, "on": {}, "two": {"config": "configs/imagenet2012.py"}}
    more = 'START = {"on": "No norm"}\nONLY = {"two": (1,)}\n'
    planned = sweep_plan.plan(
        sweep_plan.read(write(tmp_path / "s.py", images, rows, more=more)), tmp_path / "runs"
    )
    assert [(run.row, run.seed) for run in planned] == [
        ("parent", 0), ("No norm", 0), ("on", 0), ("parent", 1), ("No norm", 1), ("on", 1), ("two", 1),
    ]  # fmt: skip
    by_name = {(run.row, run.seed): run for run in planned}
    assert by_name["No norm", 1].workdir == tmp_path / "runs" / "no-norm-1"
    assert by_name["No norm", 1].config.model["norm"] is False
    assert by_name["No norm", 1].config.run.seed == 1
    assert by_name["on", 1].config.init.path == str(tmp_path / "runs" / "no-norm-1")
    assert by_name["parent", 0].config.model["variant"] == "original"
    assert by_name["two", 1].config.model["variant"] == "paper"


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ({"a": {"model.nrom": False}}, "", r"'a': model\.nrom: no such key"),
        ({"a": {"data.batch_size": -1}}, "", r"'a': data\.batch_size=-1"),
        ({"a!": {}, "a?": {}}, "", "two rows differ only in characters"),
        ({"a": {}}, "PAPRE = {}", "PAPRE means nothing"),
        ({"a": {}}, 'PAPER = {"b": (1, 1)}', "PAPER has 'b', which is no row"),
        ({"a": {}}, 'START = {"parent": "a"}', "'parent' must come after 'a'"),
        ({"a": {}}, 'START = {"a": "parent"}\nONLY = {"parent": (0,)}', "'a' has seed 1, 'parent' does not"),
        ({"a": {}}, 'ENSEMBLES = {"e": {"a": (7,)}}', "'e' has runs of 'a'"),
        ((), "", "ROWS must be a dict"),
        ({"a": {}}, "1 / 0", "broken .ZeroDivisionError"),
    ],
)
def test_a_mistake_in_a_sweep_s_file_is_one_line_that_names_it(images, tmp_path, rows, more, words):
    with pytest.raises(UserError, match=words) as caught:
        sweep_plan.plan(sweep_plan.read(write(tmp_path / "s.py", images, rows, more=more)), tmp_path / "runs")
    assert "s.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_sweeps_of_the_repository_are_sound(tmp_path):
    for name in ("ablations", "ensembles", "imagenet_ablations", "table2"):
        planned = sweep_plan.plan(sweep_plan.read(ROOT / "experiments" / f"{name}.py"), tmp_path)
        assert len({run.workdir for run in planned}) == len(planned)
    ablations = sweep_plan.read(ROOT / "experiments" / "ablations.py")
    assert len(ablations.seeds) >= 3
    assert set(ablations.paper) <= set(ablations.rows)
    full = sweep_plan.read(ROOT / "experiments" / "imagenet_ablations.py")
    claims = ("no weight decay", "no mirror", "no colour noise", "until it stops, no dropout")
    middle = (f"without {name}" for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7"))
    assert {*claims, *middle} <= set(full.rows)


# --- Statistics -------------------------------------------------------------------------------------------


def row_of(name, errors, against="parent", **more):
    runs = [
        {
            "seed": seed,
            "status": "done",
            "eval": {"top1_error": e, "top5_error": e / 10, "examples": 9, "views": 1},
        }
        for seed, e in enumerate(errors)
    ]
    return {"row": name, "changes": {}, "against": against, "paper": None, "runs": runs, **more}


def test_a_difference_is_student_s_paired_by_seed():
    row, parent = [10.0, 12.0, 11.5, 13.0], [9.0, 10.0, 11.0, 10.5]
    found = sweep_statistics.difference(dict(enumerate(row)), dict(enumerate(parent)), None)
    low, high = stats.ttest_rel(row, parent).confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.own == pytest.approx((high - low) / 2)
    assert found.pooled is None
    # Only seeds that both have count.
    some = sweep_statistics.difference({0: 10.0, 1: 12.0, 7: 99.0}, {0: 9.0, 1: 10.0, 3: 0.0}, None)
    assert some.mean == 1.5
    assert sweep_statistics.difference({0: 1.0}, {1: 1.0}, None) is None
    assert sweep_statistics.difference({0: 1.0}, {0: 3.0}, None).own is None


def test_steps_and_training_errors_are_beside_the_errors():
    runs = [{"steps": 900, "train_top1_error": 4.0}, {"steps": 1101, "train_top1_error": 5.0}]
    rows = [row_of("parent", [20.0, 21.0]), row_of("no dropout", [25.0, 26.0])]
    for run, more in zip(rows[1]["runs"], runs, strict=True):
        run.update(more, curve=[])
    about = {"device": "cpu", "versions": {}}
    results = {"title": "t", "config": "c", "parent": {}, "seeds": [0, 1], "rows": rows, "ensembles": []}
    table = sweep_table.markdown({**results, "about": about}, sweep_statistics.lines(results))
    start = table.index("| row | steps to the end")
    assert table[start:].splitlines()[:4] == [
        "| row | steps to the end | last top-1 error in training |",
        "|---|---|---|",
        "| no dropout | 1,000 | 4.50 |",
        "",
    ]


def test_the_spread_that_rows_share_is_what_row_and_seed_do_not_explain():
    """By least squares on indicators of rows and of seeds, as any book on the analysis of variance has it."""
    errors = np.random.default_rng(0).normal(20, 1, (5, 3)) + np.array([0, 1, 2, 3, 4])[:, None] + [0, 0.5, 1]
    rows = [row_of(str(number), its) for number, its in enumerate(errors)]
    found = sweep_statistics.shared_spread(rows, "top1_error")
    design = np.array(
        [[r == i for i in range(5)] + [s == j for j in range(1, 3)] for r in range(5) for s in range(3)],
        float,
    )
    _, residual, rank, _ = np.linalg.lstsq(design, errors.reshape(-1))
    assert found.freedom == 15 - rank == 8
    assert found.deviation == pytest.approx(np.sqrt(residual[0] / 8))
    # The interval of a difference of two means of three.
    difference = sweep_statistics.difference(dict(enumerate(errors[1])), dict(enumerate(errors[0])), found)
    assert difference.pooled == pytest.approx(stats.t.ppf(0.975, 8) * found.deviation * np.sqrt(2 / 3))


def test_a_row_that_sometimes_learns_nothing_does_not_widen_the_others_intervals():
    tame = [row_of(str(n), [20 + n, 20.5 + n, 21.2 + n]) for n in range(4)]
    wild = row_of("wild", [30, 90, 90])
    found = sweep_statistics.shared_spread([*tame, wild], "top1_error")
    assert found.rows == ("0", "1", "2", "3")
    assert found.deviation == pytest.approx(0, abs=1e-6)
    # Nor does one that never learns anything narrow them, nor does one with a seed missing count.
    chance = row_of("chance", [90, 90, 90])
    assert sweep_statistics.shared_spread([*tame, wild, chance], "top1_error") == found
    short = row_of("short", [20, 21])
    assert sweep_statistics.shared_spread([*tame, short], "top1_error").rows == found.rows


def test_the_table_says_what_is_worse_and_what_is_not_decided():
    rows = [
        row_of("parent", [20.0, 21.0, 19.9], against=None),
        row_of("worse", [25.0, 26.2, 25.1], paper=(1.4, 1.2)),
        row_of("same", [20.2, 20.9, 20.0]),
        row_of("better than worse", [20.1, 21.1, 20.2], against="worse"),
        row_of("partly", [20.0]),
    ]
    rows[4]["runs"].append({"seed": 1, "status": "diverged", "eval": None})
    results = {
        "title": "T", "config": "c", "parent": {}, "seeds": [0, 1, 2], "rows": rows, "ensembles": [],
        "about": {"device": "cpu", "versions": {"jax": "1"}},
    }  # fmt: skip
    lines = sweep_statistics.lines(results)
    assert [line.differences[0] and line.differences[0].verdict for line in lines] == [
        None, "worse", "not decided", "better", "not decided",
    ]  # fmt: skip
    text = sweep_table.markdown(results, lines)
    assert "| worse | 3 | 25.43 ± 0.67 | +5.13 ±" in text
    assert "| partly | 1 (1 diverged) | 20.00 |" in text
    assert "better than worse: nothing changed (compared with worse)" in text
    table = list(csv.DictReader(sweep_table.as_csv(lines).splitlines()))
    assert float(table[1]["top1_error"]) == pytest.approx(np.mean([25.0, 26.2, 25.1]))
    assert float(table[1]["top1_error_difference"]) == pytest.approx(5.0 + 0.4 / 3)
    assert (table[1]["top1_error_paper"], table[1]["verdict"]) == ("1.4", "worse")


@pytest.mark.parametrize("name", ["003-ablations", "004-ensembles"])
def test_the_tables_of_the_records_follow_from_their_results(name):
    """Byte for byte, with the names that config keys had then."""
    record = ROOT / "experiments" / name
    results = json.loads((record / "results.json").read_text())
    lines = sweep_statistics.lines(results)
    assert sweep_table.markdown(results, lines) == (record / "table.md").read_text()
    assert sweep_table.as_csv(lines) == (record / "table.csv").read_text()


def test_one_degree_of_freedom_is_one_degree():
    rows = [{"row": name, "runs": []} for name in ("parent", "a")]
    for row, errors in zip(rows, ((10.0, 11.0), (12.0, 12.5)), strict=True):
        row["runs"] = [{"seed": seed, "eval": {"top1_error": error}} for seed, error in enumerate(errors)]
    (text, _) = sweep_table._spread({"rows": rows, "seeds": [0, 1]}, [])
    assert "(1 degree of freedom)" in text


# --- Running ----------------------------------------------------------------------------------------------


def command(file, runs):
    return [sys.executable, "-m", "experiments.sweep", str(file), f"--runs={runs}", "--jobs=2"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_started_again_gives_the_same_table(images, tmp_path):
    rows = {"no norm": {"model.norm": False}, "broken": {"data.source": "folder:/nowhere"}}
    more = 'ONLY = {"no norm": (0,), "broken": (0,)}\nENSEMBLES = {"both": {"parent": (0, 1)}}\n'
    file = write(tmp_path / "small.py", images, rows, more=more)
    environment = {**os.environ, "XLA_FLAGS": xla.flags(devices=1)}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command(file, whole), **options)
    assert done.returncode == 0, done.stderr
    assert "broken, seed 0: not begun: error: data.source=folder:/nowhere" in done.stderr
    # Progress over the whole sweep; no fractions of runs.
    assert re.search(r"\(\d+% of \d+ runs, left \d\d:\d\d\)", done.stderr)

    killed = subprocess.Popen(
        command(file, parts), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (parts / "parent-0" / "metrics.jsonl").exists():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (parts / "table.md").exists()
    again = subprocess.run(command(file, parts), **options)
    assert again.returncode == 0, again.stderr
    for name in ("table.md", "table.csv", "results.json", "differences.svg", "curves.svg"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    results = json.loads((whole / "results.json").read_text())
    assert [run["status"] for run in results["rows"][2]["runs"]] == ["not begun"]
    # A finished sweep runs nothing and says the same.
    before = (whole / "parent-0" / "metrics.jsonl").stat().st_mtime_ns
    assert sweep.main([str(file), f"--runs={whole}", "--table"]) == 0
    assert (whole / "parent-0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert (whole / "table.md").read_bytes() == (parts / "table.md").read_bytes()
    # Another sweep does not go on in these workdirs.
    write(file, images, {**rows, "no norm": {"model.norm": False, "optimizer.momentum": 0.8}}, more=more)
    with pytest.raises(UserError, match=r"no-norm-0: holds a run of another config \(optimizer.momentum"):
        sweep.main([str(file), f"--runs={whole}"])
