"""`benchmarks.accelerator` in its small form on the CPU, and the page made from its results."""

import copy
import json
import time

import pytest

from benchmarks import accelerator, report, tables
from tests import xla


@pytest.mark.slow
def test_every_part_in_the_small_form(tmp_path, monkeypatch):
    """In the order that a GPU has, with its first parts at once."""
    monkeypatch.setenv("XLA_FLAGS", xla.flags(devices=2))
    stages_of = accelerator.stages_of
    monkeypatch.setattr(accelerator, "stages_of", lambda names, platform: stages_of(names, "gpu"))
    no_torch = tmp_path / "python"  # the part says so, and the next ones follow
    arguments = [f"--out={tmp_path}", "--small", "--minutes=60", f"--torch_python={no_torch}"]
    assert accelerator.main(arguments) == 0
    result = json.loads((tmp_path / "accelerator-cpu.json").read_text())
    parts = result["parts"]
    assert list(parts) == [name for stage in stages_of(list(accelerator.PARTS), "gpu") for name in stage]
    assert not any("failed" in part for part in parts.values())
    assert {one["devices"] for one in parts["correctness"]["rows"]} == {"one device", "a column each"}
    assert all(one["right"] == "yes" for name in ("correctness", "kernels") for one in parts[name]["rows"])
    rates = parts["rates"]["rows"]
    assert len(rates) == 6 + 2 + 2 and {one["how"] for one in rates} == {"", "plain XLA", "a column each"}
    assert all(one["images/s"] > 0 and one["GB"] > 0 for one in rates)
    assert "No such file" in parts["PyTorch"]["rows"][0]["failed"]
    assert parts["default run"]["rows"][0]["steps"] == 2
    loop = {one["what"]: one["value"] for one in parts["loop"]["rows"]}
    assert loop["loop of bare step"] > 0
    text = (tmp_path / "accelerator-cpu.md").read_text()
    assert "A try with --small" in text and all(f"## {name}" in text for name in parts)
    assert report.accelerators(tmp_path).count(report.NONE) == 1  # a try on a CPU


def test_what_is_cut_off_leaves_what_it_had_and_all_its_processes_end(tmp_path):
    """By a shell, which begins at once, also on a busy machine."""
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    child = f"(touch {begun}; sleep 4; touch {ended}) &"
    code = f"""echo '{{"row": 1}}'; {child} printf '{{"row"'; sleep 60"""
    rows, failed = tables.answers(["sh", "-c", code], timeout=2)
    assert (rows, failed) == ([{"row": 1}], "not done in 2 s")
    assert begun.exists()
    time.sleep(3)
    assert not ended.exists()


def test_parts_at_once_and_parts_that_raise(monkeypatch):
    names = list(accelerator.PARTS)
    first = ["compiling", "correctness", "default run"]
    others = [[name] for name in names if name not in first]
    assert accelerator.stages_of(names, "gpu") == [first, *others]
    assert accelerator.stages_of(["rates", "loop"], "gpu") == [["rates"], ["loop"]]
    assert accelerator.stages_of(names, "tpu") == [[name] for name in names]

    def raising(given, budget):
        raise KeyError("eval")

    parts = {"x": (1, lambda given, budget: ([{"row": 1}], None)), "y": (1, raising)}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    x, y = accelerator.at_once(lambda name: accelerator.outcome(None, 2.0, name), ["x", "y"])
    assert x["rows"] == [{"row": 1}] and "failed" not in x
    assert y["rows"] == [] and y["failed"] == "KeyError: 'eval'"


RESULT = {
    "about": {
        "platform": "gpu",
        "device": "NVIDIA X",
        "small": False,
        "date": "2026-11-26",
        "driver": None,
        "versions": {"jax": "0.10.2"},
    },
    "parts": {
        "correctness": {
            "seconds": 9.0,
            "budget": 70.0,
            "rows": [
                {"what": "logits", "precision": "float32", "deviation": 1e-6, "limit": 1e-5, "right": "yes"},
                {"what": "losses", "precision": "float32", "deviation": 1e-3, "limit": 1e-4, "right": "no"},
            ],
        },
        "rates": {
            "seconds": 150.0,
            "budget": 150.0,
            "rows": [
                {"work": "train", "batch": b, "precision": "bfloat16", "how": how, "images/s": rate, "MFU": m}
                for b, how, rate, m in (
                    (512, "", 20_000.0, 0.2),
                    (512, "plain XLA", 90_000.0, 0.9),
                    (1024, "", 30_000.0, 0.3),
                )
            ]
            + [{"work": "train", "batch": 2048, "precision": "bfloat16", "how": "", "failed": "no memory"}],
            "failed": "not done in 150 s",
        },
        "PyTorch": {
            "seconds": 30.0,
            "budget": 80.0,
            "rows": [
                {
                    "work": "train",
                    "batch": 512,
                    "precision": "bfloat16",
                    "compiled": "",
                    "images/s": 10_000.0,
                },
                {
                    "work": "train",
                    "batch": 512,
                    "precision": "bfloat16",
                    "compiled": "yes",
                    "images/s": 16_000.0,
                },
            ],
        },
    },
}


def test_a_result_by_hand(tmp_path):
    row = report.summary(RESULT)
    assert row["right"] == "1 of 2"
    assert row["training, bfloat16"] == "30,000 (batch 1024, MFU 0.30)"
    assert row["of PyTorch's best"] == "1.25 to 1.25"
    text = report.page(RESULT)
    assert "no memory" in text and "Ended early: not done in 150 s" in text and "driver" not in text
    tried = copy.deepcopy(RESULT)
    tried["about"]["small"] = True
    for name, result in (("x", RESULT), ("y", tried)):
        (tmp_path / f"accelerator-{name}.json").write_text(json.dumps(result))
    assert report.accelerators(tmp_path).count("NVIDIA X, 2026-11-26, jax 0.10.2") == 1


def test_the_page_is_what_the_results_say():
    assert report.main(["--check"]) == 0, "python -m benchmarks.report"
