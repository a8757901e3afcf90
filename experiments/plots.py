"""The plots of the experiments; as SVG, the same numbers give the same file."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np

from alexnet_jax.common.files import replacing

matplotlib.use("agg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "alexnet_jax",  # makes the identifiers in the file reproducible
        "svg.fonttype": "none",  # text stays text
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402, F401  (for callers)

FARTHEST = 25.0  # points of %: larger differences are written as text, not drawn, to keep the scale
PARENT_COLOUR, ROW_COLOUR, PAPER_COLOUR = "0.6", "C0", "C1"


@contextlib.contextmanager
def canvas(path: pathlib.Path, size: tuple[float, float]) -> Iterator[Any]:
    """An empty figure of `size` inches, saved to `path` at the end, in the format of its suffix."""
    picture = plt.figure(figsize=size, layout="constrained")
    yield picture
    kind = path.suffix.lstrip(".")
    with replacing(path) as temporary:
        picture.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=120)
    plt.close(picture)


@contextlib.contextmanager
def figure(
    path: pathlib.Path, rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A canvas with the axes of `plt.subplots`."""
    with canvas(path, figsize) as picture:
        yield picture, picture.subplots(rows, columns, **options)


def differences(path: pathlib.Path, lines: Sequence[Any]) -> None:
    """The difference in top-1 error of each line, with the wider of its intervals and the paper's value."""
    rows = [line for line in lines if line.differences[0] is not None]
    with figure(path, figsize=(7, 1 + 0.28 * len(rows))) as (_, axes):
        places = np.arange(len(rows))[::-1]
        values = [line.differences[0] for line in rows]
        near = [abs(value.mean) <= FARTHEST for value in values]
        axes.axvline(0, color="0.8", zorder=0)
        axes.errorbar(
            [value.mean for value, drawn in zip(values, near, strict=True) if drawn],
            places[near],
            xerr=[value.half or 0.0 for value, drawn in zip(values, near, strict=True) if drawn],
            fmt="o",
            color=ROW_COLOUR,
            markersize=4,
            capsize=2,
            label="here, with 95 % interval",
        )
        for value, place, drawn in zip(values, places, near, strict=True):
            if not drawn:
                where = {"x": 0.99, "y": place, "s": f"{value.mean:+.1f}", "ha": "right", "va": "center"}
                axes.text(**where, transform=axes.get_yaxis_transform(), color=ROW_COLOUR)
        published = [(line.paper[0], place) for line, place in zip(rows, places, strict=True) if line.paper]
        if published:
            axes.scatter(
                *zip(*published, strict=True), marker="D", s=18, color=PAPER_COLOUR, label="paper", zorder=3
            )
        axes.set_yticks(places, [line.row for line in rows])
        axes.set(xlabel="top-1 error above the parent's, points of %", ylim=(-0.7, len(rows) - 0.3))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def small_curves(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Top-1 error by epoch: a panel for each row, with the parent's mean in grey."""
    rows = [row for row in results["rows"] if any(run["curve"] for run in row["runs"])]
    across = min(4, len(rows))
    down = -(-len(rows) // across)
    size = (2 * across + 0.5, 1.6 * down + 0.5)
    with figure(path, down, across, figsize=size, sharex=True, sharey=True, squeeze=False) as (picture, axes):
        parent = _mean_curve(rows[0])
        for place, panel in enumerate(axes.flat):
            if place >= len(rows):
                panel.set_visible(False)
                continue
            panel.plot(*parent, color=PARENT_COLOUR, linewidth=3)
            for run in rows[place]["runs"]:
                if run["curve"]:
                    panel.plot(*zip(*run["curve"], strict=True), color=ROW_COLOUR, linewidth=0.9)
            panel.set_title(rows[place]["row"], fontsize=8)
        picture.supxlabel("epoch", fontsize=9)
        picture.supylabel("top-1 error, %", fontsize=9)


def _mean_curve(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Epochs and mean errors of the runs with the longest curves."""
    longest = max(len(run["curve"]) for run in row["runs"])
    complete = np.array([run["curve"] for run in row["runs"] if len(run["curve"]) == longest])
    return complete[:, :, 0].mean(axis=0).tolist(), complete[:, :, 1].mean(axis=0).tolist()


def curves(path: pathlib.Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Training loss and test error by epoch, in one colour for each run.

    Args:
      runs: the lines of each run's metrics by name.
    """
    with figure(path, 1, 2, figsize=(8, 3)) as (_, (left, right)):
        for number, (name, metrics) in enumerate(runs.items()):
            for axes, key in ((left, "train/loss"), (right, "eval/top1_error")):
                points = [(line["epoch"], line[key]) for line in metrics if key in line]
                if points:
                    marker = "o" if key.startswith("eval") else None
                    axes.plot(
                        *zip(*points, strict=True), color=f"C{number % 10}", marker=marker, ms=3, label=name
                    )
        left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        right.set(xlabel="epoch", ylabel="top-1 test error, %", ylim=(0, None))
        if len(runs) > 1:
            left.legend(frameon=False, fontsize=8)
