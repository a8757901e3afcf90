"""Trained nets: reading and writing weights, a run's net.json, initial weights for a run."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alexnet_jax.common.errors import UserError, named
from alexnet_jax.common.files import write_text
from alexnet_jax.config import Config
from alexnet_jax.conv_local import ConvLocal
from alexnet_jax.data.classes import imagenet_classes
from alexnet_jax.data.preprocess import CAFFE, TORCHVISION, Preprocess
from alexnet_jax.model import AlexNet
from alexnet_jax.run import checkpoint
from alexnet_jax.run.summary import param_shapes
from alexnet_jax.variants import VARIANTS, create_model, layer_names
from alexnet_jax.weights import caffe_files, formats, published
from alexnet_jax.weights.layouts import DENSE, LAYERS, layer_shapes, to_layers, to_params
from alexnet_jax.weights.recognise import Stored

DESCRIPTION = "net.json"  # in a workdir


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A net with weights, preprocessing and class names.

    Attributes:
      path: the file or workdir it was read from.
      variables: `{"params": ...}`, without layers missing from the file.
      missing: names of the layers missing from the file.
      classes: readable names by label, or None if unknown.
    """

    path: pathlib.Path
    model: AlexNet
    variables: dict[str, Any]
    preprocess: Preprocess
    missing: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    def require_classifier(self) -> None:
        """Raises `UserError` if layers are missing."""
        if self.missing:
            raise UserError(
                f"{self.path}: no classifier ({', '.join(self.missing)} missing), so it cannot name classes; "
                "train one (configs/finetune.py), or use python -m alexnet_jax features"
            )


# --- reading ----------------------------------------------------------------------------------------------


def read(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    partial: bool = False,
    mean: Any = None,
    default_variant: str | None = None,
) -> Pretrained:
    """Loads a trained net; arguments and errors are those of `load_pretrained` in tools/net.py.

    Args:
      default_variant: the net's variant, if neither the file nor `variant` determines it.
    """
    path = _locate(path)
    if path.is_dir():
        if mean is not None:
            raise UserError(f"{path}: a run has its own mean; leave mean out")
        net = read_description(path)
        params, _ = checkpoint.restore_params(path, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        return dataclasses.replace(net, variables={"params": params})
    if isinstance(mean, str | os.PathLike):
        with named(mean):
            mean = caffe_files.read_mean(pathlib.Path(mean).expanduser())
    with named(path):
        stored, classes = formats.read(path), None
        if stored.description:
            model, preprocess, classes = _from_description(stored.description)
        else:
            model, preprocess = _guess(stored, variant or stored.variant or default_variant)
        if classes is None and model.num_classes == 1000:
            classes = tuple(name for _, name in imagenet_classes())
        if mean is not None and preprocess.resize != CAFFE.resize:
            raise UserError("has a mean of its own; a mean image is for Caffe's nets")
        if mean is not None:
            preprocess = dataclasses.replace(preprocess, mean=mean)
        shapes = layer_shapes(model, preprocess.crop_size)
        if partial and not stored.description:
            stored = _without_other_heads(stored, shapes)
        _check_layers(stored, shapes)
        missing = tuple(name for name in LAYERS if name not in stored.layers)
        if missing and not partial:
            raise UserError(
                f"has no {', '.join(missing)}, only {', '.join(stored.layers)}; "
                "load_pretrained(..., partial=True) accepts that"
            )
    if stored.ignored:
        more = ", ..." if len(stored.ignored) > 3 else ""
        taken = f"{', '.join(stored.layers)} (conv1 is {stored.names['conv1'][0]})"
        print(f"{path}: takes {taken}; ignores {', '.join(stored.ignored[:3])}{more}", file=sys.stderr)
    variables = {"params": to_params(model, stored.layers, preprocess.crop_size)}
    return Pretrained(path, model, variables, preprocess, missing, classes)


def _locate(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or directory at `path`, or else the published weights of that name, downloaded if needed."""
    found = pathlib.Path(path).expanduser()
    if found.exists():
        return found
    if str(path) in published.PUBLISHED:
        return published.fetch(str(path))
    names = ", ".join(published.PUBLISHED)
    raise UserError(f"{found}: no such file or directory; give a path, or one of {names} to download weights")


def _from_description(text: str) -> tuple[AlexNet, Preprocess, tuple[str, ...] | None]:
    """Parses net, preprocessing and classes from a text written by `_description`."""
    try:
        values = json.loads(text)
        classes = values.get("classes")
        names = None if classes is None else tuple(map(str, classes))
        return create_model(**values["model"]), Preprocess.from_json(values["preprocess"]), names
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the description of the net is damaged ({error}); export the net again") from error


def _guess(stored: Stored, variant: str | None) -> tuple[AlexNet, Preprocess]:
    """Chooses net and preprocessing for weights of other programs, by variant."""
    if variant is None:
        raise UserError(
            "the shapes of the weights fit several nets; pass variant= or --variant=, one of "
            f"{', '.join(VARIANTS)}"
        )
    num_classes = stored.layers["fc8"][1].size if "fc8" in stored.layers else 1000
    preprocess = TORCHVISION if variant == "torchvision" else CAFFE
    if variant in ("paper", "original"):
        preprocess = dataclasses.replace(CAFFE, crop_size=224, resize="central")
    if stored.crop_size:
        preprocess = dataclasses.replace(preprocess, crop_size=stored.crop_size)
    return create_model(variant, num_classes), preprocess


def _without_other_heads(stored: Stored, shapes: Mapping[str, Any]) -> Stored:
    """Leaves out fully connected layers from the first one on that does not fit the convolutions."""
    kept, ignored = dict(stored.layers), list(stored.ignored)
    for name in (name for name in DENSE if name in kept):
        below_is_missing = name != DENSE[0] and DENSE[DENSE.index(name) - 1] not in kept
        if below_is_missing or kept[name][0].shape != shapes[name][0]:
            del kept[name]
            ignored += stored.names[name]
    return dataclasses.replace(stored, layers=kept, ignored=tuple(ignored))


def _check_layers(stored: Stored, shapes: Mapping[str, Any]) -> None:
    """Raises a `UserError` that lists every array with a wrong shape or type."""
    wrong = []
    for name, arrays in stored.layers.items():
        for key, array, shape in zip(stored.names[name], arrays, shapes[name], strict=True):
            if tuple(array.shape) != shape:
                wrong.append(f"{key} is {list(array.shape)}, not {list(shape)}")
            elif np.dtype(array.dtype).kind in "iubc" or np.dtype(array.dtype).itemsize < 2:
                wrong.append(f"{key} is of {np.dtype(array.dtype).name}, not floats")
    if wrong:
        raise UserError(f"not this AlexNet: {'; '.join(wrong)}")


# --- writing ----------------------------------------------------------------------------------------------


def save_pretrained(
    path: str | os.PathLike[str],
    model: AlexNet,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Writes a net for other programs; `load_pretrained` restores it exactly.

    Args:
      path: ends in `.safetensors` for torchvision's names and layout (two columns become grouped
        convolutions), which PyTorch loads with `safetensors.torch.load_file`; or in `.npz` for Caffe's (BGR):
        `conv1/0` and `conv1/1` are pycaffe's `net.params["conv1"]`.

    Raises:
      UserError: `path` has another suffix, or other programs cannot express the net.
    """
    with named(path):
        layer_shapes(model, preprocess.crop_size)  # raises for such nets
        layers = to_layers(model, variables["params"])
        formats.write(pathlib.Path(path), layers, _description(model, preprocess, classes))


def _description(model: AlexNet, preprocess: Preprocess, classes: tuple[str, ...] | None) -> str:
    """The description of a net as JSON: `create_model`'s arguments, the preprocessing and the classes."""
    skipped = {"parent", "name", "reads", "column_axis", "column_shards"}
    fields = {
        key: value
        for key, field in type(model).__dataclass_fields__.items()
        if key not in skipped and (value := getattr(model, key)) != field.default
    }
    if isinstance(model, ConvLocal):
        fields["variant"] = "conv-local-11pct"  # has its defaults
    return json.dumps({"model": fields, "preprocess": preprocess.to_json(), "classes": classes})


# --- runs -------------------------------------------------------------------------------------------------


def describe(workdir: pathlib.Path, model: AlexNet, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
    """Writes a run's `net.json`, which makes its weights usable without config or data."""
    write_text(workdir / DESCRIPTION, _description(model, preprocess, classes))


def read_description(workdir: str | os.PathLike[str]) -> Pretrained:
    """Reads a run's `net.json`: the net without weights.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = pathlib.Path(workdir) / DESCRIPTION
    with named(path):
        try:
            text = path.read_text()
        except OSError as error:
            raise UserError(f"unreadable ({error.strerror}); give the workdir of a run") from error
        model, preprocess, classes = _from_description(text)
    return Pretrained(path.parent, model, {}, preprocess, classes=classes)


# Fields in which a net may differ from the one that provides its initial weights: those that do not change
# what its layers compute, and those of which the shapes of the layers tell.
_MAY_DIFFER = {"num_classes", "dropout", "init_scheme", "init_scale", "hidden_bias", "compute_dtype"}
_MAY_DIFFER |= {"fc_widths"}
_SHAPES = {"widths", "conv6", "removed_layers", "cross_column_layers"}


def read_initial(config: Config) -> Pretrained | None:
    """The trained weights at `init.path`, read as by `load_pretrained`; None without a path."""
    if not config.init.path:
        return None
    variant = config.model["variant"]
    return read(config.init.path, partial=True, default_variant=variant, mean=config.init.mean)


def start_from(
    loaded: Pretrained,
    model: AlexNet,
    preprocess: Preprocess,
    classes: tuple[str, ...],
    layers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The layers with which a net for `classes` starts from `loaded`.

    Args:
      layers: names of those to take. By default all convolutions, and the fully connected layers below the
        first that has another shape, as with other `fc_widths` or another image size; fc8 only if the classes
        are the same.

    Raises:
      UserError: the weights belong to another net, or lack one of `layers`.
    """
    theirs, params = loaded.model, loaded.variables["params"]
    may_differ = _MAY_DIFFER | (_SHAPES if layers else set())
    for key in {**AlexNet.__dataclass_fields__, **ConvLocal.__dataclass_fields__}:
        own, other = (getattr(net, key, None) for net in (model, theirs))
        if key not in {"parent", "name", *may_differ} and own != other:
            raise UserError(
                f"init.path={loaded.path}: its net has {key}={other!r}, this config "
                f"{own!r}; set model.variant or model.{key} to match"
            )
    same_classes = theirs.num_classes == model.num_classes and (loaded.classes or classes) == classes
    names: tuple[str, ...] = layer_names(model)
    shapes, taken = param_shapes(model, preprocess.crop_size), {}
    for name in layers or names:
        if name not in params or name not in shapes:
            problem = "not in both nets"
        elif name == names[-1] and not same_classes:
            problem = "of other classes"
        elif (found := params[name]["kernel"].shape) != (wanted := shapes[name]["kernel"].shape):
            side = loaded.preprocess.crop_size
            problem = f"of shape {list(found)}, not {list(wanted)} (its data.image_size is {side})"
        else:
            taken[name] = params[name]
            continue
        if layers or not name.startswith("fc"):
            raise UserError(f"init.path={loaded.path}: {name} is {problem}; leave it out of init.layers")
        break  # what stands above a new layer is new
    return taken
