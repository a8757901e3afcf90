"""Requests to stop a run: SIGTERM, SIGINT, or its time limit."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

MARGIN_FRACTION, MARGIN_SECONDS = 0.1, 60.0  # kept back for the last save; the smaller one counts
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TIME_LIMIT = 1  # encodes the time limit as a signal number (SIGHUP's, which is not handled here)


class Stop:
    """Turns the first signal into a request to save and stop; a second one exits at once, without saving.

    A thread reads the signals: Python runs its handlers only when the main thread returns to Python code,
    which may take minutes during compilation.

    Args:
      max_seconds: time limit from now on, or None; the stop request comes a tenth of it (at most a minute)
        earlier, to leave time for saving.
      agreed: maximum over the processes (`processes.DelayedMax`), so that `wanted` returns the same in all
        of them; all must call it equally often.
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
        """Whether to stop as soon as it is safe; sets `reason`."""
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
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: JAX's, in C
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._write)
        self._thread.join()

    def _watch(self, read: int) -> None:
        seen = 0
        while number := os.read(read, 1):  # one byte per signal; empty once the pipe is closed
            if number[0] not in _SIGNALS:
                continue
            seen += 1
            if seen > 1:
                os._exit(128 + number[0])  # the shell's exit code for a signal
            self._own = number[0]
            # Not print(): the main thread may be inside one, or gone.
            with contextlib.suppress(OSError):
                line = f"\n{signal.Signals(number[0]).name}: saving, then stopping (repeat to stop at once)\n"
                os.write(sys.stderr.fileno(), line.encode())
        os.close(read)
