"""The house: imports go one way, from main to the leaves, and nothing grows too large."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "alexnet_jax"

# Each room with the rooms right below it: it may import those and all that they may. A file at the top of the
# package, which is the paper, is a room of its own.
BELOW = {
    "common": (),
    "kernels": ("common",),
    "layers": ("kernels",),
    "columns": ("common",),
    "model": ("layers", "columns"),
    "variants": ("model",),
    "config": ("variants",),
    "augment": ("config",),
    "optimizer": ("config",),
    "steps": ("config", "optimizer"),
    "data": ("augment", "columns"),
    "run": ("data", "optimizer"),
    "weights": ("run", "variants"),
    "evaluate": ("steps", "weights"),
    "train": ("evaluate",),
    "tools": ("evaluate",),
}
# What does not keep to it yet.
DEBTS = set()


def modules() -> dict[str, pathlib.Path]:
    """The package's modules by dotted name within it."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names within the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alexnet_jax":
            base = node.module.split(".")[1:]
            names = [".".join([*base, alias.name]) for alias in node.names]
            found |= {name if name in modules() else ".".join(base) or name for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("alexnet_jax.")}
    return found


def arrows() -> dict[str, set[str]]:
    return {name: imports_of(path) for name, path in modules().items()}


def room(name: str) -> str:
    return name.split(".")[0]


def allowed(name: str) -> set[str]:
    """The rooms that a room may import: itself and all below it."""
    return {name}.union(*(allowed(other) for other in BELOW[name]))


def test_imports_go_one_way():
    found = {
        (room(name), room(other))
        for name, others in arrows().items()
        for other in others
        if room(other) not in allowed(room(name))
    }
    assert found == DEBTS


def test_there_is_no_circle():
    graph = arrows()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_nothing_but_the_entry_points_imports_the_loop():
    assert [name for name, others in arrows().items() if "train" in others] == []


def test_the_loop_s_body_is_short():
    tree = ast.parse((PACKAGE / "train.py").read_text())
    (loop,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "loop")
    assert loop.end_lineno - loop.lineno < 50
