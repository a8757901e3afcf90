"""The cost of a mesh: communication in a training step, memory of a device, and an estimate of the time.

python -m benchmarks.scaling --config=configs/imagenet2012.py --data=2 --column=2

Compiles the training step for that mesh on virtual CPU devices and lists the collectives of the compiled
program. Larger meshes are estimated from the program as written. Needs no accelerator.
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
from alexnet_jax.common import command_line, flag_parsing
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import batches, sources
from alexnet_jax.data.statistics import ILSVRC
from alexnet_jax.model import AlexNet
from alexnet_jax.run import inputs, summary
from benchmarks import collectives, scaling_text
from benchmarks.collectives import Collective

FLAGS = flags.FLAGS
MOST_COMPILED = 64  # virtual devices
ON_PAPER = (8, 64, 512)  # devices
_EXAMPLES = 1_281_167  # in ILSVRC-2012; the number decides when rates drop, not what a step costs


@dataclasses.dataclass(frozen=True)
class Machine:
    """The speeds that the estimates assume.

    Attributes:
      device: sustained operations a second of a device, in 10**12.
      column_link, data_link: bandwidth from a device to its neighbour in 10**9 bytes a second, between the
        columns and between the rows of the mesh.
      latency: microseconds until a collective starts.
    """

    device: float
    column_link: float
    data_link: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds of a step on a mesh: computing, communication between columns, and along data."""

    compute: float
    between_columns: float
    along_data: float

    @property
    def step(self) -> float:
        """The sum: an upper bound, since some of it may overlap."""
        return self.compute + self.between_columns + self.along_data


class Step:
    """A config's training step on meshes of any number of devices."""

    def __init__(self, config: configs.Config, num_classes: int) -> None:
        self.config = config
        size = config.data.resize_size
        statistics = dataclasses.replace(ILSVRC, mean_image=np.zeros((size, size, 3), np.float32))
        self.model: AlexNet = configs.build_model(config, num_classes)

        def steps_at(epochs: float) -> int:
            return configs.steps_of(epochs, _EXAMPLES, config.data.batch_size)

        preprocess = inputs.new_preprocess(config, statistics)
        self._optimizer = optimizer.make(config.optimizer, optimizer.make_rates(config.optimizer, steps_at))
        self._view = inputs.training_view(config.augment, preprocess, statistics, steps_at)
        self.operations_an_image = summary.operations(self.model, config.data.image_size, train=True)

    def arguments(self, batch_size: int) -> tuple[Any, Any]:
        """The shapes of the state and of a batch."""

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
        """The collectives of the compiled program, and the compiler's analysis of a device's memory."""
        compiled = self.on(mesh).lower(*self.arguments(batch_size)).compile()
        shape = mesh.shape[columns.DATA], mesh.shape[columns.COLUMN]
        return collectives.of_compiled(compiled.as_text(), *shape), compiled.memory_analysis()

    def written(self, data: int, column: int, batch_size: int) -> list[Collective]:
        """The collectives of the program as written, those along data fused into one, as XLA does."""
        axes = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.sharding.AbstractMesh((data, column), (columns.DATA, columns.COLUMN), axis_types=axes)
        found = collectives.of_program(self.on(mesh).trace(*self.arguments(batch_size)).jaxpr, mesh)
        sums = [one for one in found if one.axis == columns.DATA]
        if not sums:
            return found
        parts, size = sum(one.parts for one in sums), sum(one.bytes for one in sums)
        fused = Collective("all-reduce", columns.DATA, "", True, size, parts)
        return [*(one for one in found if one.axis != columns.DATA), fused]

    def cost(self, found: list[Collective], data: int, column: int, batch_size: int, at: Machine) -> Cost:
        """The seconds of a step if the devices of an axis form a ring, each sending to the next."""

        def communication(axis: str, count: int, speed: float) -> float:
            sent = sum(
                (2 if one.kind == "all-reduce" else 1) * one.bytes * (count - 1) / count
                for one in found
                if one.axis == axis
            )
            return sent / (1e9 * speed) + 1e-6 * at.latency * sum(one.axis == axis for one in found)

        operations = self.operations_an_image * batch_size / (data * column)
        return Cost(
            compute=operations / (1e12 * at.device),
            between_columns=communication(columns.COLUMN, column, at.column_link),
            along_data=communication(columns.DATA, data, at.data_link),
        )


def parameter_bytes(state: Any, column: int) -> tuple[int, int]:
    """Bytes of all parameters and of those on a device; the momentum takes the same again."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return total, total // column


def report(config: configs.Config, num_classes: int, data: int, column: int, at: Machine) -> dict[str, Any]:
    """The report as JSON values.

    Raises:
      UserError: the net or the batch does not fit the mesh.
    """
    step, batch_size = Step(config, num_classes), config.data.batch_size
    mesh = columns.make_mesh(data, column)
    data, column = mesh.shape[columns.DATA], mesh.shape[columns.COLUMN]
    batches.check_batch_size(batch_size, mesh)
    steps.check_columns(step.model, mesh)
    found, memory = step.compiled(mesh, batch_size)
    total, own = parameter_bytes(step.arguments(batch_size)[0], column)
    written = step.written(data, column, batch_size)
    arguments = memory.argument_size_in_bytes
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
            "state_and_batch": arguments,
            "temporary": memory.temp_size_in_bytes,
            "peak": arguments
            + memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
        },
        "seconds": dataclasses.asdict(step.cost(written, data, column, batch_size, at)),
        "on_paper": list(_on_paper(step, batch_size // data, at)),
    }


def _on_paper(step: Step, rows: int, at: Machine) -> Any:
    """Estimates for meshes of more devices with the same number of images in each row."""
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
                "parameter_bytes": parameter_bytes(step.arguments(batch_size)[0], column)[1],
                "bytes_a_step": bytes_of,
                "seconds": dataclasses.asdict(cost),
                "images_per_second": batch_size / cost.step,
                "computing": cost.compute / cost.step,
            }


def define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "The config; --config.KEY=VALUE overrides a key.")
    flags.DEFINE_integer("data", 1, "Rows of the mesh, which split the batch.", lower_bound=1)
    flags.DEFINE_integer("column", 1, "Devices in a row, which split the columns.", lower_bound=1)
    # An example, not a measurement: GPUs with fast links to their neighbours, on a 100 Gbit/s network.
    flags.DEFINE_float("device_tflops", 40.0, "Operations a second of a device, in 10**12.", lower_bound=1e-9)
    flags.DEFINE_float(
        "column_gbytes", 200.0, "Bandwidth between columns, in 10**9 bytes a second.", lower_bound=1e-9
    )
    flags.DEFINE_float(
        "data_gbytes", 12.5, "Bandwidth along data, in 10**9 bytes a second.", lower_bound=1e-9
    )
    flags.DEFINE_float("latency_us", 20.0, "Microseconds until a collective starts.", lower_bound=0.0)
    flags.DEFINE_bool("json", False, "Print JSON.")


def main() -> int:
    devices = FLAGS.data * FLAGS.column
    if devices > MOST_COMPILED:
        raise UserError(
            f"--data={FLAGS.data} --column={FLAGS.column}: {devices} devices are more than the "
            f"{MOST_COMPILED} that can be simulated; give a smaller mesh, whose report has estimates for more"
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config = configs.resolve(FLAGS.config, config_flags.get_override_values(FLAGS["config"]))
    num_classes = config.data.num_classes or sources.open_configured(config.data, "train").num_classes
    machine = Machine(FLAGS.device_tflops, FLAGS.column_gbytes, FLAGS.data_gbytes, FLAGS.latency_us)
    values = report(config, num_classes, FLAGS.data, FLAGS.column, machine)
    print(
        json.dumps(values, indent=2) if FLAGS.json else scaling_text.as_text(values),
        end="\n" if FLAGS.json else "",
    )
    return 0


if __name__ == "__main__":
    configs_directory = pathlib.Path("configs")
    command_line.command(lambda: main() if flag_parsing.parse(define_flags, configs_directory) else 0)
