"""kill -9 at random moments, each time resumed to the end: python -m tests.faults.kill --runs=50 [--seed=0].

An undisturbed run comes first. Every other run is killed once or twice and must end with the same bits:
parameters, the rest of the state, the run's record, and all metrics except times. Case N depends only on the
seed and N; with --into=DIR a stopped harness resumes.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

import jax

from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.common import files
from alexnet_jax.run import checkpoint, logs, status
from tests.faults import runs

# The phases in which the processes of a case are killed, one process after another.
PHASES: dict[str, tuple[str, ...]] = {
    phase: (phase,) for phase in ("start", "compile", "step", "save", "evaluation", "epoch end", "end")
}
PHASES["restore"] = ("step", "start")
RESULTS = "results.jsonl"


@dataclasses.dataclass
class Whole:
    """The undisturbed run: its outcome, and its lines with their seconds, compiling and compiled."""

    outcome: dict[str, Any]
    compiling: list[tuple[float, str]]
    lines: list[tuple[float, str]]

    def after(self, pattern: str, phase: str) -> float:
        """Seconds from the line that matches `pattern` to the next one."""
        lines = self.compiling if phase == "compile" else self.lines
        place = next(i for i, (_, line) in enumerate(lines) if re.search(pattern, line))
        ends = [*(t for t, _ in lines), lines[-1][0] + 0.3]
        return ends[place + 1] - ends[place]


class Harness:
    """Runs the cases in the directory `into`, which keeps images, compiled programs and results."""

    def __init__(self, into: pathlib.Path, seed: int = 0, **environ: str):
        self.into, self.seed, self._environ = into, seed, environ
        self.images = into / "images"
        if not self.images.exists():
            runs.make_images(into / "images.part").rename(self.images)
        self.whole = self._whole()

    def case(self, number: int, phase: str) -> dict[str, Any]:
        """Kills a run once (twice for `restore`), resumes it to the end and compares the outcome."""
        workdir = self.into / f"case{number}"
        draw = random.Random(f"{self.seed} {number}")
        moments: list[str | None] = [None]
        while None in moments:  # try again if the run ended before the kill
            shutil.rmtree(workdir, ignore_errors=True)
            moments = [self._kill(workdir, killed_in, draw) for killed_in in PHASES[phase]]
        process = self._start(workdir)
        code = process.end()
        begun = re.search(r"^steps +(\d+) to", process.said, re.M)
        result = {
            "number": number,
            "phase": phase,
            "killed": moments,
            "resumed_at": int(begun.group(1)) if begun else None,
            "exit_code": code,
            "set_aside": len(list((workdir / checkpoint.DAMAGED).glob("*"))),
            "different": [] if code else different(self.whole.outcome, self._outcome(workdir)),
        }
        result["identical"] = code == 0 and not result["different"]
        if result["identical"]:
            shutil.rmtree(workdir)
        return result

    def _start(self, workdir: pathlib.Path, compiles: bool = False) -> runs.Process:
        cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if compiles else {}
        return runs.Process(runs.command(self.images, workdir), **self._environ, **cache)

    def _kill(self, workdir: pathlib.Path, phase: str, draw: random.Random) -> str | None:
        """Starts a run and kills it in `phase`; returns when, or None if the run had ended already."""
        process = self._start(workdir, compiles=phase == "compile")
        if phase == "start":
            line, seconds = "", next(t for t, line in self.whole.lines if "workdir" in line)
        else:
            line = _line_before(phase, draw)
            seconds = 0.05 if phase == "save" else self.whole.after(line, phase)
            process.wait_for(line)
        if phase == "save":
            while process.running() and not list(workdir.glob("checkpoints/*tmp*")):
                time.sleep(0.001)
        delay = draw.uniform(0, seconds)
        time.sleep(delay)
        process.send(signal.SIGKILL)
        return f"{delay:.3f} s after {line or 'the start'}" if process.end() == -signal.SIGKILL else None

    def _whole(self) -> Whole:
        workdir = self.into / "whole"
        kept = self.into / "whole.json"
        if not kept.exists():
            said = []
            for _ in range(2):
                shutil.rmtree(workdir, ignore_errors=True)
                process = self._start(workdir)
                if process.end() != 0:
                    raise SystemExit(f"the undisturbed run failed:\n{process.said}")
                said.append(process.lines)
            files.write_text(kept, json.dumps(said))
        return Whole(self._outcome(workdir), *json.loads(kept.read_text()))

    def _outcome(self, workdir: pathlib.Path) -> dict[str, Any]:
        """What must be the same after any kill, read from the last checkpoint and the metrics."""
        config = configs.of_workdir(workdir)
        restored = checkpoint.Checkpoints(workdir).restore(training.Run(config, workdir).abstract_state)
        assert restored is not None
        state, record = restored
        return {
            "parameters": runs.digest(state.params),
            "state": runs.digest(state),
            "step": int(state.step),
            "record": record,
            "metrics": untimed(workdir),
            "status": json.loads((workdir / logs.STATUS).read_text()),
        }


def untimed(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of the metrics without times and rates."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in logs.read_metrics(workdir)]


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys whose values differ."""
    return [key for key in a if a[key] != b[key]]


def _line_before(phase: str, draw: random.Random) -> str:
    """A pattern for the line on standard error after which a phase begins."""
    log, last = runs.TINY["run.log_every_steps"], runs.STEPS
    tests = range(13, last, 13)
    if phase == "compile":
        return r"^steps "
    if phase == "step":
        return rf"^step {draw.randrange(log, last, log)}/.*loss"
    if phase == "save":
        return rf"^step {draw.randrange(10, last, 10) - log}/.*loss"
    if phase == "evaluation":
        return rf"^step {draw.choice(tests) // log * log}/.*loss"
    if phase == "epoch end":
        return rf"^step {draw.choice(tests)}/.*top-1"
    return rf"^step {last}/.*{draw.choice(['loss', 'top-1'])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=pathlib.Path, help="directory to work in, or to resume in")
    arguments = parser.parse_args()
    into = arguments.into or pathlib.Path(tempfile.mkdtemp(prefix="alexnet_jax-kill-"))
    into.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(into / "cache")
    harness = Harness(into, arguments.seed)
    path = into / RESULTS
    results = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for number in range(len(results), arguments.runs):
        results.append(harness.case(number, list(PHASES)[number % len(PHASES)]))
        with open(path, "a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(_row(results[-1]), flush=True)
    return report(results, arguments.seed)


def report(results: list[dict[str, Any]], seed: int) -> int:
    """Prints the table; returns 0 if all runs are identical, else 1."""
    print(f"\n{'killed in':12} {'runs':>5} {'identical':>10}")
    by_phase = collections.defaultdict(list)
    for result in results:
        by_phase[result["phase"]].append(result["identical"])
    for phase, identical in by_phase.items():
        print(f"{phase:12} {len(identical):5} {sum(identical):10}")
    same = sum(result["identical"] for result in results)
    versions = ", ".join(f"{k} {v}" for k, v in status.versions().items())
    kills = sum(len(result["killed"]) for result in results)
    print(f"\n{same} of {len(results)} identical ({kills} kills, seed {seed})")
    print(f"{sum(r['set_aside'] for r in results)} checkpoints were set aside as damaged")
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; {versions}")
    return 0 if same == len(results) else 1


def _row(result: dict[str, Any]) -> str:
    how = "identical" if result["identical"] else f"NOT IDENTICAL: {result['different'] or result}"
    begun = f"resumed at {result['resumed_at']!s:>4}"
    return f"{result['number']:3} {result['phase']:10} {begun}  {how}  {'; '.join(result['killed'])}"


if __name__ == "__main__":
    sys.exit(main())
