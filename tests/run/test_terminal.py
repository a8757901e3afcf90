"""What a run shows on a terminal of 80 and of 40 columns, as a user reads it."""

import fcntl
import json
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
import types

import pytest

from alexnet_jax.common import progress
from alexnet_jax.run import terminal
from tests import tiny
from tests.faults import runs

ROOT = pathlib.Path(__file__).parents[2]
TRAIN, TEST = 80, 40  # images; ten steps of eight an epoch


class Screen:
    """The lines of a terminal without an end, from the bytes that a program writes to it."""

    def __init__(self, columns: int) -> None:
        self.lines, self.row, self.column, self.columns = [""], 0, 0, columns
        self.shown: list[str] = []  # the line of the cursor before each return to its first column

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[A|.", text, re.DOTALL):
            if part == "\x1b[A":
                self.row -= 1
            elif part == "\r":
                self.shown.append(self.lines[self.row].rstrip())
                self.column = 0
            elif part == "\n":
                self._down()
            else:
                assert part != "\x1b", "a sequence that this terminal does not know"
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))


def on_terminal(columns: int, command: list[str]) -> tuple[int, Screen]:
    """Runs a command on a terminal; its exit code and what it showed."""
    terminal_end, process_end = pty.openpty()
    fcntl.ioctl(process_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), process_end)
    environment = {**runs.environment(), "PYTHONUTF8": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
    os.close(process_end)
    data = b""
    while True:
        try:
            chunk = os.read(terminal_end, 65536)
        except OSError:  # Linux's end of the file here
            break
        if not chunk:
            break
        data += chunk
    screen = Screen(columns)
    screen.write(data.decode())
    os.close(terminal_end)
    return process.wait(60), screen


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_what_runs_each_test_and_nothing_after_the_summary(columns, tmp_path):
    images = tiny.make_images(tmp_path / "images", train=TRAIN // 10, test=TEST // 10)
    values = {**tiny.NET, "data.source": f"folder:{images}", "run.total_epochs": 3.0}
    values |= {"run.log_every_steps": 2}
    flags = [f"--config.{key}={value}".replace(" ", "") for key, value in values.items()]
    workdir = tmp_path / "run"
    code, screen = on_terminal(columns, [sys.executable, "main.py", f"--workdir={workdir}", *flags])
    kept = "\n".join(line.rstrip() for line in screen.lines)
    assert code == 0, kept
    evaluations = [line for line in read(workdir) if "eval/loss" in line]
    assert len(evaluations) == 3
    unwrapped = "".join(line.ljust(columns) for line in screen.lines)  # long lines begin new ones
    for line in evaluations:
        errors = "  ".join(f"top-{k} error {line[f'eval/top{k}_error']:.2f} %" for k in (1, 5))
        assert f"step {line['step']}/30  epoch {line['epoch']:.2f}  {errors}" in unwrapped
    assert "compiling the training step" in screen.shown
    assert any(line.startswith("testing: ") for line in screen.shown)
    bars = [line for line in screen.shown if line.startswith("epoch ") and "loss" in line]
    bar = r" \|.*\|" if columns > 40 else ""
    pattern = rf"epoch \d\.\d+ +loss \d\.\d+ +\d+( images)?/s +left \d\d:\d\d{bar}"
    assert bars and all(re.fullmatch(pattern, line) for line in bars), bars
    # Nothing of bars is left, and nothing is below the summary.
    assert not re.search("testing|images/s|compiling", kept)
    last = "".join(kept[kept.index("\ndone") :].split())  # a line may be broken at a space
    assert last.endswith(f"thesamecommandwith--workdir={workdir}andalargerrun.total_epochs")


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("width", "values", "text"),
    [
        (79, (1.254, 0.5321, 613.2, 100), "epoch 1.25  loss 0.532  613 images/s  left 01:40"),
        (39, (1.254, 0.5321, 613.2, 100), "epoch 1.3 loss 0.53 613/s left 01:40"),
        (39, (89.96, 0.5321, 12_345.6, 438_000), "epoch 90.0 loss 0.53 12346/s left 121h"),
        (79, (0.5, None, None, None), "epoch 0.50"),
        (39, (0.5, 2.3, None, 7500), "epoch 0.50  loss 2.300  left 2h05"),
        (20, (0.5, 2.3, 10.0, 7500), "epoch 0.5 loss 2.30 "),
    ],
)
def test_the_line_fits_the_terminal(width, values, text):
    names = ("epoch", "loss", "images_per_second", "left")
    assert terminal.progress_line(width, **dict(zip(names, values, strict=True))) == text


def test_in_a_notebook_progress_is_not_red(monkeypatch, capsys):
    stream = type("OutStream", (), {"__module__": "ipykernel.iostream", "isatty": lambda self: False})()
    monkeypatch.setattr(sys, "stderr", stream)
    progress.say("step 1")
    assert capsys.readouterr().out == "step 1\n"


def test_other_bars_have_rate_and_time_left_at_40_columns(monkeypatch):
    shown = []
    output = types.SimpleNamespace(
        isatty=lambda: True, write=shown.append, flush=lambda: None, encoding="utf-8", fileno=lambda: 2
    )
    monkeypatch.setattr(sys, "stderr", output)
    with progress.bar(200, "image", "pool5", ncols=40, mininterval=0, dynamic_ncols=False) as bar:
        for _ in range(200):
            bar.update()
    lines = [text.strip("\r") for text in shown if "50%" in text]
    assert lines and all(len(line) <= 40 for line in lines)
    assert all(re.fullmatch(r"pool5: 50% \|.+\| left \d\d:\d\d, .*", line) for line in lines), lines
