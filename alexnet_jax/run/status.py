"""The first and last lines of a run, and what its log and checkpoints say about it."""

import importlib.metadata
import json
import math
import pathlib
import platform
import shlex
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from alexnet_jax import config as configs
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet
from alexnet_jax.run import dashboards, intact, logs, processes, summary
from alexnet_jax.run.record import Record


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries on which results depend."""
    libraries = {name: importlib.metadata.version(name) for name in intact.LIBRARIES}
    return {"python": platform.python_version(), **libraries}


def about(config: configs.Config, mesh: Mesh) -> dict[str, Any]:
    """Metadata for a checkpoint: config, versions, device, JAX's precision of products."""
    device, precision = mesh.devices.flat[0].device_kind, jax.config.values["jax_default_matmul_precision"]
    about = {"config": json.loads(config.to_json()), "versions": versions()}
    return {**about, "device": device, "matmul_precision": precision}


def open_log(
    workdir: pathlib.Path, record: Record, steps: range, config: configs.Config, model: AlexNet
) -> logs.Log:
    """Opens the log for the remaining `steps`; drops metrics of later steps than `steps.start`."""
    if not processes.is_first():
        return logs.NoLog(f"process {jax.process_index()}: ")
    evaluated = record.evaluated_step == steps.start
    kept = logs.drop_metrics_after(workdir, steps.start, evaluated=evaluated)
    first = steps.start + evaluated  # an evaluation still to come is made once more at `steps.start`
    boards: list[dashboards.Dashboard] = [dashboards.TensorBoard(workdir, config, first)]
    if config.run.wandb_project is not None:
        boards.append(dashboards.WeightsAndBiases(workdir, config))
    net = summary.as_table(summary.summarise(model, config.data.image_size))
    for board in boards:
        board.write(first, {"config": f"```json\n{config.to_json()}```", "net": net})
        for line in kept:
            if line["step"] >= first:
                board.write(line["step"], {name: value for name, value in line.items() if "/" in name})
    log = logs.RunLog(workdir, steps, boards, model.num_classes)
    log.say(f"workdir    {workdir}")
    return log


def greeting(
    config: configs.Config, source: Source, mesh: Mesh, params: Any, start: Iterable[str], steps: range
) -> list[str]:
    """The first lines a run prints: images, net, devices, initial weights, steps.

    Args:
      params: the net's parameters, or their shapes.
      start: layers initialised from trained weights.
      steps: the steps still to do.
    """
    number = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    (data, column), device = mesh.devices.shape, mesh.devices.flat[0].device_kind
    lines = [
        f"images     {source.description}",
        f"net        {config.model['variant']}, {number:,} parameters, {source.num_classes:,} classes",
        f"devices    {data} x {column} (data x column), {device}; jax {jax.__version__}",
    ]
    if taken := list(start):
        new = ", ".join(name for name in params if name not in taken)
        lines.append(f"init       {', '.join(taken)} of {config.init.path}; new: {new or 'nothing'}")
    to_do = f"{steps.start} to {steps.stop}, {config.data.batch_size} images each"
    done = f"{steps.start} done, of {steps.stop}: nothing is left to train"
    lines.append(f"steps      {to_do if steps else done}")
    if (size := config.data.batch_size) > len(source):
        lines.append(
            f"warning: data.batch_size={size} is more than the {len(source):,} training images, so each step "
            "sees some of them more than once; lower it"
        )
    return lines


def farewell(
    workdir: pathlib.Path, status: str, record: Record, num_classes: int, length: str = "total_epochs"
) -> list[str]:
    """The last lines a run prints: its result, files and next commands; `length` is the key that ended it."""
    lines = []
    if (evaluation := record.evaluation) is not None:
        views, top5 = evaluation["views"], f", top-5 error {evaluation['top5_error']:.2f} %"
        lines.append(
            f"top-1 error {evaluation['top1_error']:.2f} %{top5 if num_classes > 5 else ''} "
            f"on {evaluation['examples']:,} images ({views} view{'s' if views > 1 else ''}); "
            f"best top-1 error {record.best_top1_error:.2f} %"
        )
    path = shlex.quote(str(workdir))
    lines += [
        f"files      {workdir}: {logs.METRICS}, {logs.STATUS}, checkpoints/, net.json",
        f"curves     tensorboard --logdir={path}",
    ]
    again = f"the same command with --workdir={path}"
    if status == "done":
        lines.append(f"use it     python -m alexnet_jax predict IMAGE --weights={path}")
        lines.append(f"train on   {again} and a larger run.{length}")
    if status == "interrupted":
        lines.append(f"go on      {again}")
    return lines
