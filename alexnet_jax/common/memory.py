"""The host's memory: keeps the pages of large buffers from one step to the next.

XLA takes its buffers from the C library's `malloc`, which by default maps large ones anew each time and gives
them back after each step, so that the kernel clears every page again and again. Kept, 80 steps of the default
config on two CPU cores took 22 s of user and 2 s of system time instead of 22 s and 20 s, and more memory at
the peak.
"""

import ctypes
import sys

from alexnet_jax.common import settings

SWITCH = "ALEXNET_JAX_KEEP_MEMORY"  # set to 0 for malloc as it comes

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep() -> bool:
    """Tells glibc's `malloc` to keep freed memory for the next step; gives whether it did.

    To be called before the first large allocation. Nothing is done on other systems, with another allocator,
    or where the environment variable `ALEXNET_JAX_KEEP_MEMORY` or `ALEXNET_JAX_SETTINGS` is 0.
    """
    if not sys.platform.startswith("linux") or settings.off(SWITCH):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    never = -1  # as a large size; the largest int would be 2 GB, of which a step frees more at once
    parameters = (
        (_M_ARENA_MAX, 1),  # those of threads are too small for such buffers, which would be mapped again
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, never),
        (_M_TOP_PAD, 64 * 2**20),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in parameters)
