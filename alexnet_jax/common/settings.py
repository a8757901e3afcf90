"""Environment variables that undo what the program sets for itself: one for each setting, and one for all."""

import os

ALL = "ALEXNET_JAX_SETTINGS"  # set to 0 for none of them


def off(switch: str) -> bool:
    """Whether the user wants this setting not to be made."""
    return "0" in (os.environ.get(switch), os.environ.get(ALL))
