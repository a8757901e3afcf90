"""Runs main.py in real processes, with a narrow net."""

import hashlib
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np

from tests import starts, tiny, xla

TRAIN, TEST = 100, 200  # images: an epoch is twelve and a half batches
STEPS = 60

# A line of the log every 5 steps, a save every 10, an evaluation every 13: just after the end of an epoch and
# between the other events.
TINY = {
    **tiny.NET,
    "run.total_steps": STEPS,
    "run.log_every_steps": 5,
    "run.eval_every_epochs": 1.0,
    "run.save_every_steps": 10,
}


def make_images(root: pathlib.Path) -> pathlib.Path:
    """Writes the images of these runs."""
    return tiny.make_images(root, train=TRAIN // tiny.CLASSES, test=TEST // tiny.CLASSES)


def command(images: pathlib.Path, workdir: pathlib.Path, **overrides: object) -> list[str]:
    values = {"data.source": f"folder:{images}", **TINY, **overrides}
    flags = [f"--config.{key}={value}".replace(" ", "") for key, value in values.items()]
    return [f"--workdir={workdir}", *flags]


def environment(**more: str) -> dict[str, str]:
    # One device, as on a laptop; the process of the tests has eight.
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla.flags(devices=1),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }


def digest(tree: Any) -> str:
    """A hash of all arrays of a tree: paths, dtypes, shapes and bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree)):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


class Process:
    """A process; records each line of its standard error with the time."""

    def __init__(self, arguments: list[str], **environ: str):
        self.started = time.monotonic()
        self._process = starts.Main(arguments, env=environment(**environ))
        self._unread = self._process.lines()
        self.lines: list[tuple[float, str]] = []  # seconds since the start, and what was said

    def wait_for(self, pattern: str) -> bool:
        """Reads lines until one matches; False if the process ends first."""
        return any(re.search(pattern, line) for line in self._read())

    def send(self, number: int) -> None:
        """Sends a signal; none where it has ended."""
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Waits for the process; returns its exit code."""
        for _ in self._read():
            pass
        return self._process.wait()

    @property
    def said(self) -> str:
        return "".join(line for _, line in self.lines)

    def _read(self):
        for line in self._unread:
            self.lines.append((time.monotonic() - self.started, line))
            yield line


def run(arguments: list[str], **environ: str) -> tuple[int, str]:
    """Runs a process to its end; returns the exit code and standard error."""
    process = Process(arguments, **environ)
    return process.end(), process.said
