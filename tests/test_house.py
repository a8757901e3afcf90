"""The house: imports go one way, from main to the leaves."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / "alexnet_jax"


def imports_of(path: pathlib.Path) -> set[str]:
    """The package's own modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "alexnet_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alexnet_jax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("alexnet_jax.")}
    return found


def arrows() -> dict[str, set[str]]:
    return {path.stem: imports_of(path) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def test_leaves_import_no_one_but_errors():
    leaves = (
        "ops",
        "augment",
        "optimizer",
        "logs",
        "columns",
        "statistics",
        "settings",
        "profile",
        "typed",
        "distributed",
    )
    for leaf in leaves:
        assert arrows()[leaf] <= {"errors"}, leaf
    assert arrows()["memory"] | arrows()["compiled"] <= {"settings"}
    assert arrows()["checkpoint"] <= {"errors", "distributed"}
    assert arrows()["collectives"] <= {"columns"}
    assert arrows()["cli"] <= {"errors", "memory", "compiled"}


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
    assert [name for name, its in arrows().items() if "train" in its] == []


def test_the_model_knows_nothing_of_training_or_data():
    assert arrows()["model"] == {"ops", "columns", "errors", "typed"}
    assert arrows()["steps"] == {"columns", "compiled", "model", "errors", "preprocess"}


def test_the_loop_s_body_is_short():
    tree = ast.parse((PACKAGE / "train.py").read_text())
    (loop,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "loop")
    assert loop.end_lineno - loop.lineno < 50
