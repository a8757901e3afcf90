"""Lists the commands."""

import ast
import pathlib
from collections.abc import Sequence

import alexnet_jax
from alexnet_jax.common import command_line

_PACKAGE = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """The first line of each module that is a command, by what is typed to run it."""
    found = {}
    for path in sorted([*_PACKAGE.glob("tools/[!_]*.py"), _PACKAGE / "data" / "prepare.py"]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.If) and "__main__" in ast.dump(node.test) for node in tree.body):
            found[f"python -m alexnet_jax.{path.parent.name}.{path.stem}"] = (
                ast.get_docstring(tree) or ""
            ).split("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    command_line.Parser("alexnet_jax", __doc__).parse_args(argv)
    listed = {
        "python main.py": "Trains and tests; in a checkout of the project, beside configs/.",
        **commands(),
    }
    width = max(map(len, listed))
    print(f"AlexNet (2012) in JAX, {alexnet_jax.__version__}. The commands; each has --help:\n")
    for command, line in listed.items():
        print(f"  {command:{width}}  {line}")
    return 0


if __name__ == "__main__":
    command_line.command(main)
