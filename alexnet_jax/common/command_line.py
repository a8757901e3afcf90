"""What the commands share: one clear line and exit code 2 for a user's mistake, never a traceback."""

import argparse
import datetime
import io
import itertools
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import flags

from alexnet_jax.common import host
from alexnet_jax.common.errors import Fault, UserError

EXIT_CODES = {"done": 0, "diverged": 3, "interrupted": 75}
WRONG_USE, FAULT = 2, 1


def run(main: Callable[[], int], define_flags: Callable[[], None], default_config: pathlib.Path) -> NoReturn:
    """Defines and parses the flags, calls `main`, and exits with its code, or with 2 after one line on
    standard error.

    Args:
      define_flags: called here and not before, for `DEFINE_config_file` reads `sys.argv` and flag files, and
        a mistake in them would end in a traceback.
      default_config: taken for `--config` where none is given. As the flag's own default, it would be read
        before any other.
    """

    def parse_and_go() -> int:
        sys.argv = argv = _with_flag_files(sys.argv)
        define_flags()
        if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv):
            print(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.main_module_help()}")
            return 0
        if config_path(argv) is None:
            argv = [argv[0], f"--config={default_config}", *argv[1:]]
        parse_flags(argv)
        return main()

    command(parse_and_go)


class Parser(argparse.ArgumentParser):
    """For commands whose arguments are files; its complaints are `UserError`s, for `command` to print."""

    def __init__(self, module: str, doc: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"python -m {module}", description=doc, formatter_class=formatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what there is")


def command(main: Callable[[], int]) -> NoReturn:
    """Exits with `main`'s code, or with 2 (1 for a fault) after one line on standard error."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # the shell's wish, for background jobs
            signal.signal(signal.SIGINT, signal.default_int_handler)
        host.quiet_tensorflow()
        host.keep_memory()
        host.keep_compiled()
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8: out as they went in
            sys.stdout.reconfigure(errors="surrogateescape")
        _leave(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(WRONG_USE)
    except Fault as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(FAULT)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        _leave(FAULT)


def _leave(code: int) -> NoReturn:
    """Exits, and at once: after a failure orbax's threads, or the job's, wait for what never comes."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    if all(thread.daemon for thread in others):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _with_flag_files(argv: list[str]) -> list[str]:
    """`argv` with the lines of each `--flagfile` in its place."""
    try:
        return [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    except (flags.Error, UnicodeError) as error:
        raise UserError(
            f"--flagfile: give a text file with a flag a line ({_one_line(_first(error))})"
        ) from error


def parse_flags(argv: list[str]) -> None:
    """Parses `argv` into `flags.FLAGS`. `--config.KEY=None` sets a key of any type to None.

    Raises:
      UserError: a flag or a config key is unknown, a value is of the wrong type, a config file is missing or
        broken, or there are words that are no flags.
    """
    path = config_path(argv) or ""
    file = pathlib.Path(path.split(":", 1)[0])
    if not file.is_file():
        what = "is a directory" if path and file.is_dir() else "no such file"
        raise UserError(f"--config={path}: {what}; configs/ has some to begin with")
    given = {match[1]: match[2] for word in argv if (match := _OVERRIDE.fullmatch(word))}
    for key in given:
        if not re.fullmatch(r"\w+\.\w+", key):
            raise UserError(
                f"--config.{key}: no such key; they are as data.batch_size, all in configs/default.py"
            )
    try:
        # ml_collections knows no None; its own list of overrides takes it in the end.
        rest = flags.FLAGS(
            [word for word in argv if not (_OVERRIDE.fullmatch(word) and word.endswith("=None"))]
        )
        config: Any = flags.FLAGS["config"]
        config.override_values.update({key: None for key, value in given.items() if value == "None"})
        if not hasattr(config.value, "items"):  # a file that could not be read says so when it is asked
            raise UserError(_no_config(path))
    except UserError:
        raise
    except Exception as error:
        in_file = "whilst parsing config file" in str(error)  # a whole traceback, in a flags.Error
        if isinstance(error, flags.Error) and not in_file:
            raise UserError(_one_line(error)) from error
        cause = _first(error) if in_file else error
        raise UserError(_config_mistake(cause, path, list(given))) from error
    if rest[1:]:
        raise UserError(f"{rest[1]!r}: not a flag; flags begin with -- and have their value after =")


_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def config_path(argv: list[str]) -> str | None:
    """What the last `--config` names, after = or as the next word."""
    path = None
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if match := re.fullmatch(r"--?config(?:=(.*))?", word, re.DOTALL):
            path = following if match[1] is None else match[1]
    return path


def _config_mistake(error: BaseException, path: str, overrides: list[str]) -> str:
    """What is wrong with `--config` or one of its overrides, in a line."""
    text = _one_line(error)
    if isinstance(error, AttributeError | KeyError) and (missing := re.search(r"'(\w+)", text)):
        key = missing[1]
        for override in overrides:
            if key in override.split("."):
                guess = re.search(r'Did you mean "(\w+)"', text)
                mend = f"did you mean {guess[1]!r}?" if guess else "configs/default.py shows every key"
                return f"--config.{override}: the config has no key {key!r}; {mend}"
    if text.endswith("has no attribute 'get_config'"):
        return f"--config={path}: has no function get_config(), which returns the config"
    if "Attribute <class" in text:  # what ml_collections says of an override
        return _no_config(path)
    return f"--config={path}: the file is broken ({type(error).__name__}: {text})"


def _no_config(path: str) -> str:
    return f"--config={path}: its get_config() gives no config; let it return an ml_collections.ConfigDict"


def _first(error: BaseException) -> BaseException:
    """Where one error was raised while another was handled, the first of them."""
    return _first(error.__context__) if error.__context__ else error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def fresh_workdir(config_path: str) -> pathlib.Path:
    """`runs/<config>-<time>`, not there yet."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path("runs") / f"{pathlib.Path(config_path).stem}-{now}"
    return next(
        path
        for n in range(1, 1000)
        if not (path := base if n == 1 else base.with_name(f"{base.name}-{n}")).exists()
    )


def required(flag: str, value: str | None, what: str) -> str:
    """A flag's value; raises `UserError` where it was not given."""
    if value is None:
        raise UserError(f"--{flag}: missing; name {what}")
    return value
