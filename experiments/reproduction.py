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
    "configs/cnn_star_fall2011.py": (14_000_000, 1),  # of 14,197,122; the user takes some for tests
}
FORWARD = 1 / 3  # the work of a forward pass, in training images: backward takes twice as much
MEASURED_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a run's config; `error` says why there are none."""

    source: str
    train: int | None
    test: int | None
    error: str | None = None

    def are_full(self, config_path: str) -> bool:
        train, test = FULL_SIZES[config_path]
        return (self.train or 0) >= train and (self.test or 0) >= test


# --- What it takes ----------------------------------------------------------------------------------------


def with_overrides(given: Sequence[str], planned: Sweep) -> Sweep:
    """The sweep with `KEY=VALUE` for all runs and `ROW: KEY=VALUE` for those of a row.

    Raises:
      UserError: one is neither, or there is no such row.
    """
    parent, rows = dict(planned.parent), {name: dict(changes) for name, changes in planned.rows.items()}
    for text in given:
        left, equals, value = text.partition("=")
        row, colon, key = left.rpartition(":")
        if not equals or "." not in key or (colon and row not in rows):
            raise UserError(f"--set={text}: give KEY=VALUE or 'ROW: KEY=VALUE', ROW one of {', '.join(rows)}")
        (rows[row] if colon else parent)[key.strip()] = _value(value)
    return dataclasses.replace(planned, parent=parent, rows=rows)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@functools.cache
def images_at(source: str, data_dir: str | None) -> Images:
    """Counts the images of a source; for tars this reads their headers."""
    try:
        train, test = (
            len(sources.open_source(source, split, data_dir=data_dir)) for split in ("train", "test")
        )
    except UserError as error:
        return Images(source, None, None, str(error))
    return Images(source, train, test)


def images_of(run: Run) -> Images:
    return images_at(run.config.data.source, run.config.data.data_dir)


def work_left(run: Run) -> float:
    """What is left of a run, in images through a training step: its training and its tests, at most."""
    if run.has_ended():
        return 0.0
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
    if images_of(runs[0]).error:
        return None
    return measure(runs[0], directory / "speed")


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


def report(runs: Sequence[Run], rate: float | None, price: float | None) -> str:
    """What is done and missing, the images, and the arithmetic of what is left."""
    lines = ["runs"]
    lines += [f"  {run.workdir.name}: {_state(run)}" for run in runs]
    lines += ["images", *(f"  {line}" for line in dict.fromkeys(map(_images_line, runs)))]
    left = sum(map(work_left, runs))
    lines += ["left", f"  {left:,.0f} images (a test's image and view counts as {FORWARD:.2f})"]
    if rate is None:
        lines.append("  the hours: give --images_per_second, or the images, on which it is measured")
    elif left:
        hours = left / rate / 3600
        money = "" if price is None else f"; at {price:.2f} an hour {hours * price:,.2f}"
        lines.append(f"  at {rate:,.0f} images/s {hours:,.2f} hours{money}")
    return "\n".join(lines) + "\n"


def _state(run: Run) -> str:
    status = run.status()
    if status["status"] == "done":
        return f"done, top-1 error {status['eval']['top1_error']:.2f} %"
    return f"{status['status']}, {run.progress():.0%} of the training"


def _images_line(run: Run) -> str:
    found, (train, test) = images_of(run), FULL_SIZES[run.config_path]
    if found.error:
        return f"missing: {found.error}"
    counts = f"{found.source}: {found.train:,} for training, {found.test:,} for tests"
    if found.are_full(run.config_path):
        return f"{counts}: the full set"
    return f"{counts}: not the full set, which has at least {train:,} and {test:,}"


def shortfalls(runs: Sequence[Run], table: Sequence[Run], results: dict[str, Any]) -> list[str]:
    """What keeps the runs from the table at full size: images, keys of the config, runs that are not done.

    Args:
      table: the same runs without overrides.
    """
    found = {_images_line(run): None for run in runs if not images_of(run).are_full(run.config_path)}
    for run, plain in zip(runs, table, strict=True):
        lengths = [(one.config.run.total_epochs, one.config.run.total_steps) for one in (plain, run)]
        changes = list(configs.differences(plain.config, run.config).values())
        changes = [line for line in changes if not line.startswith(("data.source:", "init.path:"))]
        if lengths[0] != lengths[1]:
            changes.append(f"epochs, steps: {lengths[0]} -> {lengths[1]}")
        found |= {f"{run.row}: {line}": None for line in changes}
    undone = [run["workdir"] for row in results["rows"] for run in row["runs"] if not run["eval"]]
    return [*found, *(f"not done: {name}" for name in undone)]


def command_of(run: Run) -> str:
    """What trains a run by hand, on one machine or, with the launch flags, on several."""
    flags = (f"--config.{key}={value}" for key, value in run.overrides.items())
    return shlex.join(
        ["python", "main.py", f"--config={run.config_path}", f"--workdir={run.workdir}", *flags]
    )
