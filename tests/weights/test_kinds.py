"""The kinds of files that load, all of them: none may be refused by a later version.

Runs' workdirs are in test_finetune.py, published names in test_published.py.
"""

import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import create_model, load_pretrained
from alexnet_jax.data.preprocess import CAFFE, Preprocess
from alexnet_jax.weights import pretrained, torch_files
from tests import caffe, torch_pickle
from tests.fixtures import seeded
from tests.weights.test_numpy_files import npy

TORCHVISION = seeded.state_dict(seed=1, names=tuple(seeded.TORCHVISION)[:5])
GROUPED = seeded.layers(dict(list(seeded.CAFFE.items())[:5]), seed=3)
PAIRS = list(zip(seeded.CAFFE, seeded.TORCHVISION, strict=True))[:5]
FORTRAN = {name: np.asfortranarray(array) for name, array in TORCHVISION.items()}


def renamed(rename) -> dict[str, np.ndarray]:
    return {rename(key): array for key, array in TORCHVISION.items()}


def grouped(weight: str, bias: str, axes=(0, 1, 2, 3)) -> dict[str, np.ndarray]:
    """Caffe's layers as `conv1/<weight>` and `conv1/<bias>`."""
    pairs = {name: (w.transpose(axes), b) for name, (w, b) in GROUPED.items()}
    return {
        f"{name}/{key}": a
        for name, pair in pairs.items()
        for key, a in zip((weight, bias), pair, strict=True)
    }


def pth(path, arrays) -> None:
    torch_pickle.write(path, arrays)


def legacy(path, arrays) -> None:
    """PyTorch's format before 1.6: pickles in a row, then the storages."""
    head = (torch_files._LEGACY_MAGIC, torch_files._LEGACY_PROTOCOL, {"little_endian": True})
    parts = [pickle.dumps(part, protocol=2) for part in head]
    tensors = {
        name: torch_pickle.Tensor(name, a.size, 0, a.shape, tuple(s // 4 for s in a.strides))
        for name, a in arrays.items()
    }
    parts += [torch_pickle.dumps(tensors), pickle.dumps(list(arrays), protocol=2)]
    parts += [struct.pack("<q", a.size) + a.astype("<f4").tobytes() for a in arrays.values()]
    path.write_bytes(b"".join(parts))


def npz(path, arrays) -> None:
    np.savez(path, **arrays)


def tensors(path, arrays) -> None:
    safetensors.numpy.save_file(arrays, path)


def caffemodel(path, pairs) -> None:
    path.write_bytes(caffe.caffemodel(pairs, caffe.ALEXNET))


def nested(pairs) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(zip(("weights", "biases"), pair, strict=True)) for name, pair in pairs.items()}


LAST = {name: (w.transpose(2, 3, 1, 0), b) for name, (w, b) in GROUPED.items()}
KINDS = {  # file name, how it is written and from what
    "PyTorch": ("w.pth", pth, TORCHVISION),
    "PyTorch, .pt": ("w.pt", pth, TORCHVISION),
    "PyTorch, .bin of transformers": ("pytorch_model.bin", pth, TORCHVISION),
    "PyTorch, .ckpt of Lightning": ("last.ckpt", pth, renamed(lambda key: f"net.{key}")),
    "PyTorch, no ending": ("weights", pth, TORCHVISION),
    "PyTorch before 1.6": ("w.pth", legacy, TORCHVISION),
    "DataParallel": ("w.pth", pth, renamed(lambda key: f"module.{key}")),
    "DataParallel of the convolutions": ("w.pth", pth, renamed(lambda key: key.replace("s.", "s.module."))),
    "torch.compile": ("w.pth", pth, renamed(lambda key: f"_orig_mod.{key}")),
    "model.features alone": ("w.pth", pth, renamed(lambda key: key.removeprefix("features."))),
    "safetensors": (
        "w.safetensors",
        lambda path, arrays: safetensors.numpy.save_file(arrays, path),
        TORCHVISION,
    ),
    "safetensors, no ending": (
        "w",
        lambda path, arrays: safetensors.numpy.save_file(arrays, path),
        TORCHVISION,
    ),
    "npz": ("w.npz", npz, TORCHVISION),
    "npz in the order of Fortran": ("w.npz", npz, FORTRAN),
    "npz, compressed": ("w.npz", lambda path, arrays: np.savez_compressed(path, **arrays), TORCHVISION),
    "npz of pycaffe": ("w.npz", npz, grouped("0", "1")),
    "npz of caffe-tensorflow": ("w.npz", npz, grouped("weights", "biases", (2, 3, 1, 0))),
    "npz of tensorpack": ("w.npz", npz, grouped("W", "b", (2, 3, 1, 0))),
    "npy of caffe-tensorflow": ("w.npy", lambda path, pairs: path.write_bytes(npy(nested(pairs), 2)), LAST),
    "npy of Toronto": (
        "bvlc_alexnet.npy",
        lambda path, pairs: path.write_bytes(npy({n: list(p) for n, p in pairs.items()}, 2)),
        LAST,
    ),
    "Caffe": (
        "w.caffemodel",
        lambda path, pairs: path.write_bytes(caffe.caffemodel(pairs, caffe.ALEXNET)),
        GROUPED,
    ),
    "Caffe before 2014": (
        "w.caffemodel",
        lambda path, pairs: path.write_bytes(caffe.caffemodel(pairs, caffe.ALEXNET, v1=True)),
        GROUPED,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_file_loads(tmp_path, kind):
    name, write, content = KINDS[kind]
    write(tmp_path / name, content)
    is_caffe = content is GROUPED or content is LAST or "conv1" in next(iter(content))
    variant = "caffe" if is_caffe and not name.endswith(".caffemodel") else None
    loaded = pretrained.read(tmp_path / name, partial=True, variant=variant)
    assert loaded.model == create_model("caffe" if is_caffe else "torchvision")
    assert loaded.missing == ("fc6", "fc7", "fc8")
    for ours, theirs in PAIRS:
        if is_caffe:
            weight, bias = GROUPED[ours]
            weight = weight[:, ::-1] if ours == "conv1" else weight  # to RGB
        else:
            weight, bias = TORCHVISION[f"{theirs}.weight"], TORCHVISION[f"{theirs}.bias"]
        params = loaded.variables["params"][ours]
        columns = params["kernel"].shape[0]
        expected = weight.reshape(columns, -1, *weight.shape[1:]).transpose(0, 3, 4, 2, 1)
        np.testing.assert_array_equal(params["kernel"], expected, err_msg=ours)
        np.testing.assert_array_equal(params["bias"], bias.reshape(columns, -1), err_msg=ours)


def momentum(key: str) -> dict[str, np.ndarray]:
    return {"momentum_buffer": np.zeros_like(TORCHVISION[key.removeprefix("module.")])}


def ones_like(state) -> dict[str, np.ndarray]:
    return {key: np.ones_like(array) for key, array in state.items()}


CHECKPOINTS = {
    "Lightning's": lambda state: {"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}}]},
    "timm's": lambda state: {"epoch": 3, "arch": "alexnet", "state_dict": state, "state_dict_ema": {}},
    "of two levels": lambda state: {"checkpoint": {"model": state}, "args": {"lr": 0.1}},
    "with momentum": lambda state: {
        "optimizer": {"state": {0: {"exp_avg": np.zeros((64, 3, 11, 11))}}},
        "model": state,
    },
    "with gradients of all weights": lambda state: {"grad_avg": ones_like(state), "state_dict": state},
    "with moments of all weights": lambda state: {"opt": {"mu": ones_like(state)}, "params": state},
    "with a moving average": lambda state: {"state_dict_ema": ones_like(state), "state_dict": state},
    "with a teacher": lambda state: {"teacher": ones_like(state), "student": state},
    "of a list of names": lambda state: {"names": list(state), "net": state},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_a_checkpoint_loads(monkeypatch, tmp_path, form):
    """The model's state dict is found wherever it is; the optimizer's arrays are not taken for weights."""
    state = renamed(lambda key: f"module.{key}")
    monkeypatch.setattr(torch_files, "read", lambda path: CHECKPOINTS[form](state))
    (tmp_path / "c.pth").write_bytes(b"PK\x03\x04")
    _, variables, _ = load_pretrained(tmp_path / "c.pth", partial=True)
    expected = TORCHVISION["features.10.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["conv5"]["kernel"][0], expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_of_this_package_load(tmp_path, suffix):
    """Of any widths, as the description in the file says."""
    model = create_model("paper", 7, widths=(16, 32, 24, 24, 16, 16), fc_widths=(32, 32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    variables = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    pretrained.save_pretrained(tmp_path / f"w{suffix}", model, variables, Preprocess(100, 96))
    assert pretrained.read(tmp_path / f"w{suffix}").model == model


def test_means_load(tmp_path):
    bgr = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    rgb = bgr[::-1].transpose(1, 2, 0)
    (tmp_path / "w.caffemodel").write_bytes(caffe.caffemodel(GROUPED, caffe.ALEXNET))
    (tmp_path / "mean.binaryproto").write_bytes(caffe.mean_binaryproto(bgr))
    np.save(tmp_path / "ilsvrc_2012_mean.npy", bgr.astype(np.float64))
    np.save(tmp_path / "rgb.npy", rgb)
    files = [tmp_path / name for name in ("mean.binaryproto", "ilsvrc_2012_mean.npy", "rgb.npy")]
    for mean in (rgb, *files, *map(str, files)):
        *_, preprocess = load_pretrained(tmp_path / "w.caffemodel", partial=True, mean=mean)
        np.testing.assert_array_equal(preprocess.mean, rgb)
    *_, preprocess = load_pretrained(tmp_path / "w.caffemodel", partial=True)
    np.testing.assert_array_equal(preprocess.mean, CAFFE.mean)
