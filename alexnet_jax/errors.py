"""The one exception that means "this is yours to mend"."""


class UserError(ValueError):
    """A mistake in a config, flag, path or data set.

    The message is one line that names the key, flag or file and says what to do; the command line
    prints it without a traceback and exits with code 2.
    """
