"""What was compiled is kept, so that a second run of the same net does not wait for the compiler again.

It lies in the user's cache directory, for each kind of processor by itself, as a home directory may be shared
by machines that do not understand each other's code.
"""

import hashlib
import os
import pathlib
import platform
import sys

SWITCH = "ALEXNET_JAX_KEEP_COMPILED"  # set to 0 to compile anew each time
VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; where it is set it holds


def keep() -> pathlib.Path | None:
    """Has JAX keep what it compiles, and gives the directory; None where the user has said otherwise."""
    if os.environ.get(SWITCH) == "0" or VARIABLE in os.environ:
        return None
    directory = cache_directory() / "compiled" / processor()
    os.environ[VARIABLE] = str(directory)  # for a JAX that is imported later
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(directory))
    return directory


def cache_directory() -> pathlib.Path:
    """The program's own directory among the user's caches."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "alexnet_jax"


def processor() -> str:
    """A name for this kind of processor, from its model and what it can do."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    kind = sorted(
        {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features")}
    )
    digest = hashlib.sha256("\n".join(kind or lines[:1]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"
