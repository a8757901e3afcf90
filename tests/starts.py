"""Starts `main.py` from a server that has imported the libraries: 1 s of CPU time a start instead of 6 s.

A process started here is a real one, with its own memory, output, signals and exit code; only the imports are
shared. tests/test_main.py starts some from nothing, too.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


class Main:
    """`python main.py ARGUMENTS`, with the methods of `subprocess.Popen` that tests use.

    Attributes:
      stdout, stderr: the files that its output goes to.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        *,
        env: Mapping[str, str],
        cwd: pathlib.Path = ROOT,
        output: pathlib.Path | None = None,
    ) -> None:
        """Starts it.

        Args:
          output: a file for both outputs; by default each has one of its own.
        """
        if output is None:
            folder = pathlib.Path(tempfile.mkdtemp())
            weakref.finalize(self, shutil.rmtree, folder)
            self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        else:
            self.stdout = self.stderr = output
        for file in (self.stdout, self.stderr):
            file.touch()
        words = [str(ROOT / "main.py"), *map(str, arguments)]
        files = (str(self.stdout), str(self.stderr))
        self._process = _context.Process(target=_main, args=(words, dict(env), str(cwd), files))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("main.py", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal; nothing happens if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def lines(self) -> Iterator[str]:
        """The lines of standard error as they come, until the process ends."""
        with self.stderr.open() as file:
            line = ""
            while True:
                ended = self.poll() is not None
                for part in iter(file.readline, ""):
                    line += part
                    if line.endswith("\n"):
                        yield line
                        line = ""
                if ended:
                    if line:
                        yield line
                    return
                time.sleep(0.01)


def run(
    arguments: Sequence[object], *, env: Mapping[str, str], cwd: pathlib.Path = ROOT, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([..., "main.py", *arguments], capture_output=True, text=True)`."""
    process = Main(arguments, env=env, cwd=cwd)
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(
        ["main.py", *map(str, arguments)], code, process.stdout.read_text(), process.stderr.read_text()
    )


def _main(words: list[str], env: dict[str, str], cwd: str, files: tuple[str, str]) -> None:
    """In the started process: sets up what a new interpreter would have, and runs `main.py`."""
    import jax

    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    for key, value in env.items():
        if key.startswith("JAX_") and os.environ.get(key) != value:  # JAX has read the server's
            own = getattr(jax.config, key.lower())
            kind = str if own is None else type(own)
            jax.config.update(key.lower(), value == "true" if kind is bool else kind(value))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without
        sys.stdout.flush()
        sys.stderr.flush()
