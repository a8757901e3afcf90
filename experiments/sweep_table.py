"""A sweep's results as Markdown, CSV and plots.

The records' `results.json` name config keys as they were when the record was made (`model.talk` is today's
`model.cross_column_layers`). Here changes are only labels, so old names are shown as they are.
"""

import csv
import io
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import files
from experiments import plots, sweep_statistics
from experiments.sweep_plan import PARENT
from experiments.sweep_statistics import ERRORS, TRAINING_ERROR, Difference, Line

EXPLANATION = (
    "Mean and standard deviation over the runs; differences to the parent in points of %, paired by "
    "seed, with the half width of their 95 % interval by the spread that all rows share and, in "
    "brackets, by the row's own runs."
)
VERDICTS = (
    "A verdict needs both intervals, and is for one comparison: of twenty rows without any "
    "effect, up to one would be called worse or better."
)


def write(results: dict[str, Any], out: pathlib.Path) -> str:
    """Writes the table as Markdown and CSV, `results.json` and the plots; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    lines = sweep_statistics.lines(results)
    text = markdown(results, lines)
    files.write_text(out / "table.md", text)
    files.write_text(out / "table.csv", as_csv(lines))
    files.write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    if claims := sweep_statistics.claims(results):
        plots.forest(out / "differences.svg", claims)
    if plots.has_curves(results):
        plots.small_curves(out / "curves.svg", results)
    return text


def markdown(results: dict[str, Any], lines: Sequence[Line]) -> str:
    """The table for people, with what is needed to read it."""
    parts = [results["title"], "", *_setting(results), EXPLANATION, "", *_spread(results, lines)]
    parts += [
        "| row | runs | top-1 error | difference | paper | top-5 error | difference | paper | top-1 is |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_row, lines),
    ]
    if training := _training(results):
        parts += ["", *training]
    if results["ensembles"]:
        parts += ["", *ensembles(results["ensembles"])]
    parts += [
        "",
        f"The parent is {results['config']} with {_changes(results['parent'])}."
        + (" The rows change in it:" if len(lines) > 1 else ""),
        "",
    ]
    for row, line in zip(results["rows"], lines, strict=True):
        if line.row != PARENT:
            against = "" if row["against"] == PARENT else f" (compared with {row['against']})"
            parts.append(f"- {line.row}: {_changes(line.changes)}{against}")
    return "\n".join([*parts, *_machines(results)]) + "\n"


def _runs_by_machine(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs that are done, by processor, devices and versions; older records lack these."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in (run for row in results["rows"] for run in row["runs"]):
        if run["eval"] and run.get("machine"):
            found.setdefault(run["machine"], []).append(run)
    return found


def _machines(results: dict[str, Any]) -> list[str]:
    """Where the runs were made, if on more than one machine."""
    machines = _runs_by_machine(results)
    if len(machines) < 2:
        return []
    hours = {machine: sum(run["seconds"] for run in runs) / 3600 for machine, runs in machines.items()}
    lines = [
        f"- {len(runs)} runs, {hours[machine]:.1f} hours: {machine}" for machine, runs in machines.items()
    ]
    return ["", "The runs were made on more than one machine:", "", *lines]


def _setting(results: dict[str, Any]) -> list[str]:
    """The test set, and device and versions if they are the same for all runs; nothing if no run is done."""
    evaluation = next((r["eval"] for row in results["rows"] for r in row["runs"] if r["eval"]), None)
    if evaluation is None:
        return []
    views = "central patch" if evaluation["views"] == 1 else f"{evaluation['views']} views"
    machines = list(_runs_by_machine(results))
    if about := results.get("about"):
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        machines = [f"{about['device']}; {versions}"]
    machine = f"; {machines[0]}" if len(machines) == 1 else ""
    return [f"Errors in % on {evaluation['examples']:,} images, {views}{machine}.", ""]


def _spread(results: dict[str, Any], lines: Sequence[Line]) -> list[str]:
    """The shared spread of the top-1 errors, if there is one, and the rows that do not enter it."""
    spread = sweep_statistics.shared_spread(results["rows"], "top1_error")
    if spread is None:
        return []
    outliers = [
        line.row for line in lines if line.runs == len(results["seeds"]) and line.row not in spread.rows
    ]
    without = f", without {', '.join(outliers)}, whose own are of another size" if outliers else ""
    return [
        f"The shared spread is {spread.deviation:.2f} points ({spread.freedom} "
        f"degree{'' if spread.freedom == 1 else 's'} of freedom){without}. " + VERDICTS,
        "",
        *_power(spread.deviation, len(results["seeds"]), _runs_by_machine(results)),
    ]


def _power(spread: float, seeds: int, machines: Collection[str]) -> list[str]:
    """What the sweep could have seen; older records, which lack machines, do without."""
    if not machines or not spread:
        return []
    paired = spread * np.sqrt(2)
    seen, needed = sweep_statistics.smallest_seen(paired, seeds), sweep_statistics.seeds_to_see(1.0, paired)
    return [
        f"By that spread {seeds} seeds would have seen, with 80 % probability, a difference of "
        f"{seen:.2f} points or more; {needed} seeds would see 1 point.",
        "",
    ]


def _training(results: dict[str, Any]) -> list[str]:
    """Steps and training error of each row, for what the paper says of dropout and of weight decay.

    With the plateau rule a run ends when nothing improves any more. Older records lack both values.
    """
    lines, differences = [], sweep_statistics.training_differences(results)
    for row in results["rows"]:
        steps, errors = (sweep_statistics.errors_by_seed(row, key) for key in ("steps", TRAINING_ERROR))
        if errors:
            means = f"{np.mean(list(steps.values())):,.0f} | {np.mean(list(errors.values())):.2f}"
            lines.append(f"| {row['row']} | {means} | {difference_cell(differences.get(row['row']))} |")
    header = ["| row | steps to the end | last top-1 error in training | difference |", "|---|---|---|---|"]
    return [*header, *lines] if lines else []


def _row(line: Line) -> str:
    top1, top5 = line.differences
    cells = [
        line.row,
        f"{line.runs}" + (f" ({line.notes})" if line.notes else ""),
        mean_cell(line, 0),
        difference_cell(top1),
        paper_cell(line, 0),
        mean_cell(line, 1),
        difference_cell(top5),
        paper_cell(line, 1),
        top1.verdict if top1 else "",
    ]
    return f"| {' | '.join(cells)} |"


def ensembles(results: Sequence[dict[str, Any]]) -> list[str]:
    """The errors of averaged predictions beside those of their members, as the lines of a table."""
    lines = [
        "| ensemble | views | members alone, mean top-1 error | together | gain | top-5: alone | together |",
        "|---|---|---|---|---|---|---|",
    ]
    for ensemble in results:
        for views, errors in ensemble["views"].items():
            alone, together = errors["alone"], errors["together"]
            numbers = (
                alone["top1_error"],
                together["top1_error"],
                alone["top1_error"] - together["top1_error"],
                alone["top5_error"],
                together["top5_error"],
            )
            cells = [ensemble["ensemble"], views, *(f"{number:.2f}" for number in numbers)]
            lines.append(f"| {' | '.join(cells)} |")
        if not ensemble["views"]:
            lines.append(f"| {ensemble['ensemble']} | | a member is not done here | | | | |")
    return lines


def mean_cell(line: Line, index: int) -> str:
    if line.means is None:
        return ""
    deviation = line.deviations[index]
    return f"{line.means[index]:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def paper_cell(line: Line, index: int) -> str:
    value = line.paper[index]
    return "" if value is None else f"{value:+.1f}"


def difference_cell(value: Difference | None) -> str:
    if value is None:
        return ""
    pooled = f" ± {value.pooled:.2f}" if value.pooled is not None else ""
    own = f" (± {value.own:.2f})" if value.own is not None else ""
    return f"{value.mean:+.2f}{pooled}{own}"


def _changes(changes: dict[str, Any]) -> str:
    return ", ".join(f"`{key}={as_value(value)}`" for key, value in changes.items()) or "nothing changed"


def as_value(value: Any) -> str:
    """A config value that was read from JSON, as a config file has it: JSON turns tuples into lists."""
    return repr(tuple(value)) if isinstance(value, list) else str(value)


def as_csv(lines: Sequence[Line]) -> str:
    """One line for each row; differences in points of %."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    suffixes = ("", "_sd", "_difference", "_pooled95", "_own95", "_paper")
    columns = [f"{name}{suffix}" for name in ERRORS for suffix in suffixes]
    table.writerow(["row", "changes", "runs", "planned", *columns, "verdict"])
    for line in lines:
        cells: list[Any] = [line.row, json.dumps(line.changes), line.runs, line.planned]
        for index in range(2):
            value = line.differences[index]
            cells += [line.means[index] if line.means else "", line.deviations[index]]
            cells += [value.mean, value.pooled, value.own] if value else ["", "", ""]
            cells.append(line.paper[index])
        top1 = line.differences[0]
        table.writerow([*cells, top1.verdict if top1 else ""])
    return text.getvalue()
