"""Real processes of main.py with a narrow net, for what may happen to them."""

import hashlib
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np

from tests import starts, tiny

TRAIN, TEST = 100, 200  # images: an epoch is twelve and a half batches
STEPS = 60

# What happens when: a line of the log each 5 steps, a save each 10, a test each 13, which is after the end
# of an epoch and in the middle of everything else.
TINY = {
    **tiny.NET,
    "run.total_steps": STEPS,
    "run.log_every_steps": 5,
    "run.eval_every_epochs": 1.0,
    "run.save_every_steps": 10,
}


def make_images(root: pathlib.Path) -> pathlib.Path:
    """The images of these runs."""
    return tiny.make_images(root, train=TRAIN // tiny.CLASSES, test=TEST // tiny.CLASSES)


def command(images: pathlib.Path, workdir: pathlib.Path, **overrides: object) -> list[str]:
    values = {"data.source": f"folder:{images}", **TINY, **overrides}
    flags = [f"--config.{key}={value}".replace(" ", "") for key, value in values.items()]
    return [f"--workdir={workdir}", *flags]


def environment(**more: str) -> dict[str, str]:
    # One device, as on a laptop; the tests' own process has eight.
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }


def digest(tree: Any) -> str:
    """A hash of all arrays of a tree: names, types and bits."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree)):
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()


class Process:
    """A process whose lines on standard error are read as they come."""

    def __init__(self, arguments: list[str], **environ: str):
        self.started = time.monotonic()
        self._process = starts.Main(arguments, env=environment(**environ))
        self._unread = self._process.lines()
        self.lines: list[tuple[float, str]] = []  # seconds since the start, and what was said

    def wait_for(self, pattern: str) -> bool:
        """Whether a line that matches comes before the end."""
        return any(re.search(pattern, line) for line in self._read())

    def send(self, number: int) -> None:
        """Sends a signal; none where it has ended."""
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> int:
        """Waits for the end and gives the exit code."""
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
    """A process to its end: exit code and what it said."""
    process = Process(arguments, **environ)
    return process.end(), process.said
