"""Importing the package changes nothing of other libraries or of the process."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

# Imports the other libraries first, then every module of ours, and prints what the second changed.
PROGRAM = """
import contextlib, importlib, logging, os, pathlib, pkgutil, signal, sys, threading, warnings

for name in sys.argv[1:]:
    with contextlib.suppress(ModuleNotFoundError):  # a class or function of a module
        importlib.import_module(name)

import absl.logging
import jax
from PIL import Image

def settings():
    found = {
        "excepthook": sys.excepthook,
        "unraisablehook": sys.unraisablehook,
        "threading.excepthook": threading.excepthook,
        "absl verbosity": absl.logging.get_verbosity(),
        "warnings": list(warnings.filters),
        "threads": threading.enumerate(),
        "Pillow's blocks": Image.core.get_blocks_max(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        **{f"jax {key}": value for key, value in jax.config.values.items()},
        **{f"environment {key}": value for key, value in os.environ.items()},
    }
    for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger):
            state = (logger.level, logger.disabled, logger.propagate, [*logger.handlers], [*logger.filters])
            found[f"logger {name}"] = state
    return found

before = settings()
import alexnet_jax
for module in pkgutil.walk_packages(alexnet_jax.__path__, "alexnet_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = settings()
for name in sorted({*before, *after}):
    if before.get(name) != after.get(name) and not (name.startswith("logger alexnet_jax")):
        print(name, before.get(name), "->", after.get(name))
"""


def libraries() -> set[str]:
    """The modules of other libraries, and of Python's own, that the package imports."""
    found = set()
    for path in (ROOT / "alexnet_jax").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if not name.startswith("alexnet_jax")}


def test_importing_every_module_changes_nothing_else():
    command = [sys.executable, "-c", PROGRAM, *sorted(libraries())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
