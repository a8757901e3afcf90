"""The runs of a sweep: each in a process of its own, with progress, and continued after any interruption."""

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
from collections.abc import Container, Sequence
from typing import Any

import tqdm

from alexnet_jax import config as configs
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import workdir
from benchmarks import tables
from experiments.sweep_plan import SESSIONS, Run, Sweep, plan

LOG = "sweep.log"  # in a workdir: the run's stdout and stderr


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


def run_all(runs: Sequence[Run], jobs: int, recorded: Container[pathlib.Path] = ()) -> None:
    """Runs those that have not ended, `jobs` at a time.

    Args:
      recorded: workdirs of runs whose results are known: run again only if another run starts from their
        weights.

    Raises:
      UserError: a workdir holds a run of another config.
    """
    _check_configs(runs)
    # Runs that differ only in a seed share compiled programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(runs[0].workdir.parent.resolve() / ".compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    to_do = _to_do(runs, recorded)
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


def _to_do(runs: Sequence[Run], recorded: Container[pathlib.Path]) -> list[Run]:
    to_do, sources = [], set()
    for run in reversed(runs):  # each after those that start from its weights
        if not run.has_ended() and (run.workdir not in recorded or run.workdir in sources):
            to_do.append(run)
            sources |= {run.after.workdir} if run.after else set()
    return to_do[::-1]


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
        if not run.has_ended():
            run_in_process(run, processes)
    finally:
        progress.finished[run.workdir].set()
    progress.report(run, outcome(run))


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


def run_in_process(run: Run, processes: set[Any]) -> None:
    run.workdir.mkdir(parents=True, exist_ok=True)
    process = _fork_server().Process(target=train_here, args=(run.config.to_json(), str(run.workdir)))
    process.start()
    processes.add(process)
    process.join()
    processes.discard(process)


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

    def run() -> int:
        started = time.monotonic()
        status = train(configs.resolve(json.loads(config)), directory)
        # Here, since the run of a killed sweep lives on.
        session = {"seconds": round(time.monotonic() - started, 1), "machine": _machine()}
        with open(pathlib.Path(directory) / SESSIONS, "a") as file:
            file.write(json.dumps(session) + "\n")
        return command_line.EXIT_CODES[status]

    command_line.command(run)


def _machine() -> str:
    """Processor, devices, versions and the commit of this process."""
    import jax

    from alexnet_jax.run import status

    host, devices = tables.machine(), jax.devices()
    kinds = f"{len(devices)} x {devices[0].device_kind}"
    versions = ", ".join(f"{name} {version}" for name, version in status.versions().items())
    cores = "1 core" if host["cores"] == 1 else f"{host['cores']} cores"
    code = f"; commit {commit}" if (commit := tables.commit()) else ""
    return f"{kinds}; {cores} of {host['machine']}; {versions}{code}"


def outcome(run: Run) -> str:
    """How a run ended, in a line; of one that wrote no status, the last line of its log."""
    status = run.status()
    if status["status"] == "done":
        return f"top-1 error {status['eval']['top1_error']:.2f} %"
    lines = [line for line in (run.workdir / LOG).read_text(errors="replace").splitlines() if line.strip()]
    return f"{status['status']}: {status.get('message') or (lines[-1] if lines else 'no output')}"


def make(
    sweep: Sweep, directory: pathlib.Path, out: pathlib.Path, jobs: int, rows: Sequence[str] | None = None
) -> tuple[dict[str, Any], str]:
    """Runs what is not done, `jobs` at a time, and writes the files in `out`.

    Args:
      jobs: 0 to run nothing.

    Returns:
      the contents of `results.json`, and the table as Markdown.
    """
    # Here, since each run's process imports this module too and needs neither SciPy nor matplotlib.
    from experiments import sweep_results, sweep_table

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: the runs save and stop, too
    earlier = sweep_results.read(out)
    if jobs:
        runs = plan(sweep, directory, rows)
        if recorded := sweep_results.recorded(earlier, runs):
            print(f"{out / sweep_results.FILE}: has {len(recorded)} of {len(runs)} runs", file=sys.stderr)
        run_all(runs, jobs, recorded)
    results = sweep_results.gather(sweep, plan(sweep, directory), earlier)
    if lost := sweep_results.lost(earlier, results):
        what = "of another config or no longer in the sweep, and left out now"
        print(f"note: {out / sweep_results.FILE}: {'; '.join(lost)}: {what}", file=sys.stderr)
    return results, sweep_table.write(results, out)
