"""Progress bars, plain lines if stderr is not a terminal; notes.

A bar redraws itself with carriage returns, which in a pipe, notebook or log add up to a line of megabytes.
"""

import sys
from typing import TextIO

import tqdm

LINE_SECONDS = 10.0  # between lines; shorter tasks print none


class _Lines:
    """A file that turns tqdm's bars into lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if shown := text.strip("\r\n "):
            self._file.write(f"{shown}\n")

    def flush(self) -> None:
        self._file.flush()


def bar(total: int | None, unit: str, what: str = "", **options: object) -> tqdm.tqdm:
    """A progress bar on standard error, with rate and time left.

    Args:
      total: number of units, None if unknown.
      unit: singular noun for a unit, such as "image".
      what: the task in a word or two.
      options: further arguments of `tqdm.tqdm`.
    """
    counted, left = ("{n_fmt}", "") if total is None else ("{n_fmt}/{total_fmt}", ", left {remaining}")
    kind: dict[str, object] = {"file": sys.stderr, "dynamic_ncols": True}
    if not sys.stderr.isatty():
        seconds = {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS, "delay": LINE_SECONDS}
        text = "{desc}" + counted + " {unit}, {rate_fmt}" + left
        kind = {"file": _Lines(sys.stderr), "bar_format": text, **seconds}
    return tqdm.tqdm(desc=f"{what}: " if what else None, total=total, unit=unit, **{**kind, **options})  # type: ignore[arg-type]


def note(line: str) -> None:
    """Prints `note: <line>` to standard error; of the processes of a job, only the first does."""
    jax = sys.modules.get("jax")  # without it there is no job
    if jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(f"note: {line}", file=sys.stderr, flush=True)
