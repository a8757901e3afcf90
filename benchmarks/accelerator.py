"""Everything to know about this program on an accelerator, in one command without network or data.

    python -m benchmarks.accelerator --out=DIR [--minutes=7.5] [--torch_python=PYTHON] [--only=REGEX]

On one GPU or TPU, and on two where there are two:
  compiling    the first programs of `rates`, side by side on a GPU, where XLA tries many kernels for each
  correctness  forward pass, gradients and ten steps against recorded ones of PyTorch in float64
  rates        images/s and share of the published peak (MFU) in training and forward, in float32, with JAX's
               default precision (TF32 on NVIDIA) and in bfloat16, at batches of 128 to 2048; the same with
               XLA's own operations in the place of `alexnet_jax/kernels`; two columns on two devices
  default run  configs/default.py to its end, with its error
  loop         `benchmarks.whole_run` on records prepared from the photographs that the repository ships
  PyTorch      the same net there, channels last, compiled, AMP
  kernels      normalisation, pooling and fully connected layers beside plain XLA: times and differences

On a GPU `compiling`, `correctness` and `default run` come first, at once, as most of their time is that of
compilers. Each part has its share of --minutes; what a quick one leaves, the next ones get. A part that
fails or is cut off says so, and the next follows. DIR/accelerator-DEVICE.json and .md are written after each.
PyTorch is looked for in this Python, or in --torch_python, which needs nothing of this project.
`python -m benchmarks.report` puts the results in benchmarks/results into docs/speed.md.
--small tries everything on a narrow net, on any device; its rates mean nothing.
"""

import argparse
import concurrent.futures
import csv
import datetime
import functools
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError
from benchmarks import accelerator_parts, contestants, report, tables

Row = dict[str, Any]
Rows = tuple[list[Row], str | None]  # and why there are no more

PHOTOGRAPHS = tables.ROOT / "alexnet_jax" / "data" / "photographs"
# Of PyTorch's training step and forward pass: work, batch, precision, compiled.
TORCH = (
    ("train", 512, "default", False),
    ("train", 512, "bfloat16", False),
    ("train", 512, "bfloat16", True),
    ("train", 512, "default", True),
    ("forward", 512, "bfloat16", True),
    ("train", 512, "float32", True),
    ("forward", 512, "default", True),
    ("train", 128, "bfloat16", True),
    ("train", 2048, "bfloat16", True),
)
AT_ONCE = ("compiling", "correctness", "default run")
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # for processes that share a GPU
NO_TRIALS = "--xla_gpu_autotune_level=0"  # XLA's trials of kernels take most of the time on a GPU
NARROW = [f"--config.model.{name}={widths}" for name, widths in accelerator_parts.SMALL_NET.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("benchmarks.accelerator", __doc__)
    parser.add_argument("--out", type=command_line.new_folder, required=True)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--only", default="", help="regular expression: the parts to run")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args(argv)
    began = time.monotonic()
    about = describe(given)
    given.platform = about["platform"]
    path = given.out / f"accelerator-{re.sub('[^a-z0-9]+', '-', about['device'].lower())}.json"
    given.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"about": about, "parts": {}}
    stages = stages_of([name for name in PARTS if re.search(given.only, name)], given.platform)
    shares = [max(PARTS[name][0] for name in stage) for stage in stages]
    for number, stage in enumerate(stages):
        left = 60 * given.minutes - (time.monotonic() - began)
        budget = max(left * shares[number] / sum(shares[number:]), 1.0)
        print(f"{', '.join(stage)}: at most {budget:.0f} s", file=sys.stderr, flush=True)
        result["parts"].update(
            zip(stage, at_once(functools.partial(outcome, given, budget), stage), strict=True)
        )
        files.write_text(path, json.dumps(result, indent=1) + "\n")
        files.write_text(path.with_suffix(".md"), report.page(result))
    print(report.page(result), end="")
    print(f"files      {path}, {path.with_suffix('.md')}", file=sys.stderr)
    return 0


def stages_of(names: list[str], platform: str) -> list[list[str]]:
    """The parts that run at once, and each of the others by itself."""
    first = [name for name in names if name in AT_ONCE] if platform == "gpu" else []
    return [*([first] if first else []), *([name] for name in names if name not in first)]


def at_once(run: Callable[[str], dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """`run` of each name; of one alone in this thread, where an interrupt ends it at once."""
    if len(names) == 1:
        return [run(names[0])]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(run, names))


def outcome(given: argparse.Namespace, budget: float, name: str) -> dict[str, Any]:
    """A part's rows, its time, and why it ended early, if it did."""
    start = time.monotonic()
    try:
        rows, failed = PARTS[name][1](given, budget)
    except Exception as error:  # whatever an unknown device brings is a result
        rows, failed = [], f"{type(error).__name__}: {error}"[:200]
    done = {"seconds": round(time.monotonic() - start, 1), "budget": round(budget, 1), "rows": rows}
    return done | ({"failed": failed} if failed else {})


def describe(given: argparse.Namespace) -> dict[str, Any]:
    """The device, its driver, the versions; whether this is only a try."""
    about = tables.answer(tables.ours_command("about"))
    if "failed" in about:
        raise UserError(f"JAX does not start here: {about['failed']}")
    query = ("nvidia-smi", "--query-gpu=driver_version,memory.total,power.limit", "--format=csv,noheader")
    return {
        **{key: about[key] for key in ("platform", "device", "devices", "runtime")},
        "driver": tables.first_line(*query),
        "small": given.small,
        "correctness": f"with {NO_TRIALS}" if about["platform"] == "gpu" else None,
        "date": datetime.date.today().isoformat(),
        "commit": tables.commit(),
        **tables.machine(),
        "versions": about["versions"],
    }


def part_command(given: argparse.Namespace, *arguments: str) -> tuple[str, ...]:
    small = ("--small",) if given.small else ()
    return sys.executable, "-m", "benchmarks.accelerator_parts", *arguments, *small


def in_own_process(part: str) -> Callable[[argparse.Namespace, float], Rows]:
    """A part of `accelerator_parts`."""
    return lambda given, budget: tables.answers(part_command(given, part), timeout=budget)


def side_by_side(
    part: str, of: Callable[[bool], Sequence[str]], gpu_flags: str = ""
) -> Callable[[argparse.Namespace, float], Rows]:
    """A part of `accelerator_parts` in a process for each of its pieces: at once, but one by one on a TPU.

    A TPU is one process's alone; on a GPU each takes only the memory that it needs. `gpu_flags` are XLA's.
    """

    def run(given: argparse.Namespace, budget: float) -> Rows:
        end = time.monotonic() + budget

        def piece(name: str) -> Rows:
            left = max(end - time.monotonic(), 1.0)
            return tables.answers(part_command(given, part, f"--piece={name}"), shared, timeout=left)

        shared = dict(SHARED)
        if gpu_flags and given.platform == "gpu":
            shared["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {gpu_flags}"
        processes = 1 if given.platform == "tpu" else max(tables.cores() // 2, 1)
        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            done = list(pool.map(piece, of(given.small)))
        rows = [row for rows, _ in done for row in rows]
        return rows, next((failed for _, failed in done if failed), None)

    return run


def default_run(given: argparse.Namespace, budget: float) -> Rows:
    """configs/default.py to its end: its error."""
    few = (
        "--config.run.total_epochs=None",
        "--config.run.total_steps=2",
        "--config.optimizer.drop_epochs=()",
    )
    with tempfile.TemporaryDirectory() as temporary:
        workdir = pathlib.Path(temporary) / "run"
        flags = (*NARROW, *few) if given.small else ()
        command = (sys.executable, "main.py", "--config=configs/default.py", f"--workdir={workdir}", *flags)
        _, failed = tables.answers(command, SHARED, timeout=budget)
        if failed:
            return [], failed
        status = json.loads((workdir / "status.json").read_text())
        errors = {f"top-{k} error, %": status["eval"][f"top{k}_error"] for k in (1, 5)}
        return [{"steps": status["step"], **errors}], None


def torch(given: argparse.Namespace, budget: float) -> Rows:
    """PyTorch's same net, as many of `TORCH` as there is time for."""
    rows, end = [], time.monotonic() + budget
    narrow = ("--image_size=64", "--widths=8,16,16,16,16", "--fc_widths=32,32", "--device=cpu")
    sizes = narrow if given.small else ("--device=cuda", "--calls=20")
    for work, batch, precision, compiled in (("train", 4, "default", False),) if given.small else TORCH:
        row = {"work": work, "batch": batch, "precision": precision, "compiled": "yes" if compiled else ""}
        options = ("--layout=channels_last", "--fused", f"--precision={precision}", "--warm=2", "--steps=3")
        command = (given.torch_python, str(contestants.THEIRS), work, f"--batch={batch}", *sizes, *options)
        left = end - time.monotonic()
        if left < 1:
            return rows, f"not done in {budget:.0f} s"
        result = tables.answer((*command, *(["--compiled"] if compiled else [])), timeout=left)
        if "failed" in result:
            rows.append(row | {"failed": result["failed"]})
            if len(rows) == 1:  # the others would fail, too
                return rows, None
            continue
        rate = {"images/s": result["images"] / statistics.median(result["seconds"])}
        memory = {"GB": result["device_peak_bytes"] / 1e9} if result["device_peak_bytes"] else {}
        rows.append(row | rate | memory | {"torch": result["torch"]})
    return rows, None


def loop(given: argparse.Namespace, budget: float) -> Rows:
    """The training loop on prepared records beside its own step, by `benchmarks.whole_run`."""
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        for photograph in PHOTOGRAPHS.glob("*.jpg"):
            folder = root / "photos" / photograph.stem
            folder.mkdir(parents=True)
            for number in range(4 if given.small else 256):
                (folder / f"{number}.jpg").symlink_to(photograph)
        few = [f"--config.data.{key}" for key in ("batch_size=8", "image_size=64", "resize_size=73")]
        small = ("--steps=4", "--log_every=2", "--", *NARROW, *few)
        sizes = small if given.small else ("--steps=300", "--log_every=50")
        command = (sys.executable, "-m", "benchmarks.whole_run", f"--photos={root / 'photos'}", "--prepared")
        once = ("--rounds=1", "--starts=0", f"--out={root}")
        _, failed = tables.answers((*command, *once, *sizes), timeout=budget)
        if failed:
            return [], failed
        with (root / "whole_run_prepared.csv").open(newline="") as file:
            rows = [{"what": row["what"], "value": float(row["median"])} for row in csv.DictReader(file)]
        return rows, None


# Each with its share of the time (of parts at once, the largest), the most telling first.
PARTS: dict[str, tuple[float, Callable[[argparse.Namespace, float], Rows]]] = {
    "compiling": (150, side_by_side("compiling", accelerator_parts.first_programs)),
    "correctness": (70, side_by_side("correctness", accelerator_parts.precisions, NO_TRIALS)),
    "rates": (70, in_own_process("rates")),
    "default run": (70, default_run),
    "loop": (130, loop),
    "PyTorch": (80, torch),  # takes as many of its settings as there is time for
    "kernels": (20, in_own_process("kernels")),
}

if __name__ == "__main__":
    command_line.command(main)
