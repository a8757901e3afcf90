"""How far along something is: a bar on a terminal, now and then a line anywhere else.

A bar redraws itself with carriage returns, which in a pipe, a notebook or the log of a batch job leave a mess
or one line of megabytes.
"""

import sys
from typing import TextIO

import tqdm

LINE_SECONDS = 10.0  # between two lines; what takes less time says nothing


class _Lines:
    """A file for tqdm's bars that gets whole lines."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        if shown := text.strip("\r\n "):
            self._file.write(f"{shown}\n")

    def flush(self) -> None:
        self._file.flush()


def bar(total: int | None, unit: str, what: str = "", **options: object) -> tqdm.tqdm:
    """Progress on standard error, with rate and time left.

    Args:
      total: how many there are, None where that is not known.
      unit: of what is counted, such as "image".
      what: is being done, in a word or two.
      options: more of `tqdm.tqdm`'s.
    """
    if sys.stderr.isatty():
        kind: dict[str, object] = {"file": sys.stderr, "dynamic_ncols": True}
    else:
        counted = "{n_fmt}" if total is None else "{n_fmt}/{total_fmt}"
        left = "" if total is None else ", left {remaining}"
        kind = {
            "file": _Lines(sys.stderr),
            "mininterval": LINE_SECONDS,
            "maxinterval": 2 * LINE_SECONDS,
            "delay": LINE_SECONDS,
            "bar_format": "{desc}" + counted + " {unit}, {rate_fmt}" + left,
        }
    return tqdm.tqdm(desc=f"{what}: " if what else None, total=total, unit=unit, **{**kind, **options})  # type: ignore[arg-type]
