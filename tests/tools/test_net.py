"""A trained net in Python: parts, names, predictions, features, a new last layer, bfloat16."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import alexnet_jax
from alexnet_jax import UserError
from alexnet_jax.tools.net import Net, Prediction
from alexnet_jax.weights import pretrained
from tests.tools.test_features import net, photos  # noqa: F401  (fixtures)

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def trained(net) -> Net:  # noqa: F811
    return alexnet_jax.load_pretrained(net)


@pytest.fixture
def files(photos) -> list[str]:  # noqa: F811
    return sorted(map(str, photos.rglob("[0-9]*.png")))


@pytest.fixture(scope="module")
def convolutions(net, tmp_path_factory):  # noqa: F811
    loaded = pretrained.read(net)
    kept = {name: layer for name, layer in loaded.variables["params"].items() if name.startswith("conv")}
    path = tmp_path_factory.mktemp("weights") / "convolutions.npz"
    pretrained.save_pretrained(path, loaded.model, {"params": kept}, loaded.preprocess)
    return path


def test_it_unpacks_and_has_names(trained, net):  # noqa: F811
    model, variables, preprocess = trained
    assert (model, preprocess.crop_size, trained.classes, trained.path) == (trained.model, 64, NAMES, net)
    assert variables is trained.variables and isinstance(trained, tuple) and len(trained) == 3
    parameters = sum(x.size for x in jax.tree.leaves(variables))
    assert repr(trained) == f"Net({str(net)!r}: {parameters:,} parameters, 5 classes)"


def test_predictions_are_softmax_of_logits_with_names(trained, files):
    found = trained.predict(files[0])
    model, variables, preprocess = trained
    expected = np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, preprocess(files[0])[None])[0]))
    assert all(isinstance(one, Prediction) for one in found)
    assert [one.label for one in found] == np.argsort(-expected).tolist()
    assert [one.name for one in found] == [NAMES[one.label] for one in found]
    np.testing.assert_allclose([one.probability for one in found], np.sort(expected)[::-1], rtol=1e-3)
    label, name, probability = found[0]
    assert (NAMES[label], f"{100 * probability:.0f}") == (name, f"{100 * expected.max():.0f}")


def test_predictions_of_many_and_of_every_kind_of_image(trained, files):
    pixels = np.asarray(Image.open(files[0]))
    kinds = [files[0], open(files[0], "rb").read(), Image.open(files[0]), pixels]  # noqa: SIM115
    of_kinds = trained.predict(kinds, topk=2)
    of_all = trained.predict(files, topk=2)  # 40: more than a batch
    assert len(of_all) == 40 and {len(found) for found in [*of_all, *of_kinds]} == {2}
    for found in of_kinds:
        assert [(one.label, one.name) for one in found] == [(one.label, one.name) for one in of_all[0]]
        np.testing.assert_allclose(found[0].probability, of_all[0][0].probability, rtol=1e-4)
    assert trained.predict(np.stack([pixels, pixels]), topk=1)[1][0].label == of_all[0][0].label
    (ten,) = trained.predict([files[0]], topk=1, views=10)
    assert ten[0].probability != of_all[0][0].probability
    assert len(trained._compiled) == 3  # by (topk, views): 2, 1 and in ten views


def test_a_list_shows_its_progress_and_one_image_none(trained, files, monkeypatch, capsys):
    monkeypatch.setattr("alexnet_jax.common.progress.LINE_SECONDS", 0.0)
    trained.predict(files[0])
    assert capsys.readouterr().err == ""
    trained.predict(files)
    assert "40/40 image" in capsys.readouterr().err


def test_features_by_name_with_the_convolutions_alone(trained, convolutions, files):
    alone = alexnet_jax.load_pretrained(convolutions, partial=True)
    assert alone.missing == ("fc6", "fc7", "fc8")
    assert repr(alone).endswith(" parameters, no fc6, fc7, fc8)")
    x = trained.preprocess(files[:3])
    assert x.shape == (3, 64, 64, 3)
    apply = jax.jit(functools.partial(trained.model.apply, capture=("conv1", "pool5")))
    _, expected = apply(trained.variables, x)
    found = alone.features(files[:3], ["conv1", "pool5"])
    for name in ("conv1", "pool5"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4, rtol=1e-4)
    one = alone.features(files[1])
    np.testing.assert_allclose(one, expected["pool5"][1], atol=1e-4, rtol=1e-4)
    assert trained.features(files, "fc7").shape == (40, 32)
    with pytest.raises(UserError, match=r"no activation 'fc6'; it has conv1, .*, pool5"):
        alone.features(files[0], "fc6")
    with pytest.raises(UserError, match=r"convolutions.npz: no classifier"):
        alone.predict(files[0])


def test_a_new_last_layer(trained, net, convolutions):  # noqa: F811
    new = alexnet_jax.load_pretrained(net, num_classes=3, seed=1)
    assert new.model == trained.model.clone(num_classes=3)
    assert (new.classes, new.missing) == (None, ())
    params, old = new.variables["params"], trained.variables["params"]
    assert params["fc8"]["kernel"].shape == (2, 32, 2)  # two columns, 3 classes
    for name in old.keys() - {"fc8"}:
        jax.tree.map(np.testing.assert_array_equal, params[name], old[name])
    other = alexnet_jax.load_pretrained(net, num_classes=3, seed=2).variables["params"]
    assert not np.array_equal(params["fc8"]["kernel"], other["fc8"]["kernel"])
    std = float(np.std(params["fc8"]["kernel"]))
    assert 0.005 < std < 0.02  # section 5: 0.01
    same = alexnet_jax.load_pretrained(net, num_classes=5)
    jax.tree.map(np.testing.assert_array_equal, same.variables, trained.variables)
    assert same.classes == NAMES
    rest = alexnet_jax.load_pretrained(convolutions, num_classes=3)
    assert rest.variables["params"]["fc6"]["kernel"].shape == old["fc6"]["kernel"].shape
    assert [one.name for one in rest.predict(np.zeros((80, 80, 3), np.uint8), topk=9)] == [
        f"class {one.label}" for one in rest.predict(np.zeros((80, 80, 3), np.uint8), topk=9)
    ]
    with pytest.raises(UserError, match=r"model.num_classes=0: must be 1 or more"):
        alexnet_jax.load_pretrained(net, num_classes=0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16"])
def test_bfloat16(trained, net, files, dtype):  # noqa: F811
    half = alexnet_jax.load_pretrained(net, compute_dtype=dtype)
    assert half.model.compute_dtype == "bfloat16"
    assert half.variables["params"]["conv1"]["kernel"].dtype == jnp.float32
    exact, rounded = trained.features(files[:2], "fc7"), half.features(files[:2], "fc7")
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
    assert alexnet_jax.create_model("paper", compute_dtype=dtype).compute_dtype == "bfloat16"
    with pytest.raises(UserError, match=r"model.compute_dtype='float16': choose one of float32, bfloat16"):
        alexnet_jax.load_pretrained(net, compute_dtype=jnp.float16)


def test_images_that_cannot_be_read(trained, files, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    with pytest.raises(UserError, match=r"broken.jpg: not a complete image"):
        trained.predict([files[0], tmp_path / "broken.jpg"])
    with pytest.raises(UserError, match=r"nowhere.jpg: cannot be read"):
        trained.features("nowhere.jpg")
    for method in (trained.predict, trained.features, trained.preprocess):
        with pytest.raises(UserError, match=r"images: an empty list; give at least one image"):
            method([])


def test_an_iterator_is_refused_before_it_is_used_up(trained, files):
    images = iter(files)
    with pytest.raises(UserError, match=r"images: an iterator, which can be read only once; give a list"):
        trained.predict(images)
    assert next(images) == files[0]


def test_it_is_saved_with_its_parts(trained, tmp_path):
    alexnet_jax.save_pretrained(tmp_path / "copy.npz", *trained, classes=trained.classes)
    copy = alexnet_jax.load_pretrained(tmp_path / "copy.npz")
    assert (copy.model, copy.classes) == (trained.model, NAMES)
    jax.tree.map(np.testing.assert_array_equal, copy.variables, trained.variables)


def test_preprocess_of_a_list_is_that_of_each(trained, files):
    x = trained.preprocess(tuple(files[:3]))
    for image, one in zip(x, files[:3], strict=True):
        np.testing.assert_array_equal(image, trained.preprocess(one))
    buffer = io.BytesIO()
    Image.new("L", (70, 90), 77).save(buffer, "PNG")
    assert trained.preprocess([buffer.getvalue(), np.zeros((70, 90), np.uint8)]).shape == (2, 64, 64, 3)
