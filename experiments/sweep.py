"""Many runs of configs that differ in one thing, several seeds each: a table, a CSV file and a plot.

    python -m experiments.sweep experiments/ablations.py --runs=runs/ablations --out=experiments/004-ablations

A sweep is a Python file that holds

    CONFIG = "configs/default.py"                    what the parent is made of,
    PARENT = {"run.total_epochs": 2.0}               what it changes in that,
    SEEDS = (0, 1, 2)
    ROWS = {"without norms": {"model.norm": False}}  and, row by row, what is changed in the parent;

and, if it likes,

    AGAINST = {"b": "a"}                             rows that are compared with another row than the parent,
    PAPER = {"without norms": (1.4, 1.2)}            what the paper reports of a row: points of % of top-1 and
                                                     top-5 error above the net that it is compared with,
    ONLY = {"a": (0, 1)}                             rows that have fewer seeds than the others,
    START = {"fine-tuned": "pre-trained"}            rows that begin with the weights of another row's run of
                                                     the same seed,
    ENSEMBLES = {"3 nets": {"parent": (0, 1, 2)}}    rows and seeds whose predictions are averaged.

A row that has "config" among its changes is made of that config.

Each run is what `python main.py` does, in a process and a workdir of its own below --runs. Given again, the
command skips the runs that are done, goes on with those that were interrupted and tries again those that
failed; a run that fails or diverges does not keep the others from running. What --out holds is made of the
workdirs alone.
"""

import argparse
import concurrent.futures
import dataclasses
import fcntl
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import tqdm

from alexnet_jax import config as configs
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import logs, workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARENT = "parent"
LOG = "sweep.log"  # of a workdir: what the run said
# A run that was interrupted, failed or was never begun is run; these are the ends of one.
ENDS = ("done", "diverged")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's file says, checked. `rows` begins with the parent, which changes nothing."""

    path: pathlib.Path
    title: str
    config: str
    parent: dict[str, Any]
    seeds: tuple[int, ...]
    rows: dict[str, dict[str, Any]]
    against: dict[str, str]
    paper: dict[str, tuple[float, float]]
    only: dict[str, tuple[int, ...]]
    start: dict[str, str]
    ensembles: dict[str, dict[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: `overrides` by dotted key are what it changes in `config_path`."""

    row: str
    seed: int
    workdir: pathlib.Path
    config_path: str
    overrides: dict[str, Any]
    config: configs.Config
    after: "Run | None" = None

    def status(self) -> dict[str, Any]:
        """Its `status.json`, `{"status": "not begun"}` where there is none."""
        try:
            return json.loads((self.workdir / logs.STATUS).read_text())
        except FileNotFoundError:
            return {"status": "not begun"}
        except ValueError as error:
            raise UserError(
                f"{self.workdir / logs.STATUS}: damaged ({error}); delete the directory"
            ) from error

    def share_done(self) -> float:
        """How much of its steps is done, 0 to 1, by its metrics."""
        try:
            last = (self.workdir / logs.METRICS).read_text().splitlines()[-1]
            values = json.loads(last)
        except (OSError, IndexError, ValueError):
            return 0.0
        run = self.config.run
        done = values["step"] / run.total_steps if run.total_steps else values["epoch"] / run.total_epochs
        return min(done, 1.0)


# --- What there is to run ---------------------------------------------------------------------------------


def read(path: str | pathlib.Path) -> Sweep:
    """Reads a sweep's file.

    Raises:
      UserError: it is not there, cannot be executed, or lacks or mistypes one of its names.
    """
    path = pathlib.Path(path)
    module = _execute(path, "a sweep")
    known = {"CONFIG", "PARENT", "SEEDS", "ROWS", "AGAINST", "PAPER", "ONLY", "START", "ENSEMBLES"}
    given = {name: value for name, value in vars(module).items() if name.isupper()}
    if unknown := sorted(set(given) - known):
        raise UserError(
            f"{path}: {unknown[0]} means nothing in a sweep; known are {', '.join(sorted(known))}"
        )
    for name, kind in (("CONFIG", str), ("SEEDS", tuple), ("ROWS", dict)):
        if not isinstance(given.get(name), kind) or not (given[name] or name == "ROWS"):
            raise UserError(f"{path}: {name} must be a {kind.__name__}, and not an empty one")
    rows = {PARENT: {}, **given["ROWS"]}
    for name in ("AGAINST", "PAPER", "ONLY", "START"):
        named = {
            *given.get(name, {}),
            *(given.get(name, {}).values() if name in ("AGAINST", "START") else ()),
        }
        if unknown := sorted(named - set(rows)):
            raise UserError(f"{path}: {name} has {unknown[0]!r}, which is no row")
    for row, other in given.get("START", {}).items():
        if other not in list(rows)[: list(rows).index(row)]:
            raise UserError(f"{path}: START: {row!r} must come after {other!r}, with whose weights it starts")
    for name, members in given.get("ENSEMBLES", {}).items():
        for row, seeds in members.items():
            if row not in rows or not set(seeds) <= set(given.get("ONLY", {}).get(row, given["SEEDS"])):
                raise UserError(f"{path}: ENSEMBLES: {name!r} has runs of {row!r} that the sweep has not")
    return Sweep(
        path=path,
        title=(module.__doc__ or path.stem).strip().splitlines()[0],
        config=given["CONFIG"],
        parent=given.get("PARENT", {}),
        seeds=given["SEEDS"],
        rows=rows,
        against=given.get("AGAINST", {}),
        paper=given.get("PAPER", {}),
        only=given.get("ONLY", {}),
        start=given.get("START", {}),
        ensembles=given.get("ENSEMBLES", {}),
    )


def _execute(path: pathlib.Path, what: str) -> Any:
    spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", path.stem), path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: no such file; give {what}, which is a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: the file is broken ({type(error).__name__}: {error})") from error
    return module


def plan(sweep: Sweep, runs: pathlib.Path, rows: Sequence[str] | None = None) -> list[Run]:
    """All runs, each row's seed by seed, in an order in which none starts with the weights of a later one.

    Raises:
      UserError: a row is unknown, or its config is not one.
    """
    if unknown := [row for row in rows or () if row not in sweep.rows]:
        raise UserError(f"--rows={unknown[0]}: the sweep has {', '.join(sweep.rows)}")
    planned: dict[tuple[str, int], Run] = {}
    # Seed by seed, so that a sweep that is cut short has whole comparisons.
    for seed in sweep.seeds:
        for row, changes in sweep.rows.items():
            if seed not in sweep.only.get(row, sweep.seeds):
                continue
            if rows and row not in rows and row not in (sweep.start.get(r) for r in rows):
                continue
            changes = {**sweep.parent, **changes}
            config_path = changes.pop("config", sweep.config)
            overrides = {"run.seed": seed, **changes}
            after = planned.get((sweep.start.get(row, ""), seed))
            if row in sweep.start:
                if after is None:
                    raise UserError(f"{sweep.path}: START: {row!r} has seed {seed}, {sweep.start[row]!r} not")
                overrides["init.path"] = str(after.workdir.resolve())
            try:
                config = configs.resolve(_config(config_path), overrides)
            except UserError as error:
                raise UserError(f"{sweep.path}: {row!r}: {error}") from error
            name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
            run = Run(row, seed, runs / f"{name}-{seed}", config_path, overrides, config, after)
            planned[row, seed] = run
    if len({run.workdir for run in planned.values()}) < len(planned):
        raise UserError(f"{sweep.path}: two rows differ only in signs that a directory's name cannot hold")
    return list(planned.values())


@functools.cache
def _config(path: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return _execute(ROOT / path, "a config").get_config()


# --- Running ----------------------------------------------------------------------------------------------


def run_all(runs: Sequence[Run], jobs: int) -> None:
    """Runs what is not at its end, `jobs` at a time, with one bar over all.

    Raises:
      UserError: a workdir holds a run of another config.
    """
    for run in runs:
        if (run.workdir / configs.FILE_NAME).exists():
            different = configs.differences(configs.of_workdir(run.workdir), run.config)
            if different:
                raise UserError(
                    f"{run.workdir}: holds a run of another config ({'; '.join(different)}); choose another "
                    "--runs, or delete it"
                )
    to_do = [run for run in runs if run.status()["status"] not in ENDS]
    finished = {run.workdir: threading.Event() for run in runs}
    for run in runs:
        if run not in to_do:
            finished[run.workdir].set()
    # Runs that differ only in a seed share their programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(runs[0].workdir.parent.resolve() / ".compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    processes: set[Any] = set()
    bar = tqdm.tqdm(total=len(runs), initial=len(runs) - len(to_do), unit="run", smoothing=0, disable=None)
    started, before = time.monotonic(), len(runs) - len(to_do)

    def execute(run: Run) -> None:
        try:
            if run.after is not None:
                finished[run.after.workdir].wait()
                if run.after.status()["status"] != "done":
                    say(run, f"left out, for {run.after.workdir} is not done")
                    return
            _wait_for_others(run.workdir)
            if run.status()["status"] not in ENDS:
                _execute_run(run, processes)
        finally:
            finished[run.workdir].set()
        say(run, _outcome(run))

    def done() -> float:
        under_way = [run.share_done() for run in to_do if not finished[run.workdir].is_set()]
        return len(runs) - len(under_way) + sum(under_way)

    def show() -> None:
        if not bar.disable:
            bar.n = round(done(), 2)
            bar.refresh()

    def say(run: Run, what: str) -> None:
        """A line a run; without a terminal, and so without a bar, with the time left."""
        left = ""
        if bar.disable and (now := done()) > before:
            seconds = (time.monotonic() - started) * (len(runs) - now) / (now - before)
            left = f"  ({now:.1f} of {len(runs)} runs, left {tqdm.tqdm.format_interval(seconds)})"
        tqdm.tqdm.write(f"{run.row}, seed {run.seed}: {what}{left}", file=sys.stderr)

    with bar, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(execute, run) for run in to_do]
        try:
            while concurrent.futures.wait(futures, timeout=2).not_done:
                show()
            show()
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            for event in finished.values():  # nobody waits for a run that will not come
                event.set()
            for process in list(processes):
                process.terminate()  # it saves and stops; the same command goes on
            raise


def _execute_run(run: Run, processes: set[Any]) -> None:
    run.workdir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = _processes().Process(target=train_here, args=(run.config.to_json(), str(run.workdir)))
    process.start()
    processes.add(process)
    process.join()
    processes.discard(process)
    with open(run.workdir / "sweep.jsonl", "a") as file:
        told = {"exit_code": process.exitcode, "seconds": round(time.monotonic() - started, 1)}
        file.write(json.dumps(told) + "\n")


@functools.cache
def _processes() -> Any:
    """Makes processes from one that has the libraries loaded, which takes longer than many a small run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alexnet_jax.train", "alexnet_jax.common.host", "tensorflow_datasets"])
    return context


def train_here(config: str, directory: str) -> None:
    """What `main.py` does, in this process, with all that it says in `sweep.log`."""
    log = os.open(pathlib.Path(directory) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    from alexnet_jax.train import train

    command_line.command(
        lambda: command_line.EXIT_CODES[train(configs.resolve(json.loads(config)), directory)]
    )


def _wait_for_others(directory: pathlib.Path) -> None:
    """Until no process holds the workdir: the runs of a sweep that was killed live on."""
    path = directory / workdir.LOCK
    while path.exists():
        with open(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.5)


def _outcome(run: Run) -> str:
    status = run.status()
    if status["status"] == "done":
        return f"top-1 error {status['eval']['top1_error']:.2f} %"
    lines = [line for line in (run.workdir / LOG).read_text(errors="replace").splitlines() if line.strip()]
    return f"{status['status']}: {status.get('message') or (lines[-1] if lines else 'it said nothing')}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.sweep", __doc__)
    parser.add_argument("sweep", type=pathlib.Path, help="the sweep's file")
    parser.add_argument("--runs", type=pathlib.Path, help="workdirs; by default runs/ and the file's name")
    parser.add_argument("--out", type=pathlib.Path, help="tables and plots; by default --runs itself")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--rows", action="append", metavar="ROW", help="only this row; may be given again")
    parser.add_argument("--table", action="store_true", help="runs nothing: the tables of what is there")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be 1 or more")
    from experiments import sweep_results  # what it needs is imported where it is used

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs save and stop, too
    sweep = read(args.sweep)
    directory = args.runs or pathlib.Path("runs") / args.sweep.stem
    if not args.table:
        run_all(plan(sweep, directory, args.rows), args.jobs)
    results = sweep_results.gather(sweep, plan(sweep, directory))
    print(sweep_results.write(results, args.out or directory), end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
