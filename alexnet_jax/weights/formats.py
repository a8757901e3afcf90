"""Weight files: finds AlexNet's layers in a file of any format; writes .npz and .safetensors."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.common.errors import UserError, damage_reported
from alexnet_jax.common.files import replacing, write_npz
from alexnet_jax.variants import create_model
from alexnet_jax.weights import caffe_files, torch_files
from alexnet_jax.weights.layouts import CONVOLUTIONS, DENSE, LAYERS, TORCH_NAMES, Layers, swap_colours

_WRAPPERS = {"module", "model", "_orig_mod"}  # prefixes added by DataParallel, trainers and torch.compile
_DESCRIPTION_KEY = "alexnet_jax"  # where our files store the description of the net
_TORCH_KEYS = {name: (f"{torch}.weight", f"{torch}.bias") for name, torch in TORCH_NAMES.items()}
_CAFFE_KEYS = {name: (f"{name}/0", f"{name}/1") for name in LAYERS}  # pycaffe's numbering of a layer's blobs


@dataclasses.dataclass(frozen=True)
class Stored:
    """The contents of a weight file.

    Attributes:
      layers: in torchvision's and Caffe's layout, RGB.
      names: the file's names for each layer's weight and bias, for messages.
      description: the net's description as JSON if this package wrote the file, else empty.
      variant: the net's variant if the file determines it, else None.
      crop_size: the net's input side in pixels if the file has it, else None.
    """

    layers: Layers
    names: dict[str, tuple[str, str]]
    description: str = ""
    variant: str | None = None
    crop_size: int | None = None


def read(path: pathlib.Path) -> Stored:
    """Reads a weight file; recognises the format by the first bytes.

    Raises:
      UserError: the file is unreadable, damaged, in an unknown format, from another net, or could run code.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    if not head:
        raise UserError("an empty file; fetch it again")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml", b"<head"):
        raise UserError("a web page, not weights; the download failed, so fetch the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise UserError("a Git LFS pointer, not the weights; run git lfs pull")
    suffix = path.suffix.lower()
    if head.startswith(b"PK") and suffix == ".npz":
        return _read_npz(path)
    is_safetensors = head[5:9] == b"\0\0\0{"  # after a length that may begin as a pickle does
    if head.startswith((b"PK", b"\x80")) and not is_safetensors:
        return _torch_layers(path, torch_files.read(path))
    if head[257:262] == b"ustar":
        raise UserError(
            "a tar from PyTorch before 2017, which is not supported; if you trust it, save it again with "
            "PyTorch 0.4 or later: torch.save(torch.load(old, weights_only=False), new)"
        )
    if suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    if suffix == ".caffemodel":
        return _caffe_layers(caffe_files.read_net(path))
    raise UserError(
        "not weights, or damaged in its first bytes; give a PyTorch state dict (.pth), .safetensors, .npz, "
        ".caffemodel or the workdir of a run"
    )


def write(path: pathlib.Path, layers: Layers, description: str) -> None:
    """Writes layers and the net's description: `.safetensors` with torchvision's names, `.npz` with Caffe's.

    Raises:
      UserError: `path` has another suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = _by_key(swap_colours(layers), _CAFFE_KEYS)
        write_npz(path, {**arrays, _DESCRIPTION_KEY: np.array(description)})
    elif suffix == ".safetensors":
        with replacing(path) as temporary:
            metadata = {"format": "pt", _DESCRIPTION_KEY: description}
            safetensors.numpy.save_file(_by_key(layers, _TORCH_KEYS), temporary, metadata)
    elif suffix in (".pth", ".pt"):
        raise UserError(
            f"{path.suffix} is read but not written; write {path.with_suffix('.safetensors').name}, "
            "which PyTorch loads with safetensors.torch.load_file"
        )
    else:
        raise UserError("weights are written as .safetensors, .npz or, by export, .stablehlo")


def _by_key(layers: Layers, keys: dict[str, tuple[str, str]]) -> dict[str, np.ndarray]:
    return {key: array for name, pair in layers.items() for key, array in zip(keys[name], pair, strict=True)}


def _read_npz(path: pathlib.Path) -> Stored:
    with damage_reported(".npz, or one with pickled objects"), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    description = str(arrays.pop(_DESCRIPTION_KEY, ""))
    if _CAFFE_KEYS["conv1"][0] in arrays:
        return Stored(swap_colours(_pairs(arrays, _CAFFE_KEYS)), _CAFFE_KEYS, description)
    return _torch_layers(path, arrays, description)


def _read_safetensors(path: pathlib.Path) -> Stored:
    # "flax", since NumPy has no bfloat16
    with damage_reported(".safetensors file"), safetensors.safe_open(path, framework="flax") as file:
        description = (file.metadata() or {}).get(_DESCRIPTION_KEY, "")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dictionary)
    return _torch_layers(path, tensors, description)


def _torch_layers(path: pathlib.Path, saved: Mapping[str, Any], description: str = "") -> Stored:
    """Extracts the layers from a state dict, or from a training checkpoint that contains one."""
    arrays = {str(key): value for key, value in _state_dict(saved).items() if hasattr(value, "shape")}
    clean = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in arrays}
    first = _TORCH_KEYS["conv1"][0]
    # The net may be part of a larger one, as `backbone.features.0.weight`.
    found = (name for name in clean.values() if f".{name}".endswith(f".{first}"))
    prefix = next((name.removesuffix(first) for name in found), None)
    if prefix is None:
        some = ", ".join(list(arrays)[:3]) or "no tensors"
        raise UserError(f"not an AlexNet: no {first} in it, but {some}, ...")
    keys = {name.removeprefix(prefix): key for key, name in clean.items() if name.startswith(prefix)}
    layers = _pairs({name: arrays[key] for name, key in keys.items()}, _TORCH_KEYS)
    names = {name: (keys[_TORCH_KEYS[name][0]], keys[_TORCH_KEYS[name][1]]) for name in layers}
    used = {key for pair in names.values() for key in pair}
    others = {key: name for name, key in keys.items() if key not in used}
    if unknown := [key for key in others if others[key].split(".")[0] in ("features", "classifier")]:
        raise UserError(f"not an AlexNet: it also has {', '.join(unknown[:3])}")
    if ignored := [key for key in arrays if key not in used]:
        more = ", ..." if len(ignored) > 3 else ""
        print(f"{path}: ignores {', '.join(ignored[:3])}{more}, which no AlexNet has", file=sys.stderr)
    variant = "torchvision" if layers["conv1"][1].shape == (64,) else None
    return Stored(layers, names, description, variant)


def _pairs(tensors: Mapping[str, Any], keys: dict[str, tuple[str, str]]) -> Layers:
    """Weight and bias of each layer in the file."""
    layers = {}
    for name, pair in keys.items():
        found = [key for key in pair if key in tensors]
        if len(found) == 1:
            raise UserError(f"has {found[0]} but not the other of {pair[0]} and {pair[1]}")
        if found:
            layers[name] = (tensors[pair[0]], tensors[pair[1]])
    return layers


def _state_dict(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model's state dict, which a training checkpoint stores next to the optimizer's."""
    for values in (saved, *saved.values()):
        if isinstance(values, dict) and any("features." in str(key) for key in dict.keys(values)):
            return dict(dict.items(values))  # not `values.items()`: a pickle can set that attribute
    return saved


def _caffe_layers(net: list[caffe_files.Layer]) -> Stored:
    """Identifies a Caffe net's layers by their order, because fine-tuned nets rename the last one."""
    convolutions = [layer for layer in net if layer.type == "Convolution" and layer.blobs]
    dense = [layer for layer in net if layer.type == "InnerProduct" and layer.blobs]
    if len(convolutions) != len(CONVOLUTIONS) or len(dense) not in (0, len(DENSE)):
        raise UserError(
            f"not an AlexNet: {len(convolutions)} convolutions and {len(dense)} fully connected layers with "
            "weights, instead of 5 and 3"
        )
    layers, names = {}, {}
    for name, layer in zip(LAYERS, [*convolutions, *dense], strict=False):
        if len(layer.blobs) != 2:
            raise UserError(f"{layer.name} has {len(layer.blobs)} blobs, not a weight and a bias")
        weight, bias = layer.blobs
        if name in DENSE:  # [1, 1, O, I] before 2014
            weight = weight.reshape(weight.shape[-2:])
        layers[name] = (weight, bias.reshape(-1))
        names[name] = (f"{layer.name} blob 0", f"{layer.name} blob 1")
    crop_size = next((layer.crop_size for layer in net if layer.crop_size), None)
    return Stored(swap_colours(layers), names, variant=_caffe_variant(net), crop_size=crop_size)


def _caffe_variant(net: list[caffe_files.Layer]) -> str | None:
    """`caffe` if normalization precedes pooling, else `caffenet`; None without normalization layers."""
    kinds = [layer.type for layer in net if layer.type in ("LRN", "Pooling")]
    if "LRN" not in kinds:
        return None
    variant = "caffe" if kinds[0] == "LRN" else "caffenet"
    model = create_model(variant)
    for layer in (layer for layer in net if layer.type == "LRN"):
        for key, value in layer.lrn.items():
            if not np.isclose(value, getattr(model, key), rtol=1e-6):
                raise UserError(f"{layer.name} has {key}={value:g}, not {getattr(model, key):g}")
    return variant
