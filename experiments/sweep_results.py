"""Collects the results of a sweep's runs, as JSON values, from their workdirs and an earlier `results.json`.

So a long sweep is committed part by part and goes on on another machine, where only the results came along.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.tools import predictions
from alexnet_jax.weights import pretrained
from experiments.sweep_plan import ENDS, PARENT, SESSIONS, Run, Sweep
from experiments.sweep_statistics import ERRORS

FILE = "results.json"
FLOAT32 = ("highest", "float32")  # names of that precision in JAX


def read(directory: pathlib.Path) -> dict[str, Any]:
    """An earlier `results.json` in a directory; one without rows if there is none.

    Raises:
      UserError: it is damaged.
    """
    try:
        return {"rows": [], "ensembles": [], **json.loads((directory / FILE).read_text())}
    except FileNotFoundError:
        return {"rows": [], "ensembles": []}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory / FILE}: not the results of a sweep ({error}); move it away") from error


def recorded(earlier: dict[str, Any], runs: Sequence[Run]) -> dict[pathlib.Path, dict[str, Any]]:
    """Earlier results of runs that ended with the same config, by workdir; a workdir itself goes first."""
    results = {(row["row"], run["seed"]): run for row in earlier["rows"] for run in row["runs"]}
    found = {}
    for run in runs:
        result = results.get((run.row, run.seed), {})
        if result.get("config") == run.config_hash and result["status"] in ENDS and not run.has_ended():
            found[run.workdir] = result
    return found


def lost(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The runs with earlier errors that have none now: of another config, or no longer in the sweep."""
    done, before = (
        {
            f"{row['row']}, seed {run['seed']}": None
            for row in results["rows"]
            for run in row["runs"]
            if run["eval"]
        }
        for results in (now, earlier)
    )
    return [name for name in before if name not in done]


def gather(sweep: Sweep, runs: Sequence[Run], earlier: dict[str, Any]) -> dict[str, Any]:
    """The contents of `results.json`; runs that are not done have no errors.

    Args:
      earlier: the results that `read` found.
    """
    kept = recorded(earlier, runs)
    groups = {row: title for title, rows in sweep.groups.items() for row in rows}
    rows = [
        {
            "row": row,
            "changes": _json(changes),
            "against": None if row == PARENT else sweep.against.get(row, PARENT),
            "paper": sweep.paper.get(row),
            "training_error": row in sweep.training_error,
            "group": groups.get(row),
            "runs": [kept.get(run.workdir) or _result(run) for run in runs if run.row == row],
        }
        for row, changes in sweep.rows.items()
    ]
    ensembles = [
        _ensemble(name, [run for run in runs if run.seed in members.get(run.row, ())], earlier)
        for name, members in sweep.ensembles.items()
    ]
    return {
        "title": sweep.title,
        "sweep": sweep.path.name,
        "config": sweep.config,
        "parent": _json(sweep.parent),
        "seeds": list(sweep.seeds),
        "groups": list(sweep.groups),
        "rows": rows,
        "ensembles": ensembles,
    }


def _result(run: Run) -> dict[str, Any]:
    status = run.status()
    evaluation = status.get("eval") if status["status"] == "done" else None
    lines = logs.read_metrics(run.workdir) if (run.workdir / logs.METRICS).exists() else []
    curve = [[line["epoch"], line["eval/top1_error"]] for line in lines if "eval/top1_error" in line]
    training = [line["train/top1_error"] for line in lines if "train/top1_error" in line]
    path = run.workdir / SESSIONS
    sessions = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    saved = _saved(run.workdir)
    machines = [one["machine"] for one in sessions if "machine" in one] or _machine(saved)
    return {
        "seed": run.seed,
        "workdir": run.workdir.name,
        "config": run.config_hash,
        "machine": " and ".join(dict.fromkeys(machines)) or None,
        "seconds": round(sum(session["seconds"] for session in sessions), 1),
        "status": status["status"],
        "message": status.get("message"),
        "eval": evaluation,
        "curve": curve,
        "steps": status.get("step"),
        "epochs": status.get("epoch"),
        "images": saved["record"]["images"] if saved else None,
        "products": products(saved),
        "train_top1_error": training[-1] if training else None,
    }


def _saved(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run's newest checkpoint says of it; nothing if there is none that can be read."""
    try:
        return checkpoint.metadata(workdir)
    except UserError:
        return {}


def _machine(saved: dict[str, Any]) -> list[str]:
    """Device and versions of a run that was not started by the sweep, as several hosts do it."""
    if not saved:
        return []
    return [f"{saved['device']}; {', '.join(f'{name} {one}' for name, one in saved['versions'].items())}"]


def products(saved: dict[str, Any]) -> str | None:
    """The precision of convolutions and matrix products, as it was when the run ended; None if not known."""
    if "matmul_precision" not in saved:
        return None
    precision, device = saved["matmul_precision"] or "default", saved["device"]
    if precision in FLOAT32 or (device == "cpu" and precision == "default"):
        return "float32"
    return f"JAX's {precision} precision on {device}"


def _ensemble(name: str, members: Sequence[Run], earlier: dict[str, Any]) -> dict[str, Any]:
    """Errors of the averaged predictions, in one and in ten views, and the mean of the members' errors.

    They need the members' workdirs; otherwise the earlier ones of members with the same configs are taken.
    """
    made = {"ensemble": name, "members": [[run.row, run.seed, run.config_hash] for run in members]}
    if all(run.status()["status"] == "done" for run in members):
        views = {str(views): _errors([_predictions(run, views) for run in members]) for views in (1, 10)}
        return {**made, "views": views}
    same = (old["views"] for old in earlier["ensembles"] if old["members"] == made["members"])
    return {**made, "views": next(same, {})}


def _errors(members: Sequence[predictions.Predictions]) -> dict[str, Any]:
    alone = [dataclasses.asdict(errors) for one in members if (errors := predictions.errors(one))]
    together = predictions.errors(predictions.average(members))
    assert together is not None  # the test images have labels
    return {
        "together": dataclasses.asdict(together),
        "alone": {key: float(np.mean([errors[key] for errors in alone])) for key in ERRORS},
    }


def _predictions(run: Run, views: int) -> predictions.Predictions:
    """A run's predictions for the test images, which are kept in its workdir."""
    path = run.workdir / f"predictions-{views}.npz"
    if not path.exists():
        source = sources.open_configured(run.config.data, "test")
        predictions.save(path, predictions.predict(pretrained.read(run.workdir), source, views=views))
    return predictions.load(path)


def _json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
