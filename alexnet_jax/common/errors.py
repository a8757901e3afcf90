"""Errors shown to the user as one line, without a traceback."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Iterator

# What other programs call the keys of a config.
_ALIASES = {"lr": "learning_rate", "wd": "weight_decay", "epochs": "total_epochs", "steps": "total_steps"}
_ALIASES |= {"batch": "batch_size", "bs": "batch_size", "data": "source", "dataset": "source", "lrn": "norm"}


class UserError(ValueError):
    """A mistake in a config, flag, path or data set.

    The message is one line that names the key, flag or file and says what to do; commands exit with code 2.
    """


class Fault(Exception):
    """A failure outside the program: a full disk, a removed directory, too little memory.

    The message is one line that says what failed and what to do; commands exit with code 1, and the same
    command resumes from the last checkpoint.
    """


def one_line(error: BaseException) -> str:
    """The error's message without line ends, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the path before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@contextlib.contextmanager
def damage_reported(what: str) -> Iterator[None]:
    """Turns whatever a damaged file makes its reader raise into a `UserError`; `what` is the kind of file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"a damaged or truncated {what} ({one_line(error)}); fetch it again") from error


def vanished(path: str) -> Fault:
    """The error for a file of the data set that disappeared during the run."""
    return Fault(f"{path}: disappeared during the run; restore it and start the same command again to resume")


def closest(word: object, known: Iterable[str]) -> str | None:
    """The most similarly spelled word of `known`, or a key that others call `word`; None if none is close."""
    section, dot, name = str(word).rpartition(".")
    word = f"{section}{dot}{_ALIASES.get(name, name)}"
    # At difflib's own 0.6, caffenet would be close to alexnet.
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)), None)


def did_you_mean(word: object, known: Iterable[str], most: int = 40) -> str:
    """The end of a message: `did you mean X?` if a word of `known` is close, else `choose one of ...`."""
    known = list(known)
    if (close := closest(word, known)) is not None:
        return f"did you mean {close}?"
    return f"choose one of {', '.join(known[:most])}{', ...' if len(known) > most else ''}"
