"""Section 3.3 on CIFAR-10, with the nets and schedules that its 13 % and 11 % come from.

    python -m alexnet_jax prepare --source=tfds:cifar10 --out=runs/cifar10-32 --resize_size=32
    python -m experiments.conv_local --source=prepared:runs/cifar10-32 --out=experiments/011-conv-local

"A four-layer CNN achieved a 13% test error rate without normalization and 11% with normalization." Footnote
3 leads to cuda-convnet's files, here configs/conv_local_13pct.py and configs/conv_local_11pct.py, tested in
nine views. `--shorter=8` divides the schedules, drops of the rate included, by 8.

A run that was interrupted goes on, one that is done is not repeated.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import command_line, files
from alexnet_jax.common.command_line import WRONG_USE
from alexnet_jax.common.errors import Fault, UserError

NETS = {"13pct": "without normalisation", "11pct": "with normalisation"}
PUBLISHED = {"13pct": 13.0, "11pct": 11.0}  # % top-1 error, section 3.3


def workdir(args: argparse.Namespace, net: str, seed: int) -> pathlib.Path:
    return args.runs / f"{net}-of{args.shorter:g}-seed{seed}"


def schedule(net: str, shorter: float) -> list[float]:
    """Epochs in all and at the drops of the rate, those of the net's config divided by `shorter`."""
    config = importlib.import_module(f"configs.conv_local_{net}").get_config()
    return [epochs / shorter for epochs in (config.run.total_epochs, *config.optimizer.drop_epochs)]


def run(args: argparse.Namespace, net: str, seed: int) -> None:
    """Trains one net to its end, unless that is done.

    Raises:
      UserError, Fault: the run ended otherwise and has said why, or it was done with other images.
    """
    path = workdir(args, net, seed)
    if _status(path) == "done":
        learnt = json.loads((path / "config.json").read_text())["data"]["source"]
        if learnt != args.source:
            raise UserError(f"--source={args.source}: {path} learnt {learnt}; choose another --runs")
        return
    total, *drops = schedule(net, args.shorter)
    flags = {
        "data.source": args.source,
        "run.seed": seed,
        "run.total_epochs": total,
        "optimizer.drop_epochs": f"({drops[0]}, {drops[1]})",
        "run.eval_every_epochs": total / 20,
        "run.save_every_epochs": total / 20,
    }
    command = [sys.executable, "-m", "experiments.in_memory", f"--config=configs/conv_local_{net}.py"]
    command += [f"--workdir={path}", *(f"--config.{key}={value}" for key, value in flags.items())]
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if args.at_once > 1 else {}
    done = subprocess.run(command, env={**os.environ, **memory})
    if done.returncode == WRONG_USE:
        raise UserError(f"{path}: not trained; the run's own error line says why")
    if done.returncode or _status(path) != "done":
        raise Fault(f"{path}: the run ended with code {done.returncode}; the same command goes on")


def _status(path: pathlib.Path) -> str | None:
    status = path / "status.json"
    return json.loads(status.read_text())["status"] if status.exists() else None


def read(args: argparse.Namespace, net: str, seed: int) -> dict[str, Any]:
    """A run's result: errors in %, its rate, and the curves of errors by epoch."""
    from alexnet_jax.run import logs  # late, as it imports JAX

    lines = logs.read_metrics(workdir(args, net, seed))
    tests = [line for line in lines if "eval/top1_error" in line]
    steps: Any = [line for line in lines if "train/top1_error" in line]
    # Means over about twenty parts of the run, as single lines are over a hundred steps.
    parts = np.array_split(steps, min(20, len(steps)))
    trained = [(part[-1]["epoch"], float(np.mean([x["train/top1_error"] for x in part]))) for part in parts]
    return {
        "test_error": tests[-1]["eval/top1_error"],
        "train_error": trained[-1][1],
        "epochs": tests[-1]["epoch"],
        "images_per_second": float(np.median([line["train/images_per_second"] for line in steps])),
        "test_curve": [(line["epoch"], line["eval/top1_error"]) for line in tests],
        "train_curve": trained,
    }


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Test errors beside the paper's as Markdown, and the difference by seed with Student's 95 % interval."""
    from experiments import sweep_statistics  # late, as SciPy takes a second

    lines = [
        "| net | epochs | test error by seed, % | mean ± sd | paper, % | training error, last twentieth, % |"
    ]
    lines += ["|---|---:|---|---|---:|---:|"]
    for net, runs in found.items():
        errors = [run["test_error"] for run in runs]
        spread = f"{np.mean(errors):.2f}" + (f" ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else "")
        by_seed = ", ".join(f"{error:.2f}" for error in errors)
        trained = np.mean([run["train_error"] for run in runs])
        cells = [
            NETS[net],
            f"{runs[0]['epochs']:.0f}",
            by_seed,
            spread,
            f"{PUBLISHED[net]:g}",
            f"{trained:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    plain, normalised = (dict(enumerate(run["test_error"] for run in found[net])) for net in NETS)
    difference = sweep_statistics.difference(normalised, plain, None)
    if difference is not None and difference.own is not None:
        interval = f"{difference.mean:+.2f} ± {difference.own:.2f} points (95 %, paired by seed)"
        lines += ["", f"With normalisation {interval}; the paper: -2."]
    return "\n".join(lines) + "\n"


def plot(path: pathlib.Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Errors by epoch: test solid, training dashed, a line for each seed; the paper's as dotted lines."""
    from experiments import plots

    with plots.figure(path) as (picture, axes):
        for number, (net, runs) in enumerate(found.items()):
            colour = f"C{number}"
            tests = [run["test_curve"] for run in runs]
            plots.lines_of_seeds(axes, tests, f"{NETS[net]}, test", color=colour)
            trained = [run["train_curve"] for run in runs]
            plots.lines_of_seeds(axes, trained, f"{NETS[net]}, training", color=colour, linestyle="--")
            axes.axhline(PUBLISHED[net], color=colour, linewidth=0.8, linestyle=":", zorder=0)
        axes.plot([], [], color="0.5", linewidth=0.8, linestyle=":", label="the paper's")
        plots.by_epoch(axes, "top-1 error, %", top=40)
        plots.legend_above(picture, axes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.conv_local", __doc__)
    parser.add_argument("--source", required=True, help="CIFAR-10, a value of data.source")
    runs = pathlib.Path("runs/conv-local")
    parser.add_argument("--runs", type=command_line.new_folder, default=runs, help="directory of the runs")
    parser.add_argument("--out", type=command_line.new_folder, required=True, help="directory of the record")
    parser.add_argument("--shorter", type=float, default=1.0, help="divides the schedules")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    parser.add_argument("--at_once", type=int, default=1, help="runs side by side on the device")
    args = parser.parse_args(argv)
    if min(args.seeds, args.at_once) < 1 or args.shorter <= 0:
        raise UserError("--seeds and --at_once must be at least 1, --shorter more than 0")
    from experiments import record

    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        failed = threading.Event()

        def one(net: str, seed: int) -> None:
            if failed.is_set():  # asked here, since this thread would begin the next run before `finally`
                return
            try:
                run(args, net, seed)
            except BaseException:
                failed.set()
                raise

        # The long ones first.
        waiting = [pool.submit(one, net, seed) for net in reversed(NETS) for seed in range(args.seeds)]
        try:
            for each in waiting:
                each.result()
        finally:
            pool.shutdown(cancel_futures=True)  # those that have not begun, after Ctrl-C
    found = {net: [read(args, net, seed) for seed in range(args.seeds)] for net in NETS}
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(found)
    files.write_text(args.out / "table.md", text)
    record.write_json(args.out / "results.json", {"shorter": args.shorter, "runs": found})
    plot(args.out / "curves.svg", found)
    print(text, end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
