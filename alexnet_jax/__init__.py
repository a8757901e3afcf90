"""AlexNet (2012) in JAX: the net, its two columns, its training.

Names are imported on first use, so the command line starts without importing JAX.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_jax import evaluate, perceptual, train
    from alexnet_jax.common.errors import UserError
    from alexnet_jax.data.preprocess import Preprocess
    from alexnet_jax.model import AlexNet
    from alexnet_jax.tools.net import load_pretrained
    from alexnet_jax.variants import create_model
    from alexnet_jax.weights.pretrained import save_pretrained

# A module or file of the package, run by itself, would end without a word. While Python looks for the module
# of `python -m`, sys.argv is "-m" and the arguments after its name.
if (_run := "".join(sys.argv[:1])) == "-m":
    _run = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    _is_part = _run.startswith("alexnet_jax.")
else:
    _is_part = os.path.abspath(_run).startswith(__path__[0] + os.sep) and _run.endswith(".py")
    _is_part = _is_part and not _run.endswith("__main__.py")
if _is_part:
    _commands = "run python main.py or python -m alexnet_jax train (all commands: python -m alexnet_jax)"
    print(f"error: {_run} is no command; {_commands}", file=sys.stderr)
    raise SystemExit(2)

__version__ = "0.1.0"
__all__ = [
    "AlexNet",
    "Preprocess",
    "UserError",
    "create_model",
    "evaluate",
    "load_pretrained",
    "perceptual",
    "save_pretrained",
    "train",
]

_MODULES = {
    "AlexNet": "model",
    "Preprocess": "data.preprocess",
    "UserError": "common.errors",
    "create_model": "variants",
    "load_pretrained": "tools.net",
    "save_pretrained": "weights.pretrained",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
