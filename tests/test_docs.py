"""The README and the guides: every command in them runs, every link leads somewhere.

A ```bash block is run here, line by line, with a narrow net and a few images in the place of the reader's
own. One that cannot be has a comment before it: `<!-- needs: ImageNet -->`, or `<!-- run by: FILE -->`.
"""

import ast
import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import shutil
import time

import jax
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import __main__, create_model, evaluate, train
from alexnet_jax import config as configs
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.run import summary
from alexnet_jax.weights import pretrained
from scripts import make_api
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(
    r"(?:<!-- (?P<mark>needs|run by): (?P<what>.*?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)\n```", re.S
)
SERVERS = ("demo",)  # never end; tests/tools/test_demo.py runs them


@dataclasses.dataclass(frozen=True)
class Block:
    mark: str | None
    what: str | None
    kind: str
    text: str


def blocks(path: pathlib.Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in FENCE.finditer(path.read_text())]


def commands(path: pathlib.Path) -> list[str]:
    """The lines of the blocks that are to be run here."""
    text = "\n".join(block.text for block in blocks(path) if block.kind == "bash" and block.mark is None)
    lines = (re.split(r"\s+#\s", line)[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A directory with what the guides take for granted: the checkout, photographs, weights, a run."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("alexnet_jax", "configs", "main.py"):
        (desk / name).symlink_to(ROOT / name)
    tiny.make_images(desk / "photos", train=4, test=2)
    shutil.move(desk / "photos" / "test", desk / "photos" / "val")
    (desk / "cat.jpg").write_bytes(next((desk / "photos" / "val").rglob("*.png")).read_bytes())
    overrides = {key.split(".")[1]: value for key, value in tiny.NET.items() if key.startswith("model.")}
    model = create_model("torchvision", 10, **overrides, init_scheme="torch")
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    preprocess = Preprocess(70, 64)
    # A path that exists comes before a published name, and the first bytes decide how a file is read: this
    # net, which is narrow, stands in for torchvision's.
    pretrained.save_pretrained(desk / "alexnet.safetensors", model, variables, preprocess)
    (desk / "alexnet.safetensors").rename(desk / "torchvision")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        run_main(["--workdir=runs/mine"])
    return desk


# What makes a run small, unless the guide's own command says otherwise.
SMALL = {
    **tiny.NET,
    "data.resize_size": 70,  # the torchvision variant needs more than the others
    "data.image_size": 64,
    "data.source": "folder:photos",
    "run.total_steps": 2,
    "run.eval_every_steps": 2,
    "optimizer.drop_epochs": (),
}


def run_main(words: list[str]) -> None:
    """What `python main.py WORDS` does, small; tests/test_main.py is about how it reads its flags."""
    given = dict(word[2:].partition("=")[::2] for word in words)
    overrides = {key.removeprefix("config."): given.pop(key) for key in [*given] if key.startswith("config.")}
    path, mode = given.pop("config", "configs/default.py"), given.pop("mode", "train")
    workdir = pathlib.Path(given.pop("workdir", f"runs/fresh-{time.time_ns()}"))
    assert set(given) <= {"json"}
    values = {key: literal(value) for key, value in overrides.items()}
    if mode == "eval":
        result, _ = evaluate.evaluate_workdir(configs.of_workdir(workdir, values), workdir)
        assert result.examples == 20
        return
    for key in ("model.widths", "model.fc_widths"):  # whatever they are there, here they are narrow
        if key in values:
            values[key] = tiny.NET[key]
    if values.pop("run.total_epochs", None) is not None:
        values["run.total_steps"] = 4
    tree = importlib.import_module(path.removesuffix(".py").replace("/", ".")).get_config()
    if mode == "summary":
        config = configs.resolve(tree, values)
        assert "fc8" in summary.as_table(summary.summarise(configs.build_model(config, 10), 224))
        return
    if values.get("run.max_seconds"):  # would wait for it
        values["run.max_seconds"] = 1e6
    assert train.train(configs.resolve(tree, {**SMALL, **values}), workdir) == "done"


def literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_commands_run(guide, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    for command in commands(guide):
        words = shlex.split(command)
        while "=" in words[0]:  # the environment; jax is up already, with eight devices
            words.pop(0)
        assert words[0] == "python", f"{guide.name}: {command}: mark the block, or let this test run it"
        if words[1] == "main.py":
            run_main(words[2:])
        elif words[1:3] == ["-m", "alexnet_jax"]:
            run_command(words[3:])
        elif words[1] == "-m":
            assert importlib.import_module(words[2]).main(words[3:]) == 0, command
        else:
            raise AssertionError(f"{guide.name}: {command}: neither main.py nor a module")


def run_command(words: list[str]) -> None:
    """Runs `python -m alexnet_jax WORDS`; those with a config, small."""
    name = words[0] if words else None
    if name in ("train", "summary"):
        run_main([*words[1:], *(["--mode=summary"] if name == "summary" else [])])
    elif name in SERVERS:
        with pytest.raises(SystemExit):
            __main__.main([*words, "--help"])
    else:
        assert __main__.main(words) == 0, words


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_what_is_marked_names_what_it_needs_or_what_runs_it(guide):
    for block in blocks(guide):
        assert block.kind, f"{guide.name}: a block without a kind: {block.text[:60]}"
        if block.mark == "run by":
            runner = (ROOT / block.what).read_text()
            for module in re.findall(r"python -m (?:alexnet_jax )?([\w.]+)", block.text):
                assert module.split(".")[-1] in runner, f"{guide.name}: {block.what} does not run {module}"
    outside = FENCE.sub("", guide.read_text())
    assert not re.search(r"^ {4}(python|bash|pip) ", outside, re.M), (
        f"{guide.name}: a command without ```bash"
    )


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_python_runs(guide, desk, monkeypatch):
    """All blocks of a guide one after the other, as a reader pastes them."""
    monkeypatch.chdir(desk)
    python = [block.text for block in blocks(guide) if block.kind == "python" and block.mark is None]
    exec(compile("\n".join(python), guide.name, "exec"), {})


# --- Reference and files ----------------------------------------------------------------------------------


def test_the_reference_is_what_the_docstrings_say():
    made = make_api.page()
    assert "### load_pretrained" in made and "- `num_classes`: " in made
    assert make_api.PAGE.read_text() == made, "run python -m scripts.make_api"


TYPES = {
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "string": lambda value: type(value) is str,
    "object": lambda value: type(value) is dict,
    "numbers": lambda value: type(value) is list and all(type(one) in (int, float) for one in value),
    "strings": lambda value: type(value) is list and all(type(one) is str for one in value),
    "null": lambda value: value is None,
}
ROW = re.compile(r"^\| `([\w/.]+)` \| ([a-z ]+) \| ", re.M)


def documented(file: str) -> dict[str, str]:
    """The types by key in the table under a file's title."""
    sections = (ROOT / "docs" / "files.md").read_text().split("\n## ")
    (section,) = (text for text in sections if text.startswith(f"{file}\n"))
    return dict(ROW.findall(section))


def flat(values: dict, known: dict[str, str]) -> dict[str, object]:
    """Values by dotted key, down to where the table goes."""
    found = {}
    for key, value in values.items():
        inner = [name for name in known if name.startswith(f"{key}.")]
        if key in known or not inner:
            found[key] = value
        if inner and isinstance(value, dict):
            found |= {f"{key}.{name}": one for name, one in value.items()}
    return found


@pytest.mark.parametrize("file", ["metrics.jsonl", "status.json", "net.json"])
def test_a_real_run_writes_the_documented_keys(desk, file):
    known, text = documented(file), (desk / "runs" / "mine" / file).read_text()
    lines = text.splitlines() if file.endswith("l") else [text]
    values = [flat(json.loads(line), known) for line in lines]
    assert {key for line in values for key in line} == set(known)
    for line in values:
        for key, value in line.items():
            kinds = known[key].split(" or ")
            assert any(TYPES[kind](value) for kind in kinds), f"{key}={value!r} is not {known[key]}"


def anchors(path: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("guide", [*GUIDES, *ROOT.glob("experiments/*/README.md")], ids=lambda p: str(p.name))
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", guide.read_text())):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (guide.parent / path) if path else guide
        assert there.exists(), f"{guide.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{guide.name}: {target}"


def test_every_guide_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_the_version_is_the_same_everywhere():
    version = alexnet_jax.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
