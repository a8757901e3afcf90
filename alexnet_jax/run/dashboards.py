"""Where people look at a run: TensorBoard's event files and, on request, Weights & Biases.

A dashboard's `write(step, values)` takes values by name: numbers, texts, pictures (`[H, W, 3]` uint8) and
other arrays, shown as histograms. `step` never decreases.
"""

import dataclasses
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError, one_line

WANDB_ID = "wandb_id"  # in a workdir: the run at Weights & Biases with which a resumed run goes on
CHARTS = {
    "error, %": ("train/top1_error", "eval/top1_error", "eval/top5_error"),
    "loss": ("train/loss", "eval/loss"),
    "learning rate": ("train/learning_rate", "train/learning_rate_biases"),
}
RESULTS = ("eval/top1_error", "eval/top5_error", "eval/loss")  # in the table of hyperparameters


class TensorBoard:
    """Event files in `workdir`, by TensorBoard's own summaries and record writer, without TensorFlow.

    TensorBoard drops what earlier files in `workdir` have from `first_step` on: a run that was interrupted
    repeats the steps after its last checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, config: configs.Config, first_step: int):
        # EventFileWriter would write in a thread, which prints a traceback when the disk is full.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._events = RecordWriter(open(workdir / name, "wb"))  # noqa: SIM115  (closed in close)
        self._event(first_step, file_version="brain.Event:2")
        self._event(first_step, session_log=SessionLog(status=SessionLog.START))
        self._event(first_step, summary=_charts())
        keys = _flat(config)
        # Without this list TensorBoard finds no results where --logdir is the run itself.
        columns = hparams_config_pb([HParam(key) for key in keys], [Metric(name) for name in RESULTS])
        self._event(first_step, summary=columns)
        self._event(first_step, summary=hparams_pb(keys, trial_id=str(workdir)))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, str):
                summary = text_pb(name, value)
            elif is_picture(value):
                size = {"height": value.shape[0], "width": value.shape[1]}
                image = Summary.Image(**size, encoded_image_string=files.as_png(value))
                summary = Summary(value=[Summary.Value(tag=name, image=image)])
            elif isinstance(value, np.ndarray):
                summary = histogram_pb(name, value)
            else:
                summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._event(step, summary=summary)

    def close(self) -> None:
        self._events.close()

    def _event(self, step: int, **fields: Any) -> None:
        self._events.write(Event(wall_time=time.time(), step=step, **fields).SerializeToString())
        self._events.flush()


class WeightsAndBiases:
    """Mirrors the values to a project at Weights & Biases; `WANDB_MODE=offline` keeps them in `workdir`.

    Raises:
      UserError: wandb is not installed, Weights & Biases cannot be reached, or nobody is logged in.
    """

    def __init__(self, workdir: pathlib.Path, config: configs.Config):
        key = f"run.wandb_project={config.run.wandb_project}"
        try:
            import wandb  # pyright: ignore
            from wandb import Settings  # missing from a folder ./wandb of offline runs, which imports as well
        except ImportError as error:
            raise UserError(f'{key}: needs wandb: pip install ".[wandb]" in a checkout') from error
        if not (workdir / WANDB_ID).exists():
            files.write_text(workdir / WANDB_ID, secrets.token_hex(4))
        self._wandb: Any = wandb
        try:
            self._run: Any = wandb.init(
                project=config.run.wandb_project,
                id=(workdir / WANDB_ID).read_text(),
                resume="allow",
                name=workdir.resolve().name,
                dir=workdir,
                config=dataclasses.asdict(config),
                settings=Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"{key}: Weights & Biases cannot be used ({one_line(error)}); log in with "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if step < self._run.step:
            return  # repeated after an interruption, with the same values; the server has them already
        shown = {}
        for name, value in values.items():
            if isinstance(value, str):
                shown[name] = self._wandb.Html(f"<pre>{value}</pre>")
            elif isinstance(value, np.ndarray):
                shown[name] = (self._wandb.Image if is_picture(value) else self._wandb.Histogram)(value)
            else:
                shown[name] = value
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def is_picture(value: Any) -> bool:
    """Whether a value is pixels, which are uint8; weights are floats."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8


Dashboard = TensorBoard | WeightsAndBiases


def _charts() -> Any:
    """The layout of TensorBoard's page "Custom Scalars": training and test in one chart."""
    pb: Any = layout_pb2  # made at run time, so unknown to type checkers
    charts = [
        pb.Chart(title=title, multiline=pb.MultilineChartContent(tag=tags)) for title, tags in CHARTS.items()
    ]
    layout = pb.Layout(category=[pb.Category(title="training and test", chart=charts)])
    # The plugin's own `pb` is the same, but imports TensorFlow.
    summary = text_pb(metadata.CONFIG_SUMMARY_TAG, layout.SerializeToString())
    summary.value[0].metadata.CopyFrom(metadata.create_summary_metadata())
    return summary


def _flat(config: configs.Config) -> dict[str, bool | float | str]:
    """The config's values by dotted key, as TensorBoard's table of hyperparameters takes them."""
    return {
        f"{section}.{key}": value if isinstance(value, bool | int | float | str) else repr(value)
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
        if value is not None
    }
