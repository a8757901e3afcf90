"""Makes docs/api.md, the reference of the Python interface, from the docstrings.

    python -m scripts.make_api [--check]

With --check nothing is written; the command fails if the page differs from what the docstrings say.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import sys
import textwrap

import alexnet_jax
from alexnet_jax.common.files import write_text

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "api.md"
INTRODUCTION = """# Reference

What `import alexnet_jax` gives, made from the docstrings by `python -m scripts.make_api`. Guides:
[import and export](pretrained.md), [perceptual distance](perceptual.md),
[your own training loop](training_loop.md), [extending](extending.md)."""
# Names as users import them, below `alexnet_jax`; classes that are only returned stand with their module.
SECTIONS = {
    "Trained nets": (
        "load_pretrained",
        "tools.net.Net",
        "tools.net.Prediction",
        "save_pretrained",
        "Preprocess",
    ),
    "The net": ("create_model", "AlexNet"),
    "Perceptual distance": ("perceptual.load", "perceptual.Perceptual"),
    "Training": (
        *(
            "config.resolve",
            "config.of_workdir",
            "train.train",
            "evaluate.evaluate_workdir",
            "evaluate.Result",
        ),
        *("augment.Augment", "optimizer.sgd_2012", "optimizer.Rates", "columns.make_mesh"),
    ),
    "Errors": ("UserError", "common.errors.Fault"),
}
HEADING = re.compile(r"^(Args|Returns|Raises|Attributes):$")
WIDTH = 100


def page() -> str:
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}")
        for name in names:
            parts += entry(name, found(name))
    return "\n\n".join(parts) + "\n"


def found(name: str) -> object:
    """The object of a dotted name below `alexnet_jax`."""
    module, _, last = name.rpartition(".")
    owner = importlib.import_module(f"alexnet_jax.{module}") if module else alexnet_jax
    return getattr(owner, last)


def entry(name: str, thing: object) -> list[str]:
    """Heading, signature and text of a function, or of a class with its public methods."""
    title = name.rpartition(".")[2] if inspect.isclass(thing) else name
    parts = [f"### {title}", f"`alexnet_jax.{name}`"]
    if not inspect.isclass(thing):
        return [*parts, signature(thing, name), text(thing)]
    parts.append(text(thing))
    if thing is alexnet_jax.AlexNet:
        parts.append(fields(thing))
    for attribute, method in vars(thing).items():
        method = inspect.unwrap(method) if callable(method) else method
        public = not attribute.startswith("_") or attribute == "__call__"
        ours = inspect.isfunction(method) and method.__module__.startswith("alexnet_jax")
        if ours and public and inspect.getdoc(method):
            parts += [signature(method, attribute), text(method)]
    return parts


def signature(function: object, name: str) -> str:
    """The signature as it is written in the source, without `self`."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = node.args
    arguments.args = [argument for argument in arguments.args if argument.arg != "self"]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({ast.unparse(arguments)}){returns}"
    if len(line) > WIDTH:
        every = split(ast.unparse(arguments))
        line = "\n".join([f"{name}(", *(f"    {one}," for one in every), f"){returns}"])
    return f"```py\n{line}\n```"


def split(arguments: str) -> list[str]:
    """Cuts a list of arguments at its commas, but not at those within brackets."""
    depth, parts = 0, [""]
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def text(thing: object) -> str:
    """A docstring as Markdown; its sections as lists."""
    lines, in_section = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if match := HEADING.match(line):
            lines += [f"*{match.group(1)}*", ""]
            in_section = True
        elif in_section and (item := re.match(r"^  (\w+(?:, \w+)*): (.*)$", line)):
            names = ", ".join(f"`{name}`" for name in item.group(1).split(", "))
            lines.append(f"- {names}: {item.group(2)}")
        elif in_section and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            in_section = in_section and line.startswith(("  ", ""))
            lines.append(line.strip() if in_section else line)
    return "\n".join(lines)


def fields(kind: type) -> str:
    """A table of a dataclass's fields; what each means is in the comments above and behind it."""
    source = inspect.getsource(kind).splitlines()
    (node,) = ast.parse(textwrap.dedent("\n".join(source))).body
    assert isinstance(node, ast.ClassDef)
    rows = ["| field | default | |", "|---|---|---|"]
    for field in (item for item in node.body if isinstance(item, ast.AnnAssign)):
        comments, above = [], field.lineno - 2
        while source[above].strip().startswith("#"):
            comments.insert(0, source[above].strip("# "))
            above -= 1
        comments += [source[field.lineno - 1].partition("  # ")[2]]
        words = " ".join(filter(None, comments)).replace("|", "\\|")
        default = getattr(kind, ast.unparse(field.target))
        rows.append(f"| `{ast.unparse(field.target)}` | `{default!r}` | {words} |")
    assert dataclasses.is_dataclass(kind)
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fail if the page is not up to date")
    if not parser.parse_args().check:
        write_text(PAGE, page())
    elif PAGE.read_text() != page():
        print(f"{PAGE}: not what the docstrings say; run python -m scripts.make_api", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
