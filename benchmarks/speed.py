"""How fast the net is, compared with PyTorch doing the same work and with the machine's limit.

    python -m benchmarks.speed [--torch_python=PYTHON] [--eqxvision_python=PYTHON] [--batch=128] [--rounds=3]
                               [--out=DIR] [--only=REGEX]

Each contestant runs in a process of its own, one at a time. They take turns, round after round, so that other
load on the machine affects all alike. The result of a round is the median of its steps; the table has the
median of the rounds and their spread.

`--torch_python` is a Python with PyTorch and torchvision; it needs nothing of this project. PyTorch runs as
it comes (channels first, no compiler, default SGD, glibc's malloc as it is) and at its best: before the
rounds each combination of layout, torch.compile, huge pages and kept memory is tried once, with fused SGD.
For each work the --finalists fastest take part in all rounds; the one with the best median is PyTorch's best.
`--eqxvision_python` is a Python with eqxvision (`benchmarks/theirs_eqx.py` says how to make it), as it comes.

Results accumulate in `--out`: DIR/speed.jsonl has a line for each process, and DIR/speed.csv and DIR/speed.md
are made from all of them, so that `--only` can add contestants or repeat rounds that were disturbed. Use a
fresh DIR for a fresh comparison.
On a GPU or TPU only our own rates are measured, with their share of the chip's published peak.
"""

import argparse
import datetime
import pathlib
import re
import tempfile
from typing import Any

from alexnet_jax.common import command_line
from benchmarks import contestants, speed_results, tables
from benchmarks.contestants import AS_IT_COMES, Contestant

COLUMNS = (
    "contestant",
    "setting",
    "images/s",
    "spread",
    "ms an image",
    "share of the limit",
    "of peak",
    "peak GB",
    "rounds",
)


def main() -> None:
    parser = tables.Parser("speed", __doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--eqxvision_python")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument(
        "--finalists", type=int, default=2, help="PyTorch's settings that take part in all rounds"
    )
    parser.add_argument("--search_steps", type=int, default=2, help="timed steps of each setting tried")
    parser.add_argument("--only", default="", help="regular expression: the contestants to run now")
    parser.add_argument("--out", type=command_line.new_folder)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--widths", help="filters of conv1 to conv6, for a quick try")
    parser.add_argument("--fc_widths", help="units of fc6 and fc7, for a quick try")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(given, given.out or pathlib.Path(temporary))


def compare(given: argparse.Namespace, out: pathlib.Path) -> None:
    """Runs the chosen contestants and prints the tables of all results in `out`."""
    about = tables.answer(tables.ours_command("about"))
    if "failed" in about:
        raise SystemExit(f"this project's own net does not start: {about['failed']}")
    on_cpu = about["platform"] == "cpu"
    absent = missing_torch(given, about)
    with_eqxvision = given.eqxvision_python and on_cpu
    if with_eqxvision:
        about["versions"] |= contestants.eqxvision_about(given.eqxvision_python).get("versions", {})
    out.mkdir(parents=True, exist_ok=True)
    kind = {key: getattr(given, key) for key in ("batch", "image_size", "widths", "fc_widths")}
    results = speed_results.Results(out / "speed.jsonl", same=kind)
    chosen = contestants.ours(given, about["platform"])
    if with_eqxvision:
        chosen += contestants.eqxvision(given)
    chosen = [one for one in chosen if re.search(given.only, one.name)]
    if not absent:
        chosen += search(given, results)
    for number in range(given.rounds):
        for contestant in chosen:
            steps = (f"--warm={given.warm}", f"--steps={given.steps}")
            results.add(contestant, f"round {number}", contestant.run(*steps))

    label = {
        **tables.machine(),
        "date": f"{datetime.date.today():%Y-%m-%d}",
        "device": about["device"],
        "precision": "float32" if on_cpu else "float32 and bfloat16",
        "batch": given.batch,
        "image_size": given.image_size,
        **about["versions"],
    }
    rows = results.rows(about["peaks"])
    for row in rows:
        row["precision"] = "bfloat16" if row["setting"] == "bfloat16" else "float32"
    as_in_the_goals = (
        on_cpu and given.batch == 128 and given.image_size == 224 and not (given.widths or given.fc_widths)
    )
    goals = speed_results.judge(results) if as_in_the_goals else []
    text = report(rows, goals, label, absent)
    print(text, end="")
    tables.write_csv(out / "speed.csv", [*rows, *goals], label)
    (out / "speed.md").write_text(text)


def missing_torch(given: argparse.Namespace, about: dict[str, Any]) -> str:
    """Why PyTorch takes no part, or "" after adding its versions to `about`."""
    if about["platform"] != "cpu":
        return "PyTorch is compared on the CPU only"
    if not given.torch_python:
        return "no --torch_python was given"
    torch = contestants.torch_about(given.torch_python)
    if "failed" in torch:
        return f"{given.torch_python} has no PyTorch and torchvision ({torch['failed']})"
    about["versions"] |= torch["versions"]
    return ""


def search(given: argparse.Namespace, results: speed_results.Results) -> list[Contestant]:
    """Tries each of PyTorch's settings once; returns those that take part in all rounds."""
    candidates = [one for one in contestants.torch(given) if re.search(given.only, one.name)]
    for candidate in candidates:
        if candidate.setting != AS_IT_COMES and not results.has(candidate, "search"):
            steps = ("--warm=1", f"--steps={given.search_steps}")
            results.add(candidate, "search", candidate.run(*steps))
    return [one for one in candidates if one.setting == AS_IT_COMES or results.is_final(one, given.finalists)]


def report(
    rows: list[dict[str, Any]], goals: list[dict[str, Any]], label: dict[str, Any], absent: str
) -> str:
    """The tables as Markdown."""
    shown = [column for column in COLUMNS if any(column in row for row in rows)]
    parts = [tables.heading(label)]
    if absent:
        parts.append(f"PyTorch was left out: {absent}.\n")
    parts.append(tables.markdown(rows, shown))
    if goals:
        parts.append(tables.markdown(goals, ("ours", "against", "ratio", "goal", "reached")))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
