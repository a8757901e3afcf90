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
