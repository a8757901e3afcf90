"""How the net's programs are compiled, and that what was compiled is kept for the next run.

What is kept lies in the user's cache directory, for each kind of processor by itself, as a home directory may
be shared by machines that do not understand each other's code.
"""

import functools
import hashlib
import os
import pathlib
import platform
import sys

from alexnet_jax.common import settings

SWITCH = "ALEXNET_JAX_KEEP_COMPILED"  # set to 0 to compile anew each time
VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; where it is set it holds

OPTIONS_SWITCH = "ALEXNET_JAX_XLA_OPTIONS"  # set to 0 for no options
# On a CPU, XLA gives matrix products, sums and convolutions to YNNPACK where it has it. The convolutions of
# a forward pass are faster without, its products and sums with. A training step has no option: there some of
# its convolutions are faster with and others without, which `ops` chooses (`docs/speed.md`).
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_ON_CPU = {_YNNPACK: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def keep() -> pathlib.Path | None:
    """Has JAX keep what it compiles, and gives the directory; None where the user has said otherwise."""
    if settings.off(SWITCH) or VARIABLE in os.environ:
        return None
    directory = cache_directory() / "compiled" / processor()
    os.environ[VARIABLE] = str(directory)  # for a JAX that is imported later
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", str(directory))
    return directory


@functools.cache
def options() -> dict[str, str]:
    """What to tell XLA, as `jax.jit(f, compiler_options=options())`, for a program that runs the net forward.

    Empty on GPU and TPU, where this XLA knows no such option, and where the user has said otherwise:
    `ALEXNET_JAX_XLA_OPTIONS=0`, or the same option in `XLA_FLAGS`. JAX takes options for a program as a whole
    only, so a function that others may call in one of their own has none.
    """
    import jax  # here, as `keep` comes before JAX

    if settings.off(OPTIONS_SWITCH) or _YNNPACK in os.environ.get("XLA_FLAGS", ""):
        return {}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
    except RuntimeError:  # XLA's "no such option": the program is right without
        return {}
    return dict(_ON_CPU)


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
