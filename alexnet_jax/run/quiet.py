"""Silences orbax's many messages about a failed load or save; the caller reports the failure in one line."""

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LATE_SECONDS = 0.3  # by then nearly all reads of a failed load have ended


@contextlib.contextmanager
def logs() -> Iterator[None]:
    """Drops absl's log messages, which include orbax's."""

    def reject(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(reject)
    try:
        yield
    finally:
        logger.removeFilter(reject)


@contextlib.contextmanager
def reads() -> Iterator[None]:
    """Drops the log messages of a load and, from then on, those of reads that end after it has failed."""
    _ignore_late_reads()  # before the load: a late read may be reported while the failure is being handled
    with logs():
        yield


@contextlib.contextmanager
def stderr() -> Iterator[None]:
    """Silences file descriptor 2: after a failed load, non-Python threads print tracebacks there."""
    sys.stderr.flush()
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except Exception:
        time.sleep(LATE_SECONDS)
        raise
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


@functools.cache
def _ignore_late_reads() -> None:
    """Installs the filters below for the rest of the process, since reads may end at any time."""
    sys.unraisablehook = functools.partial(_report_unless_late, sys.unraisablehook)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_no_late_read)


def _report_unless_late(report: Callable[[Any], Any], unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


def _is_no_late_read(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "tensorstore_spec" in str(record.exc_info[1]))
