"""What a report says of runs: results, curves, mistakes, filters, configs."""

import dataclasses
import datetime
import json
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.run import workdir as workdirs
from alexnet_jax.weights import pretrained
from experiments import figure4, plots, report_mistakes, sweep_table
from experiments.report_html import details, paragraph, picture, section, table


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report needs of a run; `config` is flat, by dotted key, and `net` None without a checkpoint."""

    name: str
    workdir: pathlib.Path
    config: dict[str, Any]
    status: dict[str, Any]
    metrics: list[dict[str, Any]]
    net: pretrained.Pretrained | None


def read_run(workdir: pathlib.Path) -> Run:
    """Reads a run's config, status, metrics and net.

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
    net = pretrained.read(workdir) if checkpoint.exist(workdir) else None
    return Run(workdir.name, workdir, flat, status, metrics, net)


def of_runs(
    runs: Sequence[Run], temporary: pathlib.Path, source: str | None, *, test: bool = True
) -> list[str]:
    """Sections with results, curves, mistakes, filters and configs.

    Args:
      source: images for Figure 4 of each run; None for no such figure.
      test: tests the nets again, for their mistakes.
    """
    facts = [_facts(run) for run in runs]
    names = dict.fromkeys(name for fact in facts for name in fact)
    rows = [[name, *(fact.get(name, "") for fact in facts)] for name in names]
    parts = [section("Results", table(["", *(run.name for run in runs)], rows))]
    plots.curves(temporary / "curves.svg", {run.name: run.metrics for run in runs})
    curves = picture(temporary / "curves.svg", "Training loss and test error by epoch.")
    parts.append(section("Learning curves", curves))
    nets = [(run, run.net) for run in runs if run.net is not None]
    if nets and test:
        mistakes = [report_mistakes.of_run(run.name, run.workdir, net, temporary) for run, net in nets]
        parts.append(section("Mistakes", *mistakes))
    if nets:
        filters = [_filters(run, net, temporary, source) for run, net in nets]
        parts.append(section("Filters and predictions" if source else "Filters", *filters))
    return [*parts, section("Configs", *compared(runs))]


def _facts(run: Run) -> dict[str, str]:
    """The lines of the table of results by their names; those of what is not known are left out."""
    facts = {"status": run.status["status"]}
    if evaluation := run.status.get("eval"):
        facts["top-1 error"] = f"{evaluation['top1_error']:.2f} %"
        if pretrained.read_description(run.workdir).model.num_classes > 5:
            facts["top-5 error"] = f"{evaluation['top5_error']:.2f} %"
        facts["loss"] = f"{evaluation['loss']:.3f}"
        facts["tested on"] = f"{evaluation['examples']:,} images, views: {evaluation['views']}"
    if "epoch" in run.status:
        facts["trained"] = f"{run.status['epoch']:.1f} epochs, {run.status['step']:,} steps"
    if (times := timing(run.workdir)) is not None:
        facts["begun"] = f"{times[0]:%Y-%m-%d %H:%M} UTC"
        facts["duration"] = f"{datetime.timedelta(seconds=round(times[1]))} (h:min:s)"
    if run.net is not None:
        about = checkpoint.metadata(run.workdir)
        facts["parameters"] = f"{sum(x.size for x in jax.tree.leaves(run.net.variables)):,}"
        facts |= {"device": about["device"], **about["versions"]}
    return facts


def timing(workdir: pathlib.Path) -> tuple[datetime.datetime, float] | None:
    """When a run began and the seconds that it ran, by its TensorBoard files; None if it has none.

    A run that goes on writes a new file, so the time that it stood still does not count.
    """
    spans = [_first_and_last(path.read_bytes()) for path in workdir.glob("events.out.tfevents.*")]
    if not spans:
        return None
    begin = min(first for first, _ in spans)
    return datetime.datetime.fromtimestamp(begin, datetime.UTC), sum(last - first for first, last in spans)


def _first_and_last(events: bytes) -> tuple[float, float]:
    """The times of the first and the last event of a file, in seconds since 1970."""
    found, at = [], 0
    while at + 8 <= len(events):  # length uint64, its checksum uint32, the event, its checksum uint32
        (length,) = struct.unpack_from("<Q", events, at)
        found.append(events[at + 12 : at + 12 + length])
        at += length + 16
    if at > len(events):  # a crash cut the last one short
        del found[-1]
    first, last = (Event.FromString(found[place]).wall_time for place in (0, -1))
    return first, last


def _filters(run: Run, net: pretrained.Pretrained, temporary: pathlib.Path, source: str | None) -> str:
    """conv1's filters and, with a source, Figure 4."""
    path = temporary / "filters.png"
    path.write_bytes(files.as_png(logs.filters_image(np.asarray(net.variables["params"]["conv1"]["kernel"]))))
    columns = ", the first column's above the second's" if net.model.columns == 2 else ""
    shown = picture(path, f"{run.name}: conv1's filters{columns}.")
    if source is not None:
        path = temporary / "figure4.png"
        figure4.main([f"--weights={run.workdir}", f"--source={source}", f"--out={path}"])
        shown += picture(
            path,
            f"{run.name}: test images, the net's predictions (orange: the correct class), and the nearest "
            "training images.",
        )
    return shown


def compared(runs: Sequence[Run]) -> list[str]:
    """A table of the keys in which the runs differ, and one of all others."""
    keys = list(runs[0].config)
    differ = [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]
    parts = []
    if len(runs) > 1:
        rows = [[key, *(sweep_table.as_value(run.config.get(key)) for run in runs)] for key in differ]
        header = ["key", *(run.name for run in runs)]
        parts.append(table(header, rows) if differ else paragraph("All keys are the same."))
    same = [[key, sweep_table.as_value(runs[0].config[key])] for key in keys if key not in differ]
    name = "All keys that are the same" if len(runs) > 1 else "All keys"
    return [*parts, details(name, table(["key", "value"], same))]
