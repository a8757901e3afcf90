"""The house: imports go one way, from main to the leaves, and nothing grows too large."""

import ast
import functools
import graphlib
import json
import pathlib
import subprocess
import sys

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "alexnet_jax"

# Each room with the rooms right below it: it may import those and all that they may. A file at the top of the
# package, which is the paper, is a room of its own.
BELOW = {
    "common": (),
    "kernels": ("common",),
    "layers": ("kernels",),
    "low_resolution": ("layers",),
    "columns": ("common",),
    "model": ("low_resolution", "columns"),
    "conv_local": ("model",),
    "variants": ("conv_local",),
    "config": ("variants",),
    "augment": ("config",),
    "optimizer": ("config",),
    "steps": ("config", "optimizer"),
    "data": ("augment", "columns"),
    "run": ("data", "optimizer"),
    "weights": ("run", "variants"),
    "perceptual": ("weights",),
    "evaluate": ("steps", "weights"),
    "train": ("evaluate",),
    "tools": ("evaluate",),
    "launch": ("train", "tools"),
}

# The top of the package is the paper; the other files there are the way in.
PAPER = (
    *("model", "variants", "layers", "columns", "augment"),
    *("optimizer", "steps", "evaluate", "train", "config"),
)
# Lines of each room, and of the files that are the way in. Lower them where you can; raise one only for a
# feature that lives there.
MOST_LINES = {
    "paper": 1973,
    "way in": 594,
    "common": 878,
    "data": 2584,
    "kernels": 258,
    "run": 2346,
    "tools": 1845,
    "weights": 1501,
}


@functools.cache
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


@functools.cache
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
    assert found == set()


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
    assert [name for name, others in arrows().items() if "train" in others] == ["launch"]
    assert [name for name, others in arrows().items() if "launch" in others] == []


def test_the_loop_s_body_is_short():
    tree = ast.parse((PACKAGE / "train.py").read_text())
    (train,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    docstring, *_ = train.body
    assert train.end_lineno - docstring.end_lineno < 50


@pytest.mark.slow
def test_few_frames_lie_between_main_and_the_convolution(tmp_path):
    """In a training step on a CPU; `tests/frames.py` counts each function of this program on the stack."""
    images = tiny.make_images(tmp_path / "images", train=1, test=1)
    keys = {**tiny.NET, "data.source": f"folder:{images}", "run.total_steps": 1, "mesh.data": 1}
    flags = [f"--workdir={tmp_path / 'run'}", *(f"--config.{key}={value}" for key, value in keys.items())]
    command = [sys.executable, "-m", "tests.frames", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0
    first, *_, last = result["frames"]
    assert (first, last) == ("alexnet_jax/launch.py:main", "alexnet_jax/kernels/blocks.py:convolution")
    assert len(result["frames"]) <= 10, result["frames"]


def lines(*paths: pathlib.Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def sizes() -> dict[str, int]:
    """The lines of each room of the package."""
    paper = [PACKAGE / f"{name}.py" for name in PAPER]
    found = {"paper": lines(*paper), "way in": lines(*set(PACKAGE.glob("*.py")) - set(paper))}
    rooms = [path.parent for path in sorted(PACKAGE.glob("*/__init__.py"))]
    return found | {room.name: lines(*room.rglob("*.py")) for room in rooms}


def test_every_room_stays_small():
    found = sizes()
    assert set(found) == set(MOST_LINES)
    assert {room: size for room, size in found.items() if size > MOST_LINES[room]} == {}
    assert lines(ROOT / "main.py") <= 70
    assert too_long(PACKAGE) == []


# --- Experiments and benchmarks ---------------------------------------------------------------------------

BESIDE = ("experiments", "benchmarks")


def imports_beside(path: pathlib.Path) -> set[str]:
    """Modules of experiments and benchmarks that a module imports, such as `experiments.plots`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BESIDE:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in BESIDE}
    return {name for name in found if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()}


def test_there_is_no_circle_in_experiments_and_benchmarks():
    files = [path for folder in BESIDE for path in sorted((ROOT / folder).glob("*.py"))]
    graph = {f"{path.parent.name}.{path.stem}": imports_beside(path) for path in files}
    assert graph["experiments.sweep_runs"] >= {"experiments.sweep_plan", "experiments.sweep_results"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def too_long(
    folder: pathlib.Path, *, lines: int = 320, function_lines: int = 60, arguments: int = 8
) -> list[str]:
    """The files and functions below a folder that exceed the limits."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if (count := len(text.splitlines())) > lines:
            found.append(f"{path.name}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = node.end_lineno - node.lineno + 1
                names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if names[:1] in (["self"], ["cls"]):
                    del names[0]
                if count > function_lines or len(names) > arguments:
                    found.append(f"{path.name}: {node.name}: {count} lines, {len(names)} arguments")
    return found


@pytest.mark.parametrize("folder", BESIDE)
def test_experiments_and_benchmarks_keep_the_limits_of_length(folder):
    assert too_long(ROOT / folder) == []
