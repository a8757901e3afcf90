"""What trained convolutions are worth, by the number of photographs that there are to learn from.

    python -m experiments.transfer --data=PHOTOS --weights=WEIGHTS --out=experiments/009-transfer

PHOTOS has `train/<class>/` and `val/<class>/`. Three arms learn from 5, 10, 25, 50 and all training
photographs of each class: the trained convolutions, frozen, with new fully connected layers; the same layers
from random weights; and softmax regression on pool5 of the trained convolutions. What an arm leaves open, its
rate above all, is chosen by cross-validation on all training photographs; each run sees the val photographs
once, at its end. The seed draws the photographs (those of 5 are among those of 10), the new weights and the
order.

The same command again skips the runs that are done and continues the others. Without --data it makes the
table and the plot from the results.json in --out.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError

if TYPE_CHECKING:
    from experiments.sweep_plan import Run
    from experiments.transfer_data import Split
    from experiments.transfer_features import Points

CONFIG, RESULTS = "configs/finetune.py", "results.json"
FOLDS, SEEDS = 5, (0, 1, 2, 3, 4)
SIZES = (5, 10, 25, 50, None)  # photographs of a class; None for all
STEPS, BATCH, DROP_AT = 128, 32, 0.7  # the rate drops to a tenth after 0.7 of the steps
PROBE, SMALL = "probe", 73
DIVERGED = {"top1_error": 100.0, "loss": 100.0}
WIDTH, RATE = "model.fc_widths", "optimizer.learning_rate"
SCRATCH = {
    "init.path": None,
    "optimizer.layer_rates": (),
    "model.init_scheme": "he",
    "augment.crop": True,  # without this and the next it only memorises the photographs
    "augment.mirror": True,
    "data.resize_size": SMALL,  # a step on 224 pixels takes ten times as long
    "data.image_size": 64,
    WIDTH: (256, 256),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to learn: its label, its changes to `CONFIG`, and what is chosen by cross-validation."""

    label: str
    changes: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    folds: int = FOLDS


ARMS = {
    "trained": Arm(
        "trained convolutions, new fully connected layers",
        {},
        {
            f"rate {rate:g}, width {width:,}": {RATE: rate, WIDTH: (width, width)}
            for width, rate in ((256, 0.001), (256, 0.003), (256, 0.01), (64, 0.003))
        },
    ),
    "scratch": Arm(
        "the same layers from random weights",
        SCRATCH,
        {f"rate {rate:g}": {RATE: rate} for rate in (0.001, 0.003, 0.01)},
        folds=3,  # of the five: a run takes a hundred times as long as one on pool5
    ),
    PROBE: Arm(
        "softmax regression on pool5 of the trained convolutions",
        {},
        {"l2 0.1": {}},  # the command's
    ),
}


Try = tuple[str, str, "Split", int]  # an arm, its candidate, the photographs and the seed


def plan(arm: str, split: "Split", seed: int, candidate: str, args: argparse.Namespace) -> "Run":
    """The arm's run on a split, with one of its candidates."""
    from alexnet_jax import config as configs
    from experiments import sweep_plan, transfer_data

    count, data, folder = len(split.train), args.data, args.runs / "photographs"
    batch = min(BATCH, count)
    changes = {**ARMS[arm].changes, **ARMS[arm].candidates[candidate]}
    if changes.get("data.resize_size") == SMALL:
        data = transfer_data.shrunk(args.data, SMALL, args.runs / "small")
        folder = args.runs / "small-photographs"
    overrides = {
        "init.path": args.weights,
        **changes,
        "data.source": f"folder:{transfer_data.link(data, split, folder)}",
        "data.batch_size": batch,
        "optimizer.drop_epochs": (DROP_AT * STEPS * batch / count,),
        "run.seed": seed,
        **{f"run.{what}_epochs": None for what in ("total", "eval_every", "save_every")},
        **{f"run.{what}_steps": STEPS for what in ("total", "eval_every", "save_every")},  # only at the end
    }
    config = configs.resolve(sweep_plan.read_config(CONFIG), overrides)
    named = name(arm, candidate, split)
    return sweep_plan.Run(named, seed, args.runs / named, CONFIG, overrides, config)


def name(arm: str, candidate: str, split: "Split") -> str:
    """The name of a try's workdir or file."""
    return f"{arm}-{split.name}-{re.sub('[^a-z0-9.]+', '-', candidate)}"


def train_all(runs: Sequence["Run"], jobs: int) -> list[dict[str, Any] | None]:
    """Makes the runs that have not ended, `jobs` at a time; returns their ends, None where it is missing."""
    from experiments import sweep_runs

    if runs and jobs:
        sweep_runs.run_all(runs, jobs)
        for run in runs:
            if not run.has_ended():
                raise UserError(f"{run.workdir}: {sweep_runs.outcome(run)}")
    return [_end(run) if run.has_ended() else None for run in runs]


def _end(run: "Run") -> dict[str, Any]:
    """`error` in % and `loss` on the held-out or test photographs, `seconds` and `machine`."""
    from experiments import sweep_plan

    sessions = [json.loads(line) for line in (run.workdir / sweep_plan.SESSIONS).read_text().splitlines()]
    test = run.status()["eval"] or DIVERGED
    return {
        "error": round(test["top1_error"], 2),
        "loss": round(test["loss"], 4),
        "seconds": round(sum(one["seconds"] for one in sessions), 1),
        "machine": sessions[-1]["machine"],
    }


def ends(tries: Sequence[Try], points: "Points", args: argparse.Namespace) -> list[dict[str, Any] | None]:
    """The end of each try: those on pool5 in this process, the others by runs of the training command."""
    from experiments import transfer_features

    found: dict[int, Any] = {}
    runs = {}
    for number, (arm, candidate, split, seed) in enumerate(tries):
        path = args.runs / "ends" / f"{name(arm, candidate, split)}.json"
        if arm == "scratch":
            runs[number] = plan(arm, split, seed, candidate, args)
        elif not args.jobs and not path.exists():
            found[number] = None
        elif arm == PROBE:
            make = functools.partial(transfer_features.probe, points, split)
            found[number] = transfer_features.kept(path, make)
        else:
            run = plan(arm, split, seed, candidate, args)
            make = functools.partial(transfer_features.learn, run, points, split)
            found[number] = transfer_features.kept(path, make)
    found |= zip(runs, train_all(list(runs.values()), args.jobs), strict=True)
    return [found[number] for number in range(len(tries))]


def cross_validate(args: argparse.Namespace, parts: "Sequence[Split]", points: "Points") -> dict[str, Any]:
    """The end on each fold, by arm and candidate, of the arms that have a choice.

    Raises:
      UserError: runs are missing, and --jobs=0.
    """
    tries: list[Try] = [
        (arm, candidate, part, 0)
        for number, part in enumerate(parts)
        for arm, of_arm in ARMS.items()
        for candidate in of_arm.candidates
        if number < of_arm.folds and len(of_arm.candidates) > 1
    ]
    tried: dict[str, Any] = {arm: {candidate: [] for candidate in ARMS[arm].candidates} for arm, *_ in tries}
    for (arm, candidate, part, _), end in zip(tries, ends(tries, points, args), strict=True):
        if end is None:
            raise UserError(f"--jobs=0: {name(arm, candidate, part)} is not done; nothing can be chosen yet")
        tried[arm][candidate].append(end)
    return tried


def claim(args: argparse.Namespace, photographs: Sequence[str]) -> None:
    """Writes down what the runs in `--runs` learn from.

    Raises:
      UserError: they learnt from something else, and what is done there would be taken for this.
    """
    given = {"data": str(args.data.resolve()), "weights": args.weights, "photographs": list(photographs)}
    path = args.runs / "inputs.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(given))
    if given != (before := json.loads(path.read_text())):
        changed = " and ".join(key for key in given if given[key] != before[key])
        raise UserError(f"--runs={args.runs}: its runs had other {changed}; choose another --runs")


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Chooses by cross-validation, then tests each arm at each size; returns the results as JSON values."""
    from experiments import transfer_data, transfer_features  # late, as they import JAX, which takes seconds

    train, val = (transfer_data.classes(args.data, part) for part in ("train", "val"))
    test = transfer_data.together(val)
    claim(args, [*transfer_data.together(train), *test])
    whole = transfer_data.Split("whole", tuple(transfer_data.together(train)), tuple(test))
    run = plan("trained", whole, 0, next(iter(ARMS["trained"].candidates)), args)
    points = transfer_features.pool5(run) if args.jobs else {}
    tried = cross_validate(args, transfer_data.folds(train, FOLDS), points)
    chosen = {arm: choose(tried[arm]) if arm in tried else next(iter(ARMS[arm].candidates)) for arm in ARMS}
    # Seed by seed, so that an experiment that is cut short has complete comparisons.
    tries: list[Try] = [
        (arm, chosen[arm], transfer_data.draw(train, test, size, seed), seed)
        for seed in SEEDS
        for size in SIZES
        for arm in ARMS
        if arm != PROBE or size or seed == SEEDS[0]  # with all photographs nothing in it is random
    ]
    made = zip(tries, ends(tries, points, args), strict=True)
    return {
        "arms": {name: arm.label for name, arm in ARMS.items()},
        "train": {name: len(paths) for name, paths in train.items()},
        "test": {name: len(paths) for name, paths in val.items()},
        "tried": tried,
        "chosen": chosen,
        "runs": [
            {"arm": arm, "size": part.size, "seed": seed, **end} for (arm, _, part, seed), end in made if end
        ],
    }


def choose(tried: dict[str, list[dict[str, float]]]) -> str:
    """The candidate with the lowest error over the folds; of equal ones, the lowest loss."""
    return min(tried, key=lambda name: (_mean(tried[name], "error"), _mean(tried[name], "loss")))


def _mean(ends: Sequence[dict[str, float]], key: str) -> float:
    return round(float(np.mean([end[key] for end in ends])), 4)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.transfer", __doc__)
    parser.add_argument("--data", type=command_line.user_path, help="directory of the photographs")
    parser.add_argument(
        "--weights", default="torchvision", help="a file of weights, a workdir or a name of published weights"
    )
    runs = pathlib.Path("runs/transfer")
    parser.add_argument(
        "--runs", default=runs, type=command_line.new_folder, help="directory of the workdirs"
    )
    jobs = "number of runs at a time; 0 takes what is done"
    parser.add_argument("--jobs", type=int, default=1, help=jobs)
    parser.add_argument("--out", required=True, type=command_line.new_folder, help="directory of the record")
    args = parser.parse_args(argv)
    from experiments import record, transfer_table  # late, as SciPy and matplotlib take a second

    path = args.out / RESULTS
    if args.data:
        args.out.mkdir(parents=True, exist_ok=True)
        record.write_json(path, experiment(args))
    elif not path.exists():
        raise UserError(f"--out={args.out}: has no {RESULTS}; give --data and --weights to make it")
    print(transfer_table.write(json.loads(path.read_text()), args.out), end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
