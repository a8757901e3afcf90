"""What reproducing a table of the paper takes: images, work and speed, and what its runs fall short of."""

import ast
import dataclasses
import functools
import json
import math
import pathlib
import shlex
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.run import logs
from experiments import sweep_runs
from experiments.sweep_plan import Run, Sweep

# Training and test images by config, at least.
FULL_SIZES = {
    "configs/original.py": (1_261_406, 150_000),
    "configs/imagenet2012.py": (1_281_167, 50_000),
    "configs/cnn_star.py": (1_281_167, 50_000),
    "configs/cnn_star_fall2011.py": (14_000_000, 0),  # of 14,197,122; the user takes some for tests
}
FORWARD = 1 / 3  # the work of a forward pass, in training images: backward takes twice as much
MEASURED_SECONDS = 30.0
# Keys that may change on resume, but let other images or another config pass.
LENIENT = (("data", "max_bad_fraction"), ("run", "allow_changes"))
NO_SETTINGS = ("data.source", "augment.mean", "run.log_every_steps")  # judged otherwise, or of no effect


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a run's config; `error` says why there are none."""

    train: int | None
    test: int | None
    error: str | None = None


# --- What it takes ----------------------------------------------------------------------------------------


def with_overrides(given: Sequence[str], planned: Sweep) -> Sweep:
    """The sweep with `KEY=VALUE` for all runs and `ROW: KEY=VALUE` for those of a row.

    Raises:
      UserError: one is neither, there is no such row, or the table sets the key itself.
    """
    parent, rows = dict(planned.parent), {name: dict(changes) for name, changes in planned.rows.items()}
    for text in given:
        left, equals, value = text.partition("=")
        row, colon, key = left.rpartition(":")
        if not equals or "." not in key or (colon and row not in rows):
            raise UserError(f"--set={text}: give KEY=VALUE or 'ROW: KEY=VALUE', ROW one of {', '.join(rows)}")
        if key.strip() in ("run.seed", "init.path"):
            raise UserError(f"--set={text}: leave it out; the table has its own seeds and initial weights")
        (rows[row] if colon else parent)[key.strip()] = _value(value)
    return dataclasses.replace(planned, parent=parent, rows=rows)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def images_of(run: Run) -> Images:
    """Counts a run's images, as its training would find them; for tars this reads their headers."""
    return _images_at(run.config.data, None if run.after else run.config.augment.mean)


@functools.cache
def _images_at(data: configs.DataConfig, mean: str | None) -> Images:
    try:
        train, test = (sources.open_configured(data, split) for split in ("train", "test"))
        if mean:  # a run that starts from another's weights has its mean
            sources.statistics_of(train).mean(mean, data.resize_size)
    except UserError as error:
        return Images(None, None, str(error))
    return Images(len(train), len(test))


def work_left(run: Run) -> float:
    """What is left of a run, in images through a training step: its training and its tests, at most."""
    found, full = images_of(run), FULL_SIZES[run.config_path]
    train, test = found.train or full[0], found.test or full[1]
    settings, batch = run.config.run, run.config.data.batch_size
    steps, every = (configs.in_steps(settings, name, train, batch) for name in ("total", "eval_every"))
    tests = math.ceil(steps / every) * test * settings.eval_views
    return (1 - run.progress()) * (steps * batch + tests * FORWARD)


def images_per_second(runs: Sequence[Run], directory: pathlib.Path) -> float | None:
    """The speed of the runs themselves, else measured if their images are here."""
    for run in runs:
        if rates := _logged_rates(run):
            return statistics.median(rates)
    first = next((run for run in runs if not (run.after or images_of(run).error)), None)
    return measure(first, directory / "speed") if first else None


def measure(run: Run, workdir: pathlib.Path) -> float:
    """The median images/s of `MEASURED_SECONDS` of steps as `run` does them, after the first five.

    Raises:
      UserError: the run ends before.
    """
    print("measuring the speed; or give --images_per_second", file=sys.stderr)
    shutil.rmtree(workdir, ignore_errors=True)
    overrides: dict[str, Any] = {f"run.{name}_steps": 10**6 for name in ("total", "eval_every", "save_every")}
    config = configs.resolve(json.loads(run.config.to_json()), {**overrides, "run.log_every_steps": 5})
    probe, processes = dataclasses.replace(run, workdir=workdir, config=config), set()
    thread = threading.Thread(target=sweep_runs.run_in_process, args=(probe, processes))
    thread.start()
    enough = math.inf
    try:
        while thread.is_alive() and time.monotonic() < enough:
            thread.join(1)
            if enough == math.inf and len(_logged_rates(probe)) > 1:
                enough = time.monotonic() + MEASURED_SECONDS
    finally:
        for process in list(processes):
            process.terminate()
        thread.join()
    if len(rates := _logged_rates(probe)) < 2:
        log = workdir / sweep_runs.LOG
        raise UserError(
            f"no speed was measured ({sweep_runs.outcome(probe)}): see {log}, or give --images_per_second"
        )
    shutil.rmtree(workdir)
    return statistics.median(rates[1:])


def _logged_rates(run: Run) -> list[float]:
    lines = logs.read_metrics(run.workdir) if (run.workdir / logs.METRICS).exists() else []
    return [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]


def check_images(sweep: Sweep, runs: Sequence[Run]) -> None:
    """Raises `UserError` for the first run that would not find its images, or not those of its config."""
    for run in runs:
        if images_of(run).error:
            raise UserError(f"{sweep.name_of(run.row)}: {_images_line(sweep, run)}")


def report(
    sweep: Sweep, runs: Sequence[Run], missing: Sequence[Run], rate: float | None, price: float | None
) -> str:
    """What is done and missing, the images, and the arithmetic of what is left."""
    lines, images = [f"runs, {len(runs) - len(missing)} of {len(runs)} done"], {}
    for run in runs:
        name = sweep.name_of(run.row)
        lines.append(f"  {run.workdir.name} ({name}, seed {run.seed}): {_state(run, run in missing)}")
        images.setdefault(_images_line(sweep, run), {})[name] = None
    lines += ["images", *(f"  {', '.join(names)}: {line}" for line, names in images.items())]
    left = sum(map(work_left, missing))
    lines += ["left", f"  {left:,.0f} images (a test's image and view counts as {FORWARD:.2f})"]
    if rate:
        hours = left / rate / 3600
        money = "" if price is None else f"; at {price:.2f} an hour {hours * price:,.2f}"
        lines.append(f"  at {rate:,.0f} images/s {hours:,.2f} hours{money}")
    elif left:
        lines.append("  for the hours, give --images_per_second, or the images, to measure it with")
    return "\n".join(lines) + "\n"


def _state(run: Run, missing: bool) -> str:
    status = run.status()
    if status["status"] == "done":
        return f"done, top-1 error {status['eval']['top1_error']:.2f} %"
    if not (missing or run.has_ended()):
        return "ended, as results.json says"
    return status["status"] + (f", {done:.0%} of the training" if (done := run.progress()) else "")


def _images_line(sweep: Sweep, run: Run) -> str:
    found, source, (train, test) = images_of(run), run.config.data.source, FULL_SIZES[run.config_path]
    if found.error:
        row = f"{run.row}: " if "data.source" in sweep.rows[run.row] else ""
        return f"no usable images: {found.error}; name yours with --set '{row}data.source=KIND:PATH'"
    full = (found.train or 0) >= train and (found.test or 0) >= test
    share = "the full set" if full else f"not the full set, {_full_size(run)}"
    return f"{source}: {found.train:,} for training, {found.test:,} for tests; {share}"


def _full_size(run: Run) -> str:
    train, test = FULL_SIZES[run.config_path]
    return f"which has {train:,} for training and {test:,} for tests" if test else f"which has over {train:,}"


# --- What it falls short of -------------------------------------------------------------------------------


def shortfalls(sweep: Sweep, runs: Sequence[Run], plain: Sequence[Run], results: dict[str, Any]) -> list[str]:
    """What keeps the runs from the table at full size, a line each: settings, images, epochs, precision.

    Args:
      plain: the same runs without overrides.
    """
    made = {(row["row"], one["seed"]): one for row in results["rows"] for one in row["runs"]}
    found: dict[str, dict[str, None]] = {}
    for run, other in zip(runs, plain, strict=True):
        result = made[run.row, run.seed]
        undone = f"not done: seed {run.seed} ({result['status']})"
        lines = _made_otherwise(run, result) if result["eval"] else [undone]
        for line in _set_otherwise(run, other) + lines:
            found.setdefault(line, {})[sweep.name_of(run.row)] = None
    return [f"{', '.join(names)}: {line}" for line, names in found.items()]


def _set_otherwise(run: Run, plain: Run) -> list[str]:
    changes = configs.differences(plain.config, run.config)
    lines = [line for key, line in changes.items() if key not in NO_SETTINGS]
    for section, key in LENIENT:
        before, now = (getattr(getattr(one.config, section), key) for one in (plain, run))
        lines += [f"{section}.{key}: {before} -> {now}"] if before != now else []
    planned, given = _length(plain), _length(run)
    if planned != given:
        lines.append(f"{given} instead of {planned}")
    if run.config.augment.mean == "colour" and not run.after:  # else it has the mean of the run before
        lines.append("augment.mean='colour'; the paper subtracted the mean image")
    return lines


def _length(run: Run) -> str:
    steps, epochs = run.config.run.total_steps, run.config.run.total_epochs
    return f"{epochs:g} epochs" if steps is None else f"{steps:,} steps"


def _made_otherwise(run: Run, result: dict[str, Any]) -> list[str]:
    (train, test), planned = FULL_SIZES[run.config_path], run.config.run.total_epochs
    images, epochs, products = (result.get(key) for key in ("images", "epochs", "products"))
    tested = result["eval"]["examples"]
    lines = []
    if (images or 0) < train or tested < test:
        trained = "an unknown number of" if images is None else f"{images:,}"
        lines.append(
            f"trained on {trained} images, tested on {tested:,}, not the full set, {_full_size(run)}"
        )
    if planned and epochs is not None and epochs < 0.999 * planned:
        lines.append(f"seed {run.seed} ended after {epochs:.1f} of {planned:g} epochs")
    if products != "float32":
        products = products or "an unrecorded precision"
        lines.append(f"convolutions and matrix products in {products}; in 2012 they were float32")
    return lines


def command_of(run: Run) -> str:
    """What trains a run by hand, on one machine or, with the launch flags, on several."""
    flags = (f"--config.{key}={value}" for key, value in run.overrides.items())
    return shlex.join(
        ["python", "main.py", f"--config={run.config_path}", f"--workdir={run.workdir}", *flags]
    )
