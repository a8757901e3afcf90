"""The wish to stop: SIGTERM, SIGINT, or a job's time limit."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

MARGIN_FRACTION, MARGIN_SECONDS = 0.1, 60.0  # of a time limit, kept for the last save: the smaller of the two
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TIME_LIMIT = 1  # the number of a reason that is no signal's; no process is sent SIGHUP here


class Stop:
    """Takes a signal as a wish to save and stop; a second one stops at once, losing nothing saved before.

    A thread takes them, for Python itself would look at a signal only when what it waits for, such as a
    compilation of minutes, is over.

    Args:
      max_seconds: time limit from now on, or None; stopping is wanted a tenth of it (at most a minute)
        before, so that there is time to save.
      agreed: of several processes, the largest of their numbers (`processes.DelayedMax`); all must then call
        `wanted` alike, and all get the same answer.
    """

    def __init__(
        self, max_seconds: float | None = None, agreed: Callable[[int], int] = lambda number: number
    ):
        self.reason: str | None = None
        self._own, self._agreed = 0, agreed
        self._deadline: float | None = None
        if max_seconds is not None:
            margin = min(MARGIN_FRACTION * max_seconds, MARGIN_SECONDS)
            self._deadline = time.monotonic() + max_seconds - margin

    def wanted(self) -> bool:
        """Whether to stop as soon as it is safe; `reason` then says why."""
        if self.reason is None:
            if self._own == 0 and self._deadline is not None and time.monotonic() >= self._deadline:
                self._own = _TIME_LIMIT
            if number := self._agreed(self._own):
                self.reason = "run.max_seconds" if number == _TIME_LIMIT else signal.Signals(number).name
        return self.reason is not None

    def __enter__(self) -> "Stop":
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, args=(read,), daemon=True)
        self._thread.start()
        self._fd_before = signal.set_wakeup_fd(self._write)
        self._before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._write)
        self._thread.join()

    def _watch(self, read: int) -> None:
        seen = 0
        while number := os.read(read, 1):  # one byte for each signal, nothing once the other end is closed
            if number[0] not in _SIGNALS:
                continue
            seen += 1
            if seen > 1:
                os._exit(128 + number[0])  # as a shell says that a signal ended a process
            self._own = number[0]
            # No print: the main thread may be in the middle of one, or gone.
            with contextlib.suppress(OSError):
                line = f"\n{signal.Signals(number[0]).name}: saving, then stopping (again: at once)\n"
                os.write(sys.stderr.fileno(), line.encode())
        os.close(read)
