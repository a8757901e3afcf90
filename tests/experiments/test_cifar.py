"""The four-layer net of the CIFAR-10 experiments against float64 NumPy, and what its histories say."""

import jax
import numpy as np
import pytest

from experiments import cifar
from tests import reference
from tests import tiny as narrow

pytest.importorskip("matplotlib")
from experiments import figure1, lrn_on_cifar


def mean_pool(x):
    """Means over what each 3 x 3 window at stride 2 sees: 6 places at an edge, 4 at the last corner."""
    places = reference.starts(x.shape[1], 3, 2)
    rows = [[x[:, i : i + 3, j : j + 3].mean(axis=(1, 2)) for j in places] for i in places]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


@pytest.mark.parametrize(("activation", "norm"), [("relu", True), ("tanh", False)])
def test_the_net_against_numpy(activation, norm):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: cifar.initial_weights(key, cifar.STARTS["unit"]), jax.random.key(0))
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    act = {"relu": reference.relu, "tanh": np.tanh}[activation]

    def conv(name, y):
        return reference.convolution(y, params[name]["kernel"], params[name]["bias"], padding=2)

    def lrn(y):
        return reference.local_response_norm(y, k=2.0, alpha=1e-4, beta=0.75, size=5) if norm else y

    y = lrn(act(reference.max_pool(conv("conv1", x), 3, 2)))
    y = lrn(mean_pool(act(conv("conv2", y))))
    y = mean_pool(act(conv("conv3", y)))
    assert y.shape == (2, 4, 4, 64)
    expected = y.reshape(2, -1) @ params["fc4"]["kernel"] + params["fc4"]["bias"]
    got = jax.jit(cifar.logits, static_argnums=(2, 3))(params, x, activation, norm)
    assert reference.relative_error(got, expected) < 1e-5


@pytest.mark.parametrize(
    ("start", "deviations"),
    [
        ("authors", (0.0001, 0.01, 0.01, 0.01)),
        ("unit", (75**-0.5, 800**-0.5, 800**-0.5, 1024**-0.5)),
    ],
)
def test_first_weights(start, deviations):
    params = cifar.initial_weights(jax.random.key(3), cifar.STARTS[start])
    for layer, deviation in zip(("conv1", "conv2", "conv3", "fc4"), deviations, strict=True):
        kernel = np.asarray(params[layer]["kernel"])
        assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size))
        assert not np.any(params[layer]["bias"])


def test_epochs_until_an_error():
    errors = [None, 60.0, 30.0, 25.0, 20.0]
    history = [
        {"epoch": e / 4, "train_error": 50.0, **({"epoch_error": x} if x else {})}
        for e, x in enumerate(errors)
    ]
    assert cifar.epochs_until(history, 25.0) == 0.75
    assert cifar.epochs_until(history, 10.0) is None


@pytest.mark.slow
def test_a_run_is_made_once_and_again_the_same(tmp_path):
    images = cifar.load(f"folder:{narrow.make_images(tmp_path / 'images', train=7, test=2)}", per_class=6)
    assert images.train.shape == (60, 32, 32, 3)
    assert np.bincount(images.train_labels).tolist() == [6] * 10
    np.testing.assert_allclose(images.mean, images.train.astype(np.float64).mean(axis=0), atol=1e-3)
    settings = cifar.Settings("relu", False, "unit", 0.01, 0, epochs=2)
    history = cifar.train(settings, images, tmp_path / "runs")
    assert len(history) == 8
    assert {"epoch_error", "test_error", "seconds"} <= set(history[-1])
    assert all(0 <= line["train_error"] <= 100 for line in history)
    again = cifar.train(settings, images, tmp_path / "others")
    timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in again]
    assert timeless == [{k: v for k, v in line.items() if k != "seconds"} for line in history]
    (tmp_path / "runs" / f"{settings.name}.json").write_text('[{"epoch": 1.0}]')
    assert cifar.train(settings, images, tmp_path / "runs") == [{"epoch": 1.0}]


def test_the_tables_by_hand():
    text = lrn_on_cifar.table(
        {False: [13.0, 14.0, 12.0], True: [11.0, 12.5, 10.5]}, {False: [5.0], True: [4.0]}
    )
    assert "| without LRN | 13.00, 14.00, 12.00 | 13.00 ± 1.00 | 5.00 |" in text
    # Differences -2, -1.5, -1.5: mean -1.667, sd 0.2887, t(2) 4.303.
    assert "With LRN -1.67 ± 0.72 points" in text
    found = {
        name: {
            "rates_tried": {"0.1": 50.0},
            "rate": 0.1,
            "epochs": [e, None],
            "test_error": [30.0, 31.0],
            "seconds": [1.0, 2.0],
        }
        for name, e in (("relu", 2.0), ("tanh", 9.0))
    }
    arguments = type("A", (), {"search_epochs": 4.0})
    assert "| tanh | 0.1: 50.0 | 0.1 | 9.00, never | 1, 2 | 30.0, 31.0 |" in figure1.table(found, arguments)


def test_histories_of_other_images_have_another_place():
    one, other = (np.full((2, 32, 32, 3), value, np.uint8) for value in (1, 2))
    labels, mean = np.zeros(2, np.int32), np.zeros((32, 32, 3), np.float32)
    names = [cifar.Images(images, labels, images, labels, mean).name for images in (one, other, one.copy())]
    assert names[0] == names[2] != names[1]
