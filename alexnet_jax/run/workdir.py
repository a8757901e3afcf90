"""A run's directory: creates it, locks it against a second run, stores the config and reports failures."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checkpoint, faults, logs, processes

LOCK = "lock"
VISIBLE_WITHIN_SECONDS = 20.0
NAME_MAX = 255  # bytes: Linux's limit for a folder's name
PATH_MAX, LONGEST_BELOW = 4096, 300  # bytes: Linux's limit, and what the paths below the directory need


@contextlib.contextmanager
def locked(workdir: pathlib.Path, config: configs.Config) -> Iterator[None]:
    """Creates the directory, or checks that it belongs to this run, and locks it; only process 0 does.

    Then writes the status `running`, and `failed` with the reason on any exception. Known faults outside the
    program become a one-line `Fault` or `UserError`.

    Raises:
      UserError: the directory cannot be written, is in use, contains a run with another config (each
        difference is listed), or is not shared by all processes.
    """
    check_path(workdir)
    is_writer = False
    with contextlib.ExitStack() as stack:
        try:
            processes.together(lambda: _claim(workdir, config, stack) if processes.is_first() else None)
            processes.together(lambda: _find(workdir))
            if is_writer := processes.is_first():
                logs.write_status(workdir, "running")
            yield
        except BaseException as error:
            known = faults.explain(error, workdir)
            with contextlib.suppress(OSError):  # the disk may be what failed
                if is_writer:
                    reason = str(known or f"{type(error).__name__}: {error}")
                    logs.write_status(workdir, "failed", message=reason)
            if known is None or known is error:
                raise
            raise known from error


def check_path(workdir: pathlib.Path) -> None:
    """Raises `UserError` for paths to which orbax cannot save: URLs, patterns, too long ones."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(workdir)):  # pathlib turns gs://bucket into gs:/bucket
        raise UserError(
            f"--workdir={workdir}: looks like a URL, and only directories can be written; mount it (such as "
            "with gcsfuse) or copy a local directory there"
        )
    path = str(workdir.absolute())
    if found := re.search(r"[*?\\\udc80-\udcff]|\[.*\]", path, re.DOTALL):
        raise UserError(
            f"--workdir={workdir}: orbax cannot save to a path with {found.group()!a}; choose one "
            "without *, ?, [...], backslashes and bytes that are not UTF-8"
        )
    if name := next((part for part in workdir.parts if len(os.fsencode(part)) > NAME_MAX), ""):
        raise UserError(f"--workdir={name[:60]}...: a name of over {NAME_MAX} bytes; choose a shorter one")
    if (longest := len(os.fsencode(path)) + LONGEST_BELOW) > PATH_MAX:
        raise UserError(
            f"--workdir={path[:100]}...: too long by {longest - PATH_MAX} bytes; choose a shorter path"
        )


def _find(workdir: pathlib.Path) -> None:
    """Waits until this host sees the directory, which may take seconds on network file systems."""
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    while not (workdir / configs.FILE_NAME).exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={workdir}: created by process 0 but not visible on {socket.gethostname()}; "
                "choose a directory on a file system that all hosts share"
            )
        time.sleep(0.1)


def _claim(workdir: pathlib.Path, config: configs.Config, stack: contextlib.ExitStack) -> None:
    """Locks the directory until `stack` closes; writes the config unless another run is there."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(open(workdir / LOCK, "a+"))  # noqa: SIM115  (closed by the stack)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
    _lock(lock, workdir)
    if (workdir / configs.FILE_NAME).exists():
        different = configs.differences(configs.of_workdir(workdir), config)
        if different and _has_results(workdir) and not config.run.allow_changes:
            raise UserError(
                f"--workdir={workdir}: contains a run with another config ({'; '.join(different.values())}); "
                "choose another directory, use that config, or set --config.run.allow_changes"
            )
    elif (workdir / logs.STATUS).exists():
        raise UserError(
            f"--workdir={workdir}: contains a run without {configs.FILE_NAME}; choose another directory"
        )
    for left in workdir.glob(".*.tmp"):  # left by a killed run
        left.unlink()
    files.write_text(workdir / configs.FILE_NAME, config.to_json())


def _has_results(workdir: pathlib.Path) -> bool:
    """Whether a run has got as far as a checkpoint or a line of metrics; before, its config may change."""
    metrics = workdir / logs.METRICS
    return checkpoint.exist(workdir) or (metrics.exists() and metrics.stat().st_size > 0)


def read_status(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads `status.json`; `running` without a lock on the directory is `failed`: the run was killed.

    Raises:
      OSError, ValueError: there is no such file, or it is damaged.
    """
    status = json.loads((workdir / logs.STATUS).read_text())
    if not isinstance(status, dict) or "status" not in status:
        raise ValueError("it has no status")
    if status["status"] == "running" and not _is_locked(workdir):
        message = "was killed; start the same command again to resume from the last checkpoint"
        return {**status, "status": "failed", "message": message}
    return status


def _is_locked(workdir: pathlib.Path) -> bool:
    """Whether a run holds the lock; also where the file system has no locks."""
    try:
        with open(workdir / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    return False


def _lock(file: TextIO, workdir: pathlib.Path) -> None:
    """Locks `workdir` against a second run until the file, which names this process, is closed."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # by a run, or for an instant by one who asks whether there is a run
            time.sleep(0.5)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"--workdir={workdir}: another run is using it ({file.read() or 'an unknown process'}); "
            "wait for it, stop it, or choose another directory"
        ) from error
    except OSError as error:  # some network file systems have no locks
        print(
            f"warning: --workdir={workdir}: cannot be locked ({error.strerror}); make sure that no "
            "second run uses it",
            file=sys.stderr,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
