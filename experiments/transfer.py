"""What trained convolutions are worth, by the number of photographs that there are to learn from.

    python -m experiments.transfer --data=PHOTOS --weights=WEIGHTS --out=experiments/009-transfer

PHOTOS has `train/<class>/` and `val/<class>/`. Three arms learn from 5, 10, 25, 50 and all training photographs
of each class: the trained convolutions, frozen, with new fully connected layers; the same layers from random
weights; and softmax regression on pool5 of the trained convolutions. What each arm can choose, its rate above
all, is chosen by cross-validation on all training photographs; the val photographs are seen once, at the end
of each run. The seed draws the photographs (those of 5 are among those of 10), the new weights and the order.

The same command again skips the runs that are done and continues the others. Without --data it makes the table
and the plot from the results.json in --out.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError

if TYPE_CHECKING:
    from experiments.sweep_plan import Run

CONFIG, RESULTS = "configs/finetune.py", "results.json"
FOLDS, SEEDS = 5, (0, 1, 2, 3, 4)
SIZES = (5, 10, 25, 50, None)  # photographs of a class; None for all
STEPS, BATCH, DROP_AT = 128, 32, 0.7  # the rate drops to a tenth after 0.7 of the steps
PROBE, SMALL = "probe", 73
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
    ),
    PROBE: Arm(
        "softmax regression on pool5 of the trained convolutions",
        {},
        {f"l2 {l2:g}": {"l2": l2} for l2 in (0.01, 0.1, 1.0)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Photographs, as `<folder>/<class>/<file>` below the data, to learn from and to test on."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def photographs(data: pathlib.Path, part: str) -> dict[str, list[str]]:
    """The photographs of each class of a part, `train` or `val`."""
    from alexnet_jax.data import inference  # late, as it imports JAX, which takes seconds

    found: dict[str, list[str]] = {}
    for path, name in inference.find_with_classes([data / part]):
        found.setdefault(name, []).append(str(pathlib.Path(path).relative_to(data)))
    return found


def _orders(classes: dict[str, list[str]], seed: int) -> list[np.ndarray]:
    """The photographs of each class in an order drawn by the seed."""
    return [np.random.default_rng((seed, k)).permutation(names) for k, names in enumerate(classes.values())]


def folds(classes: dict[str, list[str]]) -> list[Split]:
    """For each fold the other photographs and its own: each is held out once, the classes evenly."""
    orders = _orders(classes, 0)
    found = []
    for fold in range(FOLDS):
        held = {str(name) for order in orders for name in order[fold::FOLDS]}
        names = [str(name) for order in orders for name in order]
        kept = (name for name in names if name not in held)
        found.append(Split(f"fold{fold}", tuple(sorted(kept)), tuple(sorted(held))))
    return found


def draw(classes: dict[str, list[str]], test: Sequence[str], size: int | None, seed: int) -> Split:
    """`size` photographs of each class, or all, and the test photographs."""
    drawn = (str(name) for order in _orders(classes, seed) for name in order[:size])
    return Split(f"{size or 'all'}-{seed}", tuple(sorted(drawn)), tuple(test))


def link(data: pathlib.Path, split: Split, root: pathlib.Path) -> pathlib.Path:
    """A folder with `train` and `val` whose photographs are links to those of the split."""
    for part, names in (("train", split.train), ("val", split.test)):
        for name in names:
            target = root / split.name / part / pathlib.Path(*pathlib.Path(name).parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                os.symlink((data / name).resolve(), target)
    return root / split.name


@functools.cache
def shrunk(data: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The photographs as a run at `SMALL` pixels decodes them, which takes longer than its steps, as PNG.

    The names stay as they are: decoders go by what a file begins with.
    """
    from alexnet_jax.data.decode import decode_square

    for part in ("train", "val"):
        for name in sum(photographs(data, part).values(), []):
            if not (target := root / name).exists():
                if (pixels := decode_square((data / name).read_bytes(), SMALL)) is None:
                    raise UserError(f"{data / name}: unreadable; remove it")
                target.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(target) as temporary:
                    temporary.write_bytes(files.as_png(pixels))
    return root


def plan(arm: str, split: Split, seed: int, candidate: str, args: argparse.Namespace) -> "Run":
    """The arm's run on a split, with one of its candidates."""
    from alexnet_jax import config as configs
    from experiments import sweep_plan

    count, data, folder = len(split.train), args.data, args.runs / "photographs"
    batch = min(BATCH, count)
    changes = {**ARMS[arm].changes, **ARMS[arm].candidates[candidate]}
    if changes.get("data.resize_size") == SMALL:
        data, folder = shrunk(args.data, args.runs / "small"), args.runs / "small-photographs"
    overrides = {
        "init.path": args.weights,
        **changes,
        "data.source": f"folder:{link(data, split, folder)}",
        "data.batch_size": batch,
        "optimizer.drop_epochs": (DROP_AT * STEPS * batch / count,),
        "run.seed": seed,
        **{f"run.{what}_epochs": None for what in ("total", "eval_every", "save_every")},
        **{f"run.{what}_steps": STEPS for what in ("total", "eval_every", "save_every")},  # only at the end
    }
    name = f"{arm}-{split.name}-{re.sub('[^a-z0-9.]+', '-', candidate)}"
    config = configs.resolve(sweep_plan.read_config(CONFIG), overrides)
    return sweep_plan.Run(name, seed, args.runs / name, CONFIG, overrides, config)


def train_all(runs: Sequence["Run"], jobs: int) -> list[dict[str, float]]:
    """Makes the runs that are not done; returns each one's last test: `error` in %, `loss` and `seconds`.

    Raises:
      UserError: a run failed.
    """
    from experiments import sweep_plan, sweep_runs

    sweep_runs.run_all(runs, jobs)
    found = []
    for run in runs:
        if "eval" not in (status := run.status()):
            raise UserError(f"{run.workdir}: {sweep_runs.outcome(run)}")
        sessions = (run.workdir / sweep_plan.SESSIONS).read_text().splitlines()
        seconds = sum(json.loads(line)["seconds"] for line in sessions)
        error, loss = status["eval"]["top1_error"], status["eval"]["loss"]
        found.append({"error": round(error, 2), "loss": round(loss, 4), "seconds": round(seconds, 1)})
    return found


def features(args: argparse.Namespace, names: Sequence[str]) -> dict[str, np.ndarray]:
    """pool5 of the trained convolutions for each photograph, kept in `runs/pool5.npz`."""
    path = args.runs / "pool5.npz"
    if not path.exists():
        from alexnet_jax.tools import features
        from alexnet_jax.weights import pretrained

        loaded = pretrained.read(args.weights, partial=True)
        pairs = features.extract(loaded, [str(args.data / name) for name in names], "pool5")
        rows = [row.ravel() for _, row in pairs if row is not None]
        files.write_npz(path, {"names": list(names), "features": np.stack(rows)})
    with np.load(path) as arrays:
        return dict(zip(arrays["names"].tolist(), arrays["features"], strict=True))


def probe(points: dict[str, np.ndarray], split: Split, candidate: str) -> dict[str, float]:
    """Softmax regression on a split: `error` in % and `loss`."""
    import optax

    from alexnet_jax.tools import probe

    known = sorted({pathlib.Path(name).parts[1] for name in split.train})
    (x, y), (test_x, test_y) = (
        (
            np.stack([points[name] for name in names]),
            np.array([known.index(pathlib.Path(name).parts[1]) for name in names]),
        )
        for names in (split.train, split.test)
    )
    logits = probe.fit(x, y, len(known), **ARMS[PROBE].candidates[candidate]).logits(test_x)
    loss = float(optax.softmax_cross_entropy_with_integer_labels(logits, test_y).mean())
    return {"error": round(100 * float(np.mean(logits.argmax(axis=1) != test_y)), 2), "loss": round(loss, 4)}


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Chooses by cross-validation, then tests each arm at each size; returns the results as JSON values."""
    train = photographs(args.data, "train")
    test = sum(photographs(args.data, "val").values(), [])
    trained = [arm for arm in ARMS if arm != PROBE]
    parts = folds(train)
    tries = [
        (arm, candidate, plan(arm, part, 0, candidate, args))
        for part in parts
        for arm in trained
        for candidate in ARMS[arm].candidates
    ]
    ends = train_all([run for _, _, run in tries], args.jobs)
    points = features(args, [*sum(train.values(), []), *test])
    tried: dict[str, dict[str, Any]] = {arm: {name: [] for name in ARMS[arm].candidates} for arm in ARMS}
    for (arm, candidate, _), end in zip(tries, ends, strict=True):
        tried[arm][candidate].append(end)
    for name in ARMS[PROBE].candidates:
        tried[PROBE][name] = [probe(points, part, name) for part in parts]
    chosen = {arm: choose(by_name) for arm, by_name in tried.items()}

    splits = [(size, seed, draw(train, test, size, seed)) for seed in SEEDS for size in SIZES]
    tests = [(arm, size, seed, plan(arm, s, seed, chosen[arm], args)) for size, seed, s in splits for arm in trained]
    ends = train_all([run for *_, run in tests], args.jobs)
    runs = [
        {"arm": arm, "size": size, "seed": seed, **end}
        for (arm, size, seed, _), end in zip(tests, ends, strict=True)
    ]
    runs += [
        {"arm": PROBE, "size": size, "seed": seed, **probe(points, split, chosen[PROBE])}
        for size, seed, split in splits
        if size or seed == SEEDS[0]  # with all photographs nothing in it is random
    ]
    counts = {name: len(names) for name, names in train.items()}
    return {"train": counts, "test": len(test), "tried": tried, "chosen": chosen, "runs": runs}


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
    parser.add_argument("--runs", default=runs, type=command_line.new_folder, help="directory of the workdirs")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--out", required=True, type=command_line.new_folder, help="directory of the record")
    args = parser.parse_args(argv)
    print(json.dumps(experiment(args)))
    return 0


if __name__ == "__main__":
    command_line.command(main)
