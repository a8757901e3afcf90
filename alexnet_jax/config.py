"""The config: what each key is, and one clear line for whatever is wrong with one.

Files in `configs/` give every key its value; this module turns them into frozen dataclasses, so that the
rest of the program reads typed attributes and an unknown, missing or impossible key never goes unseen.
"""

import copy
import dataclasses
import json
import math
import pathlib
import typing
from typing import Any

import ml_collections

from alexnet_jax import augment, model, optimizer, variants
from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.common.typed import as_type


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the images come from and in what pieces they are read."""

    source: str  # embedded, tfds:<name>, folder:<path>, kaggle:<path>, tars:<path>, prepared:<path>
    data_dir: str | None  # where TFDS looks; None for its own default
    num_classes: int | None  # what the source must have; None for whatever it has
    batch_size: int  # images a step, over all devices
    micro_batches: int  # into so many parts a batch is cut, computed one after another to save memory
    resize_size: int  # pixels: shorter side of the images on the host, whose central square is kept; to 4096
    image_size: int  # pixels: side of the patches that the net sees
    max_bad_fraction: float  # share of unreadable images at which a run stops


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to a training image; see `augment.training_views`."""

    crop: bool
    mirror: bool
    run_length: int  # images in a row that share a crop and a flip
    colour: str  # none, paper, original
    colour_until_epochs: float | None  # no colour shift from then on; None for never
    mean: str  # image or colour: what is subtracted


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The update rule and its schedule; see `optimizer`."""

    learning_rate: float  # of the weights, at the start
    momentum: float
    weight_decay: float
    bias_rate_factor: float  # the biases' rate, as a multiple of the weights'
    bias_rate_drops: bool  # whether the biases' rate follows the schedule or stays as it starts
    schedule: str  # plateau, epochs, exponential, constant
    drop_factor: float  # what a drop multiplies the rate by (plateau, epochs)
    drop_epochs: tuple[float, ...]  # when it drops (epochs)
    patience_evals: int  # evaluations without a better top-1 error before a drop (plateau)
    max_drops: int  # after so many drops the next one ends the run (plateau)
    min_gain: float  # points of % that count as better (plateau)
    final_factor: float  # rate at the end of the run, as a multiple of the first (exponential)
    layer_rates: tuple[tuple[str, float, float], ...]  # (layer, from this epoch on, its own rate)


@dataclasses.dataclass(frozen=True)
class Init:
    """What the weights start from."""

    path: str | None  # trained weights, as `load_pretrained` reads them; None or "" for random ones


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis has; -1 for what is left."""

    data: int
    column: int


@dataclasses.dataclass(frozen=True)
class Run:
    """How long and how often. Of a pair `_steps` and `_epochs` exactly one is set."""

    seed: int
    total_steps: int | None
    total_epochs: float | None
    log_every_steps: int
    profile_steps: int  # so many steps are recorded in the workdir's profile/; 0 for none
    eval_every_steps: int | None
    eval_every_epochs: float | None
    eval_views: int  # 1: the central patch; 10: the paper's ten views
    save_every_steps: int | None
    save_every_epochs: float | None
    save_every_minutes: float | None  # also so often by the clock; None for never
    keep_checkpoints: int  # the newest so many, besides the best
    keep_every_epochs: float | None  # one each so many stays for good; None for none
    max_seconds: float | None  # saves and stops in time, with exit code 75; None for no limit
    max_step_backs: int  # on divergence, goes back to the last checkpoint at a lower rate so often
    allow_changes: bool  # goes on in a workdir of another config


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole config.

    `model` has the keys `variant` and the switches of `AlexNet`, None for the variant's own.
    """

    data: Data
    model: dict[str, Any]
    augment: Augment
    optimizer: Optimizer
    mesh: MeshConfig
    init: Init
    run: Run

    def to_json(self) -> str:
        """The config as JSON, for `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


FILE_NAME = "config.json"  # of a workdir

# Fields of `AlexNet` that are not the user's to set: classes come from the data, the layout from the mesh.
_NOT_SWITCHES = ("parent", "name", "num_classes", "reads", "column_axis", "column_shards")
MODEL_SWITCHES = tuple(key for key in model.AlexNet.__dataclass_fields__ if key not in _NOT_SWITCHES)

MAX_RESIZE_SIZE = 4096  # pixels; an image of that size takes 50 MB, and there are many in flight
MAX_EPOCHS = 1e6
MAX_STEPS = 2**31 - 1  # steps are counted in an int32

# Keys that may change when a run goes on: they say how long, where and how often, not what is computed.
# The length may not where the rate depends on it, with optimizer.schedule="exponential".
MAY_CHANGE = (
    "data.data_dir",
    "data.max_bad_fraction",
    "data.micro_batches",
    "mesh.data",
    "mesh.column",
    "run.total_steps",
    "run.total_epochs",
    "run.profile_steps",
    "run.save_every_steps",
    "run.save_every_epochs",
    "run.save_every_minutes",
    "run.keep_checkpoints",
    "run.keep_every_epochs",
    "run.max_seconds",
    "run.max_step_backs",
    "run.allow_changes",
)
_LENGTH = ("run.total_steps", "run.total_epochs")


def resolve(
    given: ml_collections.ConfigDict | dict[str, Any], overrides: dict[str, Any] | None = None
) -> Config:
    """Checks a config and freezes it.

    Args:
      overrides: values by dotted key, as given on the command line. A `_steps` key among them takes the
        place of its `_epochs`, and the other way round.

    Raises:
      UserError: a key is unknown, missing, of the wrong type or out of range; the line names it.
    """
    values = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else copy.deepcopy(given)
    if not isinstance(values, dict):
        raise UserError(f"{values!r}: not a config, which has sections of keys, as in configs/default.py")
    sections = {field.name: field.type for field in dataclasses.fields(Config)}
    _check_keys(values, sections, "")
    for name in sections:
        if not isinstance(values[name], dict):
            raise UserError(f"{name}={values[name]!r}: must be a section with keys of its own")
    _override(values, overrides or {})
    switches = {"variant": str, **{key: model.AlexNet.__annotations__[key] | None for key in MODEL_SWITCHES}}
    config = Config(
        data=_section(Data, values["data"], "data"),
        model=_typed(switches, values["model"], "model"),
        augment=_section(Augment, values["augment"], "augment"),
        optimizer=_section(Optimizer, values["optimizer"], "optimizer"),
        mesh=_section(MeshConfig, values["mesh"], "mesh"),
        init=_section(Init, values["init"], "init"),
        run=_section(Run, values["run"], "run"),
    )
    _check_values(config)
    return config


def of_workdir(workdir: str | pathlib.Path, overrides: dict[str, Any] | None = None) -> Config:
    """The config that a run was begun with, from its `config.json`.

    Raises:
      UserError: it cannot be read, is not a config of this program, or an override is wrong.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; give the workdir of a run") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable config ({error})") from error
    try:
        return resolve(_with_later_keys(values), overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# Keys that came after the first runs, and what those did without; switches of the net were the variant's own.
_LATER: dict[str, dict[str, Any]] = {
    "data": {"micro_batches": 1},
    "model": dict.fromkeys(("compute_dtype", "removed_layers")),
    "run": {"profile_steps": 0},
}


def _with_later_keys(values: Any) -> Any:
    """A run's config as it would be written today, as far as it is one."""
    if not isinstance(values, dict):
        return values
    return {
        name: {**_LATER.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in values.items()
    }


def _override(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        if section not in values:
            raise UserError(
                f"{key}: not a key of a section, such as data.batch_size; configs/default.py has all"
            )
        values[section][name] = value
        if value is None:
            continue
        for mine, other in (("_steps", "_epochs"), ("_epochs", "_steps")):
            twin = f"{name.removesuffix(mine)}{other}"
            if name.endswith(mine) and twin in values[section] and f"{section}.{twin}" not in overrides:
                values[section][twin] = None


def build_model(config: Config, num_classes: int) -> model.AlexNet:
    """The net that a config asks for."""
    switches = {k: v for k, v in config.model.items() if k != "variant" and v is not None}
    return variants.create_model(config.model["variant"], num_classes, **switches)


def differences(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` for each key that differs and may not change when a run goes on."""
    fixed = _LENGTH if new.optimizer.schedule == "exponential" else ()
    return [
        line
        for line in all_differences(old, new)
        if (key := line.split(":")[0]) not in MAY_CHANGE or key in fixed
    ]


def all_differences(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` for each key that differs."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in after
        if before.get(key) != after.get(key)
    ]


def steps_of(epochs: float, num_examples: int, batch_size: int) -> int:
    """The first step at which `epochs` passes over the examples are complete, at most `MAX_STEPS`."""
    return min(math.ceil(epochs * num_examples / batch_size - 1e-9), MAX_STEPS)


def in_steps(run: Run, name: str, num_examples: int, batch_size: int) -> int:
    """`<name>_steps`, or `<name>_epochs` turned into steps (at least one).

    Raises:
      UserError: these are more epochs than steps can be counted.
    """
    steps = getattr(run, f"{name}_steps")
    if steps is None:
        epochs = getattr(run, f"{name}_epochs")
        steps = steps_of(epochs, num_examples, batch_size)
        if steps >= MAX_STEPS:
            raise UserError(f"run.{name}_epochs={epochs!r}: must be fewer than {MAX_STEPS:,} steps")
    return max(steps, 1)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _check_keys(values: dict[str, Any], known: Any, prefix: str) -> None:
    for key in values:
        if key not in known:
            mend = did_you_mean(f"{prefix}{key}", [f"{prefix}{name}" for name in known])
            raise UserError(f"{prefix}{key}: no such key in a config; {mend}")
    for key in known:
        if key not in values:
            raise UserError(f"{prefix}{key}: missing in the config; configs/default.py shows every key")


def _section(kind: type, values: dict[str, Any], name: str) -> Any:
    return kind(**_typed(typing.get_type_hints(kind), values, name))


def _typed(hints: dict[str, Any], values: dict[str, Any], section: str) -> dict[str, Any]:
    _check_keys(values, hints, f"{section}.")
    return {key: as_type(values[key], hint, f"{section}.{key}") for key, hint in hints.items()}


def _check_values(config: Config) -> None:
    def require(good: bool, key: str, mend: str) -> None:
        if not good:
            section, name = key.split(".")
            raise UserError(f"{key}={getattr(getattr(config, section), name)!r}: {mend}")

    data, run, opt, aug = config.data, config.run, config.optimizer, config.augment
    require(data.num_classes is None or data.num_classes >= 1, "data.num_classes", "must be 1 or more")
    require(data.batch_size >= 1, "data.batch_size", "must be 1 or more")
    require(
        data.micro_batches >= 1 and data.batch_size % max(data.micro_batches, 1) == 0,
        "data.micro_batches",
        f"must be 1 or more and divide the {data.batch_size} images of a batch (data.batch_size)",
    )
    require(data.image_size >= 1, "data.image_size", "must be 1 or more")
    require(
        data.resize_size >= data.image_size,
        "data.resize_size",
        f"must be at least data.image_size={data.image_size}, for patches are cut out of it",
    )
    require(
        data.resize_size <= MAX_RESIZE_SIZE,
        "data.resize_size",
        f"must be at most {MAX_RESIZE_SIZE}, or the images would fill the memory",
    )
    require(0 <= data.max_bad_fraction <= 1, "data.max_bad_fraction", "must lie between 0 and 1")
    require(aug.colour in augment.COLOURS, "augment.colour", f"choose one of {', '.join(augment.COLOURS)}")
    require(aug.mean in ("image", "colour"), "augment.mean", "choose image or colour")
    require(aug.run_length >= 1, "augment.run_length", "must be 1 or more")
    until = aug.colour_until_epochs
    require(until is None or until >= 0, "augment.colour_until_epochs", "must be 0 or more, or None")
    require(opt.learning_rate >= 0, "optimizer.learning_rate", "must be 0 or more")
    require(0 <= opt.momentum < 1, "optimizer.momentum", "must be at least 0 and below 1")
    require(opt.weight_decay >= 0, "optimizer.weight_decay", "must be 0 or more")
    require(opt.bias_rate_factor >= 0, "optimizer.bias_rate_factor", "must be 0 or more")
    require(
        opt.schedule in optimizer.SCHEDULES,
        "optimizer.schedule",
        f"choose one of {', '.join(optimizer.SCHEDULES)}",
    )
    require(0 < opt.drop_factor <= 1, "optimizer.drop_factor", "must be above 0 and at most 1")
    require(0 < opt.final_factor <= 1, "optimizer.final_factor", "must be above 0 and at most 1")
    require(opt.patience_evals >= 1, "optimizer.patience_evals", "must be 1 or more")
    require(opt.max_drops >= 0, "optimizer.max_drops", "must be 0 or more")
    require(opt.min_gain >= 0, "optimizer.min_gain", "must be 0 or more")
    require(
        all(0 <= epoch <= MAX_EPOCHS for epoch in opt.drop_epochs),
        "optimizer.drop_epochs",
        f"each must be at least 0 and at most {MAX_EPOCHS:,.0f}",
    )
    net = build_model(config, num_classes=2)
    layers = [
        layer for layer in model.LAYERS if layer not in net.removed_layers and (layer != "conv6" or net.conv6)
    ]
    require(
        all(layer in layers for layer, _, _ in opt.layer_rates),
        "optimizer.layer_rates",
        f"the layers are {', '.join(layers)}",
    )
    require(
        all(0 <= epoch <= MAX_EPOCHS and rate >= 0 for _, epoch, rate in opt.layer_rates),
        "optimizer.layer_rates",
        "each must be (layer, from this epoch on, rate), as ('conv1', 68.0, 1e-5)",
    )
    for name in ("total", "eval_every", "save_every"):
        pair = [f"{name}_steps", f"{name}_epochs"]
        values = [getattr(run, key) for key in pair]
        if (values[0] is None) == (values[1] is None):
            state = "both are set" if values[0] is not None else "neither is set"
            raise UserError(
                f"run.{pair[0]} and run.{pair[1]}: {state}; set exactly one of them (the other None)"
            )
        key = pair[0] if values[1] is None else pair[1]
        require(getattr(run, key) > 0, f"run.{key}", "must be above 0")
        require(
            values[1] is None or values[1] <= MAX_EPOCHS, f"run.{key}", f"must be at most {MAX_EPOCHS:,.0f}"
        )
    require(
        run.total_steps is None or run.total_steps < MAX_STEPS,
        "run.total_steps",
        f"must be below {MAX_STEPS:,}: the step is an int32",
    )
    require(run.log_every_steps >= 1, "run.log_every_steps", "must be 1 or more")
    require(
        run.eval_views in (1, 10), "run.eval_views", "must be 1 (the central patch) or 10 (the paper's views)"
    )
    require(run.keep_checkpoints >= 1, "run.keep_checkpoints", "must be 1 or more")
    for key in ("save_every_minutes", "keep_every_epochs", "max_seconds"):
        value = getattr(run, key)
        require(value is None or value > 0, f"run.{key}", "must be above 0, or None")
    require(run.max_step_backs >= 0, "run.max_step_backs", "must be 0 or more")
    require(0 <= run.seed < 2**31, "run.seed", "must be at least 0 and below 2**31")
