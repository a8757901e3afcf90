"""The plots of the experiments, in one style; as SVG, the same numbers give the same file.

All plots are as wide as each other. Shown on a phone, 400 pixels wide, their text is 10 pixels high.
"""

import contextlib
import pathlib
import textwrap
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
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.2,
        "legend.frameon": False,
    }
)
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

WIDTH = 5.0  # inches
FARTHEST = 25.0  # points of %: larger differences are written as text, not drawn, to keep the scale
PARENT_COLOUR, ROW_COLOUR, PAPER_COLOUR = "0.6", "C0", "C1"
ACROSS = 3  # small panels in a row
EPOCH_STEPS = (1, 2, 5, 10)  # between the marks of an axis


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
    path: pathlib.Path, rows: int = 1, columns: int = 1, *, height: float = 3.0, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A canvas of the common width and of `height` inches, with the axes of `plt.subplots`."""
    with canvas(path, (WIDTH, height)) as picture:
        yield picture, picture.subplots(rows, columns, **options)


def by_epoch(axes: Any, ylabel: str, top: float | None = None) -> None:
    """Labels axes whose x is the epoch; y goes from 0 to `top`, by default a little above all points."""
    axes.set(xlabel="epoch", ylabel=ylabel, xlim=(0, None), ylim=(0, top or 1.05 * axes.dataLim.ymax))
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=EPOCH_STEPS))


def lines_of_seeds(
    axes: Any, curves: Sequence[Sequence[tuple[float, float]]], label: str, **style: Any
) -> None:
    """One line for each seed's points, in one style, with one entry in the legend."""
    for number, points in enumerate(curves):
        axes.plot(*zip(*points, strict=True), label=None if number else label, **style)


def legend_above(picture: Any, axes: Any, columns: int = 2) -> None:
    """The legend of `axes`, above the whole figure, where it hides nothing."""
    picture.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns)


def differences(path: pathlib.Path, lines: Sequence[Any]) -> None:
    """The difference in top-1 error of each line, with the wider of its intervals and the paper's value."""
    rows = [line for line in lines if line.differences[0] is not None]
    with figure(path, height=1 + 0.25 * len(rows)) as (picture, axes):
        places = np.arange(len(rows))[::-1]
        values = [line.differences[0] for line in rows]
        near = [abs(value.mean) <= FARTHEST for value in values]
        axes.axvline(0, color="0.5", linewidth=0.8, zorder=0)
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
                where = {"x": 0.99, "y": place, "s": f"{value.mean:+.1f} \N{RIGHTWARDS ARROW}", "ha": "right"}
                if value.mean < 0:
                    where |= {"x": 0.01, "s": f"\N{LEFTWARDS ARROW} {value.mean:+.1f}", "ha": "left"}
                axes.text(**where, va="center", transform=axes.get_yaxis_transform(), color=ROW_COLOUR)
        published = [(line.paper[0], place) for line, place in zip(rows, places, strict=True) if line.paper]
        if published:
            axes.scatter(
                *zip(*published, strict=True), marker="D", s=18, color=PAPER_COLOUR, label="paper", zorder=3
            )
        axes.set_yticks(places, [line.row for line in rows])
        axes.set(xlabel="top-1 error above the parent's, points of %", ylim=(-0.7, len(rows) - 0.3))
        legend_above(picture, axes)


def small_curves(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Top-1 error by epoch: a panel for each row, with the parent's mean in grey."""
    rows = [row for row in results["rows"] if any(run["curve"] for run in row["runs"])]
    across = min(ACROSS, len(rows))
    down = -(-len(rows) // across)
    size = {"height": 3.0 if len(rows) == 1 else 0.8 + 1.35 * down}
    with figure(path, down, across, **size, sharex=True, sharey=True, squeeze=False) as (picture, axes):
        parent = _mean_curve(rows[0])
        for place, panel in enumerate(axes.flat):
            if place >= len(rows):
                panel.set_visible(False)
                continue
            panel.plot(*parent, color=PARENT_COLOUR, linewidth=3, label=f"mean of {rows[0]['row']}")
            runs = [run["curve"] for run in rows[place]["runs"] if run["curve"]]
            lines_of_seeds(panel, runs, "a run of the row", color=ROW_COLOUR, linewidth=0.9)
            panel.xaxis.set_major_locator(MaxNLocator("auto", steps=EPOCH_STEPS))
            if len(rows) > 1:
                panel.set_title(textwrap.fill(rows[place]["row"], 24), fontsize=8)
        legend_above(picture, axes[0, 0])
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
    with figure(path, 1, 2, height=2.4 + 0.2 * len(runs)) as (picture, (left, right)):
        for number, (name, metrics) in enumerate(runs.items()):
            for axes, key in ((left, "train/loss"), (right, "eval/top1_error")):
                points = [(line["epoch"], line[key]) for line in metrics if key in line]
                if points:
                    marker = "o" if key.startswith("eval") else None
                    axes.plot(
                        *zip(*points, strict=True), color=f"C{number % 10}", marker=marker, ms=3, label=name
                    )
        by_epoch(left, "training loss")
        by_epoch(right, "top-1 test error, %")
        if len(runs) > 1:
            legend_above(picture, left, columns=1)
