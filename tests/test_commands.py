"""What all commands share: one list, help, errors, an answer without waiting for JAX, progress."""

import importlib
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
import tqdm

import alexnet_jax
from alexnet_jax import __main__
from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
NAMED = re.compile(r"python -m alexnet_jax((?:\.| )[\w.]+)")  # a dot names a module, which is no command
FLAG_COMMANDS = ("train", "summary")  # with absl's flags, as main.py
COMMANDS = (
    *FLAG_COMMANDS,
    "predict",
    "features",
    "probe",
    "nearest",
    "ensemble",
    "export",
    "prepare",
    "split",
    "demo",
)


def run(*arguments):
    """A command as users start it, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax", *arguments], capture_output=True, text=True, timeout=300
    )
    return done, time.monotonic() - started


def test_the_package_lists_its_commands(capsys):
    assert set(__main__.COMMANDS) == set(COMMANDS)
    for arguments in ([], ["--help"], ["-h"]):
        assert __main__.main(arguments) == 0
        listed = capsys.readouterr().out
        assert alexnet_jax.__version__ in listed
        for name, (_, line) in __main__.COMMANDS.items():
            assert f"  {name} " in listed and line in listed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "usage: python -m alexnet_jax COMMAND"),
        (["--version"], 0, f"alexnet-jax {alexnet_jax.__version__}"),
        (["predct"], 2, "error: predct: no such command; did you mean predict?"),
        (["--verson"], 2, "did you mean --version?"),
    ],
)
def test_it_answers_at_once_without_jax(arguments, code, words):
    done, seconds = min((run(*arguments) for _ in range(3)), key=lambda pair: pair[1])
    assert done.returncode == code
    assert words in (done.stderr if code else done.stdout)
    assert seconds < 1.2
    if code:
        assert done.stdout == "" and done.stderr.count("\n") == 1
    program = f"import sys; from alexnet_jax import __main__\ntry: __main__.main({arguments!r})\n"
    program += "except ValueError: pass\nassert not {'jax', 'numpy', 'absl'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("module", ["train", "launch", "model", "evaluate", "tools.predict", "data.no_such"])
def test_a_module_that_is_no_command_says_what_is(module):
    """Before: code 0 without a word, as if it had trained."""
    for flags in (["-m", f"alexnet_jax.{module}"], [f"-malexnet_jax.{module}"]):
        words = [sys.executable, *flags, "--config=configs/default.py"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"error: alexnet_jax.{module} is no command; run python main.py or ")
        assert "python -m alexnet_jax train" in done.stderr


@pytest.mark.parametrize("file", ["train.py", "tools/predict.py"])
def test_a_file_of_the_package_says_what_to_run(file):
    """Where the package is installed; code 0 without a word before."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, f"alexnet_jax/{file}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: alexnet_jax/{file} is no command; run python main.py or ")


@pytest.mark.parametrize("words", [["main.py"], ["-m", "alexnet_jax", "predict", "cat.jpg"]])
def test_without_the_environment_a_line_says_how_to_enter_it(words):
    """`-S` hides the libraries."""
    words = [sys.executable, "-S", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f" is not installed in {sys.executable}; activate" in done.stderr
    assert "source .venv/bin/activate" in done.stderr


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(FLAG_COMMANDS)))
def test_help_shows_the_usage_and_what_each_flag_is_for(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with capsys.disabled():  # what a module finds as standard error when it is imported
        importlib.import_module(f"alexnet_jax.{__main__.COMMANDS[name][0]}")
    with pytest.raises(SystemExit) as left:
        __main__.main([name, "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m alexnet_jax {name}")
    for number, line in enumerate(lines):
        if line.startswith("  --"):
            flag, _, text = line.strip().partition("  ")
            assert text.strip() or lines[number + 1].startswith(" " * 20), flag


@pytest.mark.parametrize("name", FLAG_COMMANDS)
def test_help_of_the_commands_with_a_config(name):
    done, _ = run(name, "--help")
    assert done.returncode == 0
    for words in (f"python -m alexnet_jax {name}", "--config:", "--workdir:", "--mode:"):
        assert words in done.stdout


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), ["main.py"]], ids=lambda words: words[0])
def test_help_does_not_import_jax(words):
    start = "from alexnet_jax import __main__; __main__.main([sys.argv[1], '--help'])"
    if words == ["main.py"]:
        start = "import runpy; sys.argv[1:] = ['--help']; runpy.run_path('main.py', run_name='__main__')"
    program = f"import sys\ntry: {start}\nexcept SystemExit as left: assert not left.code\n"
    program += "assert not {'jax', 'tensorflow', 'flax'} & set(sys.modules)"
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "number of classes to name (default: 5)" in text
    assert "(default: torchvision)" in text and "(default: None)" not in text
    assert "torchvision (233 MB, fetched once), caffe or caffenet" in text


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(FLAG_COMMANDS)))
def test_help_shows_the_default_of_each_optional_value(name, capsys):
    with pytest.raises(SystemExit):
        __main__.main([name, "--help"])
    usage, text = capsys.readouterr().out.split("\noptions:\n")
    options = re.findall(r"^  (?:-h, )?--(\w+)( .*(?:\n {4}.*)*)", text, re.MULTILINE)
    assert len(options) == text.count("\n  --") + 1
    for option, words in options:
        takes_none = option == "help" or f"[--{option}]" in usage
        is_required = f" --{option} " in usage and f"[--{option} " not in usage
        assert takes_none or is_required or "default" in words, (name, option, words)


@pytest.mark.parametrize(
    "words", [["predict", "URL"], ["features", "URL", "--out=f.npz"], ["predict", "x", "--weights=URL"]]
)
def test_a_url_is_refused_by_name(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    url = "https://example.org/cat.jpg"
    with pytest.raises(UserError, match=f"^{url}: is a URL, .* download it first"):
        __main__.main([word.replace("URL", url) for word in words])


@pytest.mark.parametrize("command", [["features", "x", "--out"], ["ensemble", "x", "--out"], ["export", "x"]])
@pytest.mark.parametrize("name, reason", [("none/a.npz", "no folder none"), ("a.txt", "must end in .*npz")])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(command, name, reason):
    with pytest.raises(UserError, match=reason):
        __main__.main([*command, name])


def test_summary_takes_a_config_by_name():
    done, _ = run("summary", "--config=imagenet2012")
    assert done.returncode == 0, done.stderr
    assert "60,965,224" in done.stdout


def test_a_mistake_in_a_command_names_its_help():
    with pytest.raises(UserError, match=r"python -m alexnet_jax predict --help shows the arguments"):
        __main__.main(["predict", "--views=3"])


def test_public_names_are_there_and_only_those():
    assert set(alexnet_jax.__all__) <= set(dir(alexnet_jax))
    for name in alexnet_jax.__all__:
        assert getattr(alexnet_jax, name) is not None
    assert alexnet_jax.train is importlib.import_module("alexnet_jax.train")
    assert alexnet_jax.evaluate is importlib.import_module("alexnet_jax.evaluate")
    with pytest.raises(AttributeError, match="no attribute 'load_pretraind'"):
        alexnet_jax.load_pretraind  # noqa: B018


def test_progress_is_whole_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bar(7, "image", "pool5") as bar:
        bar.update(3)
        bar.update(4)
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert [line.split(",")[0] for line in printed.splitlines()][-1] == "pool5: 7/7 image"


def test_the_rate_leaves_out_the_first_unit_which_waits_for_the_compiler(capsys, monkeypatch):
    clock = 0.0
    monkeypatch.setattr(progress, "LINE_SECONDS", 1.0)
    monkeypatch.setattr(tqdm.std, "time", lambda: clock)

    def images():
        nonlocal clock
        for seconds in (60.0, 2.0, 2.0, 2.0):
            clock += seconds
            yield clock

    assert list(progress.bar(4, "image", iterable=images())) == [60.0, 62.0, 64.0, 66.0]
    lines = capsys.readouterr().err.splitlines()
    assert [line.replace("  ", " ") for line in lines[:3]] == [
        "1/4 image, ?image/s, left ?",
        "2/4 image, 2.00s/image, left 00:04",
        "3/4 image, 2.00s/image, left 00:02",
    ]


def test_short_work_says_nothing_in_a_pipe(capsys):
    with progress.bar(7, "image") as bar:
        bar.update(7)
    assert capsys.readouterr().err == ""


def test_every_command_that_is_named_exists():
    """In messages, docstrings and guides: a run once ended by naming a command that was gone."""
    files = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.py")]
    files += [
        *ROOT.glob("alexnet_jax/**/*.py"),
        *ROOT.glob("experiments/*.py"),
        *ROOT.glob("notebooks/*.ipynb"),
    ]
    named = {word.lstrip() for path in files for word in NAMED.findall(path.read_text())}
    assert {"train", "predict", "prepare"} <= named
    assert named <= {*__main__.COMMANDS, "COMMAND"}
