"""Shared by all commands: arguments, exit codes, and one-line errors instead of tracebacks."""

import argparse
import codecs
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

from alexnet_jax.common import host, paths
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
        help, default = options.get("help", argparse.SUPPRESS), options.get("default")
        takes_value = names[0].startswith("-") and options.get("action", "append") == "append"
        if help != argparse.SUPPRESS and default != argparse.SUPPRESS:
            if default is not None:
                options["help"] = f"{help} (default: %(default)s)"
            elif takes_value and not options.get("required") and "default" not in help:
                options["help"] = f"{help} (default: none)"
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the arguments")


def user_path(name: str) -> pathlib.Path:
    """The `type` of an argument for a path to read; `~` is expanded."""
    with _as_argument(name):
        return paths.expanded(name)


def new_file(*endings: str) -> Callable[[str], pathlib.Path]:
    """The `type` of an argument for a file to write, with one of these `endings` (if any), such as `.npz`."""

    def checked(name: str) -> pathlib.Path:
        with _as_argument(name):
            path = paths.expanded(name)
            if endings and path.suffix.lower() not in endings:
                raise UserError(f"must end in {' or '.join(endings)}")
            if path.is_dir():
                raise UserError("is a folder; give a file name")
            if not path.parent.is_dir():
                raise UserError(f"there is no folder {path.parent}")
            temporary = paths.temporary(path)  # whatever would prevent it later does so now
            temporary.touch()
            temporary.unlink()
        return path

    return checked


def new_folder(name: str) -> pathlib.Path:
    """The `type` of an argument for a folder to write to, which exists or can be created."""
    with _as_argument(name):
        path = paths.expanded(name)
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"{existing} is not a folder that can be written")
    return path


@contextlib.contextmanager
def _as_argument(name: str) -> Iterator[None]:
    """Turns errors about the path `name` into those that argparse reports with the argument."""
    try:
        yield
    except UserError as error:
        raise argparse.ArgumentTypeError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: cannot be written ({error.strerror})") from error


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    """Bytes for what standard output cannot encode: those of a file name that is not UTF-8, else escapes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    handlers = ("surrogateescape" if "\udc80" <= c <= "\udcff" else "backslashreplace" for c in text)
    return b"".join(c.encode("ascii", how) for c, how in zip(text, handlers, strict=True)), error.end


def command(main: Callable[[], int]) -> NoReturn:
    """Exits with the code of `main()`; on an error, prints one line and exits with 2 (1 for a `Fault`)."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # shells ignore it in background jobs
            signal.signal(signal.SIGINT, signal.default_int_handler)
        host.quiet_tensorflow()
        host.skip_keras()
        host.keep_memory()
        host.keep_compiled()
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error("alexnet_jax", _encode)
            sys.stdout.reconfigure(errors="alexnet_jax")
        _leave(main())
    except (UserError, Fault) as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(FAULT if isinstance(error, Fault) else WRONG_USE)
    except KeyboardInterrupt as interrupt:
        _leave(interrupt.args[0] if interrupt.args else CTRL_C)
    except BrokenPipeError:  # the reader of our output has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if (mistake := host.missing_library(error) or host.jax_mistake(error)) is not None:
            print(f"error: {mistake}", file=sys.stderr)
            _leave(WRONG_USE)
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGTERM and SIGINT end the program at once (128 + the signal), whatever handles them outside.

    For long work before there is anything to save, such as a download. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(128 + number)

    wakeup = signal.set_wakeup_fd(-1)
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)


def _leave(code: int) -> NoReturn:
    """Exits without waiting for other threads or processes, which may never end after a failure."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    in_job = "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()
    if all(thread.daemon for thread in others) and not in_job:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
