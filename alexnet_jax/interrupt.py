"""The wish to stop: SIGTERM, SIGINT, or a job's time limit."""

import os
import signal
import sys
import time
from types import FrameType

MARGIN_FRACTION, MARGIN_SECONDS = 0.1, 60.0  # of a time limit, kept for the last save: the smaller of the two


class Stop:
    """Takes a signal as a wish to save and stop; a second one stops at once, losing nothing saved before.

    Args:
      max_seconds: time limit from now on, or None; stopping is wanted a tenth of it (at most a minute)
        before, so that there is time to save.
    """

    def __init__(self, max_seconds: float | None = None):
        self.reason: str | None = None
        self._deadline: float | None = None
        if max_seconds is not None:
            margin = min(MARGIN_FRACTION * max_seconds, MARGIN_SECONDS)
            self._deadline = time.monotonic() + max_seconds - margin

    def wanted(self) -> bool:
        """Whether to stop as soon as it is safe; `reason` then says why."""
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "run.max_seconds"
        return self.reason is not None

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.reason is not None and self.reason != "run.max_seconds":
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = signal.Signals(number).name
        # No print: the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), f"\n{self.reason}: saving, then stopping (again: at once)\n".encode())
