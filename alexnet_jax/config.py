"""The config: every key with type, bounds and meaning; mistakes are one-line errors.

Files in `configs/` set every key; `resolve` turns them into the frozen dataclasses below. Each section is
read by the module that owns it.
"""

import copy
import dataclasses
import fnmatch
import json
import math
import pathlib
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import ml_collections
from ml_collections.config_dict import placeholder

from alexnet_jax import model, variants
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.typed import (
    Bound,
    above,
    as_type,
    at_least,
    at_most,
    below,
    check_keys,
    one_of,
    plain_type,
)

FILE_NAME = "config.json"  # in a workdir
MAY_CHANGE = "may change"  # on resume: duration, place and frequency, not the result (up to rounding)
MAX_EPOCHS = 1e6
MAX_STEPS = 2**31 - 1  # steps are counted in an int32
RATE_CHANGES = Bound(
    lambda changes: all(0 <= epoch <= MAX_EPOCHS and rate >= 0 for _, epoch, rate in changes),
    "each must be (name, first epoch, rate), such as ('conv1', 68.0, 1e-5)",
)
DECAYS = Bound(lambda decays: all(d >= 0 for _, d in decays), "each must be (layer, decay of 0 or more)")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, their sizes and the batches."""

    source: str  # embedded, tfds:<name>, folder:<path>, kaggle:<path>, tars:<path>, prepared:<path>
    data_dir: Annotated[str | None, MAY_CHANGE]  # where TFDS looks; None for its default
    num_classes: Annotated[int | None, at_least(1)]  # checked against the source; None accepts any
    order: Annotated[str, one_of("shuffled", "fixed")]  # of each epoch: its own, or the first one's
    batch_size: Annotated[int, at_least(1)]  # images a step, over all devices
    micro_batches: Annotated[int, at_least(1), MAY_CHANGE]  # parts of a batch in turn, to save memory
    resize_size: Annotated[int, at_most(4096)]  # pixels: side of the stored squares; at 4096 one takes 50 MB
    image_size: Annotated[int, at_least(1)]  # pixels: side of the net's input crops
    max_bad_fraction: Annotated[float, at_least(0), at_most(1), MAY_CHANGE]  # more bad images stop the run


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """The random view of a training image; see `augment.Augment`."""

    crop: bool
    mirror: bool
    run_length: Annotated[int, at_least(1)]  # consecutive images with the same crop and flip
    colour: Annotated[str, one_of("none", "paper", "original")]
    colour_until_epochs: Annotated[float | None, at_least(0)]  # when the colour shift ends; None for never
    mean: Annotated[str, one_of("image", "colour")]  # what is subtracted
    mean_crop: Annotated[str, one_of("centre", "same")]  # of the mean image: its centre, or as the view


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its schedule; see `optimizer.make`."""

    learning_rate: Annotated[float, at_least(0)]  # initial, of the weights
    momentum: Annotated[float, at_least(0), below(1)]
    weight_decay: Annotated[float, at_least(0)]
    layer_weight_decays: Annotated[tuple[tuple[str, float], ...], DECAYS]  # of single layers, instead
    bias_rate_factor: Annotated[float, at_least(0)]  # biases' rate, in multiples of the weights'
    bias_rate_drops: bool  # whether the biases' rate follows the schedule
    schedule: Annotated[str, one_of("plateau", "epochs", "constant")]
    drop_factor: Annotated[float, above(0), at_most(1)]  # multiplies the rate at a drop (plateau, epochs)
    drop_epochs: tuple[Annotated[float, at_least(0), at_most(MAX_EPOCHS)], ...]  # when the rate drops
    patience_evals: Annotated[int, at_least(1)]  # evaluations without a new best before a drop (plateau)
    max_drops: Annotated[int, at_least(0)]  # after these, training ends instead of a drop (plateau)
    # Rates, the latest holds: a layer, one of its two as conv1.kernel; all as *.bias until one has its own.
    layer_rates: Annotated[tuple[tuple[str, float, float], ...], RATE_CHANGES]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices on each axis; -1 for all remaining ones. `columns.make_mesh` checks them."""

    data: Annotated[int, MAY_CHANGE]
    column: Annotated[int, MAY_CHANGE]


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """The initial weights."""

    path: str | None  # trained weights, as `load_pretrained` reads them; None or "" for random ones
    layers: tuple[str, ...]  # taken from there; () for all that fit
    mean: str | None  # the mean image of a Caffe net at `path`; None for its mean colour, or the path's own


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Duration and intervals. Exactly one of each pair `_steps` and `_epochs` is set."""

    seed: Annotated[int, at_least(0), below(2**31)]
    total_steps: Annotated[int | None, above(0), below(MAX_STEPS), MAY_CHANGE]
    total_epochs: Annotated[float | None, above(0), at_most(MAX_EPOCHS), MAY_CHANGE]
    log_every_steps: Annotated[int, at_least(1)]
    profile_steps: Annotated[int, at_least(0), MAY_CHANGE]  # steps recorded in workdir's profile/; or 0
    wandb_project: Annotated[str | None, MAY_CHANGE]  # mirrors the metrics to Weights & Biases; or None
    eval_every_steps: Annotated[int | None, above(0)]
    eval_every_epochs: Annotated[float | None, above(0), at_most(MAX_EPOCHS)]
    eval_views: Annotated[int, one_of(1, 9, 10)]  # the centre; a 3 x 3 grid of crops; the paper's ten views
    save_every_steps: Annotated[int | None, above(0), MAY_CHANGE]
    save_every_epochs: Annotated[float | None, above(0), at_most(MAX_EPOCHS), MAY_CHANGE]
    save_every_minutes: Annotated[float | None, above(0), MAY_CHANGE]  # also save at this interval, or None
    keep_checkpoints: Annotated[int, at_least(1), MAY_CHANGE]  # newest checkpoints kept, besides the best
    keep_every_epochs: Annotated[float | None, above(0), MAY_CHANGE]  # keeps one for good per interval
    max_seconds: Annotated[float | None, above(0), MAY_CHANGE]  # limit: saves and exits with 75 before it
    allow_changes: Annotated[bool, MAY_CHANGE]  # resumes a workdir with a different config


@dataclasses.dataclass(frozen=True)
class Config:
    """All sections. `model` has `variant` and the fields of `AlexNet`, None for the variant's value."""

    data: DataConfig
    model: dict[str, Any]
    augment: AugmentConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    init: InitConfig
    run: RunConfig

    def to_json(self) -> str:
        """The config as JSON, for `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_OTHER_UNIT = {"steps": "epochs", "epochs": "steps"}
# Fields of `AlexNet` that are not keys: they follow from the data (classes) and the mesh (layout).
_NO_KEYS = ("parent", "name", "num_classes", "reads", "column_axis", "column_shards")


def _hints(section: str) -> dict[str, Any]:
    """The declared type of each key of a section; keys of `model` are fields of `AlexNet`."""
    if section != "model":
        return typing.get_type_hints(typing.get_type_hints(Config)[section], include_extras=True)
    fields = {k: v for k, v in model.AlexNet.__annotations__.items() if k not in _NO_KEYS}
    return {"variant": str, **{key: hint | None for key, hint in fields.items()}}


def model_placeholders() -> dict[str, Any]:
    """A placeholder for every switch of the net: None until a config or the command line sets it."""
    return {key: placeholder(plain_type(hint)) for key, hint in _hints("model").items() if key != "variant"}


def resolve(
    given: ml_collections.ConfigDict | dict[str, Any], overrides: dict[str, Any] | None = None
) -> Config:
    """Checks a config and freezes it.

    Args:
      overrides: values by dotted key, from the command line. A `_steps` key replaces the corresponding
        `_epochs` and vice versa.

    Raises:
      UserError: a key is unknown, missing, of the wrong type or out of range; the message names it.
    """
    values = given.to_dict() if isinstance(given, ml_collections.ConfigDict) else copy.deepcopy(given)
    if not isinstance(values, dict):
        raise UserError(f"{values!r}: not a config, which has sections of keys, as in configs/default.py")
    sections: dict[str, Any] = {**typing.get_type_hints(Config), "model": dict}
    check_keys(values, sections, "")
    for name in sections:
        if not isinstance(values[name], dict):
            raise UserError(f"{name}={values[name]!r}: must be a section of keys")
    _override(values, overrides or {})
    config = Config(**{name: _section(kind, values[name], name) for name, kind in sections.items()})
    _check_together(config)
    return config


def of_workdir(workdir: str | pathlib.Path, overrides: dict[str, Any] | None = None) -> Config:
    """The config of a run, from its `config.json`.

    Raises:
      UserError: the file is unreadable or not a config of this program, or an override is wrong.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    try:
        return resolve(json.loads(path.read_text()), overrides)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; give the workdir of a run") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable config ({error})") from error


def build_model(config: Config, num_classes: int) -> model.AlexNet:
    """The net of a config."""
    switches = {k: v for k, v in config.model.items() if k != "variant" and v is not None}
    return variants.create_model(config.model["variant"], num_classes, **switches)


def events_of(events: Sequence[tuple[str, Any, float]], layer: str, kind: str) -> list[tuple[Any, float]]:
    """`(when, rate)` of those `(name, when, rate)` that hold for the `kernel` or `bias` of a layer.

    Names are those of `optimizer.layer_rates`. A pattern such as `*.bias` ends where the layer's own begin.
    """
    names = layer, f"{layer}.{kind}"
    own = [(when, rate) for name, when, rate in events if name in names]
    begin = min((when for when, _ in own), default=math.inf)
    return [(w, rate) for name, w, rate in events if w < begin and fnmatch.filter(names, name)] + own


def fixed_values(config: Config) -> dict[str, Any]:
    """The values by dotted key that may not change on resume."""
    return {
        f"{section}.{key}": values[key]
        for section, values in dataclasses.asdict(config).items()
        for key, hint in _hints(section).items()
        if MAY_CHANGE not in typing.get_args(hint)
    }


def differences(old: Config, new: Config) -> dict[str, str]:
    """Lines `key: old -> new`, by key, for each key that differs and may not change on resume."""
    before, after = fixed_values(old), fixed_values(new)
    changed = [key for key in after if before[key] != after[key]]
    return {key: f"{key}: {before[key]!r} -> {after[key]!r}" for key in changed}


def steps_of(epochs: float, num_examples: int, batch_size: int) -> int:
    """The first step at which `epochs` passes over the examples are complete, at most `MAX_STEPS`."""
    return min(math.ceil(epochs * num_examples / batch_size - 1e-9), MAX_STEPS)


def in_steps(run: RunConfig, name: str, num_examples: int, batch_size: int) -> int:
    """`<name>_steps`, or `<name>_epochs` in steps, at least one; raises `UserError` at `MAX_STEPS`."""
    if (steps := getattr(run, f"{name}_steps")) is not None:
        return steps
    epochs = getattr(run, f"{name}_epochs")
    if (steps := steps_of(epochs, num_examples, batch_size)) >= MAX_STEPS:
        raise UserError(f"run.{name}_epochs={epochs!r}: must be fewer than {MAX_STEPS:,} steps")
    return max(steps, 1)


def _override(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        if section not in values:
            raise UserError(f"{key}: not a key of a section, such as data.batch_size")
        values[section][name] = value
        stem, _, unit = name.rpartition("_")
        twin = f"{stem}_{_OTHER_UNIT.get(unit)}"
        if value is not None and twin in values[section] and f"{section}.{twin}" not in overrides:
            values[section][twin] = None


def _section(kind: type, values: dict[str, Any], name: str) -> Any:
    hints = _hints(name)
    check_keys(values, hints, f"{name}.")
    return kind(**{key: as_type(values[key], hint, f"{name}.{key}") for key, hint in hints.items()})


def _check_together(config: Config) -> None:
    """Raises `UserError` for inconsistent values."""
    data, run = config.data, config.run
    if data.batch_size % (parts := data.micro_batches):
        raise UserError(f"data.micro_batches={parts}: must divide data.batch_size={data.batch_size}")
    if (stored := data.resize_size) < data.image_size:
        raise UserError(f"data.resize_size={stored}: must be at least data.image_size={data.image_size}")
    layers = variants.layer_names(build_model(config, num_classes=2))
    rates, decays = config.optimizer.layer_rates, config.optimizer.layer_weight_decays
    for name, *_ in rates:
        if not fnmatch.filter([layer + kind for layer in layers for kind in ("", ".kernel", ".bias")], name):
            remedy = f"the layers are {', '.join(layers)}, each with a kernel and a bias, as in conv1.bias"
            raise UserError(f"optimizer.layer_rates={rates!r}: no parameter is named {name!r}; {remedy}")
    if any(layer not in layers for layer, _ in decays):
        raise UserError(f"optimizer.layer_weight_decays={decays!r}: the layers are {', '.join(layers)}")
    for name in ("total", "eval_every", "save_every"):
        units = [unit for unit in _OTHER_UNIT if getattr(run, f"{name}_{unit}") is not None]
        if len(units) != 1:
            pair, state = f"run.{name}_steps and run.{name}_epochs", "both are" if units else "neither is"
            raise UserError(f"{pair}: {state} set; set exactly one of them (the other None)")
