"""Collects the results of a sweep's runs from their workdirs, as JSON values."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.data import sources
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.tools import predictions
from alexnet_jax.weights import pretrained
from experiments.sweep_plan import PARENT, Run, Sweep
from experiments.sweep_statistics import ERRORS


def gather(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    """The contents of `results.json`; runs that are not done have no errors."""
    rows = [
        {
            "row": row,
            "changes": _json(changes),
            "against": None if row == PARENT else sweep.against.get(row, PARENT),
            "paper": sweep.paper.get(row),
            "runs": [_result(run) for run in runs if run.row == row],
        }
        for row, changes in sweep.rows.items()
    ]
    done = [run for run in runs if run.status()["status"] == "done"]
    return {
        "title": sweep.title,
        "sweep": sweep.path.name,
        "config": sweep.config,
        "parent": _json(sweep.parent),
        "seeds": list(sweep.seeds),
        "rows": rows,
        "ensembles": [_ensemble(name, members, runs) for name, members in sweep.ensembles.items()],
        "about": checkpoint.metadata(done[0].workdir) if done else {},
    }


def _result(run: Run) -> dict[str, Any]:
    status = run.status()
    evaluation = status.get("eval") if status["status"] == "done" else None
    lines = logs.read_metrics(run.workdir) if (run.workdir / logs.METRICS).exists() else []
    curve = [[line["epoch"], line["eval/top1_error"]] for line in lines if "eval/top1_error" in line]
    training = [line["train/top1_error"] for line in lines if "train/top1_error" in line]
    return {
        "seed": run.seed,
        "workdir": run.workdir.name,
        "status": status["status"],
        "message": status.get("message"),
        "eval": evaluation,
        "curve": curve,
        "steps": status.get("step"),
        "train_top1_error": training[-1] if training else None,
    }


def _ensemble(name: str, members: dict[str, tuple[int, ...]], runs: Sequence[Run]) -> dict[str, Any]:
    """Errors of the averaged predictions, in one and in ten views, and the mean of the members' errors."""
    chosen = [run for run in runs if run.seed in members.get(run.row, ())]
    by_views = {}
    if all(run.status()["status"] == "done" for run in chosen):
        by_views = {str(views): _errors([_predictions(run, views) for run in chosen]) for views in (1, 10)}
    return {"ensemble": name, "members": [[run.row, run.seed] for run in chosen], "views": by_views}


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
