"""Progress bars, plain lines if stderr is not a terminal; notes.

A bar redraws itself with carriage returns, which in a pipe, notebook or log add up to a line of megabytes.
"""

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import tqdm

LINE_SECONDS = 10.0  # between lines; shorter tasks print none


def stream() -> TextIO:
    """Where progress is shown: standard error, or in a notebook, which shows that in red, standard output."""
    return sys.stdout if type(sys.stderr).__module__.startswith("ipykernel") else sys.stderr


def say(line: str) -> None:
    """Prints a line to `stream()`, above any bars."""
    tqdm.tqdm.write(line, file=stream())
    stream().flush()


class _Lines:
    """A file that turns tqdm's bars into lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if shown := text.strip("\r\n "):
            self._file.write(f"{shown}\n")

    def flush(self) -> None:
        self._file.flush()


class _Bar(tqdm.tqdm):
    """A bar whose rate and time left do not count the first unit, which waits for the compiler."""

    _has_begun = False

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: float | None = 1) -> bool | None:
        if self.disable or self._has_begun:
            return super().update(n)
        self.n, started = self.n + (n or 0), self.last_print_t
        self.unpause()  # the clock starts anew
        is_due = self.last_print_t - started >= self.mininterval
        self._has_begun, self.initial, self.last_print_n = True, self.n, self.n
        return self.refresh() if is_due else None


def bar(total: int | None, unit: str, what: str = "", **options: object) -> tqdm.tqdm:
    """A progress bar on `stream()`, with rate and time left; on a terminal of at least 40 columns.

    Args:
      total: number of units, None if unknown.
      unit: singular noun for a unit, such as "image".
      what: the task in a word or two.
      options: further arguments of `tqdm.tqdm`.
    """
    counted, left = ("{n_fmt}", "") if total is None else ("{n_fmt}/{total_fmt}", ", left {remaining}")
    file, text = stream(), "{desc}{percentage:.0f}% |{bar}| left {remaining}, {rate_fmt}"
    kind: dict[str, object] = {"file": file, "dynamic_ncols": True}
    if total is not None:
        kind["bar_format"] = text
    if not file.isatty():
        seconds = {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS, "delay": LINE_SECONDS}
        text = "{desc}" + counted + " {unit}, {rate_fmt}" + left
        kind = {"file": _Lines(file), "bar_format": text, **seconds}
    return _Bar(desc=f"{what}: " if what else None, total=total, unit=unit, **{**kind, **options})  # type: ignore[arg-type]


def note(line: str) -> None:
    """Prints `note: <line>` to standard error; of the processes of a job, only the first does."""
    jax = sys.modules.get("jax")  # without it there is no job
    if jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(f"note: {line}", file=sys.stderr, flush=True)
