"""A table of the paper: the arithmetic by hand, what the certificate says, and small tables end to end."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from alexnet_jax import UserError
from alexnet_jax.run import logs
from experiments import certificate, reproduce, reproduction, sweep_plan, sweep_results
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]


NOT_FULL = "not the full set, which has 1,261,406 for training and 150,000 for tests"
NO_FOLDER = r"no usable images: data\.source=folder:/nowhere: /nowhere does not exist"


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
    text = reproduction.report(table(2), runs, runs, 3000.0, 2.5)
    hours = (5 * one + 2 * star + 2 * fall) / 3000 / 3600
    assert f"at 3,000 images/s {hours:.2f} hours; at 2.50 an hour {2.5 * hours:.2f}\n" in text
    assert "1 CNN, 1 CNN*: no usable images: data.source=tfds:imagenet2012: TFDS looks for" in text
    line = "CNN* on Fall 2011: no usable images: data.source=folder:fall2011: fall2011 does not exist; "
    assert line in text and "name yours with --set 'CNN* on Fall 2011: data.source=KIND:PATH'" in text
    alone = reproduction.report(table(2), runs, runs[1:2], 3000.0, None)  # the others are in results.json
    assert "runs, 8 of 9 done" in alone and "parent-0 (1 CNN, seed 0): ended, as results.json says" in alone
    assert f"  {math.ceil(fall / 128) * 128:,} images" in alone  # whole steps


def test_a_run_under_way_has_less_left_and_tells_the_speed(images, tmp_path, monkeypatch):
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
    assert "seed 0): interrupted, 75% of" in reproduction.report(planned, runs, runs, 200.0, None)
    logs.write_status(runs[0].workdir, "done", eval={"top1_error": 40.0})
    text = reproduction.report(planned, runs, runs[1:], 200.0, None)
    assert "parent-0 (CNN, seed 0): done, top-1 error 40.00 %" in text
    assert f"  {2 * whole:,.0f} images" in text
    assert f"CNN: folder:{images}: 30 for training, 20 for tests; {NOT_FULL}\n" in text
    monkeypatch.setitem(reproduction.FULL_SIZES, "configs/original.py", (30, 20))
    assert "20 for tests; the full set\n" in reproduction.report(planned, runs, runs[1:], None, None)


def test_overrides_are_for_all_runs_or_for_a_row(tmp_path):
    given = ["data.source=embedded", "CNN*: run.total_epochs=3.0", "data.num_classes=10"]
    runs = sweep_plan.plan(reproduction.with_overrides(given, table(2)), tmp_path)
    found = {run.row: run.config.data.source for run in runs}
    assert found == {"parent": "embedded", "CNN* on Fall 2011": "folder:fall2011", "CNN*": "embedded"}
    epochs = {run.row: run.config.run.total_epochs for run in runs}
    assert epochs == {"parent": 90.0, "CNN* on Fall 2011": 7.81, "CNN*": 3.0}
    for wrong in ("data.source", "config=configs/run148.py", "CNN: run.seed=1"):
        with pytest.raises(
            UserError, match=r"--set=.*: give KEY=VALUE or 'ROW: KEY=VALUE', ROW one of parent"
        ):
            reproduction.with_overrides([wrong], table(2))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--table=3"], r"argument --table: invalid choice: 3"),
        (["--table=1", "--price=-1"], r"--price=-1.0: must be above 0"),
        (["--table=2", "--price=2.5", "--check"], r"--price=2\.5: the hours are not known; add --images_"),
        (["--table=2", "--check", "--set=data.source=folder:/nowhere"], f"^1 CNN: {NO_FOLDER}"),
        (["--table=1", "--check", "--set=data.source=embedded"], r"^CNN: .* data\.num_classes=1000: give 10"),
        (["--table=1", "--check", "--set=run.seed=3"], r"--set=run\.seed=3: leave it out"),
        (["--table=1", "--check", "--set=model.widhts=3"], r"^--set: 'parent': model\.widhts: no such key"),
        (["--table=2"], r"^1 CNN: no usable images: data\.source=tfds:imagenet2012: .*docs/imagenet\.md"),
    ],
)
def test_mistakes_are_one_line_before_any_run(flags, message, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=message) as raised:
        reproduce.main([*flags, f"--runs={tmp_path / 'runs'}"])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()


def test_a_check_with_half_of_the_images_says_which_half_is_missing(images, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--table=2", "--check", "--images_per_second=50", *small(images)]
    assert reproduce.main(flags) == 0
    shown = capfd.readouterr().out
    assert f"  1 CNN, 1 CNN*: folder:{images}: 30 for training, 20 for tests; not the full set" in shown
    assert "  CNN* on Fall 2011: no usable images: data.source=folder:fall2011: fall2011 does not" in shown
    with pytest.raises(UserError, match=r"^CNN\* on Fall 2011: no usable images: data\.source=folder:fall"):
        reproduce.main([flag for flag in flags if flag != "--check"])
    assert [*tmp_path.iterdir()] == []


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
            "changes": table(2).rows[row],
            "runs": [
                {
                    "workdir": f"{row}-{seed}", "seed": seed, "status": "done", "config": "0a",
                    "machine": "8 x H100", "seconds": 7200.0, "images": 1_281_167, "epochs": 90.0,
                    "products": "float32",
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
        tmp_path, table(2), {"rows": rows, "ensembles": ensembles}, ["1 CNN: not done: seed 3 (failed)"]
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
    line = "| 1 CNN*, 0 | done | 39.30 | 16.90 | 1,281,167, 50,000, 10 | 90.00 | 2.00 | CNN*-0, `0a` |"
    assert line in text
    assert "- 4 of 4 runs: 8 x H100; products float32\n" in text
    assert "full size: 1; see below" in text and "- 1 CNN: not done: seed 3 (failed)" in text
    assert "`configs/imagenet2012.py`, `configs/cnn_star.py`." in text and "Nothing: " not in text
    full = certificate.markdown({**values, "shortfalls": []})
    assert "full size: none" in full and "Nothing: images, settings, epochs and runs" in full


FULL = {"images": 1_261_406, "epochs": 93.0, "products": "float32", "status": "done"}
PRODUCTS = "convolutions and matrix products in"
H100 = "JAX's default precision on NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("flags", "seed_1", "lines"),
    [
        ([], {}, []),
        (["data.source=folder:/elsewhere", "run.log_every_steps=7"], {}, []),
        (["augment.mean=colour"], {}, ["augment.mean='colour'; the paper subtracted the mean image"]),
        (["model.compute_dtype=bfloat16"], {}, ["model.compute_dtype: None -> 'bfloat16'"]),
        (["data.batch_size=512"], {}, ["data.batch_size: 128 -> 512"]),
        (["data.max_bad_fraction=0.5"], {}, ["data.max_bad_fraction: 0.01 -> 0.5"]),
        (["run.eval_views=1"], {}, ["run.eval_views: 10 -> 1"]),
        (["run.total_epochs=9.0"], {"epochs": 9.0}, ["9 epochs instead of 93 epochs"]),
        (["run.total_steps=1000"], {"epochs": 0.1}, ["1,000 steps instead of 93 epochs"]),
        (["init.path=alexnet.pth"], {}, ["init.path: None -> 'alexnet.pth'"]),
        ([], {"epochs": 60.0}, ["seed 1 ended after 60.0 of 93 epochs"]),
        ([], {"status": "diverged", "eval": None}, ["not done: seed 1 (diverged)"]),
        ([], {"products": H100}, [f"{PRODUCTS} {H100}; in 2012 they were float32"]),
        (
            [],
            {"products": None},
            [f"{PRODUCTS} an unrecorded precision; in 2012 they were float32"],
        ),
        ([], {"images": 600_000}, [f"trained on 600,000 images, tested on 150,000, {NOT_FULL}"]),
        (
            [],
            {"images": None, "eval": {"examples": 149_999}},
            [f"trained on an unknown number of images, tested on 149,999, {NOT_FULL}"],
        ),
    ],
)
def test_the_certificate_names_whatever_differs_from_full_size(flags, seed_1, lines, tmp_path):
    table_1 = table(1)
    given = dict(flag.split("=") for flag in flags)
    parent = {"augment.mean": "image", **{key: reproduction._value(value) for key, value in given.items()}}
    runs = sweep_plan.plan(dataclasses.replace(table_1, parent=parent), tmp_path)
    made = [{"seed": seed, **FULL, "eval": {"examples": 150_000}} for seed in (0, 1, 2)]
    made[1] |= seed_1
    results = {"rows": [{"row": "parent", "runs": made}]}
    found = reproduction.shortfalls(table_1, runs, sweep_plan.plan(table_1, tmp_path), results)
    assert found == [f"CNN: {line}" for line in lines]


@pytest.mark.parametrize(
    ("precision", "device", "products"),
    [
        (None, "cpu", "float32"),
        ("highest", "NVIDIA H100", "float32"),
        (None, "NVIDIA H100", "JAX's default precision on NVIDIA H100"),
        ("bfloat16", "cpu", "JAX's bfloat16 precision on cpu"),
    ],
)
def test_the_precision_of_products_is_float32_on_a_cpu_or_where_it_was_asked_for(precision, device, products):
    assert sweep_results.products({"matmul_precision": precision, "device": device}) == products
    assert sweep_results.products({"device": device}) is None  # by an older checkpoint


@pytest.mark.slow
def test_a_small_table_from_check_to_certificate(images, tmp_path, capfd):
    flags = ["--table=1", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", *small(images)]
    assert reproduce.main([*flags, "--check", "--images_per_second=50", "--price=2"]) == 0
    shown = capfd.readouterr().out
    assert shown.count("not begun") == 3
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
    assert f"CNN: trained on 30 images, tested on 20, {NOT_FULL}" in values["shortfalls"]
    assert "CNN: 4 steps instead of 93 epochs" in values["shortfalls"]
    assert not any("products" in line for line in values["shortfalls"])  # float32 on a CPU
    capfd.readouterr()
    assert reproduce.main([*flags, "--check"]) == 0  # nothing is left, so no speed is measured
    assert "  0 images" in capfd.readouterr().out
    (tmp_path / "runs").rename(tmp_path / "elsewhere")  # only results.json came along
    assert reproduce.main([*flags, "--check"]) == 0
    assert "runs, 3 of 3 done" in capfd.readouterr().out


@pytest.mark.slow
def test_a_small_table_2_has_pre_training_of_its_own_images_and_ensembles(images, tmp_path, monkeypatch):
    """Fewer nets than the table's nine, but all its rows and averages."""
    averages = {"5 CNNs": {"parent": (0, 1)}, "7 CNNs*": {"parent": (0, 1), "CNN*": (0,)}}
    only = {"CNN* on Fall 2011": (0,), "CNN*": (0,)}
    fewer = dataclasses.replace(table(2), seeds=(0, 1), only=only, ensembles=averages)
    monkeypatch.setattr(sweep_plan, "read", lambda path: fewer)
    fall = tiny.make_images(tmp_path / "fall2011", train=2, test=1)
    (row, classes) = (f"--set=CNN* on Fall 2011: {key}" for key in ("data.source", "data.num_classes"))
    flags = ["--table=2", f"--runs={tmp_path / 'runs'}", "--images_per_second=50", *small(images)]
    assert reproduce.main([*flags, f"{row}=folder:{fall}", f"{classes}=10"]) == 0
    values = json.loads((tmp_path / "runs" / "certificate.json").read_text())
    trained_on = {run["net"]: (run["images"], run["eval"]["views"]) for run in values["runs"]}
    assert trained_on == {"1 CNN": (30, 10), "CNN* on Fall 2011": (20, 1), "1 CNN*": (30, 10)}
    assert [entry["n"] for entry in values["systems"]] == [2, 1, 1, 1]
    ensembles = json.loads((tmp_path / "runs" / "results.json").read_text())["ensembles"]
    for entry, average in zip(values["systems"][1::2], ensembles, strict=True):
        assert entry["ours"][0] == average["views"]["10"]["together"]["top1_error"]
    fall_line = "trained on 20 images, tested on 10, not the full set, which has over 14,000,000"
    assert f"CNN* on Fall 2011: {fall_line}" in values["shortfalls"]
    assert "1 CNN*: 4 steps instead of 54 epochs" in values["shortfalls"]
    start = json.loads((tmp_path / "runs" / "cnn-0" / "config.json").read_text())["init"]["path"]
    assert pathlib.Path(start) == tmp_path / "runs" / "cnn-on-fall-2011-0"


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
    planned = reproduction.with_overrides(["mesh.data=7"], planned)
    with pytest.raises(UserError, match=r"\(not begun: error: data\.batch_size=8: does not divide .*\)"):
        reproduction.images_per_second(sweep_plan.plan(planned, tmp_path), tmp_path)
