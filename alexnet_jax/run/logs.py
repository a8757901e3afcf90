"""A run's log: metrics as JSON lines and on dashboards, status, progress on the terminal."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from alexnet_jax.common import files, progress
from alexnet_jax.run import terminal

if TYPE_CHECKING:  # TensorBoard's half second, which commands that log nothing can do without
    from alexnet_jax.run import dashboards

METRICS, STATUS = "metrics.jsonl", "status.json"
_SAMPLE = 65_536  # weights per histogram


def write_status(workdir: pathlib.Path, status: str, **fields: Any) -> None:
    """Writes `status.json`: `status` (running, done, interrupted, diverged or failed) and `fields`."""
    files.write_text(workdir / STATUS, json.dumps({"status": status, **fields}, indent=2) + "\n")


def drop_metrics_after(workdir: pathlib.Path, step: int, *, evaluated: bool = True) -> list[dict[str, Any]]:
    """Drops the metrics after the restored `step`, and a line left unfinished by a crash; returns the rest.

    Unless `evaluated`, also drops an evaluation at `step` itself: it came after the checkpoint.
    """
    path, kept = workdir / METRICS, {}
    if not path.exists():
        return []
    for line in path.read_text().splitlines(keepends=True):
        try:
            values = json.loads(line)
            later = values["step"] == step and "eval/loss" in values and not evaluated
            if line.endswith("\n") and values["step"] <= step and not later:
                kept[line] = values
        except (ValueError, KeyError, TypeError):
            continue
    files.write_text(path, "".join(kept))
    return list(kept.values())


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, oldest first; an unfinished last line is skipped."""
    lines = (pathlib.Path(workdir) / METRICS).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class RunLog:
    """Writes metrics to `metrics.jsonl` and the dashboards, and shows progress on standard error.

    Progress is a bar on a terminal; elsewhere (pipe, notebook, batch job) it is a plain line whenever
    metrics are written.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        steps: range,
        boards: Sequence["dashboards.Dashboard"] = (),
        num_classes: int = 1000,
    ):
        self._path, self._boards, self._total = workdir / METRICS, boards, steps.stop
        self._metrics = open(self._path, "a", buffering=1)  # noqa: SIM115  (closed in close)
        self._start: tuple[float, int] | None = None  # of the clock: time and steps done
        self._num_classes = num_classes
        self._bar, self._last = terminal.Bar(steps), {}  # and the last metrics of each kind

    def restart_clock(self, step: int) -> None:
        """Restarts the estimate of the time left, which then ignores the steps up to `step`."""
        self._start = (time.monotonic(), step)

    def advance(self, step: int, epoch: float) -> None:
        """Moves the bar by one step."""
        if self._bar.is_shown:
            loss, rate = (self._last.get(f"train/{key}") for key in ("loss", "images_per_second"))
            left = self._seconds_left(step)
            shown = {"epoch": epoch, "loss": loss, "images_per_second": rate, "left": left}
            self._bar.advance(terminal.progress_line(self._bar.width(), **shown))

    def phase(self, text: str) -> None:
        """Says what takes long instead of steps, such as `compiling`."""
        self._bar.say(text) if self._bar.is_shown else self.say(text)

    def metrics(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one line of metrics; names are like `train/loss`.

        Raises:
          OSError: the file cannot be written, or is no longer there.
        """
        os.stat(self._path)  # writing to a removed file would fail silently
        self._metrics.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
        for board in self._boards:
            board.write(step, values)
        self._last.update(values)
        if "eval/loss" in values or not self._bar.is_shown:
            left = self._seconds_left(step)
            words = [f"step {step}/{self._total}", f"epoch {epoch:.2f}", _short(values, self._num_classes)]
            words += [] if left is None else [f"left {tqdm.tqdm.format_interval(left)}"]
            self.say("  ".join(words))

    def weights(self, step: int, params: Any) -> None:
        """Shows conv1's filters and each layer's histograms; call it in all processes."""
        shown = _weights_shown(params)
        for board in self._boards:
            board.write(step, shown)

    def sync(self) -> None:
        """Flushes the metrics to disk: a checkpoint must not survive without the lines before it."""
        os.fsync(self._metrics.fileno())

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        progress.say(line)

    say_own = say  # lines that concern one process

    def conclude(self, *lines: str) -> None:
        """Removes the bar and prints the last lines."""
        self._bar.close()
        for line in lines:
            self.say(line)

    def close(self) -> None:
        """Flushes and closes all files."""
        self._bar.close()
        self._metrics.close()
        for board in self._boards:
            board.close()

    def _seconds_left(self, step: int) -> float | None:
        if self._start is None or step <= self._start[1]:
            return None
        start, first_step = self._start
        return (self._total - step) * (time.monotonic() - start) / (step - first_step)


class NoLog:
    """The log of processes other than 0: prints only lines that concern this process."""

    def __init__(self, label: str):
        self._label = label

    def say_own(self, line: str) -> None:
        """Prints a line prefixed with this process's label."""
        print(f"{self._label}{line}", file=sys.stderr, flush=True)

    def weights(self, step: int, params: Any) -> None:
        _weights_shown(params)

    def _nothing(self, *_: Any) -> None: ...

    restart_clock = advance = phase = metrics = sync = say = conclude = close = _nothing


def _weights_shown(params: Any) -> dict[str, np.ndarray]:
    """A picture of conv1's filters and samples of all weights, gathered from the devices of all processes."""
    conv1 = multihost_utils.process_allgather(params["conv1"]["kernel"], tiled=True)
    return {"conv1": filters_image(conv1), **weight_samples(params)}


def weight_samples(params: dict[str, dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """Samples for histograms: `{"weights/conv1/kernel": float32 [N], "weights/conv1/bias": ..., ...}`.

    At most `_SAMPLE` evenly spaced values of each array: fc6 alone has 38 million, whose histogram would take
    longer than the test of a small set. Call it in all processes.
    """
    return multihost_utils.process_allgather(_sample(params), tiled=True)


@jax.jit
def _sample(params: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {
        f"weights/{layer}/{name}": array.reshape(-1)[:: -(-array.size // _SAMPLE) | 1]
        for layer, arrays in params.items()
        for name, array in arrays.items()
    }


Log = RunLog | NoLog

_LABELS = {
    "train/loss": "loss {:.3f}",
    "train/images_per_second": "images/s {:.0f}",
    "eval/top1_error": "top-1 error {:.2f} %",
    "eval/top5_error": "top-5 error {:.2f} %",
}


def _short(values: dict[str, float], num_classes: int) -> str:
    keys = [key for key in _LABELS if key in values and (num_classes > 5 or key != "eval/top5_error")]
    return "  ".join(_LABELS[key].format(values[key]) for key in keys)


def as_table(values: dict[str, Any], num_classes: int) -> str:
    """The results of a test as lines: errors in %, rounded, and no top-5 error of up to five classes."""
    names = {key: key.replace("_", " ").replace("top", "top-") for key in values}
    lines, width = [], max(12, *map(len, names.values()))
    for key, value in values.items():
        if key.endswith("top5_error") and num_classes <= 5:
            continue
        form = "{:.2f} %" if key.endswith("_error") else "{:.4f}" if key.endswith("loss") else "{:,}"
        text = ",".join(map(str, value)) if isinstance(value, list) else form.format(value)
        lines.append(f"{names[key]:{width}} {text}")
    return "\n".join(lines)


def filters_image(kernel: np.ndarray, *, across: int = 16, zoom: int = 3) -> np.ndarray:
    """Draws conv1's filters as in Figure 3: `[columns, h, w, 3, O]` to one picture `[H, W, 3]` uint8.

    The first column's filters are above the second's; each filter is scaled to the full range around grey.
    """
    rows = []
    for column in np.asarray(kernel, np.float32):
        filters = np.moveaxis(column, -1, 0)  # [O, h, w, 3]
        peak = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
        pixels = np.round(127.5 + 127.5 * filters / np.maximum(peak, 1e-12)).astype(np.uint8)
        pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
        pixels = np.pad(pixels, ((0, -len(pixels) % across), (1, 1), (1, 1), (0, 0)), constant_values=255)
        grid = pixels.reshape(-1, across, *pixels.shape[1:])  # [rows, across, h, w, 3]
        rows.append(grid.transpose(0, 2, 1, 3, 4).reshape(-1, across * pixels.shape[2], 3))
        rows.append(np.full((2 * zoom, across * pixels.shape[2], 3), 255, np.uint8))
    return np.concatenate(rows[:-1])
