"""The plots of the experiments, in one style; as SVG, the same numbers give the same file.

All plots are as wide as each other. Shown on a phone, 400 pixels wide, their text is 10 pixels high.
"""

import contextlib
import itertools
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
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

WIDTH = 5.0  # inches
FARTHEST = 25.0  # points of %: larger differences do not set the scale
PARENT_COLOUR, ROW_COLOUR, PAPER_COLOUR = "0.6", "C0", "C1"
OURS: dict[str, Any] = {"fmt": "o", "color": ROW_COLOUR, "markersize": 4.5, "capsize": 2}
PAPERS: dict[str, Any] = {"marker": "D", "s": 20, "color": PAPER_COLOUR, "zorder": 3}
ACROSS = 3  # small panels in a row
EPOCH_STEPS = (1, 2, 5, 10)  # between the marks of an axis


@contextlib.contextmanager
def canvas(path: pathlib.Path, size: tuple[float, float]) -> Iterator[Any]:
    """An empty figure of `size` inches, saved to `path` at the end, in the format of its suffix."""
    picture = plt.figure(figsize=size, layout="constrained")
    yield picture
    kind = path.suffix.lstrip(".")
    with replacing(path) as temporary:
        # Neither the date nor matplotlib's version, so that the same numbers give the same file.
        metadata = {"Date": None, "Creator": None} if kind == "svg" else None
        picture.savefig(temporary, format=kind, metadata=metadata, dpi=120)
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


def forest(path: pathlib.Path, claims: Sequence[Any]) -> None:
    """A row for each claim: ours with the wider of its 95 % intervals, the paper's, and the verdict in words.

    Args:
      claims: `sweep_statistics.Claim`s, those of a group together.
    """
    rows: list[Any] = []  # a claim, or the title of a group
    for title, group in itertools.groupby(claims, key=lambda claim: claim.group):
        rows += ([title] if title else []) + list(group)
    near = [abs(claim.difference.mean) for claim in claims if abs(claim.difference.mean) <= FARTHEST]
    reach = 1.3 * max([*near, *(abs(claim.paper or 0.0) for claim in claims), 1.0])
    with figure(path, height=0.95 + 0.3 * len(rows)) as (picture, axes):
        axes.axvline(0, color="0.8", zorder=0)
        for place, row in enumerate(rows):
            if isinstance(row, str):
                _beside(axes, place, row, 0.0, weight="bold", ha="left")
            else:
                _forest_row(axes, place, row, reach)
        names = ["" if isinstance(row, str) else textwrap.fill(row.label, 22) for row in rows]
        axes.set_yticks(range(len(rows)), names, linespacing=0.9)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel("difference in error, points of %\n← better     worse →")
        has_intervals = any(claim.difference.half is not None for claim in claims)
        axes.errorbar([], [], xerr=[], **OURS, label="here, 95 % interval" if has_intervals else "here")
        if any(claim.paper is not None for claim in claims):
            axes.scatter([], [], **PAPERS, label="paper")
        legend_above(picture, axes)


def _forest_row(axes: Axes, place: int, claim: Any, reach: float) -> None:
    """One claim's marks and words; what lies outside the axes is an arrow."""
    value, half = claim.difference.mean, claim.difference.half or 0.0
    decided = claim.verdict != "not decided"
    if abs(value) <= reach:
        axes.errorbar([value], [place], xerr=[half], **OURS, mfc=ROW_COLOUR if decided else "white")
    for side, marker in ((-1, "<"), (1, ">")):
        if side * value + half > reach:
            axes.plot([side * reach], [place], marker, color=ROW_COLOUR, markersize=5, clip_on=False)
    if claim.paper is not None:
        axes.scatter([claim.paper], [place], **PAPERS)
    width = "" if claim.difference.half is None else f" ± {half:.1f}"
    words = f"{claim.verdict}\n{round(value, 1) + 0.0:+.1f}{width}"  # + 0.0: no -0.0
    _beside(axes, place, words, 1.04, color="black" if decided else "0.45", ha="left", linespacing=0.95)


def _beside(axes: Axes, place: int, words: str, x: float, **style: Any) -> None:
    """Text at a row; `x` is 0 at the left end of the axes and 1 at the right."""
    axes.text(x, place, words, transform=axes.get_yaxis_transform(), va="center", **style)


def has_curves(results: dict[str, Any]) -> bool:
    """Whether a run was tested more than once, so that there is a line to draw."""
    return any(len(run["curve"]) > 1 for row in results["rows"] for run in row["runs"])


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
