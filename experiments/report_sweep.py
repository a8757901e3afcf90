"""What a report says of a sweep: the table, differences, curves, what the rows change."""

import pathlib
from typing import Any

from experiments import plots, sweep_statistics, sweep_table
from experiments.report_html import paragraph, picture, section, table


def of_sweep(results: dict[str, Any], temporary: pathlib.Path) -> list[str]:
    """Sections with the table of a sweep, its differences, curves and rows."""
    made = sweep_statistics.lines(results)
    rows = []
    for line in made:
        first = line.differences[0]
        published = sweep_table.paper_cell(line, 0)
        verdict = first.verdict if first else ""
        difference = sweep_table.difference_cell(first)
        errors = [sweep_table.mean_cell(line, index) for index in (0, 1)]
        rows.append(
            [line.row, errors[0], difference, published, verdict, errors[1], f"{line.runs} of {line.planned}"]
        )
    header = ["row", "top-1 error, %", "difference", "paper", "top-1 is", "top-5 error, %", "runs"]
    legend = paragraph(f"{sweep_table.EXPLANATION} {sweep_table.VERDICTS}")
    parts = [section("Table", table(header, rows), legend)]
    if claims := sweep_statistics.claims(results):
        plots.forest(temporary / "differences.svg", claims)
        caption = "Differences in top-1 error with the wider of the two 95 % intervals."
        parts.append(section("Differences to the parent", picture(temporary / "differences.svg", caption)))
    if plots.has_curves(results):
        plots.small_curves(temporary / "small.svg", results)
        caption = "Test error by epoch: each row's runs, and the parent's mean in grey."
        parts.append(section("Learning curves", picture(temporary / "small.svg", caption)))
    changes = [
        [line.row, ", ".join(f"{key}={sweep_table.as_value(value)}" for key, value in line.changes.items())]
        for line in made
    ]
    parts.append(section("What the rows change", table(["row", "changes"], changes)))
    return parts
