"""What the commands share: one clear line and exit code 2 for a user's mistake, never a traceback."""

import argparse
import datetime
import io
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from absl import flags

from alexnet_jax import memory
from alexnet_jax.errors import Fault, UserError

EXIT_CODES = {"done": 0, "diverged": 3, "interrupted": 75}
WRONG_USE, FAULT = 2, 1


def run(main: Callable[[], int], default_config: pathlib.Path | None = None) -> NoReturn:
    """Parses the flags, calls `main`, and exits with its code, or with 2 after one line on standard error.

    Args:
      default_config: taken for `--config` where none is given. As the flag's own default, a mistake in it or
        in an override would end in a traceback before this function is reached.
    """
    argv = list(sys.argv)
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & set(argv):
        print(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    if default_config and not any(re.match(r"--?config(=|$)", word) for word in argv):
        argv.insert(1, f"--config={default_config}")

    def parse_and_go() -> int:
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
    memory.keep()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8 and come out as they went in
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        _leave(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(WRONG_USE)
    except Fault as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(FAULT)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _leave(code: int) -> NoReturn:
    """Exits, and at once: after a save that failed, orbax's threads wait minutes for what never comes."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    if all(thread.daemon for thread in others):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse_flags(argv: list[str]) -> None:
    """Parses `argv` into `flags.FLAGS`.

    Raises:
      UserError: a flag or a config key is unknown, a value is of the wrong type, a config file is missing or
        broken, or there are words that are no flags.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
        if "config" in flags.FLAGS:  # a file that could not be read says so when something is asked of it
            _ = getattr(flags.FLAGS["config"].value, "to_dict", None)
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(_config_mistake(error, argv)) from error
    if rest:
        raise UserError(f"{rest[0]!r}: not a flag; flags begin with -- and have their value after =")


def _config_mistake(error: Exception, argv: list[str]) -> str:
    """What is wrong with `--config` or one of its overrides, in a line."""
    text = str(error)
    if isinstance(error, AttributeError | KeyError) and (missing := re.search(r"'(\w+)", text)):
        key = missing.group(1)
        for word in argv:
            if (match := re.match(r"--?config\.([\w.]+)", word)) and key in match.group(1).split("."):
                guess = re.search(r'Did you mean "(\w+)"', text)
                mend = f"did you mean {guess.group(1)!r}?" if guess else "configs/default.py shows every key"
                return f"--config.{match.group(1)}: the config has no key {key!r}; {mend}"
    path = next(
        (word.split("=", 1)[1] for word in argv if re.match(r"--?config=", word)), "configs/default.py"
    )
    if not pathlib.Path(path).is_file():
        return f"--config={path}: no such file; configs/ has some to begin with"
    return f"--config={path}: the file is broken ({type(error).__name__}: {_one_line(error)})"


def _one_line(error: Exception) -> str:
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
