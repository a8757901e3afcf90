"""The statistics of a sweep: means, spreads, and differences to the parent with 95 % intervals.

Differences are paired by seed: a row and the parent with the same seed see the same images in the same order
(and start from the same weights if the shapes are the same). Student's 95 % interval is computed twice: from
the row's own few seeds, and from a spread shared by all rows, the residual after subtracting the means of
each row and each seed. Rows whose own spread is of another size, such as a net that stays at chance with some
or all seeds, do not enter the shared spread. A verdict needs both intervals.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.95, 0.8
# Rows whose standard deviation is more than this many times the rows' median, or less than the median divided
# by it, do not enter the shared spread.
OUTLIER_RATIO = 5.0
ERRORS = ("top1_error", "top5_error")
TRAINING_ERROR = "train_top1_error"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row minus the parent in points of %: the mean over seeds and the half widths of the intervals.

    `own` is None with fewer than two seeds, `pooled` if the row does not enter the shared spread.
    """

    mean: float
    own: float | None
    pooled: float | None

    @property
    def half(self) -> float | None:
        """The half width of the wider interval."""
        return max((half for half in (self.own, self.pooled) if half is not None), default=None)

    @property
    def verdict(self) -> str:
        if self.half is None or abs(self.mean) <= self.half:
            return "not decided"
        return "worse" if self.mean > 0 else "better"


@dataclasses.dataclass(frozen=True)
class Spread:
    """The standard deviation shared by `rows`, with its degrees of freedom."""

    deviation: float
    freedom: int
    rows: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table; pairs are top-1 and top-5, deviations None with one run."""

    row: str
    changes: dict[str, Any]
    runs: int
    planned: int
    means: tuple[float, float] | None
    deviations: tuple[float | None, float | None]
    differences: tuple[Difference | None, Difference | None]
    paper: tuple[float | None, float | None]
    notes: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """One line of the plot: the paper's difference, if it has one, and ours, in points of %."""

    label: str
    group: str | None
    paper: float | None
    difference: Difference

    @property
    def verdict(self) -> str:
        """What a comparison with the paper comes to; without its figure, what is worse or better."""
        found = self.difference.verdict
        if found == "not decided" or not self.paper:
            return found
        return "holds" if (found == "worse") == (self.paper > 0) else "reversed"


def errors_by_seed(row: dict[str, Any], name: str) -> dict[int, float]:
    """The error in % of each run that is done, by seed."""
    errors = {run["seed"]: {**run, **run["eval"]}.get(name) for run in row["runs"] if run["eval"]}
    return {seed: error for seed, error in errors.items() if error is not None}


def shared_spread(rows: Sequence[dict[str, Any]], name: str) -> Spread | None:
    """The spread shared by the rows with an error for each seed; None for fewer than two rows or seeds."""
    tables = {row["row"]: errors_by_seed(row, name) for row in rows}
    seeds = sorted(set().union(*tables.values()))
    tables = {row: table for row, table in tables.items() if len(table) == len(seeds)}
    if len(seeds) < 2 or not tables:
        return None
    deviations = {row: np.std([table[seed] for seed in seeds], ddof=1) for row, table in tables.items()}
    median = np.median(list(deviations.values()))
    usual = [
        row
        for row, deviation in deviations.items()
        if median / OUTLIER_RATIO <= deviation <= median * OUTLIER_RATIO
    ]
    if len(usual) < 2:
        return None
    errors = np.array([[tables[row][seed] for seed in seeds] for row in usual])
    residuals = errors - errors.mean(axis=0) - errors.mean(axis=1, keepdims=True) + errors.mean()
    freedom = (errors.shape[0] - 1) * (errors.shape[1] - 1)
    return Spread(float(np.sqrt(np.sum(residuals**2) / freedom)), freedom, tuple(usual))


def difference(
    row: dict[int, float],
    parent: dict[int, float],
    spread: Spread | None,
) -> Difference | None:
    """A row's errors minus the parent's, over the seeds that both have; None if there are none.

    Args:
      spread: the spread that both share, or None.
    """
    shared = sorted(set(row) & set(parent))
    if not shared:
        return None
    differences = np.array([row[seed] - parent[seed] for seed in shared])
    count = len(shared)
    own = pooled = None
    if count > 1:
        own = float(_quantile(count - 1) * differences.std(ddof=1) / np.sqrt(count))
    if spread is not None:
        pooled = float(_quantile(spread.freedom) * spread.deviation * np.sqrt(2 / count))
    return Difference(float(differences.mean()), own, pooled)


def _quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def power(difference: float, deviation: float, count: int) -> float:
    """The probability that Student's paired test (95 %, two-sided) of `count` seeds sees a true difference.

    Args:
      deviation: the standard deviation of the paired differences.
    """
    shift = min(difference / deviation * np.sqrt(count), 30.0)  # beyond, SciPy fails; the power is above 0.98
    return float(stats.nct.sf(_quantile(count - 1), count - 1, shift))


def seeds_to_see(difference: float, deviation: float) -> int:
    """How many seeds see a true difference with 80 % probability."""
    return next(count for count in itertools.count(2) if power(difference, deviation, count) >= POWER)


def smallest_seen(deviation: float, count: int) -> float:
    """The true difference that `count` seeds, two or more, see with 80 % probability."""
    found: Any = optimize.brentq(lambda difference: power(difference, 1.0, count) - POWER, 0.0, 30.0)
    return deviation * found


def lines(results: dict[str, Any]) -> list[Line]:
    """The lines of the table, the parent first."""
    spreads = [shared_spread(results["rows"], name) for name in ERRORS]
    by_name = {row["row"]: row for row in results["rows"]}
    return [_line(row, by_name.get(row["against"]), spreads) for row in results["rows"]]


def _line(row: dict[str, Any], other: dict[str, Any] | None, spreads: Sequence[Spread | None]) -> Line:
    """A line, with the differences to `other`."""
    tables = [errors_by_seed(row, name) for name in ERRORS]
    count = len(tables[0])
    unfinished = [run["status"] for run in row["runs"] if not run["eval"]]
    first, second = (
        _difference(row, other, name, spread) for name, spread in zip(ERRORS, spreads, strict=True)
    )
    top1, top5 = (list(table.values()) for table in tables)
    return Line(
        row=row["row"],
        changes=row["changes"],
        runs=count,
        planned=len(row["runs"]),
        means=(float(np.mean(top1)), float(np.mean(top5))) if count else None,
        deviations=(deviation(top1), deviation(top5)),
        differences=(first, second),
        paper=row["paper"] or (None, None),
        notes=", ".join(f"{unfinished.count(status)} {status}" for status in sorted(set(unfinished))),
    )


def training_differences(results: dict[str, Any]) -> dict[str, Difference]:
    """Differences in the last error in training, by row."""
    spread = shared_spread(results["rows"], TRAINING_ERROR)
    by_name = {row["row"]: row for row in results["rows"]}
    found = {
        name: _difference(row, by_name.get(row["against"]), TRAINING_ERROR, spread)
        for name, row in by_name.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def claims(results: dict[str, Any]) -> list[Claim]:
    """The lines of the plot, group by group: differences in top-1 error and, where asked, in training."""
    training, found = training_differences(results), []
    for row, line in zip(results["rows"], lines(results), strict=True):
        group = row.get("group")
        if line.differences[0] is not None:
            found.append(Claim(row["row"], group, line.paper[0], line.differences[0]))
        if row.get("training_error") and row["row"] in training:
            found.append(Claim(f"{row['row']}, in training", group, None, training[row["row"]]))
    order = [*results.get("groups", ()), *(claim.group for claim in found)]
    return sorted(found, key=lambda claim: order.index(claim.group))


def _difference(
    row: dict[str, Any], other: dict[str, Any] | None, name: str, spread: Spread | None
) -> Difference | None:
    if other is None:
        return None
    shared = _shared_by(row, other, spread)
    return difference(errors_by_seed(row, name), errors_by_seed(other, name), shared)


def deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def one_more(values: Sequence[float]) -> float | None:
    """The half width of the interval that has one more value with 95 % probability, around the mean."""
    spread, count = deviation(values), len(values)
    return None if spread is None else float(_quantile(count - 1) * spread * np.sqrt(1 + 1 / count))


def _shared_by(row: dict[str, Any], other: dict[str, Any], spread: Spread | None) -> Spread | None:
    """The spread, if both rows enter it."""
    return spread if spread is not None and {row["row"], other["row"]} <= set(spread.rows) else None
