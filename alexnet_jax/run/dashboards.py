"""Where people look at a run: TensorBoard's event files and, on request, Weights & Biases."""

import dataclasses
import functools
import os
import pathlib
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from alexnet_jax import columns
from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError, one_line

WANDB_ID = "wandb_id"  # in a workdir: the run at Weights & Biases with which a resumed run goes on
CHARTS = {
    "error, %": ("train/top1_error", "eval/top1_error", "eval/top5_error"),
    "loss": ("train/loss", "eval/loss"),
    "learning rate": ("train/learning_rate", "train/learning_rate_biases"),
}
_SAMPLE = 65_536  # weights per histogram


class Dashboard(Protocol):
    """Takes a run's values as they are made; `step` never falls."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, pixels: np.ndarray) -> None: ...
    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None: ...
    def text(self, step: int, name: str, text: str) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in `workdir`, by TensorBoard's own summaries and record writer, without TensorFlow.

    TensorBoard drops what earlier files in `workdir` have from `first_step` on: a run that was interrupted
    repeats the steps after its last checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, config: configs.Config, first_step: int):
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        # EventFileWriter would write in a thread, which prints a traceback when the disk is full.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._events = RecordWriter(open(workdir / name, "wb"))  # noqa: SIM115  (closed in close)
        self._write(first_step, file_version="brain.Event:2")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self._write(first_step, summary=_charts())
        self._write(first_step, summary=hparams_pb(_flat(config), trial_id=str(workdir)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._values(step, *({"tag": name, "simple_value": value} for name, value in values.items()))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        height, width, _ = pixels.shape
        image = {"height": height, "width": width, "encoded_image_string": files.as_png(pixels)}
        self._values(step, {"tag": name, "image": image})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        for name, value in values.items():
            self._write(step, summary=histogram_pb(name, value))

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._write(step, summary=text_pb(name, text))

    def close(self) -> None:
        self._events.close()

    def _values(self, step: int, *values: dict[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        self._write(step, summary=Summary(value=[Summary.Value(**value) for value in values]))

    def _write(self, step: int, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore

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

            wandb.init  # noqa: B018  (a folder ./wandb of offline runs can be imported, too)
        except (ImportError, AttributeError) as error:
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
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"{key}: Weights & Biases cannot be used ({one_line(error)}); log in with "
                "`wandb login`, or set WANDB_MODE=offline"
            ) from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._log(step, {name: self._wandb.Image(pixels)})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self._log(step, {name: self._wandb.Histogram(value) for name, value in values.items()})

    def text(self, step: int, name: str, text: str) -> None:
        self._log(step, {name: self._wandb.Html(f"<pre>{text}</pre>")})

    def close(self) -> None:
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        # Steps repeated after an interruption have the same values; the server has them already.
        if step >= self._run.step:
            self._run.log(dict(values), step=step)


def opened(workdir: pathlib.Path, config: configs.Config, first_step: int) -> list[Dashboard]:
    """The dashboards of a run whose next values come at `first_step` or later."""
    found: list[Dashboard] = [TensorBoard(workdir, config, first_step)]
    if config.run.wandb_project is not None:
        found.append(WeightsAndBiases(workdir, config))
    return found


def weight_samples(params: dict[str, dict[str, jax.Array]]) -> dict[str, np.ndarray]:
    """Samples for histograms, in all processes: `{"weights/conv1": float32 [N], "biases/conv1": ..., ...}`.

    At most `_SAMPLE` evenly spaced values of each array: fc6 alone has 38 million, whose histogram would take
    longer than the test of a small set.
    """
    mesh: Any = jax.tree.leaves(params)[0].sharding.mesh
    return jax.device_get(_sampler(NamedSharding(mesh, columns.REPLICATED))(params))


@functools.cache
def _sampler(replicated: NamedSharding) -> Any:
    def sample(params: dict[str, dict[str, jax.Array]]) -> dict[str, jax.Array]:
        return {
            f"{plural}/{layer}": arrays[name].reshape(-1)[:: -(-arrays[name].size // _SAMPLE) | 1]
            for layer, arrays in params.items()
            for name, plural in (("kernel", "weights"), ("bias", "biases"))
        }

    return jax.jit(sample, out_shardings=replicated)


def _charts() -> Any:
    """The layout of TensorBoard's page "Custom Scalars": training and test in one chart."""
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.plugins.text.summary_v2 import text_pb

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
