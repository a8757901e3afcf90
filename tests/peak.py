"""The peak memory of a process alone, excluding that of its parent.

Linux's `ru_maxrss` does not work: a child's starts at its parent's peak.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def kilobytes() -> int | None:
    """This process's peak memory since its start; None without /proc."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else None


needed = pytest.mark.skipif(kilobytes() is None, reason="no /proc here that tells the peak of a process")


def said_by(program: str, *arguments: object) -> list[str]:
    """Runs a program in a new process that can import `tests.peak`; returns the words it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
