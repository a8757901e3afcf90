"""What pre-training is worth on a few hundred photographs: a table and a plot.

    python -m experiments.pretraining --data=PHOTOS --weights=WEIGHTS --out=experiments/001-pretraining

PHOTOS has `train/<class>/` and `val/<class>/`. Three arms use the same images and the same net: softmax
regression on pool5 of the trained convolutions; the trained convolutions, frozen, with new fully connected
layers (configs/finetune.py); and the same net from random weights. The last two run with seeds 0, 1 and 2.
The same command again skips the runs that are done and continues the others.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import command_line, files

SEEDS = (0, 1, 2)
ERROR = "eval/top1_error"
# A few hundred photographs are not enough for the 54 million weights of fully connected layers of 4096.
SAME = ["--config.model.fc_widths=(256, 256)"]
# Each arm's changes to configs/finetune.py.
ARMS = {
    "trained convolutions, new fully connected layers": [],
    "the same net from scratch": [
        "--config.init.path=",
        "--config.optimizer.layer_rates=()",
        "--config.augment.crop=True",  # without this and the next it only memorises the images
        "--config.augment.mirror=True",
        # It stays at chance with torchvision's or run 145's initial weights and a rate of 0.01, and with He's
        # and a rate of 0.003.
        "--config.model.init_scheme=he",
        "--config.optimizer.learning_rate=0.001",
    ],
}


def train(data: str, weights: str, workdir: pathlib.Path, seed: int, changes: list[str]) -> dict[str, Any]:
    """Makes a run unless it is done; returns its `status.json`."""
    status = workdir / "status.json"
    if not status.exists() or json.loads(status.read_text())["status"] != "done":
        command = [sys.executable, "main.py", "--config=configs/finetune.py", f"--workdir={workdir}"]
        settings = [f"--config.data.source=folder:{data}", f"--config.init.path={weights}"]
        subprocess.run([*command, *settings, f"--config.run.seed={seed}", *SAME, *changes], check=True)
    return json.loads(status.read_text())


def linear_probe(data: pathlib.Path, weights: str) -> float:
    """Top-1 error in % of softmax regression on pool5."""
    from alexnet_jax.data import inference  # all imported late, as they import JAX, which takes seconds
    from alexnet_jax.tools import features, probe
    from alexnet_jax.weights import pretrained

    loaded = pretrained.read(weights, partial=True)
    points, classes = {}, {}
    for split in ("train", "val"):
        class_of = dict(inference.find_with_classes([data / split]))
        pairs = features.extract(loaded, list(class_of), "pool5")
        files, rows = zip(*((file, row.ravel()) for file, row in pairs if row is not None), strict=True)
        points[split], classes[split] = np.stack(rows), [class_of[file] for file in files]
    known = sorted(set(classes["train"]))
    labels = {split: np.array([known.index(name) for name in names]) for split, names in classes.items()}
    fitted = probe.fit(points["train"], labels["train"], len(known))
    return 100.0 * float(np.mean(fitted.logits(points["val"]).argmax(axis=1) != labels["val"]))


def row(arm: str, errors: Sequence[float]) -> str:
    spread = f"{min(errors):.1f} to {max(errors):.1f}" if len(errors) > 1 else "nothing random"
    return f"| {arm} | {len(errors)} | {np.mean(errors):.1f} | {spread} |"


def plot(path: pathlib.Path, curves: dict[str, list[list[dict[str, Any]]]], probe_error: float) -> None:
    """Top-1 error by epoch: one line for each seed, one colour for each arm."""
    from experiments import plots

    with plots.figure(path, height=3.4) as (picture, axes):
        for number, (arm, runs) in enumerate(curves.items()):
            tests = [[(h["epoch"], h[ERROR]) for h in run if ERROR in h] for run in runs]
            plots.lines_of_seeds(axes, tests, arm, color=f"C{number}")
        axes.axhline(probe_error, color="0.4", linestyle="--", label="softmax regression on pool5")
        plots.by_epoch(axes, "top-1 test error, %")
        plots.legend_above(picture, axes, columns=1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.pretraining", __doc__)
    parser.add_argument(
        "--data", required=True, type=command_line.user_path, help="directory of the photographs"
    )
    parser.add_argument(
        "--weights", default="torchvision", help="a file of weights, a workdir or a name of published weights"
    )
    parser.add_argument(
        "--runs",
        default=pathlib.Path("runs/pretraining"),
        type=command_line.new_folder,
        help="directory of the workdirs",
    )
    out = "directory of the table and the plot"
    parser.add_argument("--out", required=True, type=command_line.new_folder, help=out)
    args: argparse.Namespace = parser.parse_args(argv)
    import jax

    from alexnet_jax.run import logs

    probe_error = linear_probe(args.data, args.weights)
    rows, curves = [row("softmax regression on pool5 of the trained convolutions", [probe_error])], {}
    for arm, changes in ARMS.items():
        workdirs = [args.runs / f"{arm.replace(' ', '_').replace(',', '')}-{seed}" for seed in SEEDS]
        ends = [
            train(str(args.data), args.weights, workdir, seed, changes)
            for seed, workdir in zip(SEEDS, workdirs, strict=True)
        ]
        rows.append(row(arm, [end["eval"]["top1_error"] for end in ends]))
        curves[arm] = [logs.read_metrics(workdir) for workdir in workdirs]
    examples = ends[0]["eval"]["examples"]
    args.out.mkdir(parents=True, exist_ok=True)
    table = [
        f"Top-1 error in % at the end of the run on {examples} photographs, central patch, float32, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, Python {platform.python_version()}.",
        "",
        "| arm | runs | mean | range |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    files.write_text(args.out / "table.md", "\n".join(table))
    plot(args.out / "curves.svg", curves, probe_error)
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    command_line.command(main)
