"""What every command shares: it is listed, and its help helps."""

import importlib

import pytest

from alexnet_jax import __main__, __version__
from alexnet_jax.common import progress

TOOLS = ("predict", "features", "nearest", "probe", "export", "demo", "ensemble")
COMMANDS = ("data.prepare", *(f"tools.{name}" for name in TOOLS))


def test_the_package_lists_its_commands(capsys):
    assert __main__.main([]) == 0
    said = capsys.readouterr().out
    assert __version__ in said and "python main.py" in said
    assert set(__main__.commands()) == {f"python -m alexnet_jax.{name}" for name in COMMANDS}
    for command, line in __main__.commands().items():
        assert line.endswith(".") and f"{command} " in said and line in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_usage_and_what_each_flag_is_for(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"alexnet_jax.{name}").main(["--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m alexnet_jax.{name}")
    for number, line in enumerate(lines):
        if line.startswith("  --"):
            flag, _, said = line.strip().partition("  ")
            assert said.strip() or lines[number + 1].startswith(" " * 20), flag


def test_progress_is_whole_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.bar(7, "image", "pool5") as bar:
        bar.update(3)
        bar.update(4)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split(",")[0] for line in said.splitlines()][-1] == "pool5: 7/7 image"


def test_short_work_says_nothing_in_a_pipe(capsys):
    with progress.bar(7, "image") as bar:
        bar.update(7)
    assert capsys.readouterr().err == ""
