"""The tables of docs/speed.md, and the page of a result of `benchmarks.accelerator`.

    python -m benchmarks.report [--check]

Makes the parts between the marks in docs/speed.md from benchmarks/results: a row for each accelerator, from
accelerator-*.json, and four for each kind of processor, from */speed.csv. With --check nothing is written;
the command fails if the page differs from what the results say.
"""

import csv
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError
from benchmarks import tables

RESULTS, PAGE = tables.ROOT / "benchmarks" / "results", tables.ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- {0}: made by python -m benchmarks.report -->", "<!-- {0}: end -->"
NETS = {"paper": "the paper's net", "torchvision": "torchvision's net"}
NONE = "Nobody has run it on an accelerator yet."
WHAT = {
    "compiling": "Seconds to trace and compile, side by side; kept on disk for the next time.",
    "correctness": "Largest relative deviation from PyTorch in float64 (tests/fixtures/record_torch.py).",
    "rates": "Of the paper's net on 224 x 224 images; GB of the compiled program.",
    "default run": "configs/default.py; on CPUs its top-1 error was 14.7 to 16.2 %.",
    "PyTorch": "The same net, channels last, fused SGD; bfloat16 is AMP.",
    "loop": "configs/imagenet2012.py on prepared records.",
    "kernels": "In float32 (`highest`).",
}


def page(result: dict[str, Any]) -> str:
    """A result as Markdown, a table for each part."""
    about = {**result["about"], **result["about"]["versions"]}
    label = {key: value for key, value in about.items() if key != "versions" and value is not None}
    paragraphs = [f"# {about['device']}\n", tables.heading(label)]
    if about["small"]:
        paragraphs.append("A try with --small, on a narrow net and small images: the rates mean nothing.\n")
    for name, part in result["parts"].items():
        paragraphs.append(f"## {name}\n\n{WHAT[name]} {part['seconds']:.0f} of {part['budget']:.0f} s.\n")
        if rows := part["rows"]:
            paragraphs.append(tables.markdown(rows, list(dict.fromkeys(key for row in rows for key in row))))
        if "failed" in part:
            paragraphs.append(f"Ended early: {part['failed']}\n")
    return "\n".join(paragraphs)


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """A result's row in docs/speed.md."""
    about, parts = result["about"], {name: part["rows"] for name, part in result["parts"].items()}
    row: dict[str, Any] = {"device": f"{about['device']}, {about['date']}, jax {about['versions']['jax']}"}
    judged = [one for name in ("correctness", "kernels") for one in parts.get(name, ()) if "right" in one]
    row["right"] = f"{sum(one['right'] == 'yes' for one in judged)} of {len(judged)}"
    rates = [one for one in parts.get("rates", ()) if "images/s" in one and not one["how"]]
    for precision in ("float32", "default", "bfloat16"):
        found = [one for one in rates if (one["work"], one["precision"]) == ("train", precision)]
        if found:
            best = max(found, key=lambda one: one["images/s"])
            share = f", MFU {best['MFU']:.2f}" if "MFU" in best else ""
            row[f"training, {precision}"] = f"{best['images/s']:,.0f} (batch {best['batch']}{share})"
    theirs: dict[tuple[Any, ...], float] = {}
    for one in parts.get("PyTorch", ()):
        theirs[_key(one)] = max(one.get("images/s", 0), theirs.get(_key(one), 0))
    ratios = [one["images/s"] / best for one in rates if (best := theirs.get(_key(one)))]
    if ratios:
        compiled = any(one["compiled"] and "images/s" in one for one in parts["PyTorch"])
        row["of PyTorch's best"] = f"{min(ratios):.2f} to {max(ratios):.2f}"
        row["of PyTorch's best"] += "" if compiled else " (not compiled)"
    loop = {one["what"]: one["value"] for one in parts.get("loop", ())}
    row["loop of bare step"] = loop.get("loop of bare step")
    row["default run, top-1 error, %"] = next(
        (run["top-1 error, %"] for run in parts.get("default run", ())), None
    )
    return row


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["work"], one["batch"], one["precision"]


def accelerators(directory: pathlib.Path) -> str:
    """A row for each accelerator; tries and CPUs are left out."""
    results = [json.loads(path.read_text()) for path in sorted(directory.glob("accelerator-*.json"))]
    measured = [one for one in results if one["about"]["platform"] != "cpu" and not one["about"]["small"]]
    rows = [summary(one) for one in measured]
    return tables.markdown(rows, list(dict.fromkeys(key for row in rows for key in row))) if rows else NONE


def processors(directory: pathlib.Path) -> str:
    """Four rows for each kind of processor: the paper's net and torchvision's, in training and forward."""
    paths = sorted(directory.glob("*/speed.csv"))  # with PyTorch's rates
    rows = [row for path in paths for row in of_processor(path)]
    return tables.markdown(rows, list(dict.fromkeys(key for row in rows for key in row)))


def of_processor(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a `speed.csv`; shares of the limit by today's count of operations."""
    from alexnet_jax.run import summary as summaries  # here, as it imports JAX
    from alexnet_jax.variants import create_model

    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    limit = next((row["setting"] for row in found if row["contestant"] == "limit: matrix products"), "")
    if not limit or not any(row["contestant"].startswith("PyTorch") for row in found):
        return []  # made without PyTorch, or not on a CPU
    about = found[0]
    machine = f"{path.parent.name}: {about['cores']} cores, {limit}, {about['date']}, jax {about['jax']}"
    rows: list[dict[str, Any]] = []
    for net, work in itertools.product(NETS, ("train", "forward")):
        rates = {
            (row["contestant"], row["setting"]): float(row["images/s"])
            for row in found
            if row["contestant"].endswith(f" {net} {work}") and row["rounds"] not in ("", "tried once")
        }
        own = rates[f"ours {net} {work}", ""]
        theirs = {setting: rate for (name, setting), rate in rates.items() if name.startswith("PyTorch")}
        operations = summaries.operations(create_model(net), 224, train=work == "train")
        row = {
            "machine": "" if rows else machine,
            "work": f"{NETS[net]}, {'training' if work == 'train' else work}",
            "ours, images/s": own,
            "of PyTorch as it comes": own / theirs.pop("as it comes"),
            "of PyTorch at its best": own / max(theirs.values()),
            "of the machine's limit": own * operations / 1e9 / float(limit.split()[0]),
        }
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("benchmarks.report", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    given = parser.parse_args(argv)
    text = made = PAGE.read_text()
    for name, table in (("processors", processors(RESULTS)), ("accelerators", accelerators(RESULTS))):
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = made.partition(begin)
        made = f"{before}{begin}\n\n{table.strip()}\n\n{end}{rest.partition(end)[2]}"
    if given.check and made != text:
        raise UserError(f"{PAGE}: is out of date; python -m benchmarks.report makes it")
    if not given.check:
        files.write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    command_line.command(main)
