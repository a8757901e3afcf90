"""Features of real photographs against PyTorch's; files of features; nearest images; the linear probe."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFont

import alexnet_jax
from alexnet_jax import __main__, create_model, load_pretrained
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.tools import features, nearest, probe
from alexnet_jax.weights import pretrained
from tests import caffe
from tests.fixtures import seeded

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A small net of two columns in a file."""
    model = create_model("paper", 5, widths=(16, 32, 24, 24, 16, 16), fc_widths=(32, 32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: 0.05 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    preprocess = Preprocess(72, 64, mean=np.array([120, 110, 100], np.float32))
    pretrained.save_pretrained(path, model, variables, preprocess, ("ant", "bee", "cat", "dog", "elk"))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures in two folders, a broken JPEG, a hidden file and a text file."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = root / ("bright" if number % 2 else "dark")
        folder.mkdir(exist_ok=True)
        low = 120 if number % 2 else 0
        pixels = rng.integers(low, low + 100, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (root / "dark" / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    (root / "dark" / ".hidden.png").write_bytes(b"")
    (root / "dark" / "notes.txt").write_text("not an image")
    return root


def run(*arguments: object) -> subprocess.CompletedProcess:
    """Runs a command in a process of its own, as users do."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_pool5_of_photographs_agrees_with_pytorch_and_separates_ants_from_bees(real_data):
    loaded = pretrained.read(real_data / "torchvision_alexnet_features.npz", partial=True)
    sets, labels = {}, {}
    for split in ("train", "val"):
        class_of = dict(inference.find_with_classes([real_data / "hymenoptera" / split]))
        pairs = features.extract(loaded, list(class_of), "pool5")
        files, rows = zip(*((file, row.ravel()) for file, row in pairs if row is not None), strict=True)
        sets[split] = (files, np.stack(rows))
        labels[split] = [class_of[file] == "bees" for file in files]

    files, points = sets["val"]
    with np.load(FIXTURES / "torchvision.npz") as recorded:
        samples = dict(zip(recorded["files"].tolist(), recorded["pool5_samples"], strict=True))
        norms = dict(zip(recorded["files"].tolist(), recorded["pool5_norms"], strict=True))
    places = seeded.places("pool5", points.shape[1], 64)
    assert len(files) == len(samples) == 153
    for file, point in zip(files, points, strict=True):
        key = pathlib.Path(file).relative_to(real_data / "hymenoptera").as_posix()
        scale = np.abs(samples[key]).max()
        np.testing.assert_allclose(point[places], samples[key], atol=1e-3 * scale, rtol=0, err_msg=key)
        np.testing.assert_allclose(np.linalg.norm(point), norms[key], rtol=1e-3, err_msg=key)

    fitted = probe.fit(sets["train"][1], np.array(labels["train"], int), 2)
    accuracy = np.mean(fitted.logits(points).argmax(axis=1) == np.array(labels["val"]))
    assert accuracy >= 0.91


def test_the_command_writes_the_net_s_activations(tmp_path, net, photos, capsys):
    out = tmp_path / "f.npz"
    assert __main__.main(["features", str(photos), f"--weights={net}", "--layer=fc7", f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert "fc7 of 40 images, 32 each; 1 bad" in said.out
    assert "bad image, left out" in said.err and "broken.jpg" in said.err
    assert os.listdir(tmp_path) == [out.name]
    files, points, _ = features.load(out)
    assert files == sorted(str(p) for p in photos.rglob("*.png") if not p.name.startswith("."))
    model, variables, preprocess = alexnet_jax.load_pretrained(net)
    x = np.stack([preprocess(files[0]), preprocess(files[39])])
    _, seen = jax.jit(functools.partial(model.apply, capture=("fc7",)))(variables, x)
    np.testing.assert_allclose(points[[0, 39]], seen["fc7"], atol=1e-4, rtol=1e-4)


def test_features_are_written_as_npz_only(tmp_path, net, photos):
    with pytest.raises(UserError, match=r"--out: .*f.parquet: must end in .npz"):
        __main__.main(["features", str(photos), f"--weights={net}", f"--out={tmp_path / 'f.parquet'}"])
    assert not list(tmp_path.iterdir())


def test_a_missing_layer(tmp_path, net, photos):
    loaded = pretrained.read(net)
    with pytest.raises(
        UserError, match=r"--layer=fc9: .* has no such layer; choose one of conv1, activation1, "
    ):
        features.layer_function(loaded, "fc9")
    convolutions = {k: v for k, v in loaded.variables["params"].items() if k.startswith("conv")}
    path = tmp_path / "convolutions.safetensors"
    pretrained.save_pretrained(path, loaded.model, {"params": convolutions}, loaded.preprocess)
    partial = pretrained.read(path, partial=True)
    with pytest.raises(
        UserError, match=r"--layer=activation6: .*convolutions.safetensors has no fc6, fc7, fc8; .*pool5$"
    ):
        features.layer_function(partial, "activation6")
    image = partial.preprocess.stored(np.zeros((80, 80, 3), np.uint8))[None]
    np.testing.assert_array_equal(
        features.layer_function(partial, "pool5")(image), features.layer_function(loaded, "pool5")(image)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant, switches, absent",
    [
        ("torchvision", {}, {"lrn1", "lrn2", "map_norm2"}),
        ("paper", {}, {"map_norm2"}),
        ("original", {}, set()),
        ("original", {"norm": False}, {"lrn1", "lrn2", "map_norm2"}),
        (
            "paper",
            {"removed_layers": ("conv4", "fc7")},
            {"conv4", "activation4", "fc7", "activation7", "dropout7"},
        ),
        ("caffenet", {"conv6": True}, set()),
    ],
)
def test_the_layers_offered_are_those_that_the_net_has(variant, switches, absent):
    """Each can be computed; a layer that is switched off is not offered."""
    model = create_model(variant, 5, widths=(16, 32, 16, 16, 16, 16), fc_widths=(32, 32), **switches)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 67, 67, 3)))
    loaded = pretrained.Pretrained(pathlib.Path("net"), model, variables, Preprocess(72, 67))
    names = features.layer_names(loaded)
    assert absent.isdisjoint(names) and names[0] == "conv1" and names[-1] == "fc8"
    _, seen = model.apply(variables, jnp.zeros((1, 67, 67, 3)), capture=names)
    assert set(seen) == set(names)
    for name in absent:
        with pytest.raises(UserError, match=f"--layer={name}: net has no such layer; choose one of conv1"):
            features.layer_function(loaded, name)


def test_maps_are_height_width_channels(tmp_path, net, photos, capsys):
    """The order of the axes is written beside the features, and printed."""
    model, variables, preprocess = load_pretrained(net)
    for layer, axes, shape in (
        ("conv2", "NHWC", "7 x 7 x 32 (height x width x channels)"),
        ("fc6", "NC", "32"),
    ):
        out = tmp_path / f"{layer}.npz"
        __main__.main(["features", str(photos), f"--weights={net}", f"--layer={layer}", f"--out={out}"])
        assert f"{layer} of 40 images, {shape} each" in capsys.readouterr().out
        with np.load(out) as arrays:
            assert arrays["axes"] == axes
            image = preprocess(str(arrays["files"][3]))
            _, seen = jax.jit(functools.partial(model.apply, capture=layer))(variables, image[None])
            np.testing.assert_allclose(arrays["features"][3], seen[layer][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flag", ["--layer", "--weights", "--out"])
def test_a_flag_given_twice_is_refused(tmp_path, flag):
    """Instead of the first value being lost without a word."""
    values = {"--layer": ("conv1", "pool5"), "--weights": ("a", "b"), "--out": ("a.npz", "b.npz")}[flag]
    both = [f"{flag}={tmp_path / value}" for value in values]
    with pytest.raises(UserError, match=f"{flag}: given twice; it takes one value"):
        __main__.main(["features", "x", *both])


def test_a_caffe_net_in_numpys_file_with_its_mean_image(tmp_path, photos, capsys):
    """caffe's ilsvrc_2012_mean.npy and tf_alexnet: --variant and --mean say what the file does not."""
    layers = seeded.layers({name: seeded.CAFFE[name] for name in list(seeded.CAFFE)[:5]}, seed=3)
    arrays = {f"{name}/weights": weight.transpose(2, 3, 1, 0) for name, (weight, _) in layers.items()}
    np.savez(tmp_path / "w.npz", **arrays, **{f"{name}/biases": bias for name, (_, bias) in layers.items()})
    bgr = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    np.save(tmp_path / "mean.npy", bgr)
    some = sorted(str(path) for path in (photos / "dark").glob("[0-9]*.png"))[:2]
    out, weights = tmp_path / "f.npz", f"--weights={tmp_path / 'w.npz'}"
    command = ["features", *some, weights, "--layer=conv1", f"--out={out}"]
    with pytest.raises(UserError, match=r"pass variant= or --variant=, one of paper, "):
        __main__.main(command)
    __main__.main([*command, "--variant=caffe", f"--mean={tmp_path / 'mean.npy'}"])
    with np.load(out) as found, Image.open(some[1]) as picture:
        pixels = np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR), np.float32)[14:241, 14:241]
        activations = found["features"][1]
    images = (pixels[..., ::-1].transpose(2, 0, 1) - bgr[:, 14:241, 14:241])[None]
    expected = caffe.forward(layers, images, caffe.ALEXNET)["conv1"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(activations, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)

    safetensors = tmp_path / "exported.safetensors"  # what export writes has the mean in it
    known = ["--variant=caffe", f"--mean={tmp_path / 'mean.npy'}"]
    __main__.main(["export", str(tmp_path / "w.npz"), str(safetensors), *known])
    preprocess = pretrained.read(safetensors, partial=True).preprocess
    np.testing.assert_array_equal(preprocess.mean, bgr[::-1].transpose(1, 2, 0))


def test_a_mean_image_is_for_caffes_nets(tmp_path, net):
    np.save(tmp_path / "mean.npy", np.zeros((3, 72, 72), np.float32))
    with pytest.raises(
        UserError, match=r"net.safetensors: has a mean of its own; a mean image is for Caffe's"
    ):
        pretrained.read(net, mean=tmp_path / "mean.npy")
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"run: a run has its own mean; leave mean out"):
        pretrained.read(tmp_path / "run", mean=tmp_path / "mean.npy")


def test_find(photos, tmp_path):
    assert len(inference.find([photos])) == 41
    assert inference.find([photos / "dark" / "notes.txt"]) == [str(photos / "dark" / "notes.txt")]
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        inference.find(["nowhere"])
    with pytest.raises(UserError, match="no images there"):
        inference.find([tmp_path])


def test_closing_the_iterator_stops_the_threads(photos):
    names = inference.find([photos]) * 50
    decode = Preprocess(72, 64).decode
    answers = inference.run_batches(lambda images: images, names, decode, (4,))
    item, image, result = next(answers)
    assert item == names[0]
    np.testing.assert_array_equal(image, result)
    answers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode") and not finished(t)]


def finished(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def test_batches_have_few_sizes_and_answers_match_their_items():
    """Bad images leave no gap; a pipe is answered as it comes, a sequence in full batches."""
    sizes = []

    def function(images):
        sizes.append(len(images))
        return {"sum": images.sum(axis=(1, 2, 3))}

    def decode(number):
        return None if number % 3 == 0 else np.full((2, 2, 3), number, np.uint8)

    def check(items):
        sizes.clear()
        for item, answer in zip(
            range(10), inference.run_batches(function, items, decode, (1, 4)), strict=True
        ):
            assert answer.item == item and (answer.image is None) == (item % 3 == 0)
            assert answer.result is None if item % 3 == 0 else answer.result == {"sum": 12 * item}

    check(list(range(10)))
    assert sizes == [4, 4, 1]
    check(range(10))
    assert sizes == [4, 4, 1]
    check(iter(range(10)))
    assert set(sizes) <= {1, 4}


def test_errors_of_the_iterable_and_the_decoder_are_raised():
    def items():
        yield 1
        raise OSError("the pipe broke")

    def decode(number):
        if number == 2:
            raise OSError("the disk is gone")
        return np.zeros((2, 2, 3), np.uint8)

    with pytest.raises(OSError, match="the pipe broke"):
        list(inference.run_batches(lambda images: images, items(), decode))
    with pytest.raises(OSError, match="the disk is gone"):
        list(inference.run_batches(lambda images: images, [1, 2], decode))


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    queries, others = rng.standard_normal((7, 20), np.float32), rng.standard_normal((50, 20), np.float32)
    indices, distances = nearest.nearest(queries, others, 5)
    table = np.linalg.norm(queries[:, None].astype(np.float64) - others[None], axis=-1)
    np.testing.assert_array_equal(indices, np.argsort(table, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(table, axis=1)[:, :5], rtol=1e-5)


def test_nearest_others_leaves_out_the_image_itself():
    points = np.array([[0.0], [1.0], [1.5], [10.0]], np.float32)
    indices, distances = nearest.nearest_others(points, 2)
    np.testing.assert_array_equal(indices, [[1, 2], [2, 0], [1, 0], [2, 1]])
    np.testing.assert_allclose(distances, [[1, 1.5], [0.5, 1], [0.5, 1.5], [8.5, 9]])
    copies = np.zeros((5, 3), np.float32)
    indices, _ = nearest.nearest_others(copies, 2)
    assert indices.shape == (5, 2)
    assert not (indices == np.arange(5)[:, None]).any()


def test_nearest_command(tmp_path, net, photos, capsys):
    out, picture = tmp_path / "f.npz", tmp_path / "near.png"
    __main__.main(["features", str(photos), f"--weights={net}", "--layer=activation7", f"--out={out}"])
    capsys.readouterr()
    assert __main__.main(["nearest", str(out), "--k=3", "--json", f"--figure={picture}"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 40 and all(len(a["nearest"]) == 3 for a in answers)
    with Image.open(picture) as image:
        assert image.size == (4 * 104 + 16, 20 * 132 + 8)  # of 40 queries; three images for each
    done = run("alexnet_jax", "nearest", tmp_path / "nothing.npz")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_figure_names_files_and_shows_distances_and_is_not_endless(photos, tmp_path):
    files = [str(path) for path in sorted(photos.rglob("*.png"))]
    near = [(files[i], 0.125 * i) for i in range(30)]
    nearest.figure(tmp_path / "near.png", [(files[0], near)] * 100)
    sheet = np.asarray(Image.open(tmp_path / "near.png").convert("L"))
    assert sheet.shape == (20 * 132 + 8, 13 * 104 + 16)
    nearest.figure(tmp_path / "other.png", [(files[0], [*near[:2], (files[2], 99.0), *near[3:]])])
    other = np.asarray(Image.open(tmp_path / "other.png").convert("L"))
    # The second line below the third of the nearest images is its distance, and the only thing that differs.
    differ = np.argwhere(sheet[:132] != other[:132])
    low, high = differ.min(axis=0), differ.max(axis=0)
    assert (low >= (8 + 96 + 14, 16 + 3 * 104)).all() and (high < (140, 16 + 4 * 104)).all()
    names = sheet[8 + 96 : 8 + 96 + 14]
    assert all((names[:, 8 + column * 104 :][:, :60] < 128).any() for column in range(13))  # a name each


def test_long_names_lose_their_middle():
    font = ImageFont.load_default(11)
    assert nearest._shortened("cat.jpg", font) == "cat.jpg"
    text = nearest._shortened("a" * 60 + "z" * 60, font)
    assert re.fullmatch(r"(a+)\.\.\.(z+)", text) and 80 < font.getlength(text) <= 96


def test_probe_finds_the_optimum():
    """The gradient, computed by hand, is zero at the solution. Three classes differ along one axis."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    points = rng.standard_normal((60, 8)).astype(np.float32)
    points[:, 0] += 2 * labels
    points[:, 7] = 5.0  # constant
    fitted = probe.fit(points, labels, 3, l2=0.1)
    x = (points - fitted.mean) / fitted.std
    logits = fitted.logits(points)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    error = (softmax - np.eye(3)[labels]) / 60
    np.testing.assert_allclose(x.T @ error + 0.1 * fitted.weights, 0, atol=2e-4)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=2e-4)


def test_probe_command(tmp_path, net, photos, capsys):
    out = tmp_path / "f.npz"
    __main__.main(["features", str(photos), f"--weights={net}", "--layer=pool5", f"--out={out}"])
    capsys.readouterr()
    assert __main__.main(["probe", str(out), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "train_accuracy": 100.0,
        "test_accuracy": 100.0,
        "train_images": 40,
        "test_images": 40,
        "classes": 2,
    }
