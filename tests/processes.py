"""Runs several processes of `main.py` on this machine, as a launcher would."""

import os
import pathlib
import re
import socket
import sys
import time

from tests import starts, tiny, xla

ROOT = pathlib.Path(__file__).parents[1]
# A narrow net with dropout and augmentation.
RUN = {
    **tiny.NET,
    "run.log_every_steps": 5,
    "run.eval_every_steps": 25,
    "run.save_every_steps": 10,
    "run.total_steps": 50,
}


def arguments(images, workdir, **overrides):
    """The flags of `RUN` on a folder of images."""
    values = {**RUN, "data.source": f"folder:{images}", **overrides}
    return [*(f"--config.{key}={value}" for key, value in values.items()), f"--workdir={workdir}"]


def environment(devices=1):
    return {**os.environ, "XLA_FLAGS": xla.flags(devices)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(*arguments):
    return [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]


class Job:
    """`count` processes, connected by flags; each writes its output to a file in `logs`."""

    def __init__(self, count, logs, *arguments, devices=1, timeout=120, each=lambda index: [], folders=None):
        logs.mkdir(exist_ok=True)
        self.files = [logs / f"{index}.txt" for index in range(count)]
        where = [
            f"--coordinator_address=127.0.0.1:{free_port()}",
            f"--num_processes={count}",
            f"--start_timeout_seconds={timeout}",
        ]
        self.processes = [
            starts.Main(
                [*where, f"--process_id={index}", *arguments, *each(index)],
                cwd=folders[index] if folders else ROOT,
                env=environment(devices),
                output=file,
            )
            for index, file in enumerate(self.files)
        ]

    def said(self, index):
        return self.files[index].read_text()

    def wait_until(self, pattern, index=0, seconds=300, alive=True):
        """Waits until a process's output matches `pattern`; it must not end before, if `alive`."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.said(index)):
            assert not alive or self.processes[index].poll() is None, self.said(index)
            assert time.monotonic() < deadline, self.said(index)
            time.sleep(0.02)

    def codes(self, seconds=300):
        """Waits for all processes; returns their exit codes."""
        try:
            return [process.wait(timeout=seconds) for process in self.processes]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
