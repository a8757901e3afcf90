"""What a user is told in one line, without a traceback."""


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
