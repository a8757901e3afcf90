"""Trained weights in and out: torchvision's and Caffe's layouts, and a run's own.

In between lies one form for all of them, a weight and a bias by layer: `[O, I, h, w]` for convolutions, with
the inputs of one group where there are groups, and `[O, I]` for fully connected layers, where fc6 reads its
maps channel by channel. Ours has columns in front and channels last (`to_params`, `to_layers`).
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing, write_npz, write_text
from alexnet_jax.data.preprocess import CAFFE, TORCHVISION, Preprocess
from alexnet_jax.model import AlexNet, param_shapes
from alexnet_jax.run import checkpoint
from alexnet_jax.variants import VARIANTS, create_model
from alexnet_jax.weights import caffe_files, published, torch_files

# torchvision's names of the layers: their places in its two `Sequential`s.
TORCH_NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
LAYERS = tuple(TORCH_NAMES)
_CONVOLUTIONS, _DENSE = LAYERS[:5], LAYERS[5:]
_WRAPPERS = {"module", "model", "_orig_mod"}  # what DataParallel, trainers and torch.compile put around names
DESCRIPTION = "net.json"  # of a workdir
_OWN = "alexnet_jax"  # where our files keep a description of the net beside its weights
_IMAGENET_CLASSES = pathlib.Path(__file__).parents[1] / "data" / "imagenet2012" / "class_names.txt"

Layers = dict[str, tuple[Any, Any]]  # by layer, weight and bias: arrays, or tensors still in their file


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A net with its weights and all that is needed to use it.

    Attributes:
      path: where they were read.
      variables: `{"params": ...}`; layers that the file lacks are not in it.
      missing: names of those layers.
      classes: readable names by label, or None where they are not known.
    """

    path: pathlib.Path
    model: AlexNet
    variables: dict[str, Any]
    preprocess: Preprocess
    missing: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None


def load_pretrained(
    path: str | os.PathLike[str], *, variant: str | None = None, partial: bool = False, mean: Any = None
) -> tuple[AlexNet, dict[str, Any], Preprocess]:
    """A trained net in one line: `(model, variables, preprocess)`.

    `model.apply(variables, preprocess(image)[None])` gives its logits.

    Args:
      path: torchvision's `.pth`, a `.safetensors` or `.npz` with the same names, Caffe's `.caffemodel`, the
        workdir of a run, or `torchvision`, `caffe` or `caffenet` for the published weights.
      variant: which net the weights are of, where their shapes leave it open.
      partial: whether layers may be missing; they are then not in `variables` (`complete` adds them).
      mean: for Caffe's nets, the mean image: a `.binaryproto` or RGB `[256, 256, 3]` in grey levels.

    Raises:
      UserError: there is no such file, it is damaged or of another net, or it could run code.
    """
    loaded = read(path, variant=variant, partial=partial, mean=mean)
    return loaded.model, loaded.variables, loaded.preprocess


def read(
    path: str | os.PathLike[str], *, variant: str | None = None, partial: bool = False, mean: Any = None
) -> Pretrained:
    """As `load_pretrained`, with the names of the classes and of the layers that are missing."""
    path = locate(path)
    if path.is_dir():
        return _read_workdir(path)
    stored = _read(path)
    model, preprocess = _recognise(path, stored, variant)
    if mean is not None:
        preprocess = dataclasses.replace(preprocess, mean=_mean_image(mean))
    wanted = layer_shapes(model, preprocess.crop_size)
    _check_shapes(path, stored, wanted)
    missing = tuple(name for name in wanted if name not in stored.layers)
    if missing and not partial:
        raise UserError(
            f"{path}: has no {', '.join(missing)}, only {', '.join(stored.layers)}; "
            f"load_pretrained(..., partial=True) takes what is there"
        )
    layers = {name: stored.layers[name] for name in wanted if name not in missing}
    variables = {"params": to_params(model, layers, preprocess.crop_size)}
    classes = stored.description.get("classes")
    if classes is None and model.num_classes == 1000:
        classes = (name for _, name in imagenet_classes())
    names = None if classes is None else tuple(map(str, classes))
    return Pretrained(path, model, variables, preprocess, missing, names)


def locate(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or directory meant by a path or by the name of published weights."""
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        if str(path) in published.PUBLISHED:
            return published.fetch(str(path))
        names = ", ".join(published.PUBLISHED)
        raise UserError(
            f"{found}: no such file or directory; give a path, or one of {names} for those weights"
        )
    return found


def complete(model: AlexNet, variables: dict[str, Any], image_size: int, seed: int = 0) -> dict[str, Any]:
    """`variables` with the layers that they lack, initialised as the net's own."""
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, image_size, image_size, 3)))["params"])
    return {"params": {**init(jax.random.key(seed)), **variables["params"]}}


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and names of ImageNet's 1000 classes in the order of their labels (sorted by id)."""
    lines = _IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines()
    return tuple((line[:9], line[10:]) for line in lines)


# --- Between the layouts --------------------------------------------------------------------------------


def layer_shapes(model: AlexNet, image_size: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of each layer's weight and bias in the form between the layouts.

    Raises:
      UserError: the net has a layer that has no counterpart in AlexNets elsewhere.
    """
    if model.conv6:
        raise UserError(
            "model.conv6=True: AlexNet as others know it has no sixth convolution to write or read"
        )
    if model.removed_layers:
        raise UserError(
            f"model.removed_layers={model.removed_layers}: AlexNet elsewhere has every layer, "
            "so this net can be neither written nor read"
        )
    if model.columns > 1 and not set(_DENSE) <= set(model.cross_column_layers):
        raise UserError(
            f"model.cross_column_layers={model.cross_column_layers}: independent columns of fully "
            "connected layers have no counterpart in AlexNets elsewhere"
        )
    shapes = {}
    for name, params in param_shapes(model, image_size).items():
        columns, *window, inputs, outputs = params["kernel"].shape
        outputs = model.num_classes if name == "fc8" else columns * outputs
        shapes[name] = ((outputs, inputs, *window), (outputs,))
    return {name: shapes[name] for name in LAYERS}


def to_params(model: AlexNet, layers: Layers, image_size: int) -> dict[str, Any]:
    """Layers as the net's parameters, float32; `to_layers` is its exact reverse."""
    shapes = param_shapes(model, image_size)
    params = {}
    for name, (weight, bias) in layers.items():
        columns, *_, outputs = shapes[name]["kernel"].shape
        weight, bias = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
        unused = columns * outputs - len(bias)  # of the last column of fc8, where the classes are odd
        weight = np.pad(weight, [(0, unused), *[(0, 0)] * (weight.ndim - 1)])
        bias = np.pad(bias, (0, unused))
        weight = weight.reshape(columns, outputs, *weight.shape[1:])
        if name == "fc6":
            weight = _swap_maps(weight, model.widths[4], to_channels_last=True)
        # Inputs before outputs, and the window before both.
        axes = (0, 3, 4, 2, 1) if weight.ndim == 5 else (0, 2, 1)
        kernel = jnp.asarray(np.ascontiguousarray(weight.transpose(axes)))
        params[name] = {"kernel": kernel, "bias": jnp.asarray(bias.reshape(columns, outputs))}
    return params


def to_layers(model: AlexNet, params: Mapping[str, Any]) -> Layers:
    """The net's parameters as layers, float32 arrays."""
    layers = {}
    for name in (name for name in LAYERS if name in params):
        kernel, bias = (np.asarray(params[name][key], np.float32) for key in ("kernel", "bias"))
        weight = kernel.transpose((0, 4, 3, 1, 2) if kernel.ndim == 5 else (0, 2, 1))
        if name == "fc6":
            weight = _swap_maps(weight, model.widths[4], to_channels_last=False)
        weight, bias = weight.reshape(-1, *weight.shape[2:]), bias.reshape(-1)
        used = model.num_classes if name == "fc8" else len(bias)
        layers[name] = (np.ascontiguousarray(weight[:used]), bias[:used])
    return layers


def _swap_maps(weight: np.ndarray, channels: int, *, to_channels_last: bool) -> np.ndarray:
    """Reorders fc6's inputs `[columns, O, I]` between channel by channel and place by place."""
    places = weight.shape[-1] // channels
    before = (channels, places) if to_channels_last else (places, channels)
    return weight.reshape(*weight.shape[:2], *before).swapaxes(2, 3).reshape(weight.shape)


# --- In -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Stored:
    """What a file holds.

    Attributes:
      names: what the file calls each layer's weight and bias.
      description: of the net, where the file is one of ours, else empty.
      variant: the net that a foreign file is of, or None where that is open.
    """

    layers: Layers
    names: dict[str, tuple[str, str]]
    description: dict[str, Any] = dataclasses.field(default_factory=dict)
    variant: str | None = None
    crop_size: int | None = None


def _read(path: pathlib.Path) -> _Stored:
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise UserError(f"{path}: an empty file; fetch it again")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml", b"<head"):
        raise UserError(f"{path}: a web page, not weights; the download failed, so fetch the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights; run git lfs pull")
    if head.startswith(b"PK") and path.suffix == ".npz":
        return _read_npz(path)
    if head.startswith((b"PK", b"\x80")) or head[257:262] == b"ustar":
        return _torch_layers(path, *torch_files.read(path))
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    if path.suffix == ".caffemodel":
        return _caffe_layers(path, caffe_files.read_net(path))
    kinds = "a PyTorch state dict (.pth), .safetensors, .npz, .caffemodel or a run's workdir"
    raise UserError(f"{path}: none of {kinds}, or damaged at its beginning")


def _read_npz(path: pathlib.Path) -> _Stored:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: a damaged .npz, or one with pickled objects ({error})") from error
    description = str(arrays.pop(_OWN, ""))
    if "conv1/0" in arrays:  # Caffe's layout, as `save_pretrained` writes it
        blobs = {name: (f"{name}/0", f"{name}/1") for name in LAYERS}
        return _Stored(_swap_colours(_pairs(path, arrays, blobs)), blobs, _parse(path, description))
    return _torch_layers(path, arrays, description)


def _read_safetensors(path: pathlib.Path) -> _Stored:
    try:
        with safetensors.safe_open(path, framework="flax") as file:  # numpy knows no bfloat16
            description = (file.metadata() or {}).get(_OWN)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dictionary)
    except (safetensors.SafetensorError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: a damaged or truncated .safetensors file ({error})") from error
    return _torch_layers(path, tensors, description)


def _parse(path: pathlib.Path, description: str | None) -> dict[str, Any]:
    try:
        values = json.loads(description or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path}: its description of the net is damaged; export it again")
    return values


def _torch_layers(path: pathlib.Path, saved: Mapping[str, Any], description: str | None) -> _Stored:
    """Picks the layers out of a state dict, or of a checkpoint that holds one."""
    tensors, keys = {}, {}
    for key, value in _state_dict(saved).items():
        if hasattr(value, "shape"):
            clean = ".".join(part for part in str(key).split(".") if part not in _WRAPPERS)
            tensors[clean], keys[clean] = value, str(key)
    names = {name: (f"{torch}.weight", f"{torch}.bias") for name, torch in TORCH_NAMES.items()}
    known = {key for pair in names.values() for key in pair}
    if names["conv1"][0] not in tensors:
        some = ", ".join(list(keys.values())[:3]) or "no tensors"
        raise UserError(f"{path}: not an AlexNet: no features.0.weight in it, but {some}, ...")
    if strange := [keys[key] for key in tensors if key not in known]:
        raise UserError(f"{path}: not an AlexNet: it also has {', '.join(strange[:3])}")
    layers = _pairs(path, tensors, names)
    variant = "torchvision" if layers["conv1"][1].shape == (64,) else None
    shown = {name: (keys[names[name][0]], keys[names[name][1]]) for name in layers}
    return _Stored(layers, shown, _parse(path, description), variant)


def _pairs(path: pathlib.Path, tensors: Mapping[str, Any], names: dict[str, tuple[str, str]]) -> Layers:
    """The layers that are there, each with its weight and its bias."""
    layers = {}
    for name, pair in names.items():
        found = [key for key in pair if key in tensors]
        if len(found) == 1:
            raise UserError(f"{path}: has {found[0]} but not the other of {pair[0]} and {pair[1]}")
        if found:
            layers[name] = (tensors[pair[0]], tensors[pair[1]])
    return layers


def _state_dict(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict itself, where a training checkpoint has it beside an optimizer's."""

    def is_alexnet(values: Any) -> bool:
        return isinstance(values, dict) and any("features." in str(key) for key in dict.keys(values))

    if is_alexnet(saved):
        return saved
    return next((dict(dict.items(value)) for value in saved.values() if is_alexnet(value)), saved)


def _caffe_layers(path: pathlib.Path, net: list[caffe_files.Layer]) -> _Stored:
    """Names the layers of a Caffe net by their order, as a fine-tuned net has a new name for its last one."""
    convolutions = [layer for layer in net if layer.type == "Convolution" and layer.blobs]
    dense = [layer for layer in net if layer.type == "InnerProduct" and layer.blobs]
    if len(convolutions) != len(_CONVOLUTIONS) or len(dense) not in (0, len(_DENSE)):
        raise UserError(
            f"{path}: not an AlexNet: {len(convolutions)} convolutions and {len(dense)} fully connected "
            f"layers with weights, instead of 5 and 3"
        )
    layers, names = {}, {}
    for name, layer in zip(LAYERS, [*convolutions, *dense], strict=False):
        if len(layer.blobs) != 2:
            raise UserError(f"{path}: {layer.name} has {len(layer.blobs)} blobs, not a weight and a bias")
        weight, bias = layer.blobs
        if name in _DENSE:  # [1, 1, O, I] before 2014
            weight = weight.reshape(weight.shape[-2:])
        layers[name] = (weight, bias.reshape(-1))
        names[name] = (f"{layer.name} blob 0", f"{layer.name} blob 1")
    kinds = [layer.type for layer in net if layer.type in ("LRN", "Pooling")]
    variant = None
    if "LRN" in kinds:
        variant = "caffe" if kinds[0] == "LRN" else "caffenet"
        model = create_model(variant)
        for layer in (layer for layer in net if layer.type == "LRN"):
            for key, value in layer.lrn.items():
                if not np.isclose(value, getattr(model, key), rtol=1e-6):
                    raise UserError(f"{path}: {layer.name} has {key}={value:g}, not {getattr(model, key):g}")
    crop_size = next((layer.crop_size for layer in net if layer.crop_size), None)
    return _Stored(_swap_colours(layers), names, variant=variant, crop_size=crop_size)


def _swap_colours(layers: Layers) -> Layers:
    """Turns conv1 from BGR to RGB or back."""
    weight, bias = layers["conv1"]
    if np.ndim(weight) != 4:
        return layers  # `_check_shapes` will say so
    return {**layers, "conv1": (np.ascontiguousarray(np.asarray(weight)[:, ::-1]), bias)}


def _recognise(path: pathlib.Path, stored: _Stored, variant: str | None) -> tuple[AlexNet, Preprocess]:
    """The net and the preprocessing that the weights are of."""
    if stored.description:
        try:
            fields: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in stored.description["model"].items()
            }
            return create_model(**fields), Preprocess.from_json(stored.description["preprocess"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: its description of the net is damaged ({error})") from error
    variant = variant or stored.variant
    if variant is None:
        raise UserError(
            f"{path}: its shapes leave open which net it is of; say variant= and one of {', '.join(VARIANTS)}"
        )
    num_classes = math.prod(stored.layers["fc8"][1].shape) if "fc8" in stored.layers else 1000
    preprocess = TORCHVISION if variant == "torchvision" else CAFFE
    if variant in ("paper", "original"):
        preprocess = dataclasses.replace(CAFFE, crop_size=224, resize="central")
    if stored.crop_size:
        preprocess = dataclasses.replace(preprocess, crop_size=stored.crop_size)
    return create_model(variant, num_classes), preprocess


def _mean_image(mean: Any) -> np.ndarray:
    if isinstance(mean, str | os.PathLike):
        return caffe_files.read_mean(mean)
    return np.asarray(mean, np.float32)


def _check_shapes(path: pathlib.Path, stored: _Stored, wanted: Mapping[str, Any]) -> None:
    wrong = []
    for name, arrays in stored.layers.items():
        for key, array, shape in zip(stored.names[name], arrays, wanted[name], strict=True):
            if tuple(array.shape) != shape:
                wrong.append(f"{key} is {list(array.shape)}, not {list(shape)}")
            elif np.dtype(array.dtype).kind in "iubc" or np.dtype(array.dtype).itemsize < 2:
                wrong.append(f"{key} is of {np.dtype(array.dtype).name}, not floats")
    if wrong:
        raise UserError(f"{path}: not this AlexNet: {'; '.join(wrong)}")


# --- Runs -----------------------------------------------------------------------------------------------


def describe(workdir: pathlib.Path, model: AlexNet, preprocess: Preprocess, classes: tuple[str, ...]) -> None:
    """Writes what a run's weights are of, so that they can be used without its config or its data."""
    write_text(workdir / DESCRIPTION, _description(model, preprocess, classes))


def read_description(workdir: str | os.PathLike[str]) -> Pretrained:
    """The net of a run, without its weights.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = pathlib.Path(workdir) / DESCRIPTION
    try:
        description = _parse(path, path.read_text())
    except OSError as error:
        raise UserError(f"{path}: not to be read ({error.strerror}); give the workdir of a run") from error
    model, preprocess = _recognise(path, _Stored({}, {}, description), None)
    classes = description.get("classes")
    return Pretrained(path.parent, model, {}, preprocess, classes=classes and tuple(classes))


def _read_workdir(path: pathlib.Path) -> Pretrained:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    described = read_description(path)
    params, _ = checkpoint.restore_params(path, sharding)
    return dataclasses.replace(described, variables={"params": params})


# What may differ between a net and the weights it starts from: none of it changes what the trunk computes.
_FREE = {"num_classes", "dropout", "init_scheme", "hidden_bias", "compute_dtype"}


def start_from(
    loaded: Pretrained, model: AlexNet, preprocess: Preprocess, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The parameters that a net for `classes` takes over, by layer; fc8 only where the classes are the same.

    Raises:
      UserError: they are of another net.
    """
    other = loaded.model
    free = _FREE | ({"fc_widths"} if "fc6" in loaded.missing else set())
    for key in AlexNet.__dataclass_fields__:
        if key not in {"parent", "name", *free} and getattr(other, key) != getattr(model, key):
            raise UserError(
                f"init.path={loaded.path}: its net has {key}={getattr(other, key)!r}, this config's "
                f"{getattr(model, key)!r}; set model.variant, or model.{key}, to its own"
            )
    if other.num_classes != model.num_classes or (loaded.classes or classes) != classes:
        kept = {name: its for name, its in loaded.variables["params"].items() if name != "fc8"}
    else:
        kept = dict(loaded.variables["params"])
    shapes = param_shapes(model, preprocess.crop_size)
    for name, its in kept.items():
        found, wanted = its["kernel"].shape, shapes[name]["kernel"].shape
        if found != wanted:
            raise UserError(
                f"init.path={loaded.path}: {name} is {list(found)}, not {list(wanted)}; "
                f"set data.image_size={loaded.preprocess.crop_size}"
            )
    return kept


# --- Out ------------------------------------------------------------------------------------------------


def save_pretrained(
    path: str | os.PathLike[str],
    model: AlexNet,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    classes: tuple[str, ...] | None = None,
) -> None:
    """Writes a net for others, and so that `load_pretrained` gives back exactly the same.

    Args:
      path: ends in `.safetensors` or `.pth` for torchvision's names and layout (for a net of two columns the
        convolutions are those of a grouped net), or in `.npz` for Caffe's: `conv1/0` and `conv1/1` are what
        pycaffe has in `net.params["conv1"]`, BGR.

    Raises:
      UserError: another ending, or a net that has no counterpart elsewhere.
    """
    path = pathlib.Path(path)
    layer_shapes(model, preprocess.crop_size)  # refuses nets without a counterpart
    layers = to_layers(model, variables["params"])
    description = _description(model, preprocess, classes)
    if path.suffix == ".npz":
        layers = _swap_colours(layers)
        arrays = {f"{name}/{i}": array for name, pair in layers.items() for i, array in enumerate(pair)}
        write_npz(path, {**arrays, _OWN: np.array(description)})
        return
    tensors = {}
    for name, (weight, bias) in layers.items():
        tensors[f"{TORCH_NAMES[name]}.weight"], tensors[f"{TORCH_NAMES[name]}.bias"] = weight, bias
    if path.suffix == ".pth":
        torch_files.write(path, tensors, description)
    elif path.suffix == ".safetensors":
        with replacing(path) as temporary:
            safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt", _OWN: description})
    else:
        raise UserError(f"{path}: weights are written as .safetensors, .pth, .npz or, by export, .stablehlo")


def _description(model: AlexNet, preprocess: Preprocess, classes: tuple[str, ...] | None) -> str:
    values = {"model": _fields(model), "preprocess": preprocess.to_json(), "classes": classes}
    return json.dumps(values)


def _fields(model: AlexNet) -> dict[str, Any]:
    """What `create_model` needs to make the same net."""
    skipped = {"parent", "name", "reads", "column_axis", "column_shards"}
    fields = {key: field for key, field in AlexNet.__dataclass_fields__.items() if key not in skipped}
    return {key: value for key in fields if (value := getattr(model, key)) != fields[key].default}
