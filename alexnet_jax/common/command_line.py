"""Shared by all commands: arguments, exit codes, and one-line errors instead of tracebacks."""

import argparse
import contextlib
import inspect
import io
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from alexnet_jax.common import host
from alexnet_jax.common.errors import Fault, UserError

EXIT_CODES = {"done": 0, "diverged": 3, "interrupted": 75}
FAULT, WRONG_USE, CTRL_C = 1, 2, 130


class _Once(argparse.Action):
    """Stores an option's value; a second one is an error, instead of silently replacing the first."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string and self in parser.given:
            parser.error(f"{self.option_strings[0]}: given twice; it takes one value")
        parser.given.append(self)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Shows defaults in the help; raises `UserError` on wrong arguments, for `command` to print."""

    def __init__(self, module: str, doc: str | None) -> None:
        how = argparse.RawDescriptionHelpFormatter
        super().__init__(f"python -m {module}", description=inspect.cleandoc(doc or ""), formatter_class=how)
        self.given: list[argparse.Action] = []
        self.register("action", None, _Once)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        if options.get("default") not in (None, argparse.SUPPRESS):
            options["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the arguments")


def new_file(*endings: str) -> Callable[[str], pathlib.Path]:
    """The `type` of an argument for a file to write, with one of these `endings` (if any), such as `.npz`."""

    def checked(name: str) -> pathlib.Path:
        path = pathlib.Path(name).expanduser()
        if endings and path.suffix.lower() not in endings:
            reason = f"must end in {' or '.join(endings)}"
        elif path.is_dir():
            reason = "is a folder; give a file name"
        elif not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        elif not os.access(path.parent, os.W_OK):
            reason = f"the folder {path.parent} cannot be written"
        else:
            return path
        raise argparse.ArgumentTypeError(f"{name}: {reason}")

    return checked


def new_folder(name: str) -> pathlib.Path:
    """The `type` of an argument for a folder to write to, which exists or can be created."""
    path = pathlib.Path(name).expanduser()
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name}: {existing} is not a folder that can be written")
    return path


def command(main: Callable[[], int]) -> NoReturn:
    """Exits with the code of `main()`; on an error, prints one line and exits with 2 (1 for a `Fault`)."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells ignore it in background jobs
            signal.signal(signal.SIGINT, signal.default_int_handler)
        host.quiet_tensorflow()
        host.skip_keras()
        host.keep_memory()
        host.keep_compiled()
        if isinstance(sys.stdout, io.TextIOWrapper):  # prints non-UTF-8 file names unchanged
            sys.stdout.reconfigure(errors="surrogateescape")
        _leave(main())
    except (UserError, Fault) as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(FAULT if isinstance(error, Fault) else WRONG_USE)
    except KeyboardInterrupt:
        _leave(CTRL_C)
    except BrokenPipeError:  # the reader of our output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        _leave(FAULT)


@contextlib.contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Makes Ctrl-C exit at once: some libraries swallow a KeyboardInterrupt during import."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(CTRL_C))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(code: int) -> NoReturn:
    """Exits without waiting for other threads or processes, which may never end after a failure."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    in_job = "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
    if all(thread.daemon for thread in others) and not in_job:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
