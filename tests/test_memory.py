"""What `memory.keep` is for: large buffers that come and go without new pages."""

import os
import subprocess
import sys

import pytest

from alexnet_jax import memory

# Takes and gives back 64 MB fifty times, as a step does, and counts the pages that the kernel had to provide.
PROGRAM = """
import ctypes, resource, sys
from alexnet_jax import memory
print(memory.keep())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
for i in range(51):
    if i == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
@pytest.mark.parametrize(("switch", "kept"), [("1", "True"), ("0", "False")])
def test_large_buffers_keep_their_pages_unless_switched_off(switch, kept):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, memory.SWITCH: switch, "GLIBC_TUNABLES": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    said, faults = done.stdout.split()
    assert said == kept
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert (int(faults) < pages) == (kept == "True")  # fifty times as many where nothing is kept
