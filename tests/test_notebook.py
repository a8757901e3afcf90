"""The notebook: where Colab's cell gets the repository from, and what is kept of its outputs."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

from notebooks import execute


def source(cell_id: str) -> str:
    cells = json.loads(execute.NOTEBOOK.read_text())["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["id"] == cell_id)


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Runs the cell that installs, as in Colab with its /content in `tmp_path`; pip and git do nothing."""
    content = tmp_path / "content"
    content.mkdir()
    started = []

    def run(command, **_):
        started.append(command)
        return types.SimpleNamespace(stdout="jax==0.9.0\nnumpy==2.4.0\nscipy==1.0\n")

    def find_spec(name):
        return object() if name in ("google", "google.colab") else None

    def upload():
        shutil.copy(tmp_path / "given.zip", "uploaded.zip")
        return {"uploaded.zip": b""}

    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["google.colab"].files = types.SimpleNamespace(upload=upload)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def cell(repository: str) -> list[list[str]]:
        names = {"os": os, "REPOSITORY": repository, "DRIVE": False, "WORKDIR": "runs/colab"}
        exec(source("cell03").replace("/content", str(content)), names)
        return started

    return cell


def make_repository(folder: pathlib.Path) -> None:
    (folder / "tests").mkdir(parents=True)
    (folder / "main.py").write_text("top")
    (folder / "tests" / "main.py").write_text("below")
    (folder / "requirements-cpu.txt").write_text("# comment\njax\ntensorflow-cpu\n")
    (folder / "constraints.txt").write_text("jax==0.1\n")


@pytest.mark.parametrize("form", ["folder", "zip of a folder", "flat zip", "upload"])
def test_colab_gets_the_repository_without_an_address(form, colab, tmp_path, capsys):
    make_repository(tmp_path / "given" / "alexnet-jax-main")
    place = tmp_path / "given" / "alexnet-jax-main"
    if form != "folder":
        base = place if form == "flat zip" else tmp_path / "given"
        place = shutil.make_archive(str(tmp_path / "given"), "zip", base)
    started = colab("" if form == "upload" else str(place))
    assert pathlib.Path.cwd() == tmp_path / "content" / "alexnet-jax"
    assert pathlib.Path("main.py").read_text() == "top"
    assert pathlib.Path("constraints.txt").read_text() == "jax==0.1\n"  # the repository's own stays
    assert pathlib.Path("../kept.txt").read_text() == "jax==0.9.0\nnumpy==2.4.0"
    assert pathlib.Path("../wanted.txt").read_text() == "jax\ntensorflow-cpu\n"
    assert [command[2] for command in started] == ["pip", "pip"]
    assert "Choose" in capsys.readouterr().out or form != "upload"


def test_what_is_no_repository_is_named(colab, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no zip or folder with main\.py"):
        colab(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip: no zip"):
        colab("nowhere.zip")


def test_the_end_of_a_cell_s_text_and_its_pictures_are_kept():
    new = pytest.importorskip("nbformat").v4
    picture = new.new_output("display_data", data={"image/png": "iVBOR", "text/plain": "<Figure>"})
    text = "".join(f"line {number} of /home/me/runs\n" for number in range(20))
    outputs = [
        new.new_output("stream", name="stdout", text=text[:50]),
        new.new_output("stream", name="stderr", text="a warning\n"),
        picture,
        new.new_output("stream", name="stdout", text=text[50:]),
    ]
    shown, kept = execute.kept_outputs(new.new_code_cell(outputs=outputs), {"/home/me": "~"})
    assert shown.data == {"image/png": "iVBOR"}
    lines = kept.text.splitlines()
    assert lines[0] == "... 8 lines before" and lines[1:] == [f"line {n} of ~/runs" for n in range(8, 20)]
    tagged = new.new_code_cell(outputs=[picture], metadata={"tags": ["text-only"]})
    assert execute.kept_outputs(tagged, {}) == []
