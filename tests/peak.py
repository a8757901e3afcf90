"""The peak of a process's own memory, which nothing of the process that started it goes into.

Linux's `ru_maxrss` is no such thing: a child's begins at the peak of its parent.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def kilobytes() -> int | None:
    """The most that this process has held since it was started; None where no /proc tells."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) if found else None


needed = pytest.mark.skipif(kilobytes() is None, reason="no /proc here that tells the peak of a process")


def said_by(program: str, *arguments: object) -> list[str]:
    """The words that a new process prints, which can import `tests.peak`."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
