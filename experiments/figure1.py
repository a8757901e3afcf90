"""The paper's Figure 1: how much sooner a net with ReLUs learns CIFAR-10 than one with tanh.

    python -m experiments.figure1 --source=folder:cifar10 --out=experiments/006-figure-1

Section 3.1: a four-layer convolutional net reaches 25 % training error about six times sooner with ReLUs,
"learning rates for each network chosen independently to make training as fast as possible", without any
regularisation. Here each activation tries a few rates for a few epochs with seed 0. With the rate of the
lowest training error it is then trained with all seeds until the training error over an epoch is 25 %.

Runs that are already in --runs are not repeated.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexnet_jax.common import command_line, files

if TYPE_CHECKING:
    from experiments import cifar

TARGET = 25.0  # % training error
RATES = {"authors": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), "unit": (0.01, 0.03, 0.1)}
STYLES = {"relu": ("ReLU", "-", "C0"), "tanh": ("tanh", "--", "C3")}
Histories = dict[str, list[list[dict[str, float]]]]


def best_rate(
    activation: str, start: str, images: "cifar.Images", runs: pathlib.Path, epochs: float
) -> tuple[float, dict[float, float]]:
    """The rate with the lowest training error after `epochs`, and the error in % of each rate."""
    from experiments import cifar  # late, as it imports JAX, which takes seconds

    errors = {}
    for rate in RATES[start]:
        settings = cifar.Settings(activation, False, start, rate, 0, epochs)
        last = cifar.train(settings, images, runs)[-1]
        errors[rate] = last["epoch_error"] if last["epoch"] > epochs - 0.5 else 100.0  # it diverged
    return min(errors, key=lambda rate: errors[rate]), errors


def plot(path: pathlib.Path, histories: Histories) -> None:
    """Training error by epoch: ReLU solid, tanh dashed, one line for each seed."""
    from experiments import plots

    with plots.figure(path) as (_, axes):
        for activation, by_seed in histories.items():
            label, style, colour = STYLES[activation]
            curves = [[(h["epoch"], h["epoch_error"]) for h in run if "epoch_error" in h] for run in by_seed]
            plots.lines_of_seeds(axes, curves, label, linestyle=style, color=colour)
        axes.axhline(TARGET, color="0.5", linewidth=0.8, zorder=0)
        plots.by_epoch(axes, "training error, %", top=80)
        axes.legend()


def compare(args: argparse.Namespace, images: "cifar.Images") -> tuple[dict[str, Any], Histories]:
    """Makes all runs; returns the results, as JSON values, and the histories."""
    from experiments import cifar

    found: dict[str, Any] = {}
    histories: Histories = {}
    for activation in STYLES:
        rate, tried = best_rate(activation, args.start, images, args.runs, args.search_epochs)
        by_seed = [
            cifar.train(
                cifar.Settings(activation, False, args.start, rate, seed, args.epochs, stop_at=TARGET),
                images,
                args.runs,
            )
            for seed in range(args.seeds)
        ]
        histories[activation] = by_seed
        found[activation] = {
            "rates_tried": {f"{rate:g}": error for rate, error in tried.items()},
            "rate": rate,
            "epochs": [cifar.epochs_until(history, TARGET) for history in by_seed],
            "last_error": [history[-1]["epoch_error"] for history in by_seed],
            "test_error": [history[-1]["test_error"] for history in by_seed],
            "seconds": [history[-1]["seconds"] for history in by_seed],
        }
    relu, tanh = found["relu"]["epochs"], found["tanh"]["epochs"]
    all_reached = None not in relu and None not in tanh
    # Runs with the same seed have the same order of images and initial weights.
    found["ratios"] = [t / r for r, t in zip(relu, tanh, strict=True)] if all_reached else []
    return found, histories


def table(found: dict[str, Any], args: argparse.Namespace) -> str:
    """The results as a Markdown table."""
    lines = [
        f"| activation | training error in % after {args.search_epochs:g} epochs by rate (seed 0) | rate | "
        f"epochs to {TARGET:g} % by seed | seconds | test error there, % |",
        "|---|---|---|---|---|---|",
    ]
    for activation, (label, _, _) in STYLES.items():
        result = found[activation]
        tried = ", ".join(f"{rate}: {error:.1f}" for rate, error in result["rates_tried"].items())
        epochs = ", ".join("never" if e is None else f"{e:.2f}" for e in result["epochs"])
        seconds = ", ".join(f"{s:.0f}" for s in result["seconds"])
        tests = ", ".join(f"{e:.1f}" for e in result["test_error"])
        lines.append(f"| {label} | {tried} | {result['rate']:g} | {epochs} | {seconds} | {tests} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.figure1", __doc__)
    parser.add_argument("--source", required=True, help="CIFAR-10, a value of data.source")
    parser.add_argument(
        "--runs",
        type=command_line.new_folder,
        default=pathlib.Path("runs/figure1"),
        help="directory of histories",
    )
    parser.add_argument("--out", type=command_line.new_folder, required=True, help="directory of the record")
    parser.add_argument("--start", choices=tuple(RATES), default="authors", help="first weights")
    parser.add_argument("--per_class", type=int, help="training images of each class; by default all")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0")
    parser.add_argument("--search_epochs", type=float, default=4.0, help="epochs with each rate tried")
    parser.add_argument("--epochs", type=float, default=60.0, help="most epochs with the best rate")
    args = parser.parse_args(argv)
    from experiments import cifar, record

    images = cifar.load(args.source, args.per_class)
    args.runs = args.runs / images.name
    found, histories = compare(args, images)
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(found, args)
    files.write_text(args.out / "table.md", text)
    record.write_json(
        args.out / "results.json",
        {"images": len(images.train), "start": args.start, **found, "histories": histories},
    )
    plot(args.out / "figure.svg", histories)
    print(text, end="")
    if found["ratios"]:
        print(f"tanh takes {', '.join(f'{ratio:.2f}' for ratio in found['ratios'])} times as many epochs")
    return 0


if __name__ == "__main__":
    command_line.command(main)
