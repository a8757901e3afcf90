"""Errors that reach the user as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a config, flag, path or data set.

    The message is one line that names the key, flag or file and says what to do; the command line
    prints it without a traceback and exits with code 2.
    """


class Fault(Exception):
    """Something outside the program failed: a full disk, a directory that is gone, too little memory.

    The message is one line that says what, and what to do; the command line prints it and exits with code 1.
    The same command goes on from the last checkpoint.
    """


def vanished(path: str) -> Fault:
    """What to raise where a file of the data set was there and is gone."""
    return Fault(f"{path}: was there and is gone; bring it back and start the same command again: it goes on")


def closest(word: object, known: Iterable[str]) -> str | None:
    """The one of `known` that is spelt much like `word`, if any."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)


def did_you_mean(word: object, known: Iterable[str], most: int = 40) -> str:
    """ "did you mean X?" where `word` is close to one of `known`, else "choose one of ..."."""
    known = list(known)
    if (close := closest(word, known)) is not None:
        return f"did you mean {close}?"
    return f"choose one of {', '.join(known[:most])}{', ...' if len(known) > most else ''}"
