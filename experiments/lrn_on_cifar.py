"""Section 3.3 on CIFAR-10: a four-layer net with and without local response normalisation.

    python -m experiments.lrn_on_cifar --source=folder:cifar10 --out=experiments/005-lrn-on-cifar

The paper has 13 % test error without and 11 % with it. Here both nets are trained with the same rate, a tenth
of it in the last fifth of the epochs, and the same seeds, without any other regularisation.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import command_line, files

ARMS = {False: "without LRN", True: "with LRN"}


def table(errors: dict[bool, list[float]], trained: dict[bool, list[float]]) -> str:
    """Test errors by seed, their means and the difference with Student's 95 % interval, as Markdown."""
    from experiments import sweep_statistics  # late, as SciPy takes a second

    lines = [
        "| net | test error by seed, % | mean ± sd | training error of the last epoch, % |",
        "|---|---|---|---|",
    ]
    for norm, label in ARMS.items():
        by_seed = ", ".join(f"{error:.2f}" for error in errors[norm])
        spread = f"{np.mean(errors[norm]):.2f} ± {np.std(errors[norm], ddof=1):.2f}"
        lines.append(f"| {label} | {by_seed} | {spread} | {np.mean(trained[norm]):.2f} |")
    plain, with_lrn = (dict(enumerate(errors[norm])) for norm in ARMS)
    found = sweep_statistics.difference(with_lrn, plain, None)
    assert found is not None  # both have every seed
    lines += [
        "",
        f"With LRN {found.mean:+.2f} ± {found.own:.2f} points (95 %, paired by seed); the paper: -2.",
    ]
    return "\n".join(lines) + "\n"


def plot(path: pathlib.Path, histories: dict[str, list[list[dict[str, float]]]]) -> None:
    """Left: training error by epoch, a line for each seed. Right: the test errors, those of a seed joined."""
    from experiments import plots

    with plots.figure(path, 1, 2, width_ratios=(3, 2)) as (picture, (left, right)):
        for number, (label, by_seed) in enumerate(histories.items()):
            curves = [[(line["epoch"], line["train_error"]) for line in run] for run in by_seed]
            plots.lines_of_seeds(left, curves, label, color=f"C{number}")
            tests = [run[-1]["test_error"] for run in by_seed]
            right.plot([number] * len(tests), tests, "o", color=f"C{number}")
        pairs = [[run[-1]["test_error"] for run in runs] for runs in zip(*histories.values(), strict=True)]
        right.plot(np.transpose(pairs), color="0.7", linewidth=0.8, zorder=0)
        plots.by_epoch(left, "training error, %")
        right.set(ylabel="test error at the end, %", xlim=(-0.5, len(histories) - 0.5))
        right.set_xticks(range(len(histories)), [label.replace(" ", "\n") for label in histories])
        plots.legend_above(picture, left)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.lrn_on_cifar", __doc__)
    parser.add_argument("--source", required=True, help="CIFAR-10, a value of data.source")
    parser.add_argument(
        "--runs",
        type=command_line.new_folder,
        default=pathlib.Path("runs/lrn"),
        help="directory of histories",
    )
    parser.add_argument("--out", type=command_line.new_folder, required=True, help="directory of the record")
    parser.add_argument("--start", choices=("authors", "unit"), default="unit", help="first weights")
    parser.add_argument("--rate", type=float, default=0.03, help="learning rate of both nets")
    parser.add_argument("--per_class", type=int, help="training images of each class; by default all")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=float, default=10.0, help="epochs of each run")
    args = parser.parse_args(argv)
    from experiments import cifar, record  # late, as cifar imports JAX, which takes seconds

    images = cifar.load(args.source, args.per_class)
    args.runs = args.runs / images.name
    histories = {norm: [] for norm in ARMS}
    for seed in range(args.seeds):
        for norm in ARMS:
            drop = 0.8 * args.epochs
            settings = cifar.Settings("relu", norm, args.start, args.rate, seed, args.epochs, drop_at=drop)
            histories[norm].append(cifar.train(settings, images, args.runs))
    errors = {norm: [run[-1]["test_error"] for run in runs] for norm, runs in histories.items()}
    trained = {norm: [run[-1]["epoch_error"] for run in runs] for norm, runs in histories.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    text = table(errors, trained)
    files.write_text(args.out / "table.md", text)
    values = {label: histories[norm] for norm, label in ARMS.items()}
    record.write_json(
        args.out / "results.json", {"images": len(images.train), "rate": args.rate, "histories": values}
    )
    plot(args.out / "curves.svg", values)
    print(text, end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
