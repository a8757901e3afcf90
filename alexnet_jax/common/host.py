"""Process settings that commands make at start-up: memory, compiled code, TensorFlow's messages.

Nothing happens on import. Each setting has an environment variable that turns it off when set to 0;
`ALEXNET_JAX_SETTINGS=0` turns all of them off.
"""

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import platform
import sys
import traceback
from typing import Any

from alexnet_jax.common import paths
from alexnet_jax.common.errors import UserError, one_line

ALL_SWITCH = "ALEXNET_JAX_SETTINGS"
MEMORY_SWITCH = "ALEXNET_JAX_KEEP_MEMORY"
COMPILED_SWITCH = "ALEXNET_JAX_KEEP_COMPILED"
OPTIONS_SWITCH = "ALEXNET_JAX_XLA_OPTIONS"
JAX_CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own variable, which takes precedence

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

# On CPUs, XLA may use YNNPACK, which is as fast for matrix products and sums; with Eigen's convolutions whole
# training steps are faster, several times with 24 filters in conv1 (docs/speed_record.md).
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_ON_CPU = {_YNNPACK: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def is_off(switch: str) -> bool:
    """Whether the environment variable `switch` turns this setting off."""
    return "0" in (os.environ.get(switch), os.environ.get(ALL_SWITCH))


def cache_directory() -> pathlib.Path:
    """The directory for downloads and compiled code: `$ALEXNET_JAX_CACHE`, else in the user's cache.

    Raises:
      UserError: the user has no home directory, and no variable names another.
    """
    if own := os.environ.get("ALEXNET_JAX_CACHE"):
        return paths.expanded(own)
    try:
        return paths.expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "alexnet_jax"
    except UserError as error:
        raise UserError("no home directory to keep files in; set ALEXNET_JAX_CACHE to a directory") from error


def keep_memory() -> bool:
    """Makes glibc's `malloc` keep freed memory for the next step; returns whether it did.

    By default it maps XLA's large buffers anew in each step, and the kernel clears every page again: 80 steps
    of the default config on two CPU cores took 20 s of system time instead of 2 s. Kept memory makes the peak
    higher, and before glibc 2.39 it grows (docs/speed_record.md). Call it before the first large allocation.
    """
    if not sys.platform.startswith("linux") or is_off(MEMORY_SWITCH):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    never = -1  # i.e. a huge size; the largest int is 2 GB, and a step frees more than that at once
    parameters = (
        (_M_ARENA_MAX, 1),  # per-thread arenas are too small for such buffers and would map them again
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, never),
        (_M_TOP_PAD, 64 * 2**20),
    )
    return all(mallopt(parameter, value) == 1 for parameter, value in parameters)


def keep_compiled() -> pathlib.Path | None:
    """Makes JAX cache compiled programs on disk; returns the directory, or None if it is off or has no home.

    Each kind of processor has its own: machines that share a home may not run each other's code.
    """
    if is_off(COMPILED_SWITCH) or JAX_CACHE in os.environ:
        return None
    try:
        directory = cache_directory() / "compiled" / processor()
    except UserError:
        return None
    # JAX keeps what took a second; a net's forward pass takes half of one.
    for variable, value in ((JAX_CACHE, str(directory)), ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.2)):
        if variable not in os.environ:
            os.environ[variable] = str(value)  # in case JAX is imported later
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(variable.lower(), value)
    return directory


def missing_library(error: BaseException) -> UserError | None:
    """The mistake behind `error` if a library is not installed, as without the project's environment."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    if importlib.util.find_spec(library := error.name.partition(".")[0]) is not None:
        return None
    return UserError(
        f"{library} is not installed in {sys.executable}; activate the project's environment (source "
        ".venv/bin/activate), or make it (bash setup.sh)"
    )


def jax_mistake(error: BaseException) -> UserError | None:
    """The mistake behind `error` if JAX could not use a variable, or found no device that one names."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    where = frame.f_code.co_filename.replace(os.sep, "/")
    if isinstance(error, ValueError) and where.endswith("jax/_src/config.py"):
        for name, value in os.environ.items():  # otherwise the program or the config file has set it
            if name.startswith("JAX_") and name.lower() in str(error).lower():
                return UserError(f"{name}={value}: {one_line(error)}; correct it or unset it")
    platforms = os.environ.get("JAX_PLATFORMS")
    is_of_devices = isinstance(error, AssertionError | RuntimeError) and where.endswith("/xla_bridge.py")
    if not platforms or not is_of_devices:
        return None
    reason = f" ({error})" if str(error) else ""
    return UserError(
        f"JAX_PLATFORMS={platforms}: JAX finds no such device{reason}; install JAX for it "
        "(docs/devices.md), or unset the variable"
    )


@functools.cache
def eigen_options() -> dict[str, str]:
    """XLA options for programs that run the net: `jax.jit(f, compiler_options=eigen_options())`.

    Empty on GPU and TPU, where XLA has no such option, and if the environment turns it off
    (`ALEXNET_JAX_XLA_OPTIONS=0`) or sets it in `XLA_FLAGS`. JAX accepts options only for entire programs.
    """
    import jax  # not at the top: `keep_compiled` runs before JAX is imported

    decided = is_off(OPTIONS_SWITCH) or _YNNPACK in os.environ.get("XLA_FLAGS", "")
    if decided or jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
    except RuntimeError:  # this XLA has no such option
        return {}
    return dict(_ON_CPU)


def processor() -> str:
    """A name for this kind of processor, derived from model and instruction sets."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    keys = ("model name", "flags", "Features")
    kind = sorted({line for line in lines if line.split(":")[0].strip() in keys})
    digest = hashlib.sha256("\n".join(kind or lines[:1]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def quiet_tensorflow() -> None:
    """Stops TensorFlow's start-up messages; call it before any library imports TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def skip_keras() -> None:
    """Keeps TensorFlow from importing Keras, which nothing here uses and which takes a fifth of its start-up.

    Only for commands: it changes what `tf.keras` means in this process.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # What TensorFlow keeps of Keras writes its settings to ~/.keras, for a user without a home to a folder ~.
    os.environ.setdefault("KERAS_HOME", os.devnull)


def require_tensorflow() -> None:
    """Raises `UserError` if TensorFlow is not installed, as on Colab's free TPU runtime."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "TensorFlow is not installed, and tf.data reads the images: pip install tensorflow-cpu, or "
            "tensorflow where there is no such wheel (macOS, ARM)"
        )


@functools.cache
def tensorflow() -> Any:
    """Imports TensorFlow and hides the accelerators from it, because JAX needs their memory."""
    require_tensorflow()
    quiet_tensorflow()
    tf = importlib.import_module("tensorflow")
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
