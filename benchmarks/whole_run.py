"""The cost of a run beside its steps: python -m benchmarks.whole_run --photos=DIR [--out=DIR].

Runs main.py on photographs (DIR holds a folder for each class; a few hundred are enough, since they repeat)
with configs/imagenet2012.py, the paper's net at batch 128, and measures:
  the loop     images/s from the run's metrics.jsonl, including reading and decoding
  bare step    the same compiled step on one batch in memory, in a process before and after each run
  first step   seconds from the start of the process to its line about the first step, with an empty
               compilation cache and with what the previous start left in it
  memory       the peak of the run's process
With --prepared it first prepares records from the photographs and trains from those (whole_run_prepared.md).
Runs and bare steps alternate, and a run is compared with the mean of the bare steps before and after it, so
that a machine that becomes slower or faster favours neither. `--config=` arguments after `--` go to main.py:
`-- --config.data.batch_size=32`.
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from alexnet_jax.common import command_line
from benchmarks import tables

GOALS = {
    "loop of bare step": (0.98, min),
    "cold first step, s": (25.0, max),
    "warm first step, s": (8.0, max),
}


def main() -> None:
    parser = tables.Parser("whole_run", __doc__)
    parser.add_argument("--photos", type=command_line.user_path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--starts",
        type=int,
        default=3,
        help="cold and warm starts to time; 0 for none, and compiled programs are kept as usual",
    )
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prepared", action="store_true", help="prepare records and train from them")
    parser.add_argument("--log_every", type=int, default=4)
    parser.add_argument("--out", type=command_line.new_folder)
    parser.add_argument("--bare", type=command_line.user_path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    if given.bare:
        print(json.dumps(bare(given.bare, given.steps)))
        return
    if given.photos is None or not given.photos.is_dir():
        parser.error("--photos: name a directory with a folder of photographs for each class")
    with tempfile.TemporaryDirectory() as temporary:
        measure(given, pathlib.Path(temporary))


def measure(given: argparse.Namespace, root: pathlib.Path) -> None:
    """Times the starts and the rounds, and prints the table."""
    source = make_source(given, root)
    flags = [
        "--config=configs/imagenet2012.py",
        f"--config.data.source={source}",
        "--config.data.num_classes=None",
        "--config.run.total_epochs=None",
        "--config.run.eval_every_epochs=None",
        "--config.run.save_every_epochs=None",
        "--config.run.eval_views=1",
        *given.overrides,
    ]
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    cache: dict[str, str] = {}  # with --starts=0 the one that every run uses
    for number in range(given.starts):
        cache = {"JAX_COMPILATION_CACHE_DIR": str(root / f"cache{number}")}
        for kind in seconds:
            seconds[kind].append(first_step(flags, root / f"{kind}{number}", cache))
            print(f"first step, {kind}: {seconds[kind][-1]:.1f} s", file=sys.stderr, flush=True)
    starts = [row(f"{kind} first step, s", values) for kind, values in seconds.items() if values]
    rates, memory, about = rounds(given, flags, root, cache)
    label = {
        **tables.machine(),
        "rounds": given.rounds,
        "images": source.split(":")[0],
        "precision": "float32",
        **about,
    }
    columns = ("what", "median", "lowest", "highest", "goal", "reached")
    name = "whole_run_prepared" if given.prepared else "whole_run"
    tables.publish(given.out, name, [*rates, *starts, memory], columns, label)


def make_source(given: argparse.Namespace, root: pathlib.Path) -> str:
    """`data.source` of the runs: the photographs as training and test images, or records of them."""
    for split in ("train", "val"):
        (root / "photos").mkdir(exist_ok=True)
        (root / "photos" / split).symlink_to(given.photos.resolve())
    source = f"folder:{root / 'photos'}"
    if not given.prepared:
        return source
    prepare = [sys.executable, "-m", "alexnet_jax", "prepare"]
    command = [*prepare, f"--source={source}", f"--out={root / 'records'}"]
    subprocess.run(command, cwd=tables.ROOT, check=True, stderr=subprocess.DEVNULL)
    return f"prepared:{root / 'records'}"


def rounds(
    given: argparse.Namespace, flags: list[str], root: pathlib.Path, cache: dict[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The rows of the rates, the row of the memory, and what the bare steps say about the machine."""
    loops, waits, peaks = [], [], []
    first_step(flags, root / "run", cache)  # not measured: the first bare step needs a run's directory
    bare_steps = [bare_process(root / "run", given.steps, cache)]
    for number in range(given.rounds):
        workdir = root / f"run{number}"
        rate, wait, peak = loop(flags, workdir, given, cache)
        loops.append(rate)
        waits.append(wait)
        peaks.append(peak / 1e9)
        bare_steps.append(bare_process(workdir, given.steps, cache))
        before, after = (one["images_per_second"] for one in bare_steps[-2:])
        print(
            f"bare, loop, bare: {before:.2f}, {rate:.2f}, {after:.2f} images/s", file=sys.stderr, flush=True
        )
    bare_rates = [one["images_per_second"] for one in bare_steps]
    shares = [
        2 * rate / (before + after)
        for rate, (before, after) in zip(loops, itertools.pairwise(bare_rates), strict=True)
    ]
    rows = [
        row("loop, images/s", loops),
        row("bare step, images/s", bare_rates),
        row("loop of bare step", shares),
        row("input waiting, share of the time", waits),
    ]
    return rows, row("peak memory, GB", peaks), bare_steps[0]["about"]


def bare_process(workdir: pathlib.Path, number: int, environment: dict[str, str]) -> dict[str, Any]:
    """Runs `bare` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.whole_run", f"--bare={workdir}", f"--steps={number}"]
    result = tables.answer(command, environment)
    if "failed" in result:
        raise SystemExit(f"the bare step failed: {result['failed']}")
    return result


def row(what: str, values: list[float]) -> dict[str, Any]:
    median = statistics.median(values)
    row = {"what": what, "median": median, "lowest": min(values), "highest": max(values)}
    if what in GOALS:
        goal, worse = GOALS[what]
        row |= {"goal": goal, "reached": "yes" if worse(median, goal) == goal else "no"}
    return row


def start(flags: list[str], workdir: pathlib.Path, environment: dict[str, str]) -> Any:
    command = [sys.executable, str(tables.ROOT / "main.py"), *flags, f"--workdir={workdir}"]
    return subprocess.Popen(
        command,
        cwd=tables.ROOT,
        env={**os.environ, **environment},
        text=True,
        stderr=subprocess.PIPE,
    )


def first_step(flags: list[str], workdir: pathlib.Path, environment: dict[str, str]) -> float:
    """Seconds from the start of a process to its line about the first step."""
    began = time.perf_counter()
    once = ("total", "log_every", "eval_every", "save_every")
    process = start([*flags, *(f"--config.run.{name}_steps=1" for name in once)], workdir, environment)
    lines, seconds = [], None
    for line in process.stderr:
        lines.append(line)
        if seconds is None and re.match(r"step 1/", line):
            seconds = time.perf_counter() - began
            process.terminate()  # evaluation and saving are not measured
    process.wait()
    if seconds is None:
        raise SystemExit(f"no first step: {''.join(lines[-5:])}")
    return seconds


def loop(
    flags: list[str], workdir: pathlib.Path, given: argparse.Namespace, environment: dict[str, str]
) -> tuple[float, float, int]:
    """A run's images/s without the first line of its log, the share of the time that it waited for input, and
    the peak memory of its process in bytes."""
    flags = [
        *flags,
        f"--config.run.total_steps={given.steps}",
        f"--config.run.log_every_steps={given.log_every}",
        *(f"--config.run.{name}_steps={given.steps}" for name in ("eval_every", "save_every")),
    ]
    process = start(flags, workdir, environment)
    log = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run failed: {log.strip().splitlines()[-1:]}")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if "train/images_per_second" in line]
    lines = lines[1:] or lines  # the first includes compiling and the start of the pipeline
    batch = json.loads((workdir / "config.json").read_text())["data"]["batch_size"]
    images = given.log_every * batch
    seconds = [images / line["train/images_per_second"] for line in lines]
    waited = sum(line["train/input_wait_seconds"] for line in lines)
    return images * len(lines) / sum(seconds), waited / sum(seconds), tables.maxrss_bytes(usage)


def bare(workdir: pathlib.Path, number: int) -> dict[str, Any]:
    """The rate of a run's own step on one batch, with as many steps in flight as in the loop."""
    from alexnet_jax.common import host

    host.keep_memory()
    host.keep_compiled()
    import jax

    from alexnet_jax import config as configs
    from alexnet_jax import train as training
    from alexnet_jax.data.batches import on_device
    from alexnet_jax.run import pace, status

    run = training.Run(configs.of_workdir(workdir), workdir)
    state = run.init_state()
    batches = training.open_batches(run, state.params, 0)
    _, batch = next(on_device(batches, run.mesh))
    del batches  # ends the pipeline's threads
    for _ in range(2):
        state, metrics = run.train_step(state, batch)
    jax.block_until_ready(metrics)
    in_flight, began = pace.InFlight(run.mesh), time.perf_counter()
    for _ in range(number):
        in_flight.make_room()
        state, metrics = run.train_step(state, batch)
        in_flight.add(metrics)
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - began
    data = run.config.data
    return {
        "images_per_second": number * data.batch_size / seconds,
        "about": {
            "device": jax.devices()[0].device_kind,
            "batch": data.batch_size,
            "image_size": data.image_size,
            **status.versions(),
        },
    }


if __name__ == "__main__":
    main()
