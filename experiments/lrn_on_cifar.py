"""Section 3.3's claim on CIFAR-10: a four-layer net with local response normalisation against one without.

    python -m experiments.lrn_on_cifar --source=folder:cifar10 --out=experiments/005-lrn-on-cifar

The paper has 13 % test error without and 11 % with it. Both nets here have the same rate, the same number of
epochs, a tenth of the rate in the last fifth of them, the same seeds; nothing else regularises.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import command_line
from experiments import cifar, plots, record, sweep_statistics

ARMS = {False: "without LRN", True: "with LRN"}


def table(errors: dict[bool, list[float]], trained: dict[bool, list[float]]) -> str:
    """Test errors by seed, their means and the difference with Student's 95 % interval, as Markdown."""
    lines = [
        "| net | test error by seed, % | mean ± sd | training error of the last epoch, % |",
        "|---|---|---|---|",
    ]
    for norm, label in ARMS.items():
        its = ", ".join(f"{error:.2f}" for error in errors[norm])
        spread = f"{np.mean(errors[norm]):.2f} ± {np.std(errors[norm], ddof=1):.2f}"
        lines.append(f"| {label} | {its} | {spread} | {np.mean(trained[norm]):.2f} |")
    by_seed = {norm: dict(enumerate(errors[norm])) for norm in ARMS}
    found = sweep_statistics.difference(by_seed[True], by_seed[False], None)
    assert found is not None  # both have every seed
    lines += [
        "",
        f"With LRN {found.mean:+.2f} ± {found.own:.2f} points (95 %, paired by seed); the paper: -2.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.lrn_on_cifar", __doc__)
    parser.add_argument("--source", required=True, help="CIFAR-10, as data.source in a config")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/lrn"), help="histories")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the record goes")
    parser.add_argument("--start", choices=tuple(cifar.STARTS), default="unit", help="first weights")
    parser.add_argument("--rate", type=float, default=0.03, help="of both nets")
    parser.add_argument("--per_class", type=int, help="training images of each class; by default all")
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0")
    parser.add_argument("--epochs", type=float, default=10.0, help="of each run")
    args = parser.parse_args(argv)

    images = cifar.load(args.source, args.per_class)
    args.runs = args.runs / f"{len(images.train)}"
    histories = {norm: [] for norm in ARMS}
    for seed in range(args.seeds):
        for norm in ARMS:
            drop = 0.8 * args.epochs
            settings = cifar.Settings("relu", norm, args.start, args.rate, seed, args.epochs, drop_at=drop)
            histories[norm].append(cifar.train(settings, images, args.runs))
    errors = {norm: [history[-1]["test_error"] for history in its] for norm, its in histories.items()}
    trained = {norm: [history[-1]["epoch_error"] for history in its] for norm, its in histories.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(errors, trained)
    record.write_text(args.out / "table.md", text)
    values = {label: histories[norm] for norm, label in ARMS.items()}
    record.write_json(
        args.out / "results.json", {"images": len(images.train), "rate": args.rate, "histories": values}
    )
    with plots.figure(args.out / "curves.svg", figsize=(5, 3.2)) as (_, axes):
        for number, (label, its) in enumerate(values.items()):
            for seed, history in enumerate(its):
                points = [(line["epoch"], line["train_error"]) for line in history]
                axes.plot(*zip(*points, strict=True), color=f"C{number}", label=None if seed else label)
        axes.set(xlabel="epoch", ylabel="training error over a quarter of an epoch, %", ylim=(0, None))
        axes.legend(frameon=False)
    print(text, end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
