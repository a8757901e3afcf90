"""Trains and tests AlexNet: python main.py --config=configs/default.py [--workdir=DIR] [--mode=train]."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while the libraries load, of which some swallow a KeyboardInterrupt; `cli.command` undoes it.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import dataclasses
import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from alexnet_jax import config as configs
from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import processes

FLAGS = flags.FLAGS


def define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config", None, "What to train, by default configs/default.py; --config.KEY=VALUE overrides a key."
    )
    flags.DEFINE_string(
        "workdir",
        None,
        "Directory of the run, new or to go on with; by default a fresh runs/<config>-<time>.",
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "eval", "summary"],
        "Train, test WORKDIR's last checkpoint, or describe the net.",
    )
    flags.DEFINE_string(
        "coordinator_address", None, "With several processes: where process 0 is, as host:port."
    )
    flags.DEFINE_integer(
        "num_processes", None, "How many processes; by default what the launcher says, 1 for a run by itself."
    )
    flags.DEFINE_integer(
        "process_id", None, "This process's number, from 0; by default what the launcher says."
    )
    flags.DEFINE_integer("start_timeout_seconds", 300, "How long the processes wait for each other.")
    flags.DEFINE_bool("json", False, "With --mode=eval or --mode=summary: print JSON.")
    flags.register_validator("workdir", lambda path: path != "", "name a directory, or leave the flag out")
    flags.register_multi_flags_validator(
        ["json", "mode"],
        lambda values: not values["json"] or values["mode"] != "train",
        "--json goes with --mode=eval or --mode=summary; training writes metrics.jsonl by itself",
    )


def main() -> int:
    overrides = config_flags.get_override_values(FLAGS["config"])
    config = None if FLAGS.mode == "eval" else configs.resolve(FLAGS.config, overrides)
    if config is not None and FLAGS.mode == "summary":
        return summarise(config)
    place = processes.find(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
    with processes.job(place, FLAGS.start_timeout_seconds):
        if config is None:
            config = configs.of_workdir(
                command_line.required("workdir", FLAGS.workdir, "the run to test"), overrides
            )
        refuse_other_flags(config)
        return test(config) if FLAGS.mode == "eval" else train(config)


def refuse_other_flags(config: configs.Config) -> None:
    """Raises `UserError` in a process that was given other flags than process 0."""
    own = {"mode": FLAGS.mode, "workdir": FLAGS.workdir}
    first, values = json.loads(processes.from_first(json.dumps([own, json.loads(config.to_json())])))
    different = [f"{key}: {first[key]!r} -> {own[key]!r}" for key in own if first[key] != own[key]]
    different += configs.differences(configs.resolve(values), config, ignore_free=False)
    if different:
        raise UserError(
            f"this process was given other flags than process 0 ({'; '.join(different)}); start all with "
            "the same, but for --process_id"
        )


def train(config: configs.Config) -> int:
    from alexnet_jax.train import train

    path = config_flags.get_config_filename(FLAGS["config"])
    return command_line.EXIT_CODES[train(config, FLAGS.workdir or command_line.fresh_workdir(path))]


def test(config: configs.Config) -> int:
    from alexnet_jax import evaluate

    if command_line.config_path(sys.argv) is not None:
        print(
            f"note: a run is tested by its own config, {FLAGS.workdir}/config.json, not by --config",
            file=sys.stderr,
        )
    result, step = evaluate.evaluate_workdir(config, pathlib.Path(FLAGS.workdir))
    values = {"step": step, **dataclasses.asdict(result)}
    if not processes.is_first():
        return 0
    print(
        json.dumps(values) if FLAGS.json else "\n".join(f"{key:12} {value}" for key, value in values.items())
    )
    return 0


def summarise(config: configs.Config) -> int:
    from alexnet_jax.data import sources
    from alexnet_jax.tools import summary

    num_classes = config.data.num_classes or sources.open_configured(config.data, "train").num_classes
    table = summary.summarise(configs.build_model(config, num_classes), config.data.image_size)
    print(summary.as_json(table) if FLAGS.json else summary.as_table(table), end="")
    return 0


if __name__ == "__main__":
    command_line.run(
        main, define_flags, default_config=pathlib.Path(__file__).parent / "configs" / "default.py"
    )
