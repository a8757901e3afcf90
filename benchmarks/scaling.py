"""What a mesh costs: what its devices tell each other in a step, what each holds, and how long it may take.

python -m benchmarks.scaling --config=configs/imagenet2012.py --data=2 --column=2

Compiles the training step for that mesh on pretended devices of this machine's CPU, and reads the collectives
out of the compiled program. Other meshes are reckoned from the program as written. Needs no accelerator.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from alexnet_jax import columns, optimizer, steps
from alexnet_jax import config as configs
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import batches, sources
from alexnet_jax.data.statistics import ILSVRC
from alexnet_jax.model import AlexNet
from alexnet_jax.run import inputs
from alexnet_jax.tools import summary
from benchmarks import collectives
from benchmarks.collectives import Collective

FLAGS = flags.FLAGS
MOST_COMPILED = 64  # pretended devices
ON_PAPER = (8, 64, 512)  # devices
_EXAMPLES = 1_281_167  # of ILSVRC-2012; how many there are says when rates drop, not what a step costs


@dataclasses.dataclass(frozen=True)
class Machine:
    """The speeds that times are reckoned by.

    Attributes:
      device: sustained floating-point operations a second of a device, in 10**12.
      column_link, data_link: 10**9 bytes a second that a device sends to its neighbour, between the columns
        and between the rows of the mesh.
      latency: microseconds that a collective takes to begin.
    """

    device: float
    column_link: float
    data_link: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """A step on a mesh: seconds of computing, of talk between columns and of talk along data."""

    compute: float
    between_columns: float
    along_data: float

    @property
    def step(self) -> float:
        """All of it, one after the other: what overlaps, saves."""
        return self.compute + self.between_columns + self.along_data


class Step:
    """The training step of a config on meshes that need not exist."""

    def __init__(self, config: configs.Config, num_classes: int) -> None:
        self.config = config
        size = config.data.resize_size
        statistics = dataclasses.replace(ILSVRC, mean_image=np.zeros((size, size, 3), np.float32))
        self.model: AlexNet = configs.build_model(config, num_classes)

        def steps_at(epochs: float) -> int:
            return configs.steps_of(epochs, _EXAMPLES, config.data.batch_size)

        preprocess = inputs.new_preprocess(config, statistics)
        self._optimizer = optimizer.make(config.optimizer, steps_at)
        self._view = inputs.training_view(config.augment, preprocess, statistics, steps_at)
        table = summary.summarise(self.model, config.data.image_size)
        first = next(layer for layer in table["layers"] if layer["name"] == "conv1")
        # Forward, and the gradients by the weights and by the inputs, of which conv1 needs none.
        work = 3 * table["total"]["multiply_accumulates"] - first["multiply_accumulates"]
        self.operations_an_image = 2 * work

    def arguments(self, mesh: Any, batch_size: int) -> tuple[Any, Any]:
        """Shapes of the state and of a batch."""

        def init() -> steps.TrainState:
            size = self.config.data.image_size
            images = jnp.zeros((1, size, size, 3))
            return steps.fresh_state(self.model.init(jax.random.key(0), images)["params"], self._optimizer)

        size = self.config.data.resize_size
        shapes = {
            "image": ((batch_size, size, size, 3), jnp.uint8),
            "label": ((batch_size,), jnp.int32),
            "weight": ((batch_size,), jnp.float32),
        }
        batch = {key: jax.ShapeDtypeStruct(shape, dtype) for key, (shape, dtype) in shapes.items()}
        return jax.eval_shape(init), batch

    def on(self, mesh: Any) -> Any:
        """The jitted step."""
        return steps.make_train_step(
            self.model, self._optimizer, mesh, self._view, seed=0, log_every=self.config.run.log_every_steps
        )

    def compiled(self, mesh: Any, batch_size: int) -> tuple[list[Collective], Any]:
        """The collectives as XLA made them, and what it says of a device's memory."""
        compiled = self.on(mesh).lower(*self.arguments(mesh, batch_size)).compile()
        shape = mesh.shape[columns.DATA], mesh.shape[columns.COLUMN]
        return collectives.of_compiled(compiled.as_text(), *shape), compiled.memory_analysis()

    def written(self, data: int, column: int, batch_size: int) -> list[Collective]:
        """The collectives of the program as written, those along data as the one that XLA makes of them."""
        axes = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.sharding.AbstractMesh((data, column), (columns.DATA, columns.COLUMN), axis_types=axes)
        found = collectives.of_program(jax.make_jaxpr(self.on(mesh))(*self.arguments(mesh, batch_size)), mesh)
        sums = [one for one in found if one.axis == columns.DATA]
        if not sums:
            return found
        parts, size = sum(one.parts for one in sums), sum(one.bytes for one in sums)
        fused = Collective("all-reduce", columns.DATA, "", True, size, parts)
        return [*(one for one in found if one.axis != columns.DATA), fused]

    def cost(self, found: list[Collective], data: int, column: int, batch_size: int, at: Machine) -> Cost:
        """Seconds of a step, if the devices of an axis are a ring, in which each sends to the next."""

        def talk(axis: str, count: int, speed: float) -> float:
            sent = sum(
                (2 if one.kind == "all-reduce" else 1) * one.bytes * (count - 1) / count
                for one in found
                if one.axis == axis
            )
            return sent / (1e9 * speed) + 1e-6 * at.latency * sum(one.axis == axis for one in found)

        operations = self.operations_an_image * batch_size / (data * column)
        return Cost(
            compute=operations / (1e12 * at.device),
            between_columns=talk(columns.COLUMN, column, at.column_link),
            along_data=talk(columns.DATA, data, at.data_link),
        )


def held(state: Any, column: int) -> tuple[int, int]:
    """Bytes of the parameters in all, and on a device; the momentum takes as much again."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return total, total // column


def report(config: configs.Config, num_classes: int, data: int, column: int, at: Machine) -> dict[str, Any]:
    """All there is to say of a mesh and its batch, as JSON has it.

    Raises:
      UserError: the net or the batch does not fit the mesh.
    """
    step, batch_size = Step(config, num_classes), config.data.batch_size
    mesh = columns.make_mesh(data, column)
    data, column = mesh.shape[columns.DATA], mesh.shape[columns.COLUMN]
    batches.check_batch_size(batch_size, mesh)
    steps.check_columns(step.model, mesh)
    found, memory = step.compiled(mesh, batch_size)
    total, own = held(step.arguments(mesh, batch_size)[0], column)
    written = step.written(data, column, batch_size)
    kept = memory.argument_size_in_bytes
    return {
        "mesh": {"data": data, "column": column},
        "batch_size": batch_size,
        "compute_dtype": step.model.compute_dtype,
        "machine": dataclasses.asdict(at),
        "operations_an_image": step.operations_an_image,
        "collectives": [dataclasses.asdict(one) for one in found],
        "as_written": [dataclasses.asdict(one) for one in written],
        "bytes_a_device": {
            "parameters": own,
            "parameters_in_all": total,
            "state_and_batch": kept,
            "temporary": memory.temp_size_in_bytes,
            "peak": kept
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
        },
        "seconds": dataclasses.asdict(step.cost(written, data, column, batch_size, at)),
        "on_paper": list(_on_paper(step, batch_size // data, at)),
    }


def _on_paper(step: Step, rows: int, at: Machine) -> Any:
    """Meshes of more devices, each row of them with as many images as asked for."""
    for devices in ON_PAPER:
        for column in (1, step.model.columns) if step.model.columns > 1 else (1,):
            data = devices // column
            batch_size = rows * data
            found = step.written(data, column, batch_size)
            cost = step.cost(found, data, column, batch_size, at)
            bytes_of = {
                axis: sum(one.bytes for one in found if one.axis == axis)
                for axis in (columns.COLUMN, columns.DATA)
            }
            yield {
                "devices": devices,
                "data": data,
                "column": column,
                "batch_size": batch_size,
                "parameter_bytes": held(step.arguments(None, batch_size)[0], column)[1],
                "bytes_a_step": bytes_of,
                "seconds": dataclasses.asdict(cost),
                "images_per_second": batch_size / cost.step,
                "computing": cost.compute / cost.step,
            }


def as_text(values: dict[str, Any]) -> str:
    """The report for people."""
    mesh, at, memory = values["mesh"], values["machine"], values["bytes_a_device"]
    lines = [
        f"mesh        {mesh['data']} x {mesh['column']} (data x column), {values['batch_size']} images a "
        f"step, {values['batch_size'] // mesh['data']} a row of devices, {values['compute_dtype']}",
        "",
        "collectives of the step, compiled for this machine's CPU (which sends bfloat16 as float32):",
        *_table(
            ("pass", "kind", "axis", "what", "arrays", "bytes"),
            [
                (
                    "backward" if one["backward"] else "forward",
                    one["kind"],
                    one["axis"],
                    _what(one),
                    f"{one['parts']}",
                    f"{one['bytes']:,}",
                )
                for one in values["collectives"]
            ],
        ),
        "",
        f"parameters  {_size(memory['parameters'])} a device of {_size(memory['parameters_in_all'])}; "
        "the momentum as much again",
        f"memory      {_size(memory['peak'])} a device at the peak by the compiler: state and batch "
        f"{_size(memory['state_and_batch'])}, temporary {_size(memory['temporary'])}",
        "",
        f"reckoned at {at['device']:g} TFLOP/s a device, {at['column_link']:g} GB/s between columns, "
        f"{at['data_link']:g} GB/s along data, {at['latency']:g} us a collective, nothing overlapping:",
        *_table(("computing", "between columns", "along data", "step"), [_times(values["seconds"])]),
        "",
        "on paper, as many images a row of devices:",
        *_table(
            (
                "devices",
                "mesh",
                "batch",
                "parameters",
                "bytes between columns",
                "bytes along data",
                "computing",
                "between columns",
                "along data",
                "step",
                "images/s",
                "share computing",
            ),
            [
                (
                    f"{one['devices']}",
                    f"{one['data']} x {one['column']}",
                    f"{one['batch_size']:,}",
                    _size(one["parameter_bytes"]),
                    f"{one['bytes_a_step']['column']:,}",
                    f"{one['bytes_a_step']['data']:,}",
                    *_times(one["seconds"]),
                    f"{one['images_per_second']:,.0f}",
                    f"{100 * one['computing']:.0f} %",
                )
                for one in values["on_paper"]
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _what(one: dict[str, Any]) -> str:
    if one["place"] == "logits":
        return "logits after fc8"
    if one["place"]:
        return f"before {one['place']}"
    return "gradients and metrics" if one["backward"] else "one number"


def _times(seconds: dict[str, float]) -> tuple[str, ...]:
    parts = (seconds["compute"], seconds["between_columns"], seconds["along_data"])
    return tuple(f"{1e3 * value:.3f} ms" for value in (*parts, sum(parts)))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["  none"]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)
    ]


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "Of which config; --config.KEY=VALUE overrides a key.")
    flags.DEFINE_integer("data", 1, "Rows of devices, among which the batch is split.", lower_bound=1)
    flags.DEFINE_integer("column", 1, "Devices of a row, among which the columns are.", lower_bound=1)
    # An example, not a measurement: a GPU with fast links to its neighbour, on a network of 100 Gbit/s.
    flags.DEFINE_float("device_tflops", 40.0, "10**12 operations a second of a device.", lower_bound=1e-9)
    flags.DEFINE_float("column_gbytes", 200.0, "10**9 bytes a second between columns.", lower_bound=1e-9)
    flags.DEFINE_float("data_gbytes", 12.5, "10**9 bytes a second along data.", lower_bound=1e-9)
    flags.DEFINE_float("latency_us", 20.0, "Microseconds that a collective takes to begin.", lower_bound=0.0)
    flags.DEFINE_bool("json", False, "Print JSON.")


def main() -> int:
    devices = FLAGS.data * FLAGS.column
    if devices > MOST_COMPILED:
        raise UserError(
            f"--data={FLAGS.data} --column={FLAGS.column}: {devices} devices are more than the "
            f"{MOST_COMPILED} that are pretended here; more are reckoned on paper from any smaller mesh"
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config = configs.resolve(FLAGS.config, config_flags.get_override_values(FLAGS["config"]))
    num_classes = config.data.num_classes or sources.open_configured(config.data, "train").num_classes
    machine = Machine(FLAGS.device_tflops, FLAGS.column_gbytes, FLAGS.data_gbytes, FLAGS.latency_us)
    values = report(config, num_classes, FLAGS.data, FLAGS.column, machine)
    print(json.dumps(values, indent=2) if FLAGS.json else as_text(values), end="\n" if FLAGS.json else "")
    return 0


if __name__ == "__main__":
    command_line.run(main, define_flags, default_config=pathlib.Path("configs") / "default.py")
