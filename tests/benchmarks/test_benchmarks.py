"""The benchmarks run end to end, with a narrow net and without PyTorch."""

import csv
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import convolutions, growth, kernels, layers, report, speed_results, tables
from benchmarks.contestants import AS_IT_COMES, Contestant
from tests import tiny, xla

pytestmark = pytest.mark.slow

WIDTHS, FC_WIDTHS = tiny.NET["model.widths"], tiny.NET["model.fc_widths"]


def bench(module, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=tables.ROOT,
        env={**os.environ, "XLA_FLAGS": xla.flags(devices=1)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_speed_gathers_rounds_and_says_why_pytorch_is_absent(tmp_path):
    arguments = [
        f"--out={tmp_path}",
        "--batch=4",
        "--image_size=64",
        f"--widths={','.join(map(str, WIDTHS))}",
        f"--fc_widths={','.join(map(str, FC_WIDTHS))}",
        "--rounds=1",
        "--warm=1",
        "--steps=2",
        "--only=ours paper train",
        f"--torch_python={tmp_path / 'python'}",
    ]
    said = bench("speed", *arguments).stdout
    assert "PyTorch was left out" in said and "No such file" in said
    rows = {row["contestant"]: row for row in rows_of(tmp_path / "speed.csv")}
    assert set(rows) == {"ours paper train"}
    (train,) = (
        line
        for line in map(json.loads, (tmp_path / "speed.jsonl").read_text().splitlines())
        if line["contestant"] == "ours paper train"
    )
    assert len(train["seconds"]) == 2
    rate = 4 / (sum(train["seconds"]) / 2)
    assert float(rows["ours paper train"]["images/s"]) == pytest.approx(rate)
    assert float(rows["ours paper train"]["peak GB"]) == pytest.approx(train["peak_bytes"] / 1e9)
    assert rows["ours paper train"]["batch"] == "4" and rows["ours paper train"]["jax"]


def test_the_best_setting_and_the_goals_are_of_the_rounds_alone(tmp_path):
    results = speed_results.Results(tmp_path / "speed.jsonl", same={"batch": 128})

    def add(name, setting, part, seconds, **more):
        said = {"seconds": seconds, "images": 128, "peak_bytes": 4e9, **more}
        results.add(Contestant(name, setting), part, said)

    for part, seconds in (("round 0", [2.0, 2.0, 9.0]), ("round 1", [1.6]), ("round 2", [2.5])):
        add("ours paper train", "", part, seconds, operations=4e9)
        add("PyTorch paper train", AS_IT_COMES, part, [6.0])
        add("PyTorch paper train", "a", part, [4.0])
        add("PyTorch paper train", "b", part, [3.0])
    for setting, seconds in (("a", [1.0]), ("b", [2.0]), ("c", [3.0])):  # trials do not count
        add("PyTorch paper train", setting, "search", seconds)
    results.add(
        Contestant("limit XLA and NumPy", ""),
        "round 0",
        {"product_rates": {"XLA 2": 3e11, "NumPy 2": 5.12e11}, "copy_bytes_per_second": 1e10},
    )
    finals = [s for s in "abc" if results.is_final(Contestant("PyTorch paper train", s), 2)]
    assert finals == ["a", "b"]
    ratios = {
        (row["against"], row["goal"]): (row["ratio"], row["reached"]) for row in speed_results.judge(results)
    }
    assert ratios == {
        ("PyTorch paper train, as it comes", 2.2): (pytest.approx(3.0), "yes"),
        ("PyTorch paper train, best", 1.25): (pytest.approx(1.5), "yes"),
        ("limit", 0.68): (pytest.approx(64 / 128), "no"),
        ("peak memory in GB, at most", 6.0): (pytest.approx(4.0), "yes"),
    }
    again = speed_results.Results(tmp_path / "speed.jsonl", same={"batch": 64})
    assert again.rows(None) == []


def test_growth_leaves_out_what_the_memory_does_not_hold(tmp_path, monkeypatch):
    rows = [
        {"batch": 16, "image size": 10, "devices": 1, "peak GB": 1.0},
        {"batch": 32, "image size": 10, "devices": 1, "peak GB": 1.5},
    ]
    large = {"batch": 512, "image size": 10, "devices": 1}
    assert growth.expected_gigabytes(large, rows) == pytest.approx(1.0 + 0.5 * 31)
    monkeypatch.setattr(tables, "available_bytes", lambda: int(16e9))
    assert growth.measure(None, large, rows)["note"].startswith("left out: would need about 16 GB")

    net = json.dumps({"widths": WIDTHS, "fc_widths": FC_WIDTHS})
    bench(
        "growth",
        f"--out={tmp_path}",
        f"--net={net}",
        "--batches=4",
        "--sizes=64",
        "--devices=1,2",
        "--at=64,4",
        "--steps=2",
        "--warm=1",
    )
    measured = rows_of(tmp_path / "growth.csv")
    assert [row["what grows"] for row in measured] == ["batch", "image size", "devices", "devices"]
    assert all(float(row["seconds a step"]) > 0 for row in measured)
    assert measured[0]["seconds a step"] == measured[2]["seconds a step"]  # one point, measured once
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_kernels_agree_with_their_references(tmp_path):
    kernels.main(
        ["--batch=2", "--rounds=1", "--only=pool5 and|lrn2 and|conv1 forward|conv5|fc8", f"--out={tmp_path}"]
    )
    rows = rows_of(tmp_path / "kernels.csv")
    assert len(rows) == 6
    for row in rows:
        assert float(row["difference"]) <= 1e-5 * float(row["largest"]), row["kernel"]


def test_convolutions_by_width_and_image_size(tmp_path):
    arguments = ["--sizes=32,56", "--widths=8,24", "--batch=2", "--rounds=1", "--only=conv1|conv4 input"]
    convolutions.main([*arguments, f"--out={tmp_path}"])
    rows = rows_of(tmp_path / "convolutions.csv")
    assert [(row["layer"], row["images"], row["filters"], row["program"]) for row in rows] == [
        (layer, size, width, program)
        for layer, programs in (
            ("conv1", ("forward", "kernel gradient")),
            ("conv4", ("input gradient",)),
        )
        for size in ("32", "56")
        for width in ("8", "24")
        for program in programs
    ]
    assert all(float(row["GFLOP/s"]) > 0 and float(row["times XLA"]) > 0 for row in rows)
    with Image.open(tmp_path / "convolutions.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(("size", "sides"), [(224, (224, 27, 13)), (64, (64, 7, 3)), (32, (32, 3, 1))])
def test_maps_that_the_layers_see(size, sides):
    assert tuple(convolutions.maps_side(layer, size) for layer in ("conv1", "conv2", "conv3")) == sides


def test_a_row_of_rates_by_hand():
    large = 2 * 2048**3  # operations of the product
    seconds = {  # wall and processor, two rounds; the second on a busy machine
        "ours": [(1.0, 2.0), (4.0, 2.0)],
        "xla": [(2.0, 3.0), (12.0, 3.0)],
        "product": [(1.0, 1.0), (8.0, 1.0)],
    }
    row = convolutions.row_of({"layer": "conv1"}, seconds, large // 2)
    assert row["times XLA"] == 2.5 and row["times XLA, processor time"] == 1.5
    assert row["of the product"] == 0.25 and row["<"] == "<"  # half the operations in twice the time
    assert row["GFLOP/s"] == pytest.approx(large / 2 / 2.5 / 1e9)


def test_layers_of_torchvisions_net():
    # By hand: 27 x 27 places, windows of 5 x 5 places in 64 maps, 192 filters, two a multiply-accumulate.
    assert layers.operations("conv2") == 2 * 729 * 1600 * 192
    assert layers.operations("conv1") == 2 * 55**2 * 363 * 64
    assert layers.operations("fc8") == 2 * 4096 * 1000
    names = [f"{layer} {program}" for layer, program in layers.programs()]
    assert len(names) == 8 * 3 - 1 and "conv1 input gradient" not in names
    found = layers.ours(batch=1, warm=1, steps=2)
    assert list(found) == names and all(len(seconds) == 2 for seconds in found.values())


def test_rows_of_layers_by_hand():
    names = [f"{layer} {program}" for layer, program in layers.programs()]
    ours = {name: [0.004, 0.006, 0.005] for name in names}
    theirs = {name: [0.003] for name in names} | {"fc8 forward": [0.008, 0.010]}
    *rows, total = layers.rows_of({"ours": ours, "theirs": theirs}, batch=2)
    fc8 = next(row for row in rows if (row["layer"], row["program"]) == ("fc8", "forward"))
    assert fc8["ours, ms an image"] == pytest.approx(2.5) and fc8["difference, ms"] == pytest.approx(-2.0)
    assert fc8["ours, GFLOP/s"] == pytest.approx(2 * 4096 * 1000 / 0.0025 / 1e9)
    assert total["difference, ms"] == pytest.approx(22 * 1.0 - 2.0)
    assert tuple(rows[0]) == layers.COLUMNS


def test_a_whole_run_is_measured(tmp_path):
    photos = tiny.make_images(tmp_path / "photos", train=2, test=1)
    net = [f"--config.{key}={value}" for key, value in tiny.NET.items()]
    bench(
        "whole_run",
        f"--photos={photos / 'train'}",
        "--rounds=1",
        "--starts=1",
        "--steps=4",
        "--log_every=2",
        f"--out={tmp_path}",
        "--",
        *net,
    )
    rows = {row["what"]: float(row["median"]) for row in rows_of(tmp_path / "whole_run.csv")}
    share = rows["loop, images/s"] / rows["bare step, images/s"]
    assert rows["loop of bare step"] == pytest.approx(share)
    assert rows["cold first step, s"] > 0 and rows["warm first step, s"] > 0
    assert 0.1 < rows["peak memory, GB"] < 10


def test_input_pipeline_compares_what_is_there(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "photos" / "val" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
        (tmp_path / "photos" / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
    out = tmp_path / "rates.json"
    arguments = ["--rounds=1", "--images=128", f"--photos={tmp_path / 'photos'}", f"--out={out}"]
    said = bench("input_pipeline", *arguments).stdout
    rates = json.loads(out.read_text())["rates"]
    assert set(rates) == {"decode only", "raw", "prepared"} and all(rate > 0 for (rate,) in rates.values())
    assert f"{rates['raw'][0] / rates['decode only'][0]:.2f}" in said


def test_a_processor_s_rows_in_the_guide(tmp_path):
    path = tmp_path / "abacus" / "speed.csv"
    path.parent.mkdir()
    about = {"cores": 2, "date": "2026-11-26", "jax": "0.10.2"}
    rows: list[dict[str, object]] = [{"contestant": "limit: matrix products", "setting": "414 GFLOP/s"}]
    for net, work in itertools.product(("paper", "torchvision"), ("train", "forward")):
        theirs = {
            "as it comes": (30, 2),
            "channels last": (80, 2),
            "compiled": (75, 2),
            "tried": (90, "tried once"),
        }
        rows.append({"contestant": f"ours {net} {work}", "setting": "", "images/s": 60, "rounds": 2})
        rows += [
            {"contestant": f"PyTorch {net} {work}", "setting": setting, "images/s": rate, "rounds": rounds}
            for setting, (rate, rounds) in theirs.items()
        ]
    tables.write_csv(path, rows, about)
    first, *others = report.of_processor(path)
    assert first["machine"] == "abacus: 2 cores, 414 GFLOP/s, 2026-11-26, jax 0.10.2"
    assert first["of PyTorch as it comes"] == 2 and first["of PyTorch at its best"] == 0.75
    # 4.14 GFLOP for an image in training, by hand: three times those of `--mode=summary`, less conv1's input.
    assert first["of the machine's limit"] == pytest.approx(60 * 4.14 / 414, rel=2e-3)
    assert [row["work"] for row in others][-1] == "torchvision's net, forward"
    assert "| abacus: 2 cores" in report.processors(tmp_path)
