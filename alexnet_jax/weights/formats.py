"""Weight files: reads AlexNet's layers from a file of any format; writes .npz and .safetensors."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax.common.errors import UserError, damage_reported
from alexnet_jax.common.files import replacing, write_npz
from alexnet_jax.variants import create_model
from alexnet_jax.weights import caffe_files, numpy_files, torch_files
from alexnet_jax.weights.layouts import COMMON_LAYERS, TORCH_NAMES, Layers, swap_colours
from alexnet_jax.weights.recognise import Stored, find_layers, in_natural_order, is_of_optimizer

_DESCRIPTION_KEY = "alexnet_jax"  # where our files store the description of the net
_TORCH_KEYS = {name: (f"{torch}.weight", f"{torch}.bias") for name, torch in TORCH_NAMES.items()}
_CAFFE_KEYS = {name: (f"{name}/0", f"{name}/1") for name in COMMON_LAYERS}  # pycaffe numbers a layer's blobs


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
    if head.startswith(b"\x1f\x8b"):
        raise UserError("compressed with gzip; unpack it first: gunzip or tar -xzf")
    suffix = path.suffix.lower()
    is_safetensors = head[5:9] == b"\0\0\0{"  # after a length that may begin as a pickle does
    if head.startswith(b"\x93NUMPY") or (head.startswith(b"PK") and suffix == ".npz"):
        return _read_numpy(path)
    if head.startswith((b"PK", b"\x80")) and not is_safetensors:
        return find_layers(_arrays(torch_files.read(path)))
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
        ".npy, .caffemodel or the workdir of a run"
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


def _read_numpy(path: pathlib.Path) -> Stored:
    arrays = numpy_files.read(path)
    return _stored(arrays, str(arrays.pop(_DESCRIPTION_KEY, "")), _CAFFE_KEYS)


def _read_safetensors(path: pathlib.Path) -> Stored:
    with damage_reported(".safetensors file"), safetensors.safe_open(path, framework="numpy") as file:
        description = (file.metadata() or {}).get(_DESCRIPTION_KEY, "")
        tensors = {}
        for key in file.keys():  # noqa: SIM118  (not a dictionary)
            if (kind := file.get_slice(key).get_dtype()).startswith(("F8_", "F6_", "F4")):
                raise UserError(f"{key} is of type {kind}, which is not supported; save it as float32")
            tensors[key] = file.get_tensor(key)
    return _stored(tensors, description, _TORCH_KEYS)


def _stored(arrays: Mapping[str, Any], description: str, keys: dict[str, tuple[str, str]]) -> Stored:
    """The layers of a file of this package, which has a description, by their names; else by their shapes."""
    if not description:
        return find_layers(_arrays(arrays))
    layers = {name: (arrays[w], arrays[b]) for name, (w, b) in keys.items() if w in arrays and b in arrays}
    return Stored(layers if keys is _TORCH_KEYS else swap_colours(layers), keys, description)


def _arrays(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a model's state dict, which a checkpoint stores next to the optimizer's.

    Several models are returned together, with the keys of their dictionaries before the names.
    """

    def dictionaries(values: Any, depth: int, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(values, dict) and depth:
            items = dict.items(values)  # not `values.items()`: a pickle can set that attribute
            yield path, {str(key): value for key, value in items if hasattr(value, "shape")}
            for key, value in items:
                yield from dictionaries(value, depth - 1, f"{path}{key}.")

    def is_model(path: str, arrays: dict[str, Any]) -> bool:
        kernels = [key for key, array in arrays.items() if len(array.shape) == 4]
        return sum(not is_of_optimizer(f"{path}{key}") for key in kernels) >= 5

    found = list(dictionaries(dict(saved), 4))
    models = [pair for pair in found if is_model(*pair)]
    if len(models) > 1:
        return in_natural_order({f"{path}{key}": a for path, arrays in models for key, a in arrays.items()})
    return in_natural_order((models or found)[0][1])


def _caffe_layers(net: list[caffe_files.Layer]) -> Stored:
    """The layers of a Caffe net, whatever they are called: fine-tuned nets rename the last one."""
    blobs = {}
    for layer in net:
        for index, blob in enumerate(layer.blobs):
            if layer.type in ("Convolution", "InnerProduct") and index == 1:
                blob = blob.reshape(-1)  # [1, 1, 1, O] before 2014
            elif layer.type == "InnerProduct":
                blob = blob.reshape(blob.shape[-2:])  # [1, 1, O, I] before 2014
            blobs[f"{layer.name.replace('/', '_')}/{index}"] = blob
    crop_size = next((layer.crop_size for layer in net if layer.crop_size), None)
    return find_layers(blobs, variant=_caffe_variant(net), crop_size=crop_size)


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
