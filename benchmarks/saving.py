"""What it costs to lose nothing, with configs/default.py: python -m benchmarks.saving [--runs=5].

A save is timed twice: what the loop waits for, and the whole of it, which is the most that it can cost where
the writing in the background takes the processor from training. A restart is timed from the start of the
process to its first step, as is a fresh start; both find their programs compiled.
"""

import argparse
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
from configs import default

ROOT = pathlib.Path(__file__).parents[1]
SAVE_EVERY_SECONDS = 120


def time_saves(workdir: pathlib.Path, runs: int) -> tuple[list[float], list[float]]:
    """Seconds that each of some saves holds the loop up, and seconds until each is written."""
    run = training.build(configs.resolve(default.get_config()), workdir)
    state = jax.block_until_ready(run.init_state())
    checkpoints = checkpoint.Checkpoints(workdir, keep=3, about=status.about(run.config, run.mesh))
    waited, whole = [], []
    for step in range(runs + 1):  # the first one compiles
        started = time.monotonic()
        checkpoints.save(step, state, training.Record().to_json())
        waited.append(time.monotonic() - started)
        checkpoints.wait()
        whole.append(time.monotonic() - started)
    checkpoints.close()
    return waited[1:], whole[1:]


def time_first_step(workdir: pathlib.Path, step: int) -> float:
    """Seconds from the start of a process to the line of its first step, which is `step`."""
    flags = [f"--config.run.total_steps={step}", "--config.run.log_every_steps=1"]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seconds = next(time.monotonic() - started for line in process.stderr if re.match(f"step {step}/", line))
    process.stderr.read()
    assert process.wait() == 0
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        waited, whole = time_saves(root / "saves", runs)
        most = max(whole) / SAVE_EVERY_SECONDS
        print(f"a save holds the loop up for {_range(waited)} and is written after {_range(whole)}")
        print(f"each {SAVE_EVERY_SECONDS} s: {100 * most:.2f} % at most")

        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        fresh, again = [], []
        for n in range(runs + 1):  # the first one compiles
            fresh.append(time_first_step(root / f"run{n}", step=1))
            again.append(time_first_step(root / f"run{n}", step=2))
        print(f"first step after a fresh start: {_range(fresh[1:])}, after a restart: {_range(again[1:])}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {status.versions()}")


def _range(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f}, n={len(seconds)})"


if __name__ == "__main__":
    main()
