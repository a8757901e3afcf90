"""The systems of the paper and of the released runs: each a config, with the parameters of its layer file."""

import functools
import importlib
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import __main__
from alexnet_jax import config as configs
from alexnet_jax import optimizer as optimizers
from alexnet_jax import train as training
from alexnet_jax.data.batches import on_device
from alexnet_jax.run import summary
from tests import tiny as narrow

# By layer: filters of all columns, window, channels that each sees (its own column's, or all); a fully
# connected layer has a window of 1. By filters=, channels=, filterSize= and outputs= of the released layer
# files. Those of run 147 are the paper's, for its pooling leaves 6 x 6 maps, too.
PAPER = [
    (96, 11, 3),
    (256, 5, 48),
    (384, 3, 256),
    (384, 3, 192),
    (256, 3, 192),
    (4096, 1, 6 * 6 * 256),
    (4096, 1, 4096),
    (1000, 1, 4096),
]
HALF = [  # layers-145-half.cfg
    (48, 11, 3),
    (128, 5, 48),
    (192, 3, 128),
    (192, 3, 192),
    (256, 3, 192),
    (4096, 1, 6 * 6 * 256),
    (4096, 1, 4096),
    (1000, 1, 4096),
]
SILENT = [  # layers-150.cfg
    (96, 11, 3),
    (320, 5, 48),
    (384, 3, 160),
    (384, 3, 192),
    (256, 3, 192),
    (8192, 1, 6 * 6 * 128),
    (4096, 1, 4096),
    (1000, 1, 4096),
]
CONV6 = (256, 3, 256)  # layers-146-2011.cfg
STAR = [*PAPER[:5], CONV6, *PAPER[5:]]
LOW = [  # layers-141.cfg: conv2 sees 32 maps of its column and the 3 colours of the low-resolution image
    (64, 11, 3),
    (256, 5, 32 + 3),
    *STAR[2:],
]
SYSTEMS = {
    "imagenet2012": PAPER,
    "ilsvrc2010": PAPER,
    "original": PAPER,
    "run145": PAPER,
    "run145_half": HALF,
    "run147": PAPER,
    "run148": PAPER,
    "run150": SILENT,
    "run166": PAPER,
    "run167": PAPER,
    "run170": PAPER,
    "cnn_star": STAR,
    "cnn_star_fall2011": [*STAR[:-1], (21841, 1, 4096)],
    "cnn_star_2009": STAR,
    "cnn_star_fall2009": [*STAR[:-1], (10184, 1, 4096)],
    "fall2009": [*STAR[:-1], (10184, 1, 4096)],
    "run141": LOW,
    "run141_fall2009": [*LOW[:-1], (10184, 1, 4096)],
    "run141_2010": LOW,
    "run141_2012": LOW,
}


def config_of(name, **overrides):
    return configs.resolve(importlib.import_module(f"configs.{name}").get_config(), overrides)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return narrow.make_images(tmp_path_factory.mktemp("images"), train=2, test=1)


def narrowed(config, images):
    """The same net at an eighth of its width and with few units, for two steps on small images."""
    net = configs.build_model(config, num_classes=2)
    plain = not net.overlapping_pooling
    return {
        **narrow.NET,
        "data.source": f"folder:{images}",
        "data.num_classes": None,
        "data.image_size": 72 if plain else 55,
        "data.resize_size": 80 if plain else 60,
        "model.widths": tuple(width // 8 for width in net.widths),
        "model.fc_widths": tuple(width // 128 for width in net.fc_widths),
        "init.path": None,
        "mesh.data": 1,
        "run.eval_views": 1,
        "run.total_steps": 2,
        "run.log_every_steps": 1,
        "run.eval_every_steps": 2,
        "run.save_every_steps": 2,
    }


@pytest.mark.parametrize("name", SYSTEMS)
def test_parameters_by_the_layer_file(name):
    config = config_of(name)
    classes = config.data.num_classes or 1000
    table = summary.summarise(configs.build_model(config, classes), config.data.image_size)
    counted = [layer["parameters"] for layer in table["layers"]]
    assert counted == [filters * (window**2 * seen + 1) for filters, window, seen in SYSTEMS[name]]
    if SYSTEMS[name] is PAPER:
        assert sum(counted) == 60_965_224


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_each_trains(name, images, tmp_path):
    """Two steps, by which each layer moves whose rate is not 0."""
    run = training.Run(config_of(name, **narrowed(config_of(name), images)), tmp_path)
    state = run.init_state()
    before = jax.device_get(state.params)
    batches = on_device(training.open_batches(run, state.params, 0), run.mesh)
    for _ in range(2):
        state, metrics = run.train_step(state, next(batches)[1])
        assert math.isfinite(metrics["loss"])
    for layer, leaves in jax.device_get(state.params).items():
        assert abs(leaves["kernel"] - before[layer]["kernel"]).max() > 0, layer


def test_every_config_file_is_one():
    """None is forgotten above, and none holds a key that the program does not know."""
    files = {path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("[a-z]*.py")}
    for name in files:
        config_of(name)
    assert set(SYSTEMS) <= files
    assert files - set(SYSTEMS) == {"default", "finetune", "conv_local_11pct", "conv_local_13pct"}


# By run: rates of the weights and biases of conv2 and of conv1 from an epoch on, written out by hand from the
# notes and final values of layer-params-N.cfg. Only conv1's weights slow down (epsW); both are frozen.
LATE = (1e-5, 0.02, 0.0, 0.0)
SCHEDULES = {
    "original": {  # 145-2010
        0: (0.01, 0.02, 0.01, 0.02),
        22.99: (0.01, 0.02, 0.01, 0.02),
        23: (0.001, 0.02, 0.001, 0.02),
        51: (0.0001, 0.02, 0.0001, 0.02),
        67.99: (0.0001, 0.02, 0.0001, 0.02),
        68: (0.0001, 0.02, 0.00001, 0.02),
        71.99: (0.0001, 0.02, 0.00001, 0.02),
        72: (0.0001, 0.02, 0.0, 0.0),
        78: LATE,
        92.99: LATE,
    },
    "run145": {
        24.99: (0.01, 0.02, 0.01, 0.02),
        25: (0.001, 0.02, 0.001, 0.02),
        51: (0.0001, 0.02, 0.0001, 0.02),
        67: (0.0001, 0.02, 0.00001, 0.02),
        72: (0.0001, 0.02, 0.0, 0.0),
        79: LATE,
        90.99: LATE,
    },
    "run145_half": {
        19.99: (0.01, 0.02, 0.01, 0.02),
        20: (0.001, 0.02, 0.001, 0.02),
        48: (0.0001, 0.02, 0.0001, 0.02),
        66: (0.0001, 0.02, 0.00001, 0.02),
        72: (0.0001, 0.02, 0.0, 0.0),
        95.99: (0.0001, 0.02, 0.0, 0.0),
    },
    "run147": {
        22.99: (0.01, 0.02, 0.01, 0.02),
        23: (0.001, 0.02, 0.001, 0.02),
        51: (0.0001, 0.02, 0.0001, 0.02),
        79: LATE,
        89.99: LATE,
    },
    "run148": {
        21.99: (0.01, 0.02, 0.01, 0.02),
        22: (0.001, 0.02, 0.001, 0.02),
        44: (0.0001, 0.02, 0.0001, 0.02),
        69: (0.0001, 0.02, 0.00001, 0.02),
        73: (0.0001, 0.02, 0.0, 0.0),
        86: LATE,
        96.99: LATE,
    },
    "run150": {
        24.99: (0.01, 0.02, 0.01, 0.02),
        25: (0.001, 0.02, 0.001, 0.02),
        49: (0.0001, 0.02, 0.0001, 0.02),
        66: (0.0001, 0.02, 0.00001, 0.02),
        72: (0.0001, 0.02, 0.0, 0.0),
        79: LATE,
        91.99: LATE,
    },
    "run166": {  # dexp[1000,4], dexp[10,2] of 95 epochs
        23.74: (0.01, 0.02, 0.01, 0.02),
        23.75: (0.001, 0.02, 0.001, 0.02),
        47.49: (0.001, 0.02, 0.001, 0.02),
        47.5: (0.0001, 0.002, 0.0001, 0.002),
        71.25: (0.00001, 0.002, 0.00001, 0.002),
        73: (0.00001, 0.002, 0.0, 0.0),
        94.99: (0.00001, 0.002, 0.0, 0.0),
    },
    "run170": {  # dexp with tgtFactor=250, numSteps=4: by 250 ** (1 / 3) = 6.299605
        23.74: (0.01, 0.02, 0.01, 0.02),
        23.75: (0.00158740, 0.02, 0.00158740, 0.02),
        47.49: (0.00158740, 0.02, 0.00158740, 0.02),
        47.5: (0.000251984, 0.002, 0.000251984, 0.002),
        71.25: (0.00004, 0.002, 0.00004, 0.002),
        74: (0.00004, 0.002, 0.0, 0.0),
        94.99: (0.00004, 0.002, 0.0, 0.0),
    },
    "cnn_star": {
        0: (0.001, 0.02, 0.0001, 0.02),
        4.99: (0.001, 0.02, 0.0001, 0.02),
        5: (0.001, 0.02, 0.00001, 0.02),
        7: (0.001, 0.02, 0.0, 0.0),
        22: (0.0001, 0.02, 0.0, 0.0),
        42: LATE,
        53.99: LATE,
    },
    "cnn_star_fall2011": {
        5.99: (0.01, 0.02, 0.01, 0.02),
        6: (0.001, 0.02, 0.001, 0.02),
        7.8: (0.001, 0.02, 0.001, 0.02),
    },
}
SCHEDULES["run167"] = SCHEDULES["run166"]
SCHEDULES["cnn_star_2009"] = {
    2.99: (0.001, 0.02, 0.0001, 0.02),
    3: (0.001, 0.02, 0.00001, 0.02),
    4: (0.001, 0.02, 0.0, 0.0),
    22: (0.0001, 0.02, 0.0, 0.0),
    42: LATE,
    51.99: LATE,
}
SCHEDULES["cnn_star_fall2009"] = {  # a tenth for the old convolutions, which the later drop does not touch
    0: (0.001, 0.02, 0.001, 0.02),
    5.7: (0.001, 0.02, 0.001, 0.02),
}
SCHEDULES["fall2009"] = {  # conv1 and conv2 slow down together
    5.58: (0.01, 0.02, 0.01, 0.02),
    5.6: (0.001, 0.02, 0.001, 0.02),
    12.77: (0.0001, 0.02, 0.0001, 0.02),
    17.55: (0.00001, 0.02, 0.00001, 0.02),
    20.45: (0.0, 0.0, 0.0, 0.0),
    27.7: (0.0, 0.0, 0.0, 0.0),
}
SCHEDULES["run141"] = {
    22.99: (0.01, 0.02, 0.01, 0.02),
    23: (0.001, 0.02, 0.001, 0.02),
    48: (0.0001, 0.02, 0.0001, 0.02),
    59.99: (0.0001, 0.02, 0.0001, 0.02),
}
SCHEDULES["run141_fall2009"] = {
    3.13: (0.001, 0.02, 0.001, 0.02),
    3.15: (0.0001, 0.02, 0.0001, 0.02),
    4.17: (0.0001, 0.02, 0.0001, 0.02),
}
SCHEDULES["run141_2012"] = {  # conv1 and conv2 slow down together
    12.99: (0.001, 0.02, 0.001, 0.02),
    13: (0.0001, 0.02, 0.0001, 0.02),
    25.99: (0.0001, 0.02, 0.0001, 0.02),
    26: (0.00001, 0.02, 0.00001, 0.02),
    31.99: (0.00001, 0.02, 0.00001, 0.02),
    32: (0.0, 0.0, 0.0, 0.0),
    53.99: (0.0, 0.0, 0.0, 0.0),
}
SCHEDULES["run141_2010"] = {
    13.99: (0.001, 0.02, 0.001, 0.02),
    14: (0.0001, 0.02, 0.0001, 0.02),
    30: (0.00001, 0.02, 0.00001, 0.02),
    36: (0.0, 0.0, 0.0, 0.0),
    53.99: (0.0, 0.0, 0.0, 0.0),
}
HEAD = {0: 0.001, 0.2397: 0.001, 0.2401: 0.01, 9: 0.001, 22: 0.0001, 42: 0.00001, 53.99: 0.00001}  # of CNN*


def rates_by_epoch(name, epochs, parameters):
    """By epoch: how far a gradient of 1 moves each of `parameters` `(layer, kind)` from rest at 0."""
    config = config_of(name).optimizer
    steps_at = functools.partial(configs.steps_of, num_examples=1_281_167, batch_size=128)
    rule = optimizers.make(config, optimizers.make_rates(config, steps_at))
    params = {layer: {"kernel": jnp.zeros(()), "bias": jnp.zeros(())} for layer, _ in parameters}
    ones, state = jax.tree.map(jnp.ones_like, params), rule.init(params)

    def rates(epoch):
        step = jnp.int32(math.ceil(epoch * 1_281_167 / 128))
        moved, _ = rule.update(ones, state, params, step=step, drops=jnp.int32(0))
        return [-float(moved[layer][kind]) for layer, kind in parameters]

    return {epoch: rates(epoch) for epoch in epochs}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_by_the_notes(name):
    parameters = [("conv2", "kernel"), ("conv2", "bias"), ("conv1", "kernel"), ("conv1", "bias")]
    for epoch, rates in rates_by_epoch(name, SCHEDULES[name], parameters).items():
        assert rates == pytest.approx(SCHEDULES[name][epoch], rel=1e-5), epoch


def test_rates_of_cnn_star_s_other_layers():
    """Where they are not conv2's: conv6's biases, by the files, and all but conv1 to conv5 on Fall 2009."""
    for name, rate in {
        "cnn_star_fall2011": 0.002,
        "cnn_star_fall2009": 0.002,
        "cnn_star_2009": 0.002,
    }.items():
        for found in rates_by_epoch(name, (0, 1, 5), [("conv6", "bias"), ("fc6", "bias")]).values():
            assert found == pytest.approx((rate, 0.02))
    expected = {0: 0.01, 1.17: 0.01, 1.19: 0.001, 5.7: 0.001}
    layers = [("conv6", "kernel"), ("fc6", "kernel"), ("fc8", "kernel")]
    for epoch, found in rates_by_epoch("cnn_star_fall2009", expected, layers).items():
        assert found == pytest.approx([expected[epoch]] * 3), epoch
    later = {24.83: 0.0001, 24.85: 0.00001}
    for epoch, (rate,) in rates_by_epoch("fall2009", later, [("conv3", "kernel")]).items():
        assert rate == pytest.approx(later[epoch]), epoch


def test_rates_of_run_141_s_other_layers():
    """After conv1 and conv2 are frozen the others go on, and drop a last time."""
    for name, last in {"run141_2012": 43, "run141_2010": 47}.items():
        expected = {last - 0.01: (0.0001, 0.02), last: (0.00001, 0.02), 53.99: (0.00001, 0.02)}
        for layer in ("conv3", "conv6", "fc8"):
            found = rates_by_epoch(name, expected, [(layer, "kernel"), (layer, "bias")])
            assert found == {epoch: pytest.approx(rates) for epoch, rates in expected.items()}


def test_rates_of_cnn_star_s_new_fc8():
    """300 files of 1,024 images are 0.2398 epochs; its biases have the others' rate."""
    for epoch, rates in rates_by_epoch("cnn_star", HEAD, [("fc8", "kernel"), ("fc8", "bias")]).items():
        assert rates == pytest.approx((HEAD[epoch], 0.02), rel=1e-5), epoch


def test_lengths_and_the_end_of_the_colour_noise():
    """By run, in epochs: the end of the colour noise and of the run; 8.11295 is 7 + 11295 / 13864."""
    expected = {
        "original": (68, 93),
        "run145": (67, 91),
        "run145_half": (66, 96),
        "run147": (None, 90),
        "run148": (69, 97),
        "run150": (66, 92),
        "run166": (64, 95),
        "run167": (63, 95),
        "run170": (68, 95),
        "cnn_star": (38, 54),
        "cnn_star_fall2011": (None, pytest.approx(7 + 11295 / 13864, abs=0.01)),
        "cnn_star_2009": (38, 52),
        "cnn_star_fall2009": (None, pytest.approx(5 + 6491 / 8800, abs=0.01)),
        "run141": (None, 60),
        "run141_fall2009": (None, pytest.approx(4 + 1596 / 8800, abs=0.01)),
        "run141_2010": (30, 54),
        "run141_2012": (26, 54),
        "fall2009": (pytest.approx(17 + 2396 / 4400, abs=0.01), pytest.approx(27 + 3271 / 4400, abs=0.01)),
    }
    found = {name: config_of(name) for name in expected}
    assert expected == {
        name: (config.augment.colour_until_epochs, config.run.total_epochs) for name, config in found.items()
    }


def four_others(images, folder):
    """The images of four classes under other names, as other classes."""
    for split in ("train", "test"):
        for label in range(4):
            shutil.copytree(images / split / f"class{label}", folder / split / f"thing{label}")
    return folder


@pytest.mark.slow
def test_pre_train_transfer_and_ensemble(images, tmp_path):
    """CNN*'s chain in small: 10 classes; 4 others from its layers but the last; two such nets averaged."""
    from alexnet_jax.tools import predictions
    from alexnet_jax.weights import pretrained

    fewer = four_others(images, tmp_path / "fewer")
    first = config_of("cnn_star_fall2011", **narrowed(config_of("cnn_star_fall2011"), images))
    assert training.train(first, tmp_path / "fall2011") == "done"
    tuned = {}
    for seed in (0, 1):
        overrides = {
            **narrowed(config_of("cnn_star"), fewer),
            "init.path": str(tmp_path / "fall2011"),
            "run.seed": seed,
            "run.eval_views": 10,
        }
        assert training.train(config_of("cnn_star", **overrides), tmp_path / f"star{seed}") == "done"
        tuned[seed] = pretrained.read(tmp_path / f"star{seed}").variables["params"]
    # What is new differs with the seed; what was taken over moved by two small steps at most.
    before = pretrained.read(tmp_path / "fall2011").variables["params"]
    for seed in (0, 1):
        moved = abs(tuned[seed]["conv6"]["kernel"] - before["conv6"]["kernel"]).max()
        assert 0 < moved < 0.01
        assert tuned[seed]["fc8"]["kernel"].shape[-1] == 2  # 4 classes over 2 columns
    assert abs(tuned[0]["fc8"]["kernel"] - tuned[1]["fc8"]["kernel"]).max() > 0.01

    out = tmp_path / "both.npz"
    members = [str(tmp_path / f"star{seed}") for seed in (0, 1)]
    assert __main__.main(["ensemble", *members, "--views=10", f"--out={out}", "--json"]) == 0
    alone = []
    for member in members:
        __main__.main(["ensemble", member, "--views=10", f"--out={tmp_path / 'one.npz'}"])
        alone.append(predictions.load(tmp_path / "one.npz"))
    both = predictions.load(out)
    assert both.probabilities == pytest.approx(
        (alone[0].probabilities + alone[1].probabilities) / 2, rel=1e-5
    )
    assert both.ids == alone[0].ids
    assert len(both.ids) == 4


@pytest.mark.slow
def test_run_141_s_chain(images, tmp_path):
    """Each training begins with all layers of the one before but fc8, both inputs of conv2 among them."""
    from alexnet_jax.weights import pretrained

    others = four_others(images, tmp_path / "others")
    chain = {  # the images and the training before
        "run141": (images, None),
        "run141_fall2009": (others, "run141"),
        "run141_2010": (images, "run141_fall2009"),
        "run141_2012": (images, "run141_fall2009"),
    }
    for name, (folder, before) in chain.items():
        keys = {**narrowed(config_of(name), folder), "init.path": before and str(tmp_path / before)}
        run = training.Run(config_of(name, **keys), tmp_path / name)
        if before is not None:
            trained = pretrained.read(tmp_path / before).variables["params"]
            assert run.start.keys() == trained.keys() - {"fc8"}
            for layer, leaves in run.start.items():
                jax.tree.map(np.testing.assert_array_equal, leaves, trained[layer])
            assert run.start["conv2"]["kernel"].shape == (2, 5, 5, 4 + 3, 16)
        if name in {earlier for _, earlier in chain.values()}:
            assert training.train(run.config, tmp_path / name) == "done"
