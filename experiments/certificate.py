"""The certificate of a table: our errors beside the paper's, the spread over seeds, images, machines."""

import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import files
from experiments import record, sweep_statistics
from experiments.sweep_plan import Sweep
from experiments.sweep_statistics import ERRORS

EXPLANATION = (
    "Errors in %, differences in points. The paper's errors are of one net or one ensemble. n is the number "
    "of ours, sd their standard deviation over seeds; within `one more` of our mean another one would lie "
    "in 95 % of cases (Student's t), so a larger difference is more than one of seeds."
)
DIFFERENCES = (
    "Found by comparing the runs with the table's configs; images are recognised by their number only. The "
    "configs differ from the paper's text, too, as their docstrings say, with the sizes in docs/faithful.md: "
)
KEYS = (  # of a run in results.json
    *("seed", "status", "eval", "images", "epochs", "products"),
    *("seconds", "machine", "workdir", "config"),
)
HOURS = "hours in all, without those of processes that were killed"


def systems(sweep: Sweep, results: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each published system: pairs are top-1 and top-5; None for what is not known."""
    rows = {row["row"]: row for row in results["rows"]}
    ensembles = {ensemble["ensemble"]: ensemble["views"] for ensemble in results["ensembles"]}
    found = []
    for system, (name, *paper) in sweep.published.items():
        if name in rows:
            errors = [list(sweep_statistics.errors_by_seed(rows[name], key).values()) for key in ERRORS]
        else:  # in ten views, as in the paper
            together = ensembles[name].get("10")
            errors = [[together["together"][key]] if together else [] for key in ERRORS]
        ours = [float(np.mean(values)) if values else None for values in errors]
        entry = {"system": system, "n": len(errors[0]), "paper": paper, "ours": ours}
        entry["difference"] = [None if a is None else a - b for a, b in zip(ours, paper, strict=True)]
        entry["spread"] = [sweep_statistics.deviation(values) for values in errors]
        entry["one_more"] = [sweep_statistics.one_more(values) for values in errors]
        found.append(entry)
    return found


def markdown(certificate: dict[str, Any]) -> str:
    """The certificate for people."""
    found = certificate["shortfalls"]
    verdict = f"**Differences from the paper's table at full size: {len(found) or 'none'}; see below.**"
    lines = [f"# {certificate['title']}", "", verdict, ""]
    header = ("ours", "paper", "difference", "sd", "one more")
    titles = (f"{name}: {header[0]} | " + " | ".join(header[1:]) for name in ("top-1", "top-5"))
    lines += [EXPLANATION, "", f"| system | n | {' | '.join(titles)} |", "|---" * 12 + "|"]
    for entry in certificate["systems"]:
        cells = [entry["system"], str(entry["n"])]
        for index in (0, 1):
            cells += [_cell(entry["ours"][index]), f"{entry['paper'][index]:.1f}"]
            cells += [_cell(entry["difference"][index], "+"), _cell(entry["spread"][index])]
            cells.append(_cell(entry["one_more"][index]))
        lines.append(f"| {' | '.join(cells)} |")
    runs = certificate["runs"]
    paths = ", ".join(dict.fromkeys(f"`{run['config_path']}`" for run in runs))
    lines += ["", "## What differs from the paper's table at full size", "", f"{DIFFERENCES}{paths}.", ""]
    lines += [f"- {one}" for one in found] or ["Nothing: images, settings, epochs and runs are all there."]
    titles = "net, seed | status | top-1 | top-5 | trained on, tested on, views | epochs | hours"
    lines += ["", "## Runs", "", f"| {titles} | workdir, hash of the config |", "|---" * 8 + "|"]
    lines += [*map(_run, runs), "", f"{certificate['hours']:.2f} {HOURS}.", ""]
    machines = [f"{run['machine']}; products {run['products'] or '?'}" for run in runs if run["machine"]]
    lines += [f"- {machines.count(one)} of {len(runs)} runs: {one}" for one in dict.fromkeys(machines)]
    return "\n".join([*lines, "", f"Written {certificate['written']}."]) + "\n"


def _run(run: dict[str, Any]) -> str:
    tested, images = run["eval"], ""
    if tested:
        images = f"{_count(run['images'])}, {_count(tested['examples'])}, {tested['views']}"
    cells = [f"{run['net']}, {run['seed']}", run["status"]]
    cells += [*(_cell(tested and tested[key]) for key in ERRORS), images, _cell(run["epochs"])]
    cells += [f"{run['seconds'] / 3600:.2f}", f"{run['workdir']}, `{run['config']}`"]
    return f"| {' | '.join(cells)} |"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _cell(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.2f}"


def write(out: pathlib.Path, sweep: Sweep, results: dict[str, Any], shortfalls: Sequence[str]) -> str:
    """Writes `certificate.json` and `certificate.md`; returns the Markdown.

    Args:
      results: what `sweep_results.gather` gives.
      shortfalls: what keeps the runs from the paper's table at full size, a line each.
    """
    runs = [
        {
            "net": sweep.name_of(row["row"]),
            "config_path": row["changes"].get("config", sweep.config),
            **{key: run.get(key) for key in KEYS},
        }
        for row in results["rows"]
        for run in row["runs"]
    ]
    certificate = {
        "title": sweep.title,
        "systems": systems(sweep, results),
        "shortfalls": list(shortfalls),
        "runs": runs,
        "hours": sum(run["seconds"] for run in runs) / 3600,
        "written": datetime.date.today().isoformat(),
    }
    text = markdown(certificate)
    record.write_json(out / "certificate.json", certificate)
    files.write_text(out / "certificate.md", text)
    return text
