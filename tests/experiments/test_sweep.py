"""Sweeps: what a file may say, the statistics against others' and by hand, and a sweep that is killed."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from alexnet_jax import UserError
from experiments import sweep, sweep_plan, sweep_runs, sweep_statistics, sweep_table
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
        ({"a": {}}, 'TRAINING_ERROR = ("b",)', "TRAINING_ERROR has 'b', which is no row"),
        ({"a": {}}, 'GROUPS = {"Depth": ("a", "b")}', "GROUPS has 'b', which is no row"),
        ({"a": {}}, 'START = {"parent": "a"}', "'parent' must come after 'a'"),
        ({"a": {}}, 'START = {"a": "parent"}\nONLY = {"parent": (0,)}', "'a' has seed 1, 'parent' does not"),
        ({"a": {}}, 'ENSEMBLES = {"e": {"a": (7,)}}', "'e' has runs of 'a'"),
        ({"a": {}}, 'PUBLISHED = {"1 CNN": ("b", 1, 1)}', "'1 CNN' is 'b', which is no row and no ensemble"),
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
    for name in ("ablations", "ensembles", "imagenet_ablations", "table1", "table2"):
        planned = sweep_plan.plan(sweep_plan.read(ROOT / "experiments" / f"{name}.py"), tmp_path)
        assert len({run.workdir for run in planned}) == len(planned)
    ablations = sweep_plan.read(ROOT / "experiments" / "ablations.py")
    assert len(ablations.seeds) >= 3
    assert set(ablations.paper) <= set(ablations.rows)
    full = sweep_plan.read(ROOT / "experiments" / "imagenet_ablations.py")
    claims = ("no weight decay", "no mirror", "no colour noise", "until it stops, no dropout")
    middle = (f"without {name}" for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7"))
    assert {*claims, *middle} <= set(full.rows)


def test_a_run_is_the_same_run_elsewhere_and_another_with_anything_else_changed(images, tmp_path):
    def hashes(rows, more='START = {"on": "a"}\n', source=None, where="runs"):
        file = write(tmp_path / "s.py", images, rows, more=more)
        if source is not None:
            file.write_text(file.read_text().replace(f"folder:{images}", source))
        planned = sweep_plan.plan(sweep_plan.read(file), tmp_path / where)
        return {(run.row, run.seed): run.config_hash for run in planned}

    rows = {"a": {}, "on": {"optimizer.momentum": 0.8}, "file": {"init.path": "/here/a.npz"}}
    here = hashes(rows)
    assert len(set(here.values())) == 8 - 2  # `a` is the parent's config
    assert here["a", 1] == here["parent", 1] != here["a", 0]
    moved = {**rows, "file": {"init.path": "/there/a.npz"}}
    assert hashes(moved, source="folder:/there", where="there") == here
    # How it is computed and how often it is saved is no other run; how long it takes is.
    free = {"data.micro_batches": 2, "run.save_every_steps": 1, "mesh.data": -1, "data.data_dir": "/x"}
    assert hashes({**rows, "a": free})["a", 0] == here["a", 0]
    for change in ({"run.total_steps": 7}, {"data.batch_size": 4}, {"model.norm": False}):
        changed = hashes({**rows, "a": change})
        assert changed["a", 0] != here["a", 0]
        assert changed["on", 0] != here["on", 0]  # its weights are others
        assert changed["parent", 0] == here["parent", 0]
    assert hashes(rows, source="kaggle:/there")["a", 0] != here["a", 0]
    tfds = [hashes(rows, source=f"tfds:{name}")["a", 0] for name in ("mnist", "cifar10")]
    assert len({*tfds, here["a", 0]}) == 3


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
        "| row | steps to the end | last top-1 error in training | difference |",
        "|---|---|---|---|",
        "| no dropout | 1,000 | 4.50 |  |",
        "",
    ]
    for run, error in zip(rows[0]["runs"], (3.0, 3.2), strict=True):
        run.update(steps=900, train_top1_error=error, curve=[])
    table = sweep_table.markdown({**results, "about": about}, sweep_statistics.lines(results))
    _, half = stats.ttest_rel([4.0, 5.0], [3.0, 3.2]).confidence_interval(0.95) - np.float64(1.4)
    assert f"| no dropout | 1,000 | 4.50 | +1.40 ± 5.08 (± {half:.2f}) |" in table


def test_the_power_is_that_of_the_published_tables():
    """Paired differences of a standard deviation of 1, 80 % power at 5 %, two-sided (as G*Power has them)."""
    needed = {0.2: 199, 0.5: 34, 0.8: 15, 1.0: 10, 1.5: 6}
    assert {d: sweep_statistics.seeds_to_see(d, 1.0) for d in needed} == needed
    # By 20,000 made-up sweeps of three seeds.
    smallest = sweep_statistics.smallest_seen(0.4, 3)
    made = np.random.default_rng(0).normal(smallest, 0.4, (20_000, 3))
    assert np.mean(stats.ttest_1samp(made, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert sweep_statistics.power(sweep_statistics.smallest_seen(2.0, 2), 2.0, 2) == pytest.approx(0.8)


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


SWEEPS = [path.parent for path in sorted((ROOT / "experiments").glob("[0-9]*/table.csv"))]


@pytest.mark.parametrize("directory", SWEEPS, ids=lambda path: path.name)
def test_the_tables_of_the_records_follow_from_their_results(directory, tmp_path):
    """Byte for byte, with the names that config keys had then; the plots since runs have a config's hash."""
    results = json.loads((directory / "results.json").read_text())
    sweep_table.write(results, tmp_path)
    pictures = ("differences.svg", "curves.svg") if "config" in results["rows"][0]["runs"][0] else ()
    for name in ("table.md", "table.csv", *pictures):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes(), name


def test_one_degree_of_freedom_is_one_degree():
    rows = [{"row": name, "runs": []} for name in ("parent", "a")]
    for row, errors in zip(rows, ((10.0, 11.0), (12.0, 12.5)), strict=True):
        row["runs"] = [{"seed": seed, "eval": {"top1_error": error}} for seed, error in enumerate(errors)]
    (text, _) = sweep_table._spread({"rows": rows, "seeds": [0, 1]}, [])
    assert "(1 degree of freedom)" in text


# --- The plot ---------------------------------------------------------------------------------------------


def made_up_results():
    """Rows of two groups, one compared in training too, one far away, one without the paper's figure."""
    rows = [
        row_of("parent", [20.0, 21.0, 19.9], against=None, group=None),
        row_of("no norm", [25.0, 26.2, 25.1], paper=(1.4, 1.2), group="Normalisation"),
        row_of("no decay", [20.2, 20.9, 20.0], group="Regularisation", training_error=True),
        row_of("chance", [90.0, 90.0, 90.0], group="Regularisation"),
        row_of("no colour", [18.0, 19.1, 18.1], paper=(1.0, None), group="Regularisation"),
        row_of("other norm", [20.5, 20.9, 20.6], paper=(-0.4, -0.5), group="Normalisation"),
    ]
    for number, row in enumerate(rows):
        for run in row["runs"]:
            run.update(steps=10, train_top1_error=5.0 + number + 0.1 * run["seed"] ** 2 * number, curve=[])
            run.update(config="0", seconds=1800.0, machine="1 x cpu")
    return {
        "title": "T", "config": "c", "parent": {}, "seeds": [0, 1, 2], "rows": rows, "ensembles": [],
    }  # fmt: skip


def test_the_plot_s_words_and_numbers_are_those_of_the_results(tmp_path):
    results = made_up_results()
    sweep_table.write(results, tmp_path)
    text = (tmp_path / "differences.svg").read_text()
    words = re.findall(r"<text[^>]*>([^<]+)</text>|<tspan[^>]*>([^<]+)</tspan>", text)
    words = [one or other for one, other in words]
    errors = {row["row"]: [run["eval"]["top1_error"] for run in row["runs"]] for row in results["rows"]}
    usual = [errors[name] for name in ("parent", "no norm", "no decay", "no colour", "other norm")]
    residuals = np.array(usual) - np.mean(usual, 0) - np.mean(usual, 1)[:, None] + np.mean(usual)
    shared = stats.t.ppf(0.975, 8) * np.sqrt((residuals**2).sum() / 8) * np.sqrt(2 / 3)

    def number(row, **options):
        own = stats.ttest_rel(errors[row], errors["parent"]).confidence_interval(0.95)
        half = (own.high - own.low) / 2
        half = max(half, shared) if row != "chance" else half
        return f"{np.mean(errors[row]) - np.mean(errors['parent']):+.1f} ± {half:.1f}"

    expected = {
        "no norm": "holds", "no decay": "not decided", "chance": "worse", "no colour": "reversed",
        "other norm": "not decided",
    }  # fmt: skip
    paired = shared / stats.t.ppf(0.975, 8) * 3**0.5  # the spread times the root of 2
    seen = f"difference of {sweep_statistics.smallest_seen(paired, 3):.2f} points or more"
    assert seen in (tmp_path / "table.md").read_text()
    claims = {claim.label: claim for claim in sweep_statistics.claims(results)}
    assert {label: claim.verdict for label, claim in claims.items() if "," not in label} == expected
    for row, verdict in expected.items():
        assert row in words and verdict in words and number(row) in words, row
    # In training: row 2 less row 0, 2 + 0.2 s**2.
    own = stats.ttest_1samp([2.0, 2.2, 2.8], 0).confidence_interval(0.95)
    training = claims["no decay, in training"].difference
    assert training.mean == pytest.approx(7 / 3) and training.own == pytest.approx((own.high - own.low) / 2)
    assert {"no decay, in", "training"} <= set(words) or "no decay, in training" in words
    # Group by group, in the order of the rows.
    order = ["Normalisation", "Regularisation"]
    assert [word for word in words if word in order] == order
    groups = [claim.group for claim in sweep_statistics.claims(results)]
    assert groups == ["Normalisation"] * 2 + ["Regularisation"] * 4


def test_one_seed_without_the_paper_s_figures_has_a_legend_of_what_is_there(tmp_path):
    results = made_up_results()
    for row in results["rows"]:
        row.update(paper=None, runs=[{**row["runs"][0], "curve": [[1.0, 20.0]]}])
    sweep_table.write({**results, "seeds": [0]}, tmp_path)
    picture = (tmp_path / "differences.svg").read_text()
    assert ">here<" in picture and "interval" not in picture and "paper" not in picture
    assert not (tmp_path / "curves.svg").exists()  # one test a run is no line


def test_runs_that_are_all_alike_have_no_power_to_tell():
    results = made_up_results()
    for row in results["rows"]:
        for run in row["runs"]:
            run["eval"]["top1_error"] = 90.0
    assert "would see 1 point" not in sweep_table.markdown(results, sweep_statistics.lines(results))


def test_the_plots_are_the_same_bytes_from_what_was_written(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    results = made_up_results()
    for row in results["rows"]:
        for run in row["runs"]:
            run["curve"] = [[0.5, 30.0], [1.0, run["eval"]["top1_error"]]]
    sweep_table.write(results, first)
    sweep_table.write(json.loads((first / "results.json").read_text()), again)
    assert {path.name for path in first.iterdir()} == {
        "table.md", "table.csv", "results.json", "differences.svg", "curves.svg",
    }  # fmt: skip
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("cores", "words"), [(1, "; 1 core of Abacus; "), (2, "; 2 cores of Abacus; ")])
def test_a_machine_s_cores(cores, words, monkeypatch):
    monkeypatch.setattr(sweep_runs.tables, "machine", lambda: {"cores": cores, "machine": "Abacus"})
    assert words in sweep_runs._machine()


def test_several_machines_are_a_footnote():
    results = made_up_results()
    assert "on 9 images, central patch; 1 x cpu." in sweep_table.markdown(
        results, sweep_statistics.lines(results)
    )
    for row in results["rows"][:2]:
        for run in row["runs"]:
            run["machine"] = "8 x H100"
    text = sweep_table.markdown(results, sweep_statistics.lines(results))
    assert "on 9 images, central patch." in text
    assert text.endswith("machine:\n\n- 6 runs, 3.0 hours: 8 x H100\n- 12 runs, 6.0 hours: 1 x cpu\n")


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
    for name in ("table.md", "table.csv", "differences.svg", "curves.svg"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    results, others = (json.loads((path / "results.json").read_text()) for path in (whole, parts))
    runs, again = ([run for row in one["rows"] for run in row["runs"]] for one in (results, others))
    assert [run.pop("seconds") > 0 for run in runs] == [True, True, True, False]
    assert [run.pop("seconds") > 0 for run in again] == [True, True, True, False]
    assert results == others
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


@pytest.mark.slow
def test_a_sweep_goes_on_elsewhere_from_its_results_alone(images, tmp_path, capfd):
    """Half of the runs on one machine, the others on another, where the images are in another folder."""
    rows = {
        "no norm": {"model.norm": False},
        "first": {"optimizer.momentum": 0.8},
        "on": {"optimizer.momentum": 0.7},
    }
    more = 'START = {"on": "first"}\nONLY = {"no norm": (0,), "first": (0,), "on": (0,)}\n'
    more += 'ENSEMBLES = {"two": {"parent": (0, 1)}}\n'
    file = write(tmp_path / "small.py", images, rows, more=more)
    out, there = tmp_path / "record", tmp_path / "there"

    def run(runs, *flags):
        assert sweep.main([str(file), f"--runs={tmp_path / runs}", f"--out={out}", *flags]) == 0
        tables = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "results.json"}
        return capfd.readouterr().err, tables

    run("one", "--rows=parent", "--rows=first")
    shutil.copytree(images, there)
    file.write_text(file.read_text().replace(str(images), str(there)))
    log, tables = run("other")
    assert "results.json: has 3 of 5 runs" in log
    # `first` has a result, but not the weights that `on` starts from.
    made = {path.name for path in (tmp_path / "other").iterdir() if path.is_dir()} - {".compiled"}
    assert made == {"no-norm-0", "first-0", "on-0"}
    results = json.loads((out / "results.json").read_text())
    runs = [run for row in results["rows"] for run in row["runs"]]
    assert [run["status"] for run in runs] == ["done"] * 5
    assert all(run["seconds"] > 0 for run in runs)
    assert all(re.search("; (1 core|[0-9]+ cores) of ", run["machine"]) for run in runs)
    assert [*results["ensembles"][0]["views"]] == ["1", "10"]  # the other machine has not the nets
    # The same as all at once, and again from the results alone, where nothing is left to run.
    whole = tmp_path / "whole"
    assert sweep.main([str(file), f"--runs={tmp_path / 'all'}", f"--out={whole}"]) == 0
    for name, content in tables.items():
        assert (whole / name).read_bytes() == content, name
    log, again = run("third")
    assert again == tables and "has 5 of 5 runs" in log
    assert not [path for path in (tmp_path / "third").rglob("*") if path.is_dir()]
    assert json.loads((out / "results.json").read_text()) == results
    # A run with another config is made again, and what is left out meanwhile is named.
    file.write_text(file.read_text().replace("'model.norm': False}, 'first'", "'model.norm': True}, 'first'"))
    log, _ = run("third", "--table")
    assert "note: " in log and "no norm, seed 0: of another config" in log
