"""`.npy` and `.npz`: arrays, dictionaries of arrays as caffe-tensorflow wrote them, mean images, harm."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import create_model, load_pretrained
from alexnet_jax.common.errors import UserError
from alexnet_jax.weights import caffe_files, numpy_files
from tests import caffe
from tests.fixtures import seeded

CONVOLUTIONS = {name: seeded.CAFFE[name] for name in list(seeded.CAFFE)[:5]}


def npy(value, protocol: int) -> bytes:
    """What `numpy.save` writes for an object, with the protocol of its time: 2, 3 or 4."""
    out = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(out, header)
    box = np.empty((), object)
    box[()] = value
    pickle.dump(box, out, protocol=protocol)
    return out.getvalue()


ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64": np.linspace(0, 1, 5),
    "big endian": np.arange(4, dtype=">f4"),
    "order of Fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "integers": np.arange(3),
    "booleans": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
    "float16": np.array([1.5], np.float16),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ARRAYS)
def test_pickled_arrays_of_any_kind(tmp_path, kind, protocol):
    array = ARRAYS[kind]
    values = {"a": {"weights": array, "biases": array[..., None]}, "b": [array, array], "c": (array,)}
    (tmp_path / "w.npy").write_bytes(npy(values, protocol))
    found = numpy_files.read(tmp_path / "w.npy")
    assert sorted(found) == ["a/biases", "a/weights", "b/0", "b/1", "c/0"]
    for name, value in found.items():
        expected = array[..., None] if name == "a/biases" else array
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == array.dtype.newbyteorder("=")


def test_a_pickle_of_python_2(tmp_path):
    """Written by hand: numpy 1.x in Python 2, {"a": array([1.5, -2.0], "<f4")} in protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([1.5, -2.0], "<f4").tobytes() + b"tb"
    )
    box = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01)cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
        b"\x89]}U\x01a" + array + b"satb."
    )
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    data = header.getvalue() + box
    reference = np.load(io.BytesIO(data), allow_pickle=True, encoding="latin1").item()  # NumPy reads it too
    (tmp_path / "w.npy").write_bytes(data)
    found = numpy_files.read(tmp_path / "w.npy")
    np.testing.assert_array_equal(found["a"], reference["a"], strict=True)


class Harm:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "function, arguments, name",
    [
        (os.system, ("touch harm",), "posix.system"),
        (eval, ("__import__('os').mkdir('harm')",), "builtins.eval"),
        (os.mkdir, ("harm",), "posix.mkdir"),
        (np.load, ("w.npy",), "numpy.load"),
    ],
)
def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch, function, arguments, name, archive, protocol):
    monkeypatch.chdir(tmp_path)
    data = npy({"conv1": Harm(function, *arguments)}, protocol)
    if archive:
        with zipfile.ZipFile(tmp_path / "w.npz", "w") as members:
            members.writestr("conv1.npy", data)
    else:
        (tmp_path / "w.npy").write_bytes(data)
    path = tmp_path / ("w.npz" if archive else "w.npy")
    name = name.replace("builtins", "__builtin__") if protocol < 3 else name
    with pytest.raises(UserError, match=rf"{path}: refused, since its pickle names {name}, .*numpy.savez"):
        load_pretrained(path)
    assert not pathlib.Path("harm").exists()


def test_damaged_pickles_are_one_clear_line(tmp_path):
    data = npy({"a": [np.arange(4.0), np.arange(3.0)]}, 2)
    rng, refused = np.random.default_rng(0), 0
    broken = [data[:length] for length in range(1, len(data), 3)]
    for place in rng.choice(len(data), 300):
        broken.append(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    for content in broken:
        (tmp_path / "w.npy").write_bytes(content)
        try:
            numpy_files.read(tmp_path / "w.npy")
        except UserError as error:  # anything else fails the test
            assert "\n" not in str(error)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_stands_beside_the_arrays_is_passed_over(tmp_path, protocol):
    others = {"epoch": 3, "loss": np.float64(0.5), "name": "alexnet", "none": None, "empty": [], "raw": b"x"}
    value = collections.OrderedDict({**others, "conv1": {"weights": np.ones(2), "step": np.int64(7)}})
    (tmp_path / "w.npy").write_bytes(npy(value, protocol))
    assert {name: a.tolist() for name, a in numpy_files.read(tmp_path / "w.npy").items()} == {
        "conv1/weights": [1, 1]
    }


@pytest.mark.parametrize("value", [{1, 2}, {"a": np.array(["text"])}, np.array(["2012"], "datetime64[Y]")])
def test_other_objects_than_arrays(tmp_path, value):
    (tmp_path / "w.npy").write_bytes(npy(value, 4))
    with pytest.raises(UserError, match=r"damaged or truncated .npy, or one of other objects than arrays"):
        numpy_files.read(tmp_path / "w.npy")


def test_a_list_in_itself_is_no_endless_loop(tmp_path):
    endless: list = []
    endless.append(endless)
    (tmp_path / "w.npy").write_bytes(npy(endless, 4))
    with pytest.raises(UserError, match=r"other objects than arrays \(a list at 0/0/0"):
        numpy_files.read(tmp_path / "w.npy")


# --- Caffe's nets in TensorFlow's files -------------------------------------------------------------------


def forms(layers):
    """The layouts in which `bvlc_alexnet` is passed around: file name and contents."""
    last = {name: (w.transpose(2, 3, 1, 0), b) for name, (w, b) in layers.items()}
    by_name = {n: {"weights": w, "biases": b} for n, (w, b) in last.items()}
    flat = {f"{n}/{k}": a for n, pair in by_name.items() for k, a in pair.items()}
    out = io.BytesIO()
    np.savez(out, **flat)
    yield "caffe-tensorflow, flat.npz", out.getvalue()
    for protocol in (2, 3, 4):
        yield f"caffe-tensorflow {protocol}.npy", npy(by_name, protocol)
        yield f"Toronto {protocol}.npy", npy({n: list(pair) for n, pair in last.items()}, protocol)
    yield (
        "tensorpack.npy",
        npy({f"{n}/{k}": a for n, p in last.items() for k, a in zip("Wb", p, strict=True)}, 2),
    )
    yield "pycaffe.npy", npy({n: list(pair) for n, pair in layers.items()}, 2)
    out = io.BytesIO()
    np.savez(out, np.array(by_name, object))
    yield "an object in a.npz", out.getvalue()


def test_caffe_tensorflow(tmp_path):
    """tf_alexnet of Toronto, finetune_alexnet_with_tensorflow: the same activations as the net in Caffe."""
    layers = seeded.layers(CONVOLUTIONS, seed=3)
    images = seeded.images(1, 227, seed=4, scale=50.0)
    expected = caffe.forward(layers, images[..., ::-1].transpose(0, 3, 1, 2), caffe.ALEXNET)["conv1"]
    for name, data in forms(layers):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError, match="fit several nets; pass variant="):
            load_pretrained(path, partial=True)
        model, variables, preprocess = load_pretrained(path, partial=True, variant="caffe")
        assert model == create_model("caffe") and preprocess.resize == "squash"
        kernel = np.asarray(variables["params"]["conv1"]["kernel"])  # [2, 11, 11, 3, 48], RGB
        for column in (0, 1):
            weight, bias = (array[48 * column : 48 * (column + 1)] for array in layers["conv1"])
            np.testing.assert_array_equal(kernel[column], weight[:, ::-1].transpose(2, 3, 1, 0), err_msg=name)
            np.testing.assert_array_equal(variables["params"]["conv1"]["bias"][column], bias)
        weight = layers["conv4"][0].reshape(2, 192, 192, 3, 3).transpose(0, 3, 4, 2, 1)
        np.testing.assert_array_equal(variables["params"]["conv4"]["kernel"], weight, err_msg=name)
    filters = (
        jax.lax.conv_general_dilated(
            jnp.asarray(images),
            jnp.concatenate(list(kernel), axis=-1),
            (4, 4),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        + layers["conv1"][1]
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(filters / scale, expected.transpose(0, 2, 3, 1) / scale, atol=1e-5, rtol=0)


# --- Mean images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_images(tmp_path, dtype):
    """caffe's ilsvrc_2012_mean.npy, `[3, 256, 256]` in BGR, as the binaryproto; `[H, W, 3]` is RGB."""
    bgr = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(caffe.mean_binaryproto(bgr))
    rgb = np.stack([bgr[2], bgr[1], bgr[0]], axis=-1)
    for name, array in (("bgr", bgr), ("blob", bgr[None]), ("rgb", rgb)):
        np.save(tmp_path / f"{name}.npy", array.astype(dtype))
        np.testing.assert_array_equal(caffe_files.read_mean(tmp_path / f"{name}.npy"), rgb, strict=True)
    np.testing.assert_array_equal(caffe_files.read_mean(tmp_path / "mean.binaryproto"), rgb, strict=True)
    with pytest.raises(UserError, match=r"^cannot be read \(No such file"):
        caffe_files.read_mean(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    "array", [np.zeros((256, 256)), np.zeros(3), np.array({"a": 1}, object), np.zeros((4, 8, 8))]
)
def test_other_arrays_are_no_mean(tmp_path, array):
    np.save(tmp_path / "mean.npy", array)
    with pytest.raises(UserError, match=r"not a colour image|a .npy of numbers") as caught:
        caffe_files.read_mean(tmp_path / "mean.npy")
    assert "\n" not in str(caught.value)
