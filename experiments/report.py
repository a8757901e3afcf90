"""One HTML file about runs or sweeps, which opens from disk and on a phone.

    python -m experiments.report runs/a runs/b --out=report.html
    python -m experiments.report runs/ablations --out=report.html --figure4=embedded

Each WHAT is a run's workdir or a directory with the tables of `python -m experiments.sweep`. The pictures are
inside the file; it fetches nothing.
"""

import base64
import dataclasses
import html
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.run import workdir as workdirs
from alexnet_jax.weights import pretrained
from experiments import figure4, plots, sweep_statistics, sweep_table

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 3rem; max-width: 64rem; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: white; }
figure { margin: 1rem 0; } figcaption { font-size: 0.85rem; opacity: 0.8; }
code { overflow-wrap: anywhere; }
.worse { color: #c33; } .better { color: #292; }
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report needs of a run; `config` is flat, by dotted key."""

    name: str
    workdir: pathlib.Path
    config: dict[str, Any]
    status: dict[str, Any]
    metrics: list[dict[str, Any]]


def read_run(workdir: pathlib.Path) -> Run:
    """A run's config by dotted key, status and metrics.

    Raises:
      UserError: the directory has no run, or the run has not begun.
    """
    config = json.loads(configs.of_workdir(workdir).to_json())
    flat = {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
    try:
        status = workdirs.read_status(workdir)
        metrics = logs.read_metrics(workdir)
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir}: a run without status and metrics ({error})") from error
    return Run(workdir.name, workdir, flat, status, metrics)


# --- Parts ------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls sideways if it is wider than the screen."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return (
            f'<td class="number">{value:.2f}</td>'
            if isinstance(value, float)
            else f'<td class="number">{value:,}</td>'
        )
    mark = f' class="{value}"' if value in ("worse", "better") else ""
    return f"<td{mark}>{html.escape(str(value))}</td>"


def picture(path: pathlib.Path, caption: str) -> str:
    """A picture embedded in the page."""
    kind = {"svg": "svg+xml", "jpg": "jpeg"}.get(path.suffix[1:], path.suffix[1:])
    data = base64.b64encode(path.read_bytes()).decode()
    words = html.escape(caption)
    return (
        f'<figure><img src="data:image/{kind};base64,{data}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def of_runs(runs: Sequence[Run], temporary: pathlib.Path, source: str | None) -> list[str]:
    """Sections with results, curves, filters, configs and, with a source, Figure 4 of each run."""
    results = []
    for run in runs:
        evaluation = run.status.get("eval") or {}
        device = checkpoint.metadata(run.workdir)["device"] if checkpoint.exist(run.workdir) else ""
        if evaluation and pretrained.read_description(run.workdir).model.num_classes <= 5:
            evaluation = {**evaluation, "top5_error": ""}  # always 0
        errors = [evaluation.get(key, "") for key in ("top1_error", "top5_error", "loss")]
        results.append(
            [
                run.name,
                run.status["status"],
                *errors,
                evaluation.get("views", ""),
                evaluation.get("examples", ""),
                device,
            ]
        )
    header = ["run", "status", "top-1 error, %", "top-5 error, %", "loss", "views", "images", "device"]
    parts = [section("Results", table(header, results))]
    plots.curves(temporary / "curves.svg", {run.name: run.metrics for run in runs})
    parts.append(
        section(
            "Learning curves", picture(temporary / "curves.svg", "Training loss and test error by epoch.")
        )
    )
    filters = []
    for number, run in enumerate(run for run in runs if checkpoint.exist(run.workdir)):
        loaded = pretrained.read(run.workdir)
        path = temporary / f"filters{number}.png"
        pixels = logs.filters_image(np.asarray(loaded.variables["params"]["conv1"]["kernel"]))
        path.write_bytes(files.as_png(pixels))
        columns = ", the first column's above the second's" if loaded.model.columns == 2 else ""
        filters.append(picture(path, f"{run.name}: conv1's filters{columns}."))
        if source is not None:
            path = temporary / f"figure4-{number}.png"
            figure4.main([f"--weights={run.workdir}", f"--source={source}", f"--out={path}"])
            caption = (
                f"{run.name}: test images, the net's predictions (orange: the correct class), and the "
                "nearest training images."
            )
            filters.append(picture(path, caption))
    if filters:
        parts.append(section("Filters and predictions", *filters))
    parts.append(section("Configs", *compared(runs)))
    return parts


def compared(runs: Sequence[Run]) -> list[str]:
    """A table of the keys in which the runs differ, and one of all others."""
    keys = list(runs[0].config)
    differ = [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]
    parts = []
    if len(runs) > 1:
        rows = [[key, *(sweep_table.as_value(run.config.get(key)) for run in runs)] for key in differ]
        parts.append(
            table(["key", *(run.name for run in runs)], rows) if differ else "<p>All keys are the same.</p>"
        )
    same = [[key, sweep_table.as_value(runs[0].config[key])] for key in keys if key not in differ]
    name = "All keys that are the same" if len(runs) > 1 else "All keys"
    parts.append(f"<details><summary>{name}</summary>{table(['key', 'value'], same)}</details>")
    return parts


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
    parts = [section("Table", table(header, rows))]
    if claims := sweep_statistics.claims(results):
        plots.forest(temporary / "differences.svg", claims)
        parts.append(
            section("Differences to the parent", picture(temporary / "differences.svg", "95 % intervals."))
        )
    if any(run["curve"] for row in results["rows"] for run in row["runs"]):
        plots.small_curves(temporary / "small.svg", results)
        caption = "Test error by epoch: each row's runs, and the parent's mean in grey."
        parts.append(section("Learning curves", picture(temporary / "small.svg", caption)))
    changes = [
        [line.row, ", ".join(f"{key}={sweep_table.as_value(value)}" for key, value in line.changes.items())]
        for line in made
    ]
    parts.append(section("What the rows change", table(["row", "changes"], changes)))
    return parts


def page(title: str, parts: Sequence[str]) -> str:
    """The HTML of the page."""
    words = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{words}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{words}</h1>{''.join(parts)}</body></html>\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.report", __doc__)
    parser.add_argument(
        "what",
        nargs="+",
        type=command_line.user_path,
        metavar="WHAT",
        help="workdirs of runs, output directories of sweeps",
    )
    parser.add_argument(
        "--out", required=True, type=command_line.new_file(".html"), help="the .html to write"
    )
    parser.add_argument("--figure4", metavar="SOURCE", help="add Figure 4 of each run on these images")
    parser.add_argument("--title", default=None, help="by default the names of the directories")
    args = parser.parse_args(argv)
    sweeps = [path for path in args.what if (path / "results.json").exists()]
    runs = [read_run(path) for path in args.what if path not in sweeps]
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        for path in sweeps:
            results = json.loads((path / "results.json").read_text())
            if "rows" not in results:
                raise UserError(f"{path}: its results.json is not of a sweep")
            parts += [f"<p>{html.escape(results['title'])}</p>", *of_sweep(results, pathlib.Path(directory))]
        if runs:
            parts += of_runs(runs, pathlib.Path(directory), args.figure4)
    files.write_text(args.out, page(args.title or ", ".join(path.name for path in args.what), parts))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    command_line.command(main)
