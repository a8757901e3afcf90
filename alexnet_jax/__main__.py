"""The command line: `python -m alexnet_jax COMMAND ...`, or `alexnet-jax COMMAND ...` once installed."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import alexnet_jax
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.tools import arguments

# Name: (module, what it does). The module's `main` gets the parsed arguments; `launch.main` parses its flags.
COMMANDS = {
    "train": ("launch", "Trains a net or resumes its run; --mode=eval tests it."),
    "predict": ("tools.predict", "Names what is in images."),
    "features": ("tools.features", "Writes the activations of a layer for other programs."),
    "probe": ("tools.probe", "Fits a linear probe to features: how well do they separate classes?"),
    "nearest": ("tools.nearest", "Finds the images nearest to an image by their features (Figure 4)."),
    "ensemble": ("tools.ensemble", "Tests one net or an ensemble (Table 2); writes ILSVRC submissions."),
    "export": ("tools.export", "Writes trained weights for other programs."),
    "summary": ("launch", "Prints a config's net: shapes, parameters, operations and neurons by layer."),
    "prepare": ("data.prepare", "Stores a data set as small images, which load several times as fast."),
    "split": ("data.split", "Splits a folder of class folders into training and validation images."),
    "demo": ("tools.demo", "Serves a page to try a net."),
}


def listing() -> str:
    lines = [f"  {name:{max(map(len, COMMANDS))}}  {line}\n" for name, (_, line) in COMMANDS.items()]
    head = f"AlexNet (2012) in JAX, {alexnet_jax.__version__}\n\nusage: python -m alexnet_jax COMMAND ...\n"
    return f"{head}\n{''.join(lines)}\npython -m alexnet_jax COMMAND --help describes a command."


def main(argv: Sequence[str] | None = None) -> int:
    name, *others = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(listing())
        return 0
    if name == "--version":
        print(f"alexnet-jax {alexnet_jax.__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command; {did_you_mean(name, [*COMMANDS, '--help', '--version'])}")
    given: Any = others
    if name == "summary":
        given = ["--mode=summary", *others]
    elif name != "train":
        given = arguments.parse(name, others)
    with command_line.quiet_interrupts():
        module = importlib.import_module(f"alexnet_jax.{COMMANDS[name][0]}")
    return module.main(given)


def run() -> NoReturn:
    """The console script `alexnet-jax`."""
    command_line.command(main)


if __name__ == "__main__":
    run()
