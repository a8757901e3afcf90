"""The cost of checkpoints and restarts with configs/default.py: python -m benchmarks.saving [--runs=5].

A save is timed twice: until the loop goes on, and until the file is written, which bounds its cost if writing
in the background takes the processor from training. Restarts and fresh starts are timed from the start of the
process to the first step; both find their programs compiled.
"""

import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.run import checkpoint, status
from benchmarks import tables
from configs import default

SAVE_EVERY_SECONDS = 120


def time_saves(workdir: pathlib.Path, runs: int) -> tuple[list[float], list[float]]:
    """For each save, the seconds that it blocks the loop and the seconds until it is written."""
    run = training.Run(configs.resolve(default.get_config()), workdir)
    state = jax.block_until_ready(run.init_state())
    checkpoints = checkpoint.Checkpoints(workdir, keep=3, metadata=status.about(run.config, run.mesh))
    blocked, written = [], []
    for step in range(runs + 1):  # the first one compiles
        started = time.monotonic()
        checkpoints.save(step, state, training.Record().to_json())
        blocked.append(time.monotonic() - started)
        checkpoints.wait()
        written.append(time.monotonic() - started)
    checkpoints.close()
    return blocked[1:], written[1:]


def time_first_step(workdir: pathlib.Path, step: int) -> float:
    """Seconds from the start of a process to its line about step `step`, its first."""
    flags = [f"--config.run.total_steps={step}", "--config.run.log_every_steps=1"]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, tables.ROOT / "main.py", f"--workdir={workdir}", *flags],
        cwd=tables.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seconds = next(time.monotonic() - started for line in process.stderr if re.match(f"step {step}/", line))
    process.stderr.read()
    assert process.wait() == 0
    return seconds


def main() -> None:
    parser = tables.Parser("saving", __doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        blocked, written = time_saves(root / "saves", runs)
        most = max(written) / SAVE_EVERY_SECONDS
        print(f"a save blocks the loop for {_range(blocked)} and is written after {_range(written)}")
        print(f"a save every {SAVE_EVERY_SECONDS} s costs {100 * most:.2f} % at most")

        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        fresh, again = [], []
        for n in range(runs + 1):  # the first one compiles
            fresh.append(time_first_step(root / f"run{n}", step=1))
            again.append(time_first_step(root / f"run{n}", step=2))
        print(f"first step after a fresh start: {_range(fresh[1:])}, after a restart: {_range(again[1:])}")
    print(f"{tables.cores()} cores, load {os.getloadavg()[0]:.1f}; {status.versions()}")


def _range(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f}, n={len(seconds)})"


if __name__ == "__main__":
    main()
