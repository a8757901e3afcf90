"""Many runs of configs that differ in one thing, several seeds each: a table, a CSV file and a plot.

    python -m experiments.sweep experiments/ablations.py --runs=runs/ablations --out=experiments/004-ablations

A sweep is a Python file with

    CONFIG = "configs/default.py"                    the parent's config,
    PARENT = {"run.total_epochs": 2.0}               the parent's changes to that config,
    SEEDS = (0, 1, 2)
    ROWS = {"without norms": {"model.norm": False}}  and, row by row, the changes to the parent;

and optionally

    AGAINST = {"b": "a"}                             rows that are compared with another row than the parent,
    PAPER = {"without norms": (1.4, 1.2)}            the paper's result for a row: its top-1 and top-5 error
                                                     above the net that it is compared with, in points of %,
    ONLY = {"a": (0, 1)}                             rows that have fewer seeds than the others,
    START = {"fine-tuned": "pre-trained"}            rows that start from the weights of another row's run
                                                     with the same seed,
    ENSEMBLES = {"3 nets": {"parent": (0, 1, 2)}}    rows and seeds whose predictions are averaged.

A row with "config" among its changes uses that config instead of CONFIG.

Each run does what `python main.py` does, in a process and a workdir of its own below --runs. The same command
again skips the runs that are done, continues those that were interrupted and retries those that failed; a run
that fails or diverges does not stop the others. The files in --out are made from the workdirs alone.
"""

import argparse
import concurrent.futures
import fcntl
import functools
import json
import multiprocessing
import os
import pathlib
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
from alexnet_jax.run import workdir
from experiments.sweep_plan import Run, plan, read

LOG = "sweep.log"  # in a workdir: the run's stdout and stderr
ENDS = ("done", "diverged")  # runs with any other status are run again


class Progress:
    """One bar over all runs; without a terminal, a line for each run with the time left."""

    def __init__(self, runs: Sequence[Run], to_do: Sequence[Run]) -> None:
        self.finished = {run.workdir: threading.Event() for run in runs}
        for run in runs:
            if run not in to_do:
                self.finished[run.workdir].set()
        self._to_do, self._total, self._before = to_do, len(runs), len(runs) - len(to_do)
        self._started = time.monotonic()
        self.bar = tqdm.tqdm(total=self._total, initial=self._before, unit="run", smoothing=0, disable=None)

    def done(self) -> float:
        """The number of runs that are done, with fractions for those under way."""
        under_way = [run.progress() for run in self._to_do if not self.finished[run.workdir].is_set()]
        return self._total - len(under_way) + sum(under_way)

    def show(self) -> None:
        if not self.bar.disable:
            self.bar.n = round(self.done(), 2)
            self.bar.refresh()

    def report(self, run: Run, outcome: str) -> None:
        """Prints a line about a run."""
        left = ""
        if self.bar.disable and (done := self.done()) > self._before:
            seconds = (time.monotonic() - self._started) * (self._total - done) / (done - self._before)
            time_left = tqdm.tqdm.format_interval(seconds)
            left = f"  ({done / self._total:.0%} of {self._total} runs, left {time_left})"
        tqdm.tqdm.write(f"{run.row}, seed {run.seed}: {outcome}{left}", file=sys.stderr)


def run_all(runs: Sequence[Run], jobs: int) -> None:
    """Runs those that have not ended, `jobs` at a time.

    Raises:
      UserError: a workdir holds a run of another config.
    """
    _check_configs(runs)
    # Runs that differ only in a seed share compiled programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(runs[0].workdir.parent.resolve() / ".compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    to_do = [run for run in runs if run.status()["status"] not in ENDS]
    progress, processes = Progress(runs, to_do), set()
    with progress.bar, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run_in_turn, run, progress, processes) for run in to_do]
        try:
            while concurrent.futures.wait(futures, timeout=2).not_done:
                progress.show()
            progress.show()
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            for event in progress.finished.values():  # so that no thread waits for a cancelled run
                event.set()
            for process in list(processes):
                process.terminate()  # it saves a checkpoint and stops; the same command continues
            raise


def _check_configs(runs: Sequence[Run]) -> None:
    for run in runs:
        if (run.workdir / configs.FILE_NAME).exists():
            different = configs.differences(configs.of_workdir(run.workdir), run.config)
            if different:
                raise UserError(
                    f"{run.workdir}: holds a run of another config ({'; '.join(different.values())}); choose "
                    "another --runs, or delete it"
                )


def _run_in_turn(run: Run, progress: Progress, processes: set[Any]) -> None:
    """Runs one, after the run whose weights it starts from."""
    try:
        if run.after is not None:
            progress.finished[run.after.workdir].wait()
            if run.after.status()["status"] != "done":
                progress.report(run, f"left out because {run.after.workdir} is not done")
                return
        _wait_for_lock(run.workdir)
        if run.status()["status"] not in ENDS:
            _run_in_process(run, processes)
    finally:
        progress.finished[run.workdir].set()
    progress.report(run, _outcome(run))


def _wait_for_lock(directory: pathlib.Path) -> None:
    """Waits until no process holds the workdir: the runs of a killed sweep live on."""
    path = directory / workdir.LOCK
    while path.exists():
        with open(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.5)


def _run_in_process(run: Run, processes: set[Any]) -> None:
    run.workdir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = _fork_server().Process(target=train_here, args=(run.config.to_json(), str(run.workdir)))
    process.start()
    processes.add(process)
    process.join()
    processes.discard(process)
    with open(run.workdir / "sweep.jsonl", "a") as file:
        ended = {"exit_code": process.exitcode, "seconds": round(time.monotonic() - started, 1)}
        file.write(json.dumps(ended) + "\n")


@functools.cache
def _fork_server() -> Any:
    """Forks from a process with the libraries loaded, since loading takes longer than many a small run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alexnet_jax.train", "alexnet_jax.common.host", "tensorflow_datasets"])
    return context


def train_here(config: str, directory: str) -> None:
    """Does what `main.py` does in this process, with stdout and stderr in `sweep.log`."""
    log = os.open(pathlib.Path(directory) / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    from alexnet_jax.train import train

    command_line.command(
        lambda: command_line.EXIT_CODES[train(configs.resolve(json.loads(config)), directory)]
    )


def _outcome(run: Run) -> str:
    status = run.status()
    if status["status"] == "done":
        return f"top-1 error {status['eval']['top1_error']:.2f} %"
    lines = [line for line in (run.workdir / LOG).read_text(errors="replace").splitlines() if line.strip()]
    return f"{status['status']}: {status.get('message') or (lines[-1] if lines else 'no output')}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.sweep", __doc__)
    parser.add_argument("sweep", type=command_line.user_path, help="the sweep's file")
    parser.add_argument(
        "--runs",
        type=command_line.new_folder,
        help="directory of the workdirs; by default runs/ and the file's name",
    )
    out = "directory of tables and plots; by default --runs"
    parser.add_argument("--out", type=command_line.new_folder, help=out)
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--rows", action="append", metavar="ROW", help="run only this row; may be repeated")
    parser.add_argument(
        "--table", action="store_true", help="run nothing; make the tables from what is there"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be 1 or more")
    # Here, since each run's process imports this module too and needs neither SciPy nor matplotlib.
    from experiments import sweep_results, sweep_table

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the runs save and stop, too
    sweep = read(args.sweep)
    directory = args.runs or pathlib.Path("runs") / args.sweep.stem
    if not args.table:
        run_all(plan(sweep, directory, args.rows), args.jobs)
    results = sweep_results.gather(sweep, plan(sweep, directory))
    print(sweep_table.write(results, args.out or directory), end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
