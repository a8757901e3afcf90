"""Trains a net or resumes its run; --mode=eval tests it, --mode=summary prints its layers.

    python -m alexnet_jax train --config=configs/default.py [--workdir=DIR] [--mode=train]
    python -m alexnet_jax summary --config=configs/imagenet2012.py [--json]

CONFIG is a file, or the name of one that comes with the package, such as imagenet2012. In a checkout,
`python main.py` is the same.
"""

import dataclasses
import datetime
import functools
import importlib
import json
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from alexnet_jax.common import flag_parsing, paths, progress
from alexnet_jax.common.command_line import EXIT_CODES
from alexnet_jax.common.errors import UserError

if TYPE_CHECKING:
    from alexnet_jax import config as configs

FLAGS = flags.FLAGS


def main(argv: Sequence[str] | None = None, train: Callable[..., str] | None = None) -> int:
    """Runs `--mode` with the flags of `argv`, by default the command line's; returns the exit code.

    Args:
      train: trains in place of `alexnet_jax.train.train`.
    """
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]  # ml_collections reads flags from there
    directory = config_directory()
    make_importable(directory)
    if not flag_parsing.parse(define_flags, directory, config_keys):
        return 0
    FLAGS.workdir = FLAGS.workdir and str(paths.expanded(FLAGS.workdir))
    from alexnet_jax import config as configs  # imported late, as they import JAX, which takes seconds
    from alexnet_jax.run import processes

    overrides = config_flags.get_override_values(FLAGS["config"])
    if FLAGS.mode == "eval" and FLAGS.workdir is None:
        raise UserError("--workdir: missing; name the run to test")
    config = None if FLAGS.mode == "eval" else configs.resolve(FLAGS.config, overrides)
    if config is not None and FLAGS.mode == "summary":
        return summarise(config)
    place = processes.find(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    with processes.job(place, FLAGS.start_timeout_seconds):
        if config is None:
            config = processes.together(functools.partial(configs.of_workdir, FLAGS.workdir, overrides))
        refuse_other_flags(config)
        if FLAGS.mode == "eval":
            return test(config)
        if train is None:
            from alexnet_jax.train import train  # imported late, to report mistakes sooner

        workdir = FLAGS.workdir or fresh_workdir(config_flags.get_config_filename(FLAGS["config"]))
        return EXIT_CODES[train(config, workdir)]


def define_flags() -> None:
    config = "Config file, by default configs/default.py; --config.KEY=VALUE overrides a key."
    workdir = "The run's directory, new or to resume from; by default a new runs/<config>-<time>."
    mode = "Train, test WORKDIR's last checkpoint, or print the net's layers."
    config_flags.DEFINE_config_file("config", None, config)
    flags.DEFINE_string("workdir", None, workdir)
    flags.DEFINE_enum("mode", "train", ["train", "eval", "summary"], mode)
    flags.DEFINE_string("coordinator_address", None, "Process 0's host:port; by default the launcher's.")
    flags.DEFINE_integer("num_processes", None, "Number of processes; by default the launcher's, else 1.")
    flags.DEFINE_integer("process_id", None, "This process's number, from 0; by default the launcher's.")
    flags.DEFINE_integer("start_timeout_seconds", 300, "How long the processes wait for each other.")
    flags.DEFINE_bool("json", False, "With --mode=eval or --mode=summary: print JSON.")
    flags.register_validator("workdir", lambda path: path != "", "name a directory, or leave the flag out")
    flags.register_multi_flags_validator(
        ["json", "mode"],
        lambda values: not values["json"] or values["mode"] != "train",
        "--json goes with --mode=eval or --mode=summary; training writes metrics.jsonl by itself",
    )


def config_directory() -> pathlib.Path:
    """The configs that come with the package: inside it when installed, beside it in a checkout."""
    package = pathlib.Path(__file__).parent
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def config_keys() -> list[str]:
    """All keys of a config, such as `data.batch_size`."""
    default: Any = importlib.import_module("configs.default")  # sets every key
    return [f"{section}.{key}" for section, keys in default.get_config().items() for key in keys]


def make_importable(directory: pathlib.Path) -> None:
    """Lets `from configs import default` find the package's configs, after the user's own `configs`."""
    try:
        package = importlib.import_module("configs")
    except ImportError:
        package = sys.modules["configs"] = types.ModuleType("configs")
    package.__path__ = [*dict.fromkeys([*getattr(package, "__path__", []), str(directory)])]


def fresh_workdir(config_path: str) -> pathlib.Path:
    """A new path `runs/<config>-<time>`."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path("runs") / f"{pathlib.Path(config_path).stem}-{now}"
    others = (base.with_name(f"{base.name}-{n}") for n in range(2, 1000))
    return next(path for path in (base, *others) if not path.exists())


def refuse_other_flags(config: "configs.Config") -> None:
    """Raises `UserError` in all processes if the flags of one differ from those of process 0."""
    from alexnet_jax.run import processes

    own = {"mode": FLAGS.mode, "workdir": FLAGS.workdir}
    for section, keys in json.loads(config.to_json()).items():
        own |= {f"{section}.{key}": value for key, value in keys.items()}
    first, *others = map(json.loads, processes.gather(json.dumps(own)))
    for index, other in enumerate(others, 1):
        different = [f"{key}: {first[key]!r} -> {other[key]!r}" for key in own if other[key] != first[key]]
        if different:
            raise UserError(
                f"process {index} was given other flags than process 0 ({'; '.join(different)}); start all "
                "with the same flags, apart from --process_id"
            )


def test(config: "configs.Config") -> int:
    """Tests the workdir's last checkpoint and prints the result."""
    from alexnet_jax import evaluate
    from alexnet_jax.run import logs, processes
    from alexnet_jax.weights import pretrained

    if flag_parsing.gives_config(sys.argv):
        progress.note(f"--config is ignored: a run is tested with its own, {FLAGS.workdir}/config.json")
    result, step = evaluate.evaluate_workdir(config, pathlib.Path(FLAGS.workdir))
    values = {"step": step, **dataclasses.asdict(result)}
    if processes.is_first():
        num_classes = pretrained.read_description(pathlib.Path(FLAGS.workdir)).model.num_classes
        print(json.dumps(values) if FLAGS.json else logs.as_table(values, num_classes))
    return 0


def summarise(config: "configs.Config") -> int:
    """Prints a table of the config's net."""
    from alexnet_jax import config as configs
    from alexnet_jax.data import sources
    from alexnet_jax.run import summary

    num_classes = config.data.num_classes or sources.open_configured(config.data, "train").num_classes
    table = summary.summarise(configs.build_model(config, num_classes), config.data.image_size)
    print(summary.as_json(table) if FLAGS.json else summary.as_table(table), end="")
    return 0
