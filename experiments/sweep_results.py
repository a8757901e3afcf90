"""What the runs of a sweep say together: means, spreads, differences to the parent and how sure they are.

A difference is taken seed by seed: a row and the parent with the same seed see the same images in the same
order (and, where the net has the same shapes, begin with the same weights). Its 95 % interval is Student's,
once by the row's own seeds, of which there are few, and once by a spread that all rows share: what is left of
the errors when each row's and each seed's mean is taken away. A row whose own spread is of another size, as
of a net that stays at chance with some seeds or with all, has no part in it. A verdict needs both intervals.
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from alexnet_jax.common.files import replacing
from alexnet_jax.data import sources
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.tools import predictions
from alexnet_jax.weights import pretrained
from experiments import plots
from experiments.sweep import PARENT, Run, Sweep

LEVEL = 0.95
APART = (
    5.0  # a row's standard deviation, in medians of all rows, beyond which (or below 1 / that) it is alone
)
ERRORS = ("top1_error", "top5_error")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row minus the parent, in points of %: the mean over seeds, and the half widths of its intervals.

    `own` is None with fewer than two seeds, `pooled` where the row has no part in the shared spread.
    """

    mean: float
    own: float | None
    pooled: float | None

    @property
    def half(self) -> float | None:
        """Of the wider of the intervals."""
        return max((half for half in (self.own, self.pooled) if half is not None), default=None)

    @property
    def verdict(self) -> str:
        if self.half is None or abs(self.mean) <= self.half:
            return "not decided"
        return "worse" if self.mean > 0 else "better"


def gather(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    """All that the workdirs say, as JSON values; runs that did not end have no errors."""
    rows = []
    for row, changes in sweep.rows.items():
        its = [_run(run) for run in runs if run.row == row]
        against = None if row == PARENT else sweep.against.get(row, PARENT)
        told = {"row": row, "changes": _json(changes), "against": against, "paper": sweep.paper.get(row)}
        rows.append({**told, "runs": its})
    done = [run for run in runs if run.status()["status"] == "done"]
    return {
        "title": sweep.title,
        "sweep": sweep.path.name,
        "config": sweep.config,
        "parent": _json(sweep.parent),
        "seeds": list(sweep.seeds),
        "rows": rows,
        "ensembles": [_ensemble(name, members, runs) for name, members in sweep.ensembles.items()],
        "about": checkpoint.about(done[0].workdir) if done else {},
    }


def _run(run: Run) -> dict[str, Any]:
    status = run.status()
    evaluation = status.get("eval") if status["status"] == "done" else None
    curve = []
    if (run.workdir / logs.METRICS).exists():
        lines = logs.read_metrics(run.workdir)
        curve = [[line["epoch"], line["eval/top1_error"]] for line in lines if "eval/top1_error" in line]
    return {
        "seed": run.seed,
        "workdir": run.workdir.name,
        "status": status["status"],
        "message": status.get("message"),
        "eval": evaluation,
        "curve": curve,
    }


def _ensemble(name: str, members: dict[str, Sequence[int]], runs: Sequence[Run]) -> dict[str, Any]:
    """Errors of the averaged predictions, centre and ten views, and the means of the members' own."""
    its = [run for run in runs if run.seed in members.get(run.row, ())]
    told: dict[str, Any] = {"ensemble": name, "members": [[run.row, run.seed] for run in its], "views": {}}
    if any(run.status()["status"] != "done" for run in its):
        return told
    for views in (1, 10):
        said = [_predictions(run, views) for run in its]
        alone = [dataclasses.asdict(errors) for one in said if (errors := predictions.errors(one))]
        together = predictions.errors(predictions.average(said))
        assert together is not None  # a run is tested on images with labels
        told["views"][str(views)] = {
            "together": dataclasses.asdict(together),
            "alone": {key: float(np.mean([errors[key] for errors in alone])) for key in ERRORS},
        }
    return told


def _predictions(run: Run, views: int) -> predictions.Predictions:
    """A run's predictions of its test images, kept in its workdir."""
    path = run.workdir / f"predictions-{views}.npz"
    if not path.exists():
        source = sources.open_configured(run.config.data, "test")
        predictions.save(path, predictions.predict(pretrained.read(run.workdir), source, views=views))
    return predictions.load(path)


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


# --- Statistics -------------------------------------------------------------------------------------------


def errors_by_seed(row: dict[str, Any], name: str) -> dict[int, float]:
    """The error of each run that is done, by its seed, in %."""
    return {run["seed"]: run["eval"][name] for run in row["runs"] if run["eval"]}


@dataclasses.dataclass(frozen=True)
class Spread:
    """A standard deviation that `rows` share, by so many degrees of `freedom`."""

    deviation: float
    freedom: int
    rows: tuple[str, ...]


def shared_spread(rows: Sequence[dict[str, Any]], name: str) -> Spread | None:
    """What the rows share that have an error for each seed; None with fewer than two of them or two seeds."""
    tables = {row["row"]: errors_by_seed(row, name) for row in rows}
    seeds = sorted(set().union(*tables.values()))
    tables = {row: table for row, table in tables.items() if len(table) == len(seeds)}
    if len(seeds) < 2 or not tables:
        return None
    deviations = {row: np.std([table[seed] for seed in seeds], ddof=1) for row, table in tables.items()}
    usual = np.median(list(deviations.values()))
    tame = [row for row, its in deviations.items() if usual / APART <= its <= usual * APART]
    if len(tame) < 2:
        return None
    whole = np.array([[tables[row][seed] for seed in seeds] for row in tame])
    left = whole - whole.mean(axis=0) - whole.mean(axis=1, keepdims=True) + whole.mean()
    freedom = (whole.shape[0] - 1) * (whole.shape[1] - 1)
    return Spread(float(np.sqrt(np.sum(left**2) / freedom)), freedom, tuple(tame))


def difference(
    row: dict[int, float],
    parent: dict[int, float],
    spread: Spread | None,
) -> Difference | None:
    """Of a row's errors by seed to the parent's, over the seeds that both have; None where there is none.

    Args:
      spread: which both share, or None.
    """
    shared = sorted(set(row) & set(parent))
    if not shared:
        return None
    differences = np.array([row[seed] - parent[seed] for seed in shared])
    count = len(shared)
    own = pooled = None
    if count > 1:
        quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1)
        own = float(quantile * differences.std(ddof=1) / np.sqrt(count))
    if spread is not None:
        quantile = stats.t.ppf((1 + LEVEL) / 2, spread.freedom)
        pooled = float(quantile * spread.deviation * np.sqrt(2 / count))
    return Difference(float(differences.mean()), own, pooled)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table; pairs are of top-1 and top-5, deviations None with one run."""

    row: str
    changes: dict[str, Any]
    runs: int
    planned: int
    means: tuple[float, float] | None
    deviations: tuple[float | None, float | None]
    differences: tuple[Difference | None, Difference | None]
    paper: tuple[float, float] | None
    notes: str


def lines(results: dict[str, Any]) -> list[Line]:
    """The lines of the table, the parent first."""
    rows = results["rows"]
    spreads = [shared_spread(rows, name) for name in ERRORS]
    by_name = {row["row"]: row for row in rows}
    made = []
    for row in rows:
        tables, other = [errors_by_seed(row, name) for name in ERRORS], by_name.get(row["against"])
        count = len(tables[0])
        ends = [run["status"] for run in row["runs"] if not run["eval"]]
        notes = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
        first, second = (
            None
            if other is None
            else difference(table, errors_by_seed(other, name), _shared_by(row, other, spread))
            for table, name, spread in zip(tables, ERRORS, spreads, strict=True)
        )
        values = [list(table.values()) for table in tables]
        deviations = [float(np.std(v, ddof=1)) if count > 1 else None for v in values]
        means = (float(np.mean(values[0])), float(np.mean(values[1]))) if count else None
        made.append(
            Line(
                row["row"],
                row["changes"],
                count,
                len(row["runs"]),
                means,
                (deviations[0], deviations[1]),
                (first, second),
                row["paper"],
                notes,
            )
        )
    return made


def _shared_by(row: dict[str, Any], other: dict[str, Any], spread: Spread | None) -> Spread | None:
    """The spread, if both rows share it."""
    return spread if spread is not None and {row["row"], other["row"]} <= set(spread.rows) else None


# --- Markdown, CSV, plots ---------------------------------------------------------------------------------


def write(results: dict[str, Any], out: pathlib.Path) -> str:
    """Writes the table as Markdown and CSV, `results.json` and the plots; gives the table."""
    out.mkdir(parents=True, exist_ok=True)
    made = lines(results)
    text = markdown(results, made)
    for name, content in (
        ("table.md", text),
        ("table.csv", as_csv(made)),
        ("results.json", json.dumps(results, indent=1) + "\n"),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(content)
    if any(line.differences[0] for line in made):
        plots.differences(out / "differences.svg", made)
    if any(run["curve"] for row in results["rows"] for run in row["runs"]):
        plots.small_curves(out / "curves.svg", results)
    return text


def markdown(results: dict[str, Any], made: Sequence[Line]) -> str:
    """The table for people, with what must be known to read it."""
    spread = shared_spread(results["rows"], "top1_error")
    evaluation = next((r["eval"] for row in results["rows"] for r in row["runs"] if r["eval"]), None)
    said = [results["title"], ""]
    if evaluation:
        views = "central patch" if evaluation["views"] == 1 else f"{evaluation['views']} views"
        about = results["about"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        said += [
            f"Errors in % on {evaluation['examples']:,} images, {views}; {about['device']}; {versions}.",
            "",
        ]
    said += [
        "Mean and standard deviation over the runs; differences to the parent in points of %, paired by "
        "seed, with the half width of their 95 % interval by the spread that all rows share and, in "
        "brackets, by the row's own runs.",
        "",
    ]
    if spread:
        apart = [
            line.row for line in made if line.runs == len(results["seeds"]) and line.row not in spread.rows
        ]
        said += [
            f"The shared spread is {spread.deviation:.2f} points ({spread.freedom} degrees of freedom)"
            + (f", without {', '.join(apart)}, whose own are of another size" if apart else "")
            + ". A verdict needs both intervals, and is for one comparison: of twenty rows without any "
            "effect, up to one would be called worse or better.",
            "",
        ]
    said += [
        "| row | runs | top-1 error | difference | paper | top-5 error | difference | paper | top-1 is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in made:
        first, second = line.differences
        cells = [
            line.row,
            f"{line.runs}" + (f" ({line.notes})" if line.notes else ""),
            mean_cell(line, 0),
            difference_cell(first),
            f"{line.paper[0]:+.1f}" if line.paper else "",
            mean_cell(line, 1),
            difference_cell(second),
            f"{line.paper[1]:+.1f}" if line.paper else "",
            first.verdict if first else "",
        ]
        said.append(f"| {' | '.join(cells)} |")
    if results["ensembles"]:
        said += ["", *ensembles(results["ensembles"])]
    said += [
        "",
        f"The parent is {results['config']} with {_changes(results['parent'])}."
        + (" The rows change in it:" if len(made) > 1 else ""),
        "",
    ]
    for row, line in zip(results["rows"], made, strict=True):
        if line.row != PARENT:
            against = "" if row["against"] == PARENT else f" (compared with {row['against']})"
            said.append(f"- {line.row}: {_changes(line.changes)}{against}")
    return "\n".join(said) + "\n"


def ensembles(its: Sequence[dict[str, Any]]) -> list[str]:
    """Averaged predictions against their members' own errors: the lines of a table."""
    made = [
        "| ensemble | views | members alone, mean top-1 error | together | gain | top-5: alone | together |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in its:
        for views, told in one["views"].items():
            alone, together = told["alone"], told["together"]
            gain = alone["top1_error"] - together["top1_error"]
            cells = [
                one["ensemble"],
                views,
                *(f"{v:.2f}" for v in (alone["top1_error"], together["top1_error"])),
            ]
            cells += [f"{gain:.2f}", f"{alone['top5_error']:.2f}", f"{together['top5_error']:.2f}"]
            made.append(f"| {' | '.join(cells)} |")
        if not one["views"]:
            made.append(f"| {one['ensemble']} | | a member is not done | | | | |")
    return made


def mean_cell(line: Line, index: int) -> str:
    if line.means is None:
        return ""
    deviation = line.deviations[index]
    return f"{line.means[index]:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def difference_cell(value: Difference | None) -> str:
    if value is None:
        return ""
    pooled = f" ± {value.pooled:.2f}" if value.pooled is not None else ""
    own = f" (± {value.own:.2f})" if value.own is not None else ""
    return f"{value.mean:+.2f}{pooled}{own}"


def _changes(changes: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={_value(value)}`" for key, value in changes.items()) or "nothing changed"


def _value(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else str(value)


def as_csv(made: Sequence[Line]) -> str:
    """A line a row; differences in points of %."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    header = ["row", "changes", "runs", "planned"]
    for name in ERRORS:
        header += [
            name,
            f"{name}_sd",
            f"{name}_difference",
            f"{name}_pooled95",
            f"{name}_own95",
            f"{name}_paper",
        ]
    table.writerow([*header, "verdict"])
    for line in made:
        cells: list[Any] = [line.row, json.dumps(line.changes), line.runs, line.planned]
        for index in range(2):
            value = line.differences[index]
            cells += [line.means[index] if line.means else "", line.deviations[index]]
            cells += [value.mean, value.pooled, value.own] if value else ["", "", ""]
            cells.append(line.paper[index] if line.paper else "")
        first = line.differences[0]
        table.writerow([*cells, first.verdict if first else ""])
    return text.getvalue()
