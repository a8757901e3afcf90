"""A table of the paper: the arithmetic by hand, what the certificate says, and a small table end to end."""

import json
import pathlib

import numpy as np
import pytest
from scipy import stats

from alexnet_jax import UserError
from alexnet_jax.run import logs
from experiments import certificate, reproduce, reproduction, sweep_plan
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), train=3, test=2)


def small(images, **more):
    """Flags that make a table small: 30 training and 20 test images."""
    values = {
        **tiny.NET,
        "data.source": f"folder:{images}",
        "data.num_classes": 10,
        "mesh.data": 1,
        "optimizer.drop_epochs": (),
        "run.total_steps": 4,
        "run.eval_every_steps": 4,
        "run.log_every_steps": 2,
        **more,
    }
    return [f"--set={key}={value}" for key, value in values.items()]


def table(number):
    return sweep_plan.read(ROOT / "experiments" / f"table{number}.py")


# --- What it takes ----------------------------------------------------------------------------------------


def test_the_work_of_table_2_by_hand(tmp_path, monkeypatch):
    """Without the images their published numbers count; 90 epochs, each with a test of ten views."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    runs = sweep_plan.plan(table(2), tmp_path / "runs")
    by_row = {run.row: reproduction.work_left(run) for run in runs}
    assert len(runs) == 9
    one = 90 * 1_281_167 + 90 * 50_000 * 10 / 3
    assert by_row["parent"] == pytest.approx(one, rel=1e-4)
    star = 54 * 1_281_167 + 54 * 50_000 * 10 / 3
    assert by_row["CNN*"] == pytest.approx(star, rel=1e-4)
    fall = 7.81 * 14_000_000
    assert by_row["CNN* on Fall 2011"] == pytest.approx(fall, rel=1e-4)
    text = reproduction.report(runs, 3000.0, 2.5)
    hours = (5 * one + 2 * star + 2 * fall) / 3000 / 3600
    assert f"at 3,000 images/s {hours:.2f} hours; at 2.50 an hour {2.5 * hours:.2f}\n" in text
    assert text.count("missing: data.source=") == 2


def test_a_run_under_way_has_less_left_and_tells_the_speed(images, tmp_path):
    planned = reproduction.with_overrides([flag[6:] for flag in small(images)], table(1))
    runs = sweep_plan.plan(planned, tmp_path)
    whole = 4 * 8 + 20 * 10 / 3  # four steps of eight images, one test of twenty in ten views
    assert reproduction.work_left(runs[0]) == pytest.approx(whole)
    runs[0].workdir.mkdir()
    lines = [{"step": step, "epoch": 0, "train/images_per_second": 100 * step} for step in (1, 2, 3)]
    (runs[0].workdir / logs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    logs.write_status(runs[0].workdir, "interrupted")
    assert reproduction.work_left(runs[0]) == pytest.approx(whole / 4)
    assert reproduction.images_per_second(runs, tmp_path) == 200
    logs.write_status(runs[0].workdir, "done", eval={"top1_error": 40.0})
    assert reproduction.work_left(runs[0]) == 0
    text = reproduction.report(runs, 200.0, None)
    assert "parent-0: done, top-1 error 40.00 %" in text
    assert "30 for training, 20 for tests: not the full set, which has at least 1,261,406 and 150,000" in text


def test_overrides_are_for_all_runs_or_for_a_row(tmp_path):
    given = ["data.source=embedded", "CNN*: run.total_epochs=3.0", "data.num_classes=10"]
    runs = sweep_plan.plan(reproduction.with_overrides(given, table(2)), tmp_path)
    assert {run.config.data.source for run in runs} == {"embedded"}
    epochs = {run.row: run.config.run.total_epochs for run in runs}
    assert epochs == {"parent": 90.0, "CNN* on Fall 2011": 7.81, "CNN*": 3.0}
    for wrong in ("data.source", "config=configs/run148.py", "CNN: run.seed=1"):
        with pytest.raises(
            UserError, match=r"--set=.*: give KEY=VALUE or 'ROW: KEY=VALUE', ROW one of parent"
        ):
            reproduction.with_overrides([wrong], table(2))
    with pytest.raises(UserError, match=r"--price=-1.0: must be above 0"):
        reproduce.main(["--table=1", "--price=-1"])


# --- The certificate --------------------------------------------------------------------------------------


def test_the_certificate_has_both_errors_and_the_spread_of_the_seeds(tmp_path):
    errors = {
        "parent": [(40.5, 18.0), (40.9, 18.3), (40.6, 18.6)],
        "CNN* on Fall 2011": [],
        "CNN*": [(39.3, 16.9)],
    }
    rows = [
        {
            "row": row,
            "runs": [
                {
                    "workdir": f"{row}-{seed}", "seed": seed, "status": "done", "config": "0a",
                    "machine": "8 x H100", "seconds": 7200.0,
                    "eval": {"top1_error": top1, "top5_error": top5, "examples": 50_000, "views": 10},
                }
                for seed, (top1, top5) in enumerate(pairs)
            ],
        }
        for row, pairs in errors.items()
    ]  # fmt: skip
    views = {"10": {"together": {"top1_error": 38.0, "top5_error": 16.5}}, "1": None}
    ensembles = [{"ensemble": "5 CNNs", "views": views}, {"ensemble": "7 CNNs*", "views": {}}]
    text = certificate.write(
        tmp_path, table(2), {"rows": rows, "ensembles": ensembles}, ["not done: parent-3"]
    )
    values = json.loads((tmp_path / "certificate.json").read_text())
    assert (tmp_path / "certificate.md").read_text() == text
    one, five, star, seven = values["systems"]
    assert [entry["n"] for entry in values["systems"]] == [3, 1, 1, 0]
    assert one["difference"] == pytest.approx(
        [np.mean([40.5, 40.9, 40.6]) - 40.7, np.mean([18.0, 18.3, 18.6]) - 18.2]
    )
    assert one["spread"][0] == pytest.approx(np.std([40.5, 40.9, 40.6], ddof=1))
    # Student's interval for one more draw, from the t statistic of a draw against the mean of three.
    assert one["one_more"][0] == pytest.approx(stats.t.ppf(0.975, 2) * one["spread"][0] * (4 / 3) ** 0.5)
    assert five["difference"] == pytest.approx([-0.1, 0.1]) and five["spread"] == [None, None]
    assert star["paper"] == [39.0, 16.6] and seven["ours"] == [None, None]
    assert values["hours"] == 8.0
    assert "| 5 CNNs | 1 | 38.00 | 38.1 | -0.10 |  |  | 16.50 | 16.4 | +0.10 |  |  |" in text
    assert "- not done: parent-3" in text and "Nothing: images, configs and runs" not in text
    assert "Nothing: images, configs and runs" in certificate.markdown({**values, "shortfalls": []})


@pytest.mark.slow
def test_a_small_table_from_check_to_certificate(images, tmp_path, capfd):
    flags = ["--table=1", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", *small(images)]
    assert reproduce.main([*flags, "--check", "--images_per_second=50", "--price=2"]) == 0
    shown = capfd.readouterr().out
    assert shown.count("not begun, 0% of the training") == 3
    left = 3 * (4 * 8 + 20 * 10 / 3)
    assert f"  {left:,.0f} images" in shown and f"{left / 50 / 3600:.2f} hours" in shown
    commands = shown[shown.index("commands") :].splitlines()[1:]
    assert len(commands) == 3 and all("--config=configs/original.py" in line for line in commands)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()

    assert reproduce.main([*flags, "--images_per_second=50"]) == 0
    values = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert [run["status"] for run in values["runs"]] == ["done"] * 3
    errors = [run["eval"]["top1_error"] for run in values["runs"]]
    (net,) = values["systems"]
    assert (net["system"], net["n"], net["ours"][0]) == ("CNN", 3, pytest.approx(np.mean(errors)))
    assert all(run["eval"]["views"] == 10 and run["eval"]["examples"] == 20 for run in values["runs"])
    assert "30 for training, 20 for tests: not the full set" in values["shortfalls"][0]
    assert "parent: epochs, steps: (93.0, None) -> (None, 4)" in values["shortfalls"]
    capfd.readouterr()
    assert reproduce.main([*flags, "--check"]) == 0  # nothing is left, so no speed is measured
    assert "  0 images" in capfd.readouterr().out


@pytest.mark.slow
def test_the_speed_is_measured_where_no_run_has_one(images, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reproduction, "MEASURED_SECONDS", 2.0)
    planned = reproduction.with_overrides([flag[6:] for flag in small(images)], table(1))
    rate = reproduction.images_per_second(sweep_plan.plan(planned, tmp_path), tmp_path)
    assert rate is not None and 0 < rate < 1e5
    assert "measuring the speed" in capfd.readouterr().err
    assert not (tmp_path / "speed").exists()


@pytest.mark.slow
def test_a_speed_that_cannot_be_measured_says_why(images, tmp_path):
    planned = reproduction.with_overrides([flag[6:] for flag in small(images)], table(1))
    planned = reproduction.with_overrides(["data.num_classes=1000"], planned)
    with pytest.raises(UserError, match=r"not begun: error: data\.num_classes=1000: give 10, .*\)"):
        reproduction.images_per_second(sweep_plan.plan(planned, tmp_path), tmp_path)
