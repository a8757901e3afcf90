"""How fast the net is, beside PyTorch doing the same work and beside the machine's limit.

    python -m benchmarks.speed [--torch_python=PYTHON] [--eqxvision_python=PYTHON] [--batch=128] [--rounds=3]
                               [--out=DIR] [--only=REGEX]

Each contestant runs in a process of its own, one at a time, and all take turns, round after round, so that
what else the machine does falls on all alike. Of each round counts the median of its steps; the table has the
median of the rounds and their spread.

`--torch_python` is a Python with PyTorch and torchvision, which need nothing of this project. PyTorch runs as
it comes (channels first, no compiler, its default SGD, glibc's malloc as it is) and at its best: before the
rounds each combination of layout, torch.compile, huge pages and kept memory is tried once, with fused SGD,
and the --finalists fastest of each work take part in all rounds; the best is the one with the best median.
`--eqxvision_python` is one with eqxvision (`benchmarks/theirs_eqx.py` says how to make it), as it comes.

`--out` gathers: DIR/speed.jsonl has a line a process, DIR/speed.csv and DIR/speed.md are made of all of them,
so that `--only` can add to them or repeat what was disturbed; a fresh DIR is a fresh comparison.
On a GPU or TPU only our own rates are measured, with their share of the chip's published peak.
"""

import argparse
import itertools
import json
import pathlib
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks import tables

THEIRS = pathlib.Path(__file__).with_name("theirs.py")
THEIRS_EQX = pathlib.Path(__file__).with_name("theirs_eqx.py")
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
KEPT = {  # what alexnet_jax.common.memory sets for ours
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
MEMORY = {"": {}, "huge pages": HUGE, "kept memory": KEPT, "huge pages, kept memory": {**HUGE, **KEPT}}
AS_IT_COMES = "as it comes"
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

# The comparisons: ours, the other, whether the other is as it comes or at its best, and the ratio wanted.
GOALS = (
    ("ours paper train", "PyTorch paper train", AS_IT_COMES, 2.2),
    ("ours paper train", "PyTorch paper train", "best", 1.25),
    ("ours paper train", "PyTorch no lrn train", "best", 0.9),
    ("ours paper train", "limit", "", 0.68),
    ("ours paper forward", "PyTorch paper forward", AS_IT_COMES, 1.9),
    ("ours paper forward", "PyTorch paper forward", "best", 1.3),
    ("ours torchvision train", "PyTorch torchvision train", AS_IT_COMES, 1.0),
    ("ours torchvision train", "PyTorch torchvision train", "best", 1.0),
    ("ours torchvision forward", "PyTorch torchvision forward", AS_IT_COMES, 1.0),
    ("ours torchvision forward", "PyTorch torchvision forward", "best", 1.0),
    ("ours torchvision train", "eqxvision train", AS_IT_COMES, 1.0),
    ("ours torchvision forward", "eqxvision forward", AS_IT_COMES, 1.0),
    ("ours paper ten views", "ours paper forward", "", 0.95),
)
MOST_GIGABYTES = 6.0  # of "ours paper train" at batch 128


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--torch_python")
    parser.add_argument("--eqxvision_python")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--finalists", type=int, default=2, help="PyTorch's settings that go into all rounds")
    parser.add_argument("--search_steps", type=int, default=2, help="timed steps of each setting tried")
    parser.add_argument("--only", default="", help="regular expression: the contestants to run now")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--widths", help="filters of conv1 to conv6, for a quick try")
    parser.add_argument("--fc_widths", help="units of fc6 and fc7, for a quick try")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(given, given.out or pathlib.Path(temporary))


def compare(given: argparse.Namespace, out: pathlib.Path) -> None:
    """Runs what is asked for and prints the tables of all that `out` has."""
    about = tables.answer(tables.ours_command("about"))
    if "failed" in about:
        raise SystemExit(f"this project's own net does not start: {about['failed']}")
    on_cpu = about["platform"] == "cpu"
    absent = missing_torch(given, on_cpu)
    if not absent:
        torch = tables.answer([given.torch_python, THEIRS, "about"])
        if "failed" in torch:
            absent = f"{given.torch_python} has no PyTorch and torchvision ({torch['failed']})"
        else:
            about["versions"] |= torch["versions"]
    if given.eqxvision_python and on_cpu:
        about["versions"] |= tables.answer([given.eqxvision_python, THEIRS_EQX, "about"]).get("versions", {})
    out.mkdir(parents=True, exist_ok=True)
    kind = {key: getattr(given, key) for key in ("batch", "image_size", "widths", "fc_widths")}
    results = Results(out / "speed.jsonl", same=kind)
    contestants = [c for c in ours(given, about) if re.search(given.only, c["contestant"])]
    if given.eqxvision_python and on_cpu:
        contestants += [c for c in eqxvision(given) if re.search(given.only, c["contestant"])]
    if not absent:
        candidates = [c for c in theirs(given) if re.search(given.only, c["contestant"])]
        for candidate in candidates:
            if not results.has(candidate, "search") and candidate["setting"] != AS_IT_COMES:
                steps = ("--warm=1", f"--steps={given.search_steps}")
                results.add(candidate, "search", run(candidate, steps))
        contestants += [
            c for c in candidates if c["setting"] == AS_IT_COMES or results.is_final(c, given.finalists)
        ]
    for number in range(given.rounds):
        for contestant in contestants:
            steps = (f"--warm={given.warm}", f"--steps={given.steps}")
            results.add(contestant, f"round {number}", run(contestant, steps))

    label = {
        **tables.machine(),
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
    goals = judge(results) if as_in_the_goals else []
    text = report(rows, goals, label, absent)
    print(text, end="")
    tables.write_csv(out / "speed.csv", [*rows, *goals], label)
    (out / "speed.md").write_text(text)


def missing_torch(given: argparse.Namespace, on_cpu: bool) -> str:
    """Why PyTorch takes no part; empty where it does."""
    if not on_cpu:
        return "PyTorch is compared on the CPU only"
    return "" if given.torch_python else "no --torch_python was given"


def ours(given: argparse.Namespace, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Our contestants: `contestant`, `setting`, `command`, `environment`."""

    def one(name: str, *arguments: str, precision: str = "") -> dict[str, Any]:
        return {
            "contestant": name,
            "setting": precision,
            "command": tables.ours_command(*arguments),
            "environment": {},
        }

    narrow = {
        key: [int(n) for n in text.split(",")]
        for key, text in (("widths", given.widths), ("fc_widths", given.fc_widths))
        if text
    }
    if about["platform"] == "cpu":
        yield one("limit XLA and NumPy", "limit")
    for precision in ("",) if about["platform"] == "cpu" else ("", "bfloat16"):
        net = narrow | ({"compute_dtype": precision} if precision else {})
        for variant, works in (
            ("paper", ("train", "forward", "ten views")),
            ("torchvision", ("train", "forward")),
        ):
            for work in works:
                yield one(
                    f"ours {variant} {work}",
                    work,
                    f"--variant={variant}",
                    f"--batch={given.batch}",
                    f"--image_size={given.image_size}",
                    f"--net={json.dumps(net)}",
                    precision=precision,
                )


def theirs(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """PyTorch's contestants, each as it comes and in all settings that may be its best."""

    def one(name: str, setting: str, *arguments: str, environment: dict[str, str]) -> dict[str, Any]:
        command = [given.torch_python, str(THEIRS), *arguments]
        return {"contestant": name, "setting": setting, "command": command, "environment": environment}

    yield one("limit PyTorch", AS_IT_COMES, "limit", environment={})
    for net, work in itertools.product(("paper", "no lrn", "torchvision"), ("train", "forward")):
        always = [work, f"--net={net}", f"--batch={given.batch}", f"--image_size={given.image_size}"]
        always += [f"--{key}={value}" for key in ("widths", "fc_widths") if (value := getattr(given, key))]
        name = f"PyTorch {net} {work}"
        yield one(name, AS_IT_COMES, *always, environment={})
        for layout, compiled, memory in itertools.product(
            ("channels_first", "channels_last"), (False, True), MEMORY
        ):
            arguments = [f"--layout={layout}", *(["--compiled"] if compiled else [])]
            arguments += ["--fused"] if work == "train" else []
            words = [layout.replace("_", " "), "compiled" if compiled else "", memory]
            words += ["fused SGD"] if work == "train" else []
            setting = ", ".join(word for word in words if word)
            yield one(name, setting, *always, *arguments, environment=MEMORY[memory])


def eqxvision(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """eqxvision's contestants, as they come."""
    sizes = (f"--batch={given.batch}", f"--image_size={given.image_size}")
    for work in ("train", "forward"):
        command = [given.eqxvision_python, str(THEIRS_EQX), work, *sizes]
        yield {
            "contestant": f"eqxvision {work}",
            "setting": AS_IT_COMES,
            "command": command,
            "environment": {},
        }


def run(contestant: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    said = tables.answer([*contestant["command"], *steps], contestant["environment"])
    name = f"{contestant['contestant']} ({contestant['setting'] or 'ours'})"
    if "failed" in said:
        print(f"{name}: {said['failed']}", file=sys.stderr)
    elif "seconds" in said:
        rate = said["images"] / statistics.median(said["seconds"])
        print(f"{name}: {rate:.1f} images/s", file=sys.stderr, flush=True)
    return said


class Results:
    """What the processes said, kept a line each in a file; only lines of the `same` batch count."""

    def __init__(self, path: pathlib.Path, same: dict[str, Any]):
        self._path, self._same = path, same
        lines = path.read_text().splitlines() if path.exists() else []
        self._lines = [line for line in map(json.loads, lines) if same.items() <= line.items()]

    def add(self, contestant: dict[str, Any], part: str, said: dict[str, Any]) -> None:
        line = {k: contestant[k] for k in ("contestant", "setting")} | {"part": part, **self._same, **said}
        self._lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, contestant: dict[str, Any], part: str) -> bool:
        return any(line["part"] == part for line in self._of(contestant["contestant"], contestant["setting"]))

    def _of(self, name: str, setting: str | None = None) -> list[dict[str, Any]]:
        return [
            line for line in self._lines if line["contestant"] == name and setting in (None, line["setting"])
        ]

    def is_final(self, contestant: dict[str, Any], finalists: int) -> bool:
        """Whether it was among the fastest of those tried."""
        tried = [
            line
            for line in self._of(contestant["contestant"])
            if line["part"] == "search" and "seconds" in line
        ]
        tried.sort(key=lambda line: statistics.median(line["seconds"]))
        return contestant["setting"] in [line["setting"] for line in tried[:finalists]]

    def rounds(self, name: str, setting: str) -> list[dict[str, Any]]:
        return [line for line in self._of(name, setting) if line["part"] != "search" and "failed" not in line]

    def product_rate(self) -> float | None:
        """The largest rate of matrix products: the best library and size, by the median of its rounds."""
        by_kind: dict[str, list[float]] = {}
        for line in self._lines:
            for kind, rate in line.get("product_rates", {}).items():
                by_kind.setdefault(kind, []).append(rate)
        return max((statistics.median(rates) for rates in by_kind.values()), default=None)

    def copy_rate(self) -> float | None:
        by_name: dict[str, list[float]] = {}
        for line in self._lines:
            if "copy_bytes_per_second" in line:
                by_name.setdefault(line["contestant"], []).append(line["copy_bytes_per_second"])
        return max((statistics.median(rates) for rates in by_name.values()), default=None)

    def operations(self, name: str) -> float | None:
        """An image's, counted from our net, of which the others' are the same."""
        own = re.sub("^PyTorch (no lrn|paper)", "ours paper", name).replace("PyTorch", "ours")
        own = own.replace("eqxvision", "ours torchvision")
        return next((line["operations"] for line in self._of(own) if "operations" in line), None)

    def rate(self, name: str, setting: str) -> float | None:
        """Images a second: the median of the rounds; setting `best` is the fastest one of all."""
        settings = dict.fromkeys(line["setting"] for line in self._of(name))
        if setting != "best":
            settings = {setting: None} if setting in settings else {}
        rates = [_median(rounds) for one in settings if (rounds := self.rounds(name, one))]
        return max(rates, default=None)

    def rows(self, peaks: list[float] | None) -> list[dict[str, Any]]:
        """A row a contestant and setting; settings that were tried only once say so."""
        rows = []
        product, copy = self.product_rate(), self.copy_rate()
        if product and copy:
            rows.append({"contestant": "limit: matrix products", "setting": f"{product / 1e9:.0f} GFLOP/s"})
            rows.append({"contestant": "limit: memory copied", "setting": f"{copy / 1e9:.1f} GB/s"})
        kinds = dict.fromkeys((line["contestant"], line["setting"]) for line in self._lines)
        for name, setting in kinds:
            lines = self._of(name, setting)
            rounds = self.rounds(name, setting)
            tried = [line for line in lines if line["part"] == "search"]
            counted = [line for line in rounds or tried if "seconds" in line]
            if not counted:
                if failed := [line for line in lines if "failed" in line]:
                    rows.append({"contestant": name, "setting": f"{setting}: {failed[-1]['failed']}"})
                continue
            rates = [_rate(line) for line in counted]
            median, operations = statistics.median(rates), self.operations(name)
            row = {
                "contestant": name,
                "setting": setting,
                "images/s": median,
                "spread": f"{min(rates):.1f}-{max(rates):.1f}",
                "ms an image": 1000 / median,
                "peak GB": max(line["peak_bytes"] or 0 for line in counted) / 1e9,
                "rounds": str(len(rounds)) if rounds else "tried once",
            }
            if operations and product:
                row["share of the limit"] = median * operations / product
            if operations and peaks and (peak := peaks[setting == "bfloat16"]):
                row["of peak"] = median * operations / (peak * 1e12)
            rows.append(row)
        return sorted(rows, key=lambda row: row.get("rounds") == "tried once")


def _rate(line: dict[str, Any]) -> float:
    return line["images"] / statistics.median(line["seconds"])


def _median(lines: list[dict[str, Any]]) -> float:
    return statistics.median(_rate(line) for line in lines)


def judge(results: Results) -> list[dict[str, Any]]:
    """The ratios wanted, and whether they are reached, of what was measured."""
    rows = []
    for mine, other, setting, goal in GOALS:
        rate = results.rate(mine, "")
        if other == "limit":
            product, operations = results.product_rate(), results.operations(mine)
            against = product / operations if product and operations else None
        else:
            against = results.rate(other, setting)
        if rate and against:
            reached = "yes" if rate / against >= goal else "no"
            against_name = f"{other}, {setting}".strip(", ")
            rows.append(
                {
                    "ours": mine,
                    "against": against_name,
                    "ratio": rate / against,
                    "goal": goal,
                    "reached": reached,
                }
            )
    peaks = [line["peak_bytes"] for line in results.rounds("ours paper train", "")]
    if peaks:
        most = max(peaks) / 1e9
        reached = "yes" if most < MOST_GIGABYTES else "no"
        rows.append(
            {
                "ours": "ours paper train",
                "against": "peak memory in GB, at most",
                "ratio": most,
                "goal": MOST_GIGABYTES,
                "reached": reached,
            }
        )
    return rows


def report(
    rows: list[dict[str, Any]], goals: list[dict[str, Any]], label: dict[str, Any], absent: str
) -> str:
    """The tables, in Markdown."""
    shown = [column for column in COLUMNS if any(column in row for row in rows)]
    parts = [", ".join(f"{key} {value}" for key, value in label.items()) + "\n"]
    if absent:
        parts.append(f"PyTorch was left out: {absent}.\n")
    parts.append(tables.markdown(rows, shown))
    if goals:
        parts.append(tables.markdown(goals, ("ours", "against", "ratio", "goal", "reached")))
    return "\n".join(parts)


if __name__ == "__main__":
    main()
