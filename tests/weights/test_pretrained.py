"""Reading and writing weights, against recordings of torchvision and a Caffe in NumPy; malicious files."""

import collections
import io
import json
import os
import pathlib
import pickle
import tarfile
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from alexnet_jax import create_model, load_pretrained
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.preprocess import CAFFE, TORCHVISION, Preprocess
from alexnet_jax.weights import caffe_files, formats, pretrained, torch_files
from alexnet_jax.weights.pretrained import save_pretrained
from tests import caffe, torch_pickle
from tests.fixtures import seeded

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
CONVOLUTIONS = tuple(seeded.TORCHVISION)[:5]


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURES / "torchvision.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory):
    """The seeded net as a `.pth` of torchvision's names, all layers."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch_pickle.write(path, seeded.state_dict(seed=1))
    return path


@pytest.fixture(scope="module")
def convolutions():
    return seeded.state_dict(seed=1, names=CONVOLUTIONS)


def write_convolutions(path: pathlib.Path, tensors) -> pathlib.Path:
    safetensors.numpy.save_file(tensors, path)
    return path


# --- Reading ----------------------------------------------------------------------------------------------


def test_every_layer_agrees_with_torchvision(torchvision_file, recorded):
    model, variables, preprocess = load_pretrained(torchvision_file)
    assert model == create_model("torchvision") and preprocess is TORCHVISION
    assert sum(x.size for x in jax.tree.leaves(variables)) == 61_100_840
    layers = [
        name for name in recorded if name not in ("versions", "files", "logits") and "pool5_" not in name
    ]
    assert len(layers) == 18
    images = seeded.images(2, 224, seed=2)
    logits, seen = jax.jit(lambda v, x: model.apply(v, x, capture=layers))(variables, images)
    np.testing.assert_allclose(logits, recorded["logits"], atol=1e-4, rtol=0)
    for name in layers:
        flat = np.asarray(seen[name]).reshape(2, -1)
        samples = flat[:, seeded.places(name, flat.shape[1])]
        np.testing.assert_allclose(samples, recorded[name], atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    "order, v1, crop_size, head",
    # At 231 pixels, pooling windows reach beyond the edge.
    [
        (caffe.ALEXNET, False, 227, ""),
        (caffe.CAFFENET, True, 227, ""),
        (caffe.ALEXNET, True, 231, caffe.HEAD),
    ],
)
def test_every_layer_agrees_with_caffe(tmp_path, order, v1, crop_size, head):
    shapes = dict(seeded.CAFFE, fc6=(4096, 256 * {227: 36, 231: 49}[crop_size]), fc8=(7, 4096))
    layers = seeded.layers({name: shapes[name] for name in (order + head).split() if name in shapes}, seed=3)
    path = tmp_path / "net.caffemodel"
    names = {"fc8": "fc8_flickr"}  # a fine-tuned net has a new name for its last layer
    path.write_bytes(caffe.caffemodel(layers, order + head, v1=v1, crop_size=crop_size, names=names))

    loaded = pretrained.read(path, partial=not head)
    variant = "caffe" if order == caffe.ALEXNET else "caffenet"
    assert loaded.model == create_model(variant, 7 if head else 1000)
    assert (loaded.preprocess.crop_size, loaded.preprocess.resize) == (crop_size, "squash")
    images = seeded.images(1, crop_size, seed=4, scale=50.0)
    bgr = images[..., ::-1].transpose(0, 3, 1, 2)
    expected = caffe.forward(layers, bgr, order + head)
    ours = {name: name.replace("relu", "activation").replace("norm", "lrn") for name in expected}
    ours = {theirs: our for theirs, our in ours.items() if "drop" not in our}
    capture = tuple(ours.values())
    _, seen = jax.jit(lambda v, x: loaded.model.apply(v, x, capture=capture))(loaded.variables, images)
    assert seen["pool1"].shape[1] == {227: 27, 231: 28}[crop_size]
    for theirs, our in ours.items():
        want = expected[theirs]
        want = want.transpose(0, 2, 3, 1) if want.ndim == 4 else want
        scale = np.abs(want).max()
        np.testing.assert_allclose(seen[our] / scale, want / scale, atol=1e-5, rtol=0, err_msg=our)


NARROW, WIDE = ("hash", (48, 4096)), ("fc8", (1000, 4096))
HEADS = {
    "whole": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096)), WIDE], 8),
    "fine-tuned": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096)), ("fc8_flickr", (20, 4096))], 8),
    "fc8 cut": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096))], 7),
    "fc7 cut": ([("fc6", (4096, 9216))], 6),
    "none": ([], 5),
    "fc9 added": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096)), WIDE, ("fc9", (10, 1000))], 7),
    "hash layer before": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096)), NARROW, ("fc8", (10, 48))], 7),
    "hash layer beside": ([("fc6", (4096, 9216)), ("fc7", (4096, 4096)), NARROW, WIDE], 7),
    "narrow": ([("fc6", (512, 9216)), ("fc7", (10, 512))], 5),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_heads_of_caffe_nets(monkeypatch, tmp_path, head, old):
    """Caffe's hash nets (fc8 cut, fc9 added) and fine-tuned ones: layers below the change give features."""
    dense, number = HEADS[head]
    net = []
    shapes = [*list(seeded.CAFFE.items())[:5], *dense]
    for index, (name, shape) in enumerate(shapes):
        kind = "Convolution" if len(shape) == 4 else "InnerProduct"
        sides = [(1,) * (4 - len(shape)) + shape, (1, 1, 1, shape[0])] if old else [shape, shape[:1]]
        blobs = [np.broadcast_to(np.float32(0), side) for side in sides]
        net.append(caffe_files.Layer(name, kind, blobs, 0, {}))
        if index in (0, 1):
            constants = {"lrn_size": 5, "lrn_alpha": 1e-4 / 5, "lrn_beta": 0.75, "lrn_k": 1.0}
            net.append(caffe_files.Layer(f"norm{index}", "LRN", [], 0, constants))
    monkeypatch.setattr(caffe_files, "read_net", lambda path: net)
    (tmp_path / "w.caffemodel").write_bytes(b"\x0a\x00")
    stored = formats.read(tmp_path / "w.caffemodel")
    assert list(stored.names) == list(seeded.CAFFE)[:number]
    assert [pair[0] for pair in stored.names.values()] == [f"{name}/0" for name, _ in shapes[:number]]
    assert [a.shape for a, _ in stored.layers.values()] == [shape for _, shape in shapes[:number]]
    assert stored.variant == "caffe"


@pytest.mark.parametrize(
    "other",
    [
        ("bn1", "BatchNorm", [(96,), (96,), (1,)]),
        ("scale2", "Scale", [(256,), (256,)]),
        ("prelu1", "PReLU", [(96,)]),
        ("prelu1", "PReLU", [(1,)]),
        ("conv6", "Convolution", [(256, 256, 3, 3), (256,)]),
        ("fc6-conv", "Convolution", [(4096, 256, 6, 6), (4096,)]),
    ],
)
def test_caffe_nets_with_other_layers_are_refused(monkeypatch, tmp_path, other):
    """Batch norms between AlexNet's convolutions were passed over, which gave wrong activations."""
    net = [
        caffe_files.Layer(name, "Convolution", [np.zeros(shape, np.float32), np.zeros(shape[0])], 0, {})
        for name, shape in list(seeded.CAFFE.items())[:5]
    ]
    name, kind, shapes = other
    net.append(caffe_files.Layer(name, kind, [np.zeros(shape, np.float32) for shape in shapes], 0, {}))
    monkeypatch.setattr(caffe_files, "read_net", lambda path: net)
    (tmp_path / "w.caffemodel").write_bytes(b"\x0a\x00")
    with pytest.raises(UserError, match=f"w.caffemodel: not an AlexNet: it also has {name}/0"):
        load_pretrained(tmp_path / "w.caffemodel", partial=True)


def test_caffe_nets_that_differ_are_refused(tmp_path):
    layers = seeded.layers({k: seeded.CAFFE[k] for k in list(seeded.CAFFE)[:5]}, seed=3)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffe.caffemodel(layers, caffe.ALEXNET, alpha=5e-4))
    with pytest.raises(UserError, match=r"norm1 has lrn_alpha=0.0001, not 2e-05"):
        load_pretrained(path, partial=True)
    path.write_bytes(caffe.caffemodel(layers, caffe.ALEXNET)[:-1000])
    with pytest.raises(UserError, match=r"damaged or truncated .caffemodel"):
        load_pretrained(path, partial=True)
    path.write_bytes(caffe.caffemodel(layers, "Data conv1 relu1 norm1 pool1 conv2"))
    with pytest.raises(UserError, match="2 convolutions and 0 fully connected layers"):
        load_pretrained(path, partial=True)


def test_every_truncation_and_flip_of_caffes_files_is_one_clear_line(tmp_path):
    rng = np.random.default_rng(0)
    blobs = {"conv1": (rng.random((2, 3, 2, 2), np.float32), rng.random(2, np.float32))}
    mean = rng.random((3, 5, 5)).astype(np.float32)
    for read, data in (
        (caffe_files.read_net, caffe.caffemodel(blobs, caffe.ALEXNET)),
        (caffe_files.read_net, caffe.caffemodel(blobs, caffe.ALEXNET, v1=True)),
        (caffe_files.read_mean, caffe.mean_binaryproto(mean)),
    ):
        (tmp_path / "file").write_bytes(data)
        read(tmp_path / "file")
        broken = [data[:length] for length in range(len(data))]
        for place in range(len(data)):
            broken.append(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        refused = 0
        for content in broken:
            (tmp_path / "file").write_bytes(content)
            try:
                read(tmp_path / "file")
            except UserError as error:  # anything else fails the test
                assert "\n" not in str(error)
                refused += 1
        assert refused > len(data) / 2


def test_caffes_packed_numbers_in_parts_and_in_double_precision(tmp_path):
    """Wire format by hand: a packed field may come in several parts, which are read one after another."""
    shape = b"\x3a\x03\x0a\x01\x02"  # BlobProto.shape (7): BlobShape.dim (1) = [2]
    floats = [b"\x2a\x04" + np.float32(number).tobytes() for number in (0.5, -3.25)]  # BlobProto.data (5)
    doubles = b"\x42\x10" + np.array([1 / 3, 1e-9]).tobytes()  # BlobProto.double_data (8)
    blobs = [shape + b"".join(floats), shape + doubles]
    layer = b"\x0a\x02ip" + b"".join(b"\x3a" + bytes([len(blob)]) + blob for blob in blobs)
    (tmp_path / "w.caffemodel").write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    (found,) = caffe_files.read_net(tmp_path / "w.caffemodel")
    assert found.name == "ip"
    np.testing.assert_array_equal(found.blobs[0], np.array([0.5, -3.25], np.float32), strict=True)
    np.testing.assert_array_equal(found.blobs[1], np.array([1 / 3, 1e-9], np.float32), strict=True)


def test_a_caffe_net_of_2013_says_how_to_convert_it(tmp_path):
    # NetParameter.layers (2): one V1LayerParameter, whose field 1 is a V0LayerParameter named "conv1".
    layer = b"\x0a\x07\x0a\x05conv1"
    (tmp_path / "w.caffemodel").write_bytes(b"\x12" + bytes([len(layer)]) + layer)
    with pytest.raises(UserError, match=r"w.caffemodel: .*2013.*upgrade_net_proto_binary"):
        load_pretrained(tmp_path / "w.caffemodel")


def test_the_mean_image_is_converted_to_rgb(tmp_path):
    layers = seeded.layers({k: seeded.CAFFE[k] for k in list(seeded.CAFFE)[:5]}, seed=3)
    (tmp_path / "net.caffemodel").write_bytes(caffe.caffemodel(layers, caffe.ALEXNET))
    mean = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(caffe.mean_binaryproto(mean))
    *_, preprocess = load_pretrained(
        tmp_path / "net.caffemodel", partial=True, mean=tmp_path / "mean.binaryproto"
    )
    image = np.full((300, 200, 3), 128, np.uint8)
    expected = 128 - mean[::-1, 14:241, 14:241].transpose(1, 2, 0)
    np.testing.assert_allclose(preprocess(image), expected, atol=1e-4)
    # Caffe cuts the mean where it cuts the picture (data_transformer.cpp:101).
    views = preprocess.views(np.full((1, 256, 256, 3), 128, np.uint8), 10)
    last = 128 - mean[::-1, 29:, 29:].transpose(1, 2, 0)
    np.testing.assert_allclose(views[3, 0], last, atol=1e-4)
    np.testing.assert_allclose(views[8, 0], last[:, ::-1], atol=1e-4)


def test_eight_bit_floats_are_not_supported(tmp_path):
    """Safetensors' library would fail on them as on a damaged file; NumPy has no such type."""
    entry = {"features.0.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    head = json.dumps(entry).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(UserError, match=r"w.safetensors: features.0.weight is of type F8_E4M3, which is not"):
        load_pretrained(path)


@pytest.mark.parametrize("form", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(tmp_path, convolutions, form):
    dtype = np.dtype(getattr(ml_dtypes, form, form))
    path = write_convolutions(
        tmp_path / "w.safetensors", {k: a.astype(dtype) for k, a in convolutions.items()}
    )
    _, variables, _ = load_pretrained(path, partial=True)
    kernel = variables["params"]["conv2"]["kernel"]
    assert kernel.dtype == jnp.float32
    expected = convolutions["features.3.weight"].astype(dtype).astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel[0], expected)


def test_the_number_of_classes_is_read_from_fc8(monkeypatch, tmp_path):
    shapes = {**seeded.TORCHVISION, "classifier.6": (400, 4096)}
    state = {f"{name}.weight": np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    monkeypatch.setattr(torch_files, "read", lambda path: state)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04")
    loaded = pretrained.read(tmp_path / "w.pth")
    assert loaded.model.num_classes == 400 and loaded.classes is None
    assert loaded.variables["params"]["fc8"]["kernel"].shape == (1, 4096, 400)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod."])
@pytest.mark.parametrize("inner", ["state_dict", "model", None])
def test_checkpoints_and_prefixes(monkeypatch, tmp_path, convolutions, prefix, inner):
    state = {prefix + key: array for key, array in convolutions.items()}
    saved = state if inner is None else {"epoch": 3, inner: state, "optimizer": {"state": {}}}
    monkeypatch.setattr(torch_files, "read", lambda path: saved)
    (tmp_path / "c.pth").write_bytes(b"PK\x03\x04")
    _, variables, _ = load_pretrained(tmp_path / "c.pth", partial=True)
    expected = convolutions["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"][0], expected)


def test_what_is_left_out_is_said(tmp_path, capsys, convolutions):
    state = {f"net.{key}": array for key, array in convolutions.items()}
    path = write_convolutions(tmp_path / "w.safetensors", state)
    load_pretrained(path, partial=True)
    assert capsys.readouterr().err == ""
    others = {"net.classifier.1.weight": (3, 9216), "net.classifier.1.bias": (3,), "n_averaged": ()}
    write_convolutions(path, {**state, **{key: np.ones(shape, np.float32) for key, shape in others.items()}})
    assert load_pretrained(path, partial=True)[0] == create_model("torchvision")
    taken = "takes conv1, conv2, conv3, conv4, conv5 (conv1 is net.features.0.weight)"
    ignored = "ignores n_averaged, net.classifier.1.bias, net.classifier.1.weight"
    assert capsys.readouterr().err == f"{path}: {taken}; {ignored}\n"
    with pytest.raises(UserError, match=r"has no fc6, fc7, fc8, only conv1"):
        load_pretrained(path)


def test_of_several_nets_a_line_says_which_is_taken(monkeypatch, tmp_path, capsys, convolutions):
    ones = {key: np.ones_like(array) for key, array in convolutions.items()}
    saved = {"state_dict_ema": ones, "grad_avg": ones, "state_dict": convolutions}
    monkeypatch.setattr(torch_files, "read", lambda path: saved)
    (tmp_path / "c.pth").write_bytes(b"PK\x03\x04")
    load_pretrained(tmp_path / "c.pth", partial=True)
    said = capsys.readouterr().err
    assert "(conv1 is state_dict.features.0.weight); ignores state_dict_ema.features.0.weight, " in said
    assert said.count("\n") == 1

    flat = {f"{prefix}.{key}": a for prefix, state in saved.items() for key, a in state.items()}
    path = write_convolutions(tmp_path / "w.safetensors", flat)
    _, variables, _ = load_pretrained(path, partial=True)
    expected = convolutions["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"][0], expected)
    ignored = "ignores state_dict_ema.features.0.weight, grad_avg.features.0.weight, "
    assert f"(conv1 is state_dict.features.0.weight); {ignored}" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["features.0.weight", "features.10.bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, convolutions, key, value):
    array = convolutions[key].copy()
    array.flat[-1] = value
    path = write_convolutions(tmp_path / "w.safetensors", {**convolutions, key: array})
    with pytest.raises(UserError) as caught:
        load_pretrained(path, partial=True)
    assert str(caught.value).startswith(f"{path}: {key} has NaN or infinity; ")
    assert "\n" not in str(caught.value)


def test_numbers_beyond_float32_are_refused_and_large_ones_read(tmp_path, convolutions):
    for scale, is_read in ((3e38, True), (1e39, False)):
        bias = np.full(64, scale)  # in float32, the sum is infinite for both
        path = tmp_path / "w.npz"
        np.savez(path, **{**convolutions, "features.0.bias": bias})
        if is_read:
            params = load_pretrained(path, partial=True)[1]["params"]
            np.testing.assert_array_equal(params["conv1"]["bias"], np.full((1, 64), 3e38, np.float32))
        else:
            with pytest.raises(UserError, match=r"features.0.bias has NaN or infinity"):
                load_pretrained(path, partial=True)


def test_a_folder_of_hugging_face_names_its_file(tmp_path, convolutions):
    (tmp_path / "config.json").write_text("{}")
    for file in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / file).write_bytes(b"")
        with pytest.raises(UserError, match=f"a folder of Hugging Face.*; give {tmp_path / file}$"):
            load_pretrained(tmp_path)


def test_a_prefix_may_not_hide_another_net(tmp_path, convolutions):
    state = {f"net.{key}": array for key, array in convolutions.items()}
    state["net.features.12.weight"] = np.zeros((1, 1, 3, 3), np.float32)
    path = write_convolutions(tmp_path / "vgg.safetensors", state)
    with pytest.raises(UserError, match=r"not an AlexNet: it also has net.features.12.weight"):
        load_pretrained(path, partial=True)


def test_data_parallel_features(tmp_path, convolutions):
    """PyTorch's own ImageNet example wrapped only AlexNet's convolutions."""
    state = {key.replace("features.", "features.module."): a for key, a in convolutions.items()}
    write_convolutions(tmp_path / "w.safetensors", state)
    assert load_pretrained(tmp_path / "w.safetensors", partial=True)[0].columns == 1


def test_missing_layers_only_when_allowed(tmp_path, convolutions):
    path = write_convolutions(tmp_path / "w.safetensors", convolutions)
    with pytest.raises(UserError, match=r"has no fc6, fc7, fc8, only conv1.*partial=True"):
        load_pretrained(path)
    loaded = pretrained.read(path, partial=True)
    assert loaded.missing == ("fc6", "fc7", "fc8")
    assert set(loaded.variables["params"]) == {"conv1", "conv2", "conv3", "conv4", "conv5"}


def test_an_npz_with_torchvisions_names(tmp_path, convolutions):
    np.savez(tmp_path / "w.npz", **convolutions)
    model, variables, _ = load_pretrained(tmp_path / "w.npz", partial=True)
    assert model == create_model("torchvision") and len(variables["params"]) == 5


# --- Files as PyTorch writes them -----------------------------------------------------------------------


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_reads_what_pytorch_wrote(file):
    saved = torch_files.read(FIXTURES / file)
    arrays = {key: np.asarray(tensor) for key, tensor in saved.items()}
    grid = np.arange(12, dtype=np.float32)
    np.testing.assert_array_equal(arrays["float32"], grid.reshape(3, 4), strict=True)
    np.testing.assert_array_equal(arrays["transposed"], grid.reshape(3, 4).T, strict=True)
    np.testing.assert_array_equal(arrays["part"], grid[4:8], strict=True)
    np.testing.assert_array_equal(arrays["float16"], np.arange(3, dtype=np.float16), strict=True)
    np.testing.assert_array_equal(arrays["bfloat16"], np.arange(3).astype(ml_dtypes.bfloat16), strict=True)
    np.testing.assert_array_equal(arrays["scalar"], np.float32(2.5), strict=True)
    np.testing.assert_array_equal(arrays["parameter"], np.ones(2, np.float32), strict=True)


def test_reads_a_training_checkpoint():
    saved = torch_files.read(FIXTURES / "checkpoint.pth")
    assert saved["epoch"] == 3 and saved["model"]["weight"].shape == (2, 2)


def test_every_truncation_is_one_clear_line(tmp_path):
    for name in ("zip.pth", "legacy.pth"):
        data = (FIXTURES / name).read_bytes()
        for length in range(0, len(data), 29):
            (tmp_path / "cut.pth").write_bytes(data[:length])
            with pytest.raises(UserError, match="damaged or truncated PyTorch file") as caught:
                torch_files.read(tmp_path / "cut.pth")
            assert "\n" not in str(caught.value)


def test_flipped_bytes_never_crash(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("zip.pth", "legacy.pth"):
        data = bytearray((FIXTURES / name).read_bytes())
        for place in rng.choice(len(data), 200, replace=False):
            broken = bytearray(data)
            broken[place] ^= 0xFF
            (tmp_path / "broken.pth").write_bytes(broken)
            try:
                saved = torch_files.read(tmp_path / "broken.pth")
                assert isinstance(saved, dict)
            except UserError:
                pass


# --- Wrong and malicious files ----------------------------------------------------------------------------


class Harm:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def as_zip(path: pathlib.Path, data: bytes, extra: tuple[str, ...] = ()) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name in extra:
            archive.writestr(name, b"")
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("touch harm",), "posix.system"),
        (eval, ("__import__('os').mkdir('harm')",), "builtins.eval"),
        (getattr, (collections.OrderedDict, "__init__"), "builtins.getattr"),
        (os.mkdir, ("harm",), "posix.mkdir"),
    ],
)
def test_a_malicious_pickle_is_refused_by_name(
    tmp_path, monkeypatch, function, arguments, name, protocol, legacy
):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"features.0.weight": Harm(function, *arguments)}, protocol=protocol)
    path = tmp_path / "w.pth"
    if legacy:
        head = [torch_files._LEGACY_MAGIC, torch_files._LEGACY_PROTOCOL, {"little_endian": True}]
        path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + data)
    else:
        as_zip(path, data)
    name = name.replace("builtins", "__builtin__") if protocol < 3 else name
    with pytest.raises(UserError, match=f"names {name}, which is no part of a tensor"):
        load_pretrained(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "value",
    [
        collections.Counter({3: 2}),
        {1, 2},
        torch_pickle.Name("torch", "float32"),
        torch_pickle.Name("torch", "bfloat16"),
        torch_pickle.Name("torch", "int64"),
        Harm(torch_pickle.Name("torch", "device"), "cuda", 1),
    ],
    ids=["Counter", "set", "float32", "bfloat16", "int64", "device"],
)
def test_what_weights_only_accepts_is_read(tmp_path, value, protocol):
    """pytorch#98921: a scheduler's Counter and the like beside the weights."""
    out = io.BytesIO()
    torch_pickle._Pickler(out, protocol).dump({"epoch": 3, "other": value})
    saved = torch_files.read(as_zip(tmp_path / "w.pth", out.getvalue()))
    device = "cuda:1" if isinstance(value, Harm) else None
    assert saved["epoch"] == 3 and saved["other"] == (device or getattr(value, "name", value))


@pytest.mark.parametrize("file", ["weights_only.pth", "weights_only_legacy.pth"])
def test_what_pytorch_2_13_reads_with_weights_only(file):
    """pytorch#98921: what PyTorch itself wrote, each kind of value that it accepts beside the weights."""
    saved = torch_files.read(FIXTURES / file)
    np.testing.assert_array_equal(saved["weight"], np.arange(6, dtype=np.float32).reshape(2, 3), strict=True)
    for key, size in (("parameter", 1), ("parameter with state", 1), ("tensor with attribute", 2)):
        np.testing.assert_array_equal(saved[key], np.ones(size, np.float32), strict=True)
    known = {"bytes": b"\xe9\x00", "bytearray": b"ab", "complex": 1 + 2j, "set": {1}, "counter": {3: 2}}
    known |= {"layout": "torch.strided", "dtype": "float8_e5m2", "device": "cpu", "size": (1, 2)}
    assert {key: saved[key] for key in known} == known
    others = (
        "sparse",
        "compressed",
        "quantised",
        "meta",
        *(("float8", "uint16") if "float8" in saved else ()),
    )
    assert [saved[key] for key in others] == [None] * len(others)


def test_the_names_that_a_pickle_may_use_are_pytorchs_and_no_others():
    allowed = set(json.loads((FIXTURES / "weights_only.json").read_text())["names"])
    names = torch_files._names()
    assert allowed <= set(names) and len(allowed) == 144
    more = {name: value for name, value in names.items() if name not in allowed}
    python_2 = {name.replace("__builtin__", "builtins") for name in more if "builtin" in name}
    assert python_2 <= allowed  # how Python 3 writes the same names in protocol 2
    assert all(isinstance(value, str) for name, value in more.items() if "builtin" not in name)


def test_byte_strings_of_python_2(tmp_path):
    data = b"\x80\x02}U\x04nameU\x02\xe9\xffs."  # {"name": "\xe9\xff"} as Python 2 pickles it
    assert torch_files.read(as_zip(tmp_path / "w.pth", data)) == {"name": "\xe9\xff"}


def test_a_tar_from_before_2017_says_how_to_save_it_again(tmp_path):
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(
        UserError, match=r"w.pth: a tar .*before 2017.*PyTorch 0.4 or later: torch.save"
    ) as caught:
        load_pretrained(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "collections OrderedDict.__init__",  # protocol 4 can name attributes of allowed names
        "torch._utils _rebuild_tensor_v2.__globals__",
        "torch.storage _load_from_bytes",
        "numpy.core.multiarray _reconstruct",
    ],
)
def test_names_like_the_allowed_ones_are_refused(tmp_path, name):
    module, attribute = name.split()
    texts = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
    with pytest.raises(UserError, match=f"names {module}.{attribute}"):
        torch_files.read(as_zip(tmp_path / "w.pth", b"\x80\x04" + texts + b"\x93."))


def test_pickled_arguments_are_refused_with_advice():
    with pytest.raises(UserError, match=r"names argparse.Namespace.*torch.save\(model.state_dict\(\)"):
        load_pretrained(FIXTURES / "refused.pth")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "archive/../../outside", "C:\\outside"])
def test_a_zip_with_a_path_outside_is_refused(tmp_path, name):
    path = as_zip(tmp_path / "w.pth", pickle.dumps({}), (name,))
    with pytest.raises(UserError, match="refused, since it names a path outside itself"):
        load_pretrained(path)


@pytest.mark.parametrize(
    "offset, size, stride",
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (-1, (1,), (1,)), (0, (-1,), (1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, offset, size, stride):
    tensor = torch_pickle.Tensor("0", 4, offset, size, stride)
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", torch_pickle.dumps({"x": tensor}))
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match="damaged or truncated"):
        torch_files.read(tmp_path / "w.pth")


def test_a_tensor_in_place_of_a_storage_is_refused(tmp_path):
    """A view with strides of 0 is longer than its memory, so a view of it could read beyond."""
    endless = torch_pickle.Tensor("0", 4, 0, (1000,), (0,))
    rebuild = torch_pickle.Name("torch._utils", "_rebuild_tensor_v2")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        beyond = Harm(rebuild, endless, 0, (1000,), (1,), False, collections.OrderedDict())
        archive.writestr("archive/data.pkl", torch_pickle.dumps({"x": beyond}))
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match=r"damaged or truncated .*a tensor without a storage"):
        torch_files.read(tmp_path / "w.pth")


def test_a_changed_bit_of_a_weight_is_one_clear_line(tmp_path, convolutions):
    torch_pickle.write(tmp_path / "w.pth", convolutions)
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"w.pth: a damaged or truncated PyTorch file .*CRC") as caught:
        load_pretrained(tmp_path / "w.pth", partial=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file, content, match",
    [
        ("w.pth", b"<!DOCTYPE html><html><title>404</title>", "a web page, not weights"),
        ("w.pth", b"\n  <html>", "a web page, not weights"),
        ("w.caffemodel", b"<html>", "a web page, not weights"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("w.pth", b"", "an empty file"),
        ("w.npz.gz", b"\x1f\x8b\x08\x00", "compressed with gzip; unpack it first"),
        ("w.pth", b"no weights at all", "not weights, or damaged in its first bytes"),
        ("w.safetensors", b"\xff" * 100, "damaged or truncated .safetensors"),
        ("w.npz", b"PK\x03\x04 and no more", "damaged or truncated .npz"),
        ("w.caffemodel", b"\x0a\xff\xff\x01", "damaged or truncated .caffemodel"),
    ],
)
def test_a_file_that_is_not_weights_is_a_one_line_error(tmp_path, file, content, match):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        load_pretrained(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)


def test_every_wrong_shape_is_listed(tmp_path, convolutions):
    state = dict(convolutions)
    state["features.3.weight"] = np.zeros((192, 64, 3, 3), np.float32)
    state["features.6.bias"] = np.zeros(5, np.float32)
    state["features.8.weight"] = np.zeros((256, 384, 3, 3), np.int32)
    path = write_convolutions(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError) as caught:
        load_pretrained(path, partial=True)
    for part in (
        "features.3.weight is [192, 64, 3, 3], not [192, 64, 5, 5]",
        "features.6.bias is [5], not [384]",
        "features.8.weight is of int32, not floats",
    ):
        assert part in str(caught.value)


def test_other_nets_are_refused(tmp_path, convolutions):
    resnet = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32), "bn1.weight": np.zeros(64, np.float32)}
    path = write_convolutions(tmp_path / "resnet.safetensors", resnet)
    with pytest.raises(UserError, match=r"not an AlexNet: 1 convolutions and 0 .*it has bn1.weight \[64\]"):
        load_pretrained(path)
    vgg = {**convolutions, "features.12.weight": np.zeros((1, 1, 3, 3), np.float32)}
    path = write_convolutions(tmp_path / "vgg.safetensors", vgg)
    with pytest.raises(UserError, match=r"not an AlexNet: it also has features.12.weight"):
        load_pretrained(path)
    half = {key: array for key, array in convolutions.items() if key != "features.3.bias"}
    path = write_convolutions(tmp_path / "half.safetensors", half)
    with pytest.raises(UserError, match=r"has features.3.weight but no bias for it"):
        load_pretrained(path)


def test_a_path_that_does_not_exist():
    with pytest.raises(UserError, match=r"nowhere.pth: no such file.*torchvision, caffe, caffenet"):
        load_pretrained("nowhere.pth")


# --- Writing ----------------------------------------------------------------------------------------------


def small(variant: str, **overrides):
    """A net of few weights, its variables and a preprocessing with a mean image."""
    widths = (16, 32, 24, 24, 16, 16) if variant != "torchvision" else (8, 12, 24, 16, 16, 16)
    model = create_model(variant, 7, **{"widths": widths, "fc_widths": (32, 32), **overrides})
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)), shapes)
    mean = rng.uniform(0, 255, (100, 100, 3)).astype(np.float32)
    return model, variables, Preprocess(resize_size=100, crop_size=96, mean=mean)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".SafeTensors", ".NPZ"])
@pytest.mark.parametrize("variant", ["paper", "original", "caffe", "caffenet", "torchvision"])
def test_round_trips_are_exact(tmp_path, variant, suffix):
    model, variables, preprocess = small(variant)
    path = tmp_path / f"w{suffix}"
    classes = tuple(f"class {i}" for i in range(7))
    save_pretrained(path, model, variables, preprocess, classes)
    loaded = pretrained.read(path)
    assert loaded.model == model and loaded.classes == classes
    assert os.listdir(tmp_path) == [path.name]  # no temporary file is left
    np.testing.assert_array_equal(loaded.preprocess.mean, preprocess.mean)
    used = jax.tree.map(np.asarray, variables)  # 7 classes in two columns: the eighth output is unused
    if model.columns == 2:
        used["params"]["fc8"]["kernel"] = np.array(used["params"]["fc8"]["kernel"])
        used["params"]["fc8"]["kernel"][-1, :, -1] = 0
        used["params"]["fc8"]["bias"] = np.array(used["params"]["fc8"]["bias"])
        used["params"]["fc8"]["bias"][-1, -1] = 0
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, used)


def test_a_header_whose_length_begins_as_a_pickle_does(tmp_path):
    """A `.safetensors` file begins with its header's length; every 32nd, as headers are padded to 8 bytes."""
    model, variables, preprocess = small("paper")
    path, first = tmp_path / "w.safetensors", set()
    for more in range(0, 256, 8):
        classes = tuple(f"class {i}" + (i == 0) * "x" * more for i in range(7))
        save_pretrained(path, model, variables, preprocess, classes)
        first.add(path.read_bytes()[0])
        assert pretrained.read(path).classes == classes
    assert 0x80 in first


def test_the_layout_is_that_of_pytorchs_grouped_convolutions(tmp_path):
    """With two columns conv2 has two groups; conv3 and fc6 see both columns."""
    model, variables, preprocess = small("paper")
    save_pretrained(tmp_path / "w.safetensors", model, variables, preprocess)
    state = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    params = variables["params"]
    assert state["features.3.weight"].shape == (32, 8, 5, 5)
    np.testing.assert_array_equal(
        state["features.3.weight"][16:], params["conv2"]["kernel"][1].transpose(3, 2, 0, 1)
    )
    assert state["features.6.weight"].shape == (24, 32, 3, 3)
    # fc6 of PyTorch reads channel by channel, ours position by position: here position 1 of channel 9.
    places = params["fc6"]["kernel"].shape[1] // 16
    np.testing.assert_array_equal(
        state["classifier.1.weight"][20, 9 * places + 1], params["fc6"]["kernel"][1, 1 * 16 + 9, 4]
    )


def test_caffes_layout_is_bgr(tmp_path):
    model, variables, preprocess = small("caffe")
    save_pretrained(tmp_path / "w.npz", model, variables, preprocess)
    with np.load(tmp_path / "w.npz") as arrays:
        blue = arrays["conv1/0"][:8, 0]
    np.testing.assert_array_equal(blue, variables["params"]["conv1"]["kernel"][0, :, :, 2].transpose(2, 0, 1))


def test_nets_without_a_counterpart_are_refused(tmp_path):
    for overrides, match in (
        ({"conv6": True}, "sixth"),
        ({"low_resolution": True}, "second input"),
        ({"cross_column_layers": ("conv3",)}, "independent columns"),
    ):
        model, variables, preprocess = small("paper", **overrides)
        with pytest.raises(UserError, match=match):
            save_pretrained(tmp_path / "w.npz", model, variables, preprocess)
    model, variables, preprocess = small("paper")
    with pytest.raises(UserError, match=r"w.h5: weights are written as"):
        save_pretrained(tmp_path / "w.h5", model, variables, preprocess)


@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_the_message_for_pth_names_the_format_to_write(tmp_path, suffix):
    with pytest.raises(UserError, match=r"not written; write w.safetensors, .*safetensors.torch.load_file"):
        save_pretrained(tmp_path / f"w.{suffix}", *small("torchvision"))
    assert not list(tmp_path.iterdir())


def test_grouped_shapes_without_a_description_ask_for_the_variant(tmp_path):
    state = {}
    for (ours, shape), theirs in zip(list(seeded.CAFFE.items())[:5], CONVOLUTIONS, strict=True):
        state[f"{theirs}.weight"] = np.zeros(shape, np.float32)
        state[f"{theirs}.bias"] = np.zeros(shape[0], np.float32)
        assert ours.startswith("conv")
    path = write_convolutions(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match="fit several nets; pass variant="):
        load_pretrained(path, partial=True)
    assert load_pretrained(path, partial=True, variant="original")[0] == create_model("original")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model": {"columns": "x"}}', '{"model": {"nonsense": 1}, "preprocess": {}}']
)
def test_a_damaged_description_is_one_clear_line(tmp_path, convolutions, text):
    safetensors.numpy.save_file(convolutions, tmp_path / "w.safetensors", metadata={"alexnet_jax": text})
    with pytest.raises(UserError):
        load_pretrained(tmp_path / "w.safetensors", partial=True)


def test_imagenets_classes():
    classes = pretrained.imagenet_classes()
    assert len(classes) == len(set(classes)) == 1000
    assert [wnid for wnid, _ in classes] == sorted(wnid for wnid, _ in classes)
    assert classes[0] == ("n01440764", "tench, Tinca tinca")
    assert classes[999] == ("n15075141", "toilet tissue, toilet paper, bathroom tissue")
    assert json.dumps(CAFFE.to_json()) and CAFFE.resize == "squash"
