"""Trains and tests AlexNet: python main.py --config=configs/default.py [--workdir=DIR] [--mode=train]."""

import dataclasses
import json
import pathlib

from absl import flags
from ml_collections import config_flags

from alexnet_jax import cli
from alexnet_jax import config as configs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to train, by default configs/default.py; --config.KEY=VALUE overrides a key."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, new or to go on with; by default a fresh runs/<config>-<time>."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "summary"],
    "Train, test WORKDIR's last checkpoint, or describe the net.",
)
_JSON = flags.DEFINE_bool("json", False, "With --mode=eval or --mode=summary: print JSON.")


def main() -> int:
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    if _MODE.value == "eval":
        return test(overrides)
    config = configs.resolve(_CONFIG.value, overrides)
    return train(config) if _MODE.value == "train" else summarise(config)


def train(config: configs.Config) -> int:
    from alexnet_jax.train import train

    path = config_flags.get_config_filename(flags.FLAGS["config"])
    return cli.EXIT_CODES[train(config, _WORKDIR.value or cli.fresh_workdir(path))]


def test(overrides: dict[str, object]) -> int:
    from alexnet_jax import evaluate

    workdir = pathlib.Path(cli.required("workdir", _WORKDIR.value, "the run to test"))
    result, step = evaluate.evaluate_workdir(configs.of_workdir(workdir, overrides), workdir)
    values = {"step": step, **dataclasses.asdict(result)}
    print(
        json.dumps(values) if _JSON.value else "\n".join(f"{key:12} {value}" for key, value in values.items())
    )
    return 0


def summarise(config: configs.Config) -> int:
    from alexnet_jax import evaluate, summary

    num_classes = config.data.num_classes or evaluate.open_source(config, "train").num_classes
    table = summary.summarise(configs.build_model(config, num_classes), config.data.image_size)
    print(summary.as_json(table) if _JSON.value else summary.as_table(table), end="")
    return 0


if __name__ == "__main__":
    cli.run(main, default_config=pathlib.Path(__file__).parent / "configs" / "default.py")
