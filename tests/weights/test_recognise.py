"""AlexNet's layers are found under any names, and no other net's: families of names, heads and other tensors.

Each family stands for a kind of public report. The arrays take no memory: only their shapes matter here.
"""

import itertools

import numpy as np
import pytest

from alexnet_jax.common.errors import UserError
from alexnet_jax.weights.recognise import find_layers, in_natural_order
from tests.fixtures import seeded

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
CONVOLUTIONS, DENSE = LAYERS[:5], LAYERS[5:]
ONE_COLUMN, GROUPED = (
    dict(zip(LAYERS, shapes.values(), strict=True)) for shapes in (seeded.TORCHVISION, seeded.CAFFE)
)

SCHEMES = {
    "torchvision": tuple(seeded.TORCHVISION),
    "features alone": ("0", "3", "6", "8", "10"),
    "LPIPS": tuple(f"net.slice{i}.{n}" for i, n in zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)),
    "one Sequential": ("0", "3", "6", "8", "10", "15", "18", "20"),
    "by layer": LAYERS,
    "a Sequential each": tuple(f"layer{i}.0" for i in range(1, 9)),
    "DataParallel of features": tuple(
        name.replace("features", "features.module") for name in seeded.TORCHVISION
    ),
    "two lists": tuple(f"convs.{i}" for i in range(5)) + tuple(f"fcs.{i}" for i in range(3)),
    "no order": ("stem", "body.wide", "body.a", "body.z", "body.end", "top.first", "top.middle", "top.out"),
    "slashes": tuple(f"tower/{name}" for name in LAYERS),
}
PREFIXES = (
    *(
        "",
        "module.",
        "model.",
        "_orig_mod.",
        "net.",
        "net.0.",
        "model.net.",
        "backbone.",
        "encoder.",
        "student.",
    ),
    *("teacher.", "ema.", "ema_model.", "alexnet.", "base_network.", "feature_extractor.", "cnn.", "0."),
    *("learner.model.", "a.b.c.d.", "encoder_q.", "module.encoder.net."),
)


def zeros(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)


def arrays_of(names, shapes=ONE_COLUMN, weight="weight", bias="bias", separator=".") -> dict[str, np.ndarray]:
    """Weights and biases under `names`, a name for each layer; there may be fewer names than layers."""
    found = {}
    for name, shape in zip(names, shapes.values(), strict=False):
        found[f"{name}{separator}{weight}"] = zeros(*shape)
        found[f"{name}{separator}{bias}"] = zeros(shape[0])
    return found


def found_in(arrays) -> dict[str, str]:
    """The path of each layer that was found."""
    found = find_layers(in_natural_order(arrays))
    for name, pair in found.names.items():
        assert found.layers[name][0] is arrays[pair[0]] and found.layers[name][1] is arrays[pair[1]]
    return {name: pair[0].removesuffix(".weight") for name, pair in found.names.items()}


@pytest.mark.parametrize("shapes", [ONE_COLUMN, GROUPED], ids=["one column", "grouped"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_names(scheme, shapes):
    """lightning#3629 (prefixes), PerceptualSimilarity (LPIPS's slices), `model.features` alone."""
    for prefix in PREFIXES:
        names = [prefix + name for name in SCHEMES[scheme]]
        assert found_in(arrays_of(names, shapes)) == dict(zip(LAYERS, names, strict=False))


def test_the_first_of_two_nets_with_its_own_head():
    """moco's query and key encoders, students and teachers: layers of two nets are never mixed."""
    best_first = [
        "model",
        "net",
        "student.net",
        "momentum_encoder.model",
        "teacher.model",
        "ema",
        "encoder_k",
    ]
    for one, two in itertools.combinations(best_first, 2):
        arrays = {}
        for prefix in (two, one):
            arrays |= arrays_of([f"{prefix}.{name}" for name in seeded.TORCHVISION])
        assert found_in(arrays) == {
            layer: f"{one}.{name}" for layer, name in zip(LAYERS, seeded.TORCHVISION, strict=True)
        }
    heads_only_in_the_second = arrays_of([f"a.{name}" for name in list(seeded.TORCHVISION)[:5]])
    heads_only_in_the_second |= arrays_of([f"b.{name}" for name in seeded.TORCHVISION])
    names = [f"a.{name}" for name in list(seeded.TORCHVISION)[:5]]
    assert found_in(heads_only_in_the_second) == dict(zip(CONVOLUTIONS, names, strict=True))


OPTIMIZERS = (
    *("opt_state.0.mu.params", "optimizer.exp_avg", "grad_avg", "exp_avg_sq", "momentum_buffer", "0.nu"),
    *("Gradients", "optimizer_states.0", "optim"),
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("prefix", ["", "params.", "z.net.", "teacher."])
def test_moments_and_gradients_are_not_taken_for_the_net(optimizer, prefix):
    moments = arrays_of([f"{optimizer}.{name}" for name in seeded.TORCHVISION])
    names = [prefix + name for name in seeded.TORCHVISION]
    arrays = in_natural_order({**moments, **arrays_of(names)})
    assert found_in(arrays) == dict(zip(LAYERS, names, strict=True))
    assert set(find_layers(arrays).ignored) == set(moments)
    with pytest.raises(UserError, match="not an AlexNet: 0 convolutions"):
        find_layers(moments)


def test_tensorflows_slots_and_optax_factors_are_no_other_layers():
    """A slot beside its weight, and Adafactor's row of numbers for each filter."""
    arrays = arrays_of(LAYERS, weight="weights", bias="biases", separator="/")
    slots = {f"{key}/{slot}": array for key, array in arrays.items() for slot in ("Momentum", "Adam_1")}
    rows = {f"opt_state.v_row.{name}.weight": zeros(shape[0]) for name, shape in ONE_COLUMN.items()}
    assert set(find_layers({**arrays, **slots, **rows}).ignored) == {*slots, *rows}


def test_layers_whose_names_only_resemble_an_optimizers():
    names = [f"momentum_encoder.gradcam.{name}" for name in seeded.TORCHVISION]
    assert found_in(arrays_of(names)) == dict(zip(LAYERS, names, strict=True))
    heads = arrays_of(list(seeded.TORCHVISION)[:7])
    for head in ("mu", "logvar"):  # of a variational net: neither is fc8
        heads |= {f"classifier.{head}.weight": zeros(9, 4096), f"classifier.{head}.bias": zeros(9)}
    assert tuple(find_layers(heads).names) == LAYERS[:7]


def test_each_other_net_is_the_first_that_is_ignored():
    prefixes = ("aa.optimizer", "ema", "student", "teacher")
    arrays = {}
    for prefix in prefixes:
        arrays |= arrays_of([f"{prefix}.{name}" for name in seeded.TORCHVISION])
    found = find_layers(in_natural_order(arrays))
    assert found.names["conv1"][0] == "student.features.0.weight"
    firsts = [f"{prefix}.features.0.weight" for prefix in ("ema", "teacher", "aa.optimizer")]
    assert list(found.ignored[:3]) == firsts


# Heads as people replace them: names and shapes, and which layers of torchvision's are still those.
FC6, FC7 = {"classifier.1": (4096, 9216)}, {"classifier.4": (4096, 4096)}
HEADS = {
    "another number of classes": ({**FC6, **FC7, "classifier.6": (14, 4096)}, DENSE),
    "no fc8": ({**FC6, **FC7}, DENSE[:2]),
    "fc6 alone": (FC6, DENSE[:1]),
    "one layer on pool5": ({"classifier.1": (14, 9216)}, ()),
    "one layer on the means of pool5": ({"fc": (14, 256)}, ()),
    "narrower": ({"classifier.1": (512, 9216), "classifier.4": (14, 512)}, ()),
    "narrower from fc7 on": ({**FC6, "classifier.4": (512, 4096), "classifier.6": (14, 512)}, DENSE[:1]),
    "two layers for fc8": (
        {**FC6, **FC7, "classifier.6.0": (256, 4096), "classifier.6.3": (2, 256)},
        DENSE[:2],
    ),
    "fc9 added": ({**FC6, **FC7, "classifier.6": (48, 4096), "classifier.8": (10, 48)}, DENSE[:2]),
    "hash layer elsewhere": ({**FC6, **FC7, "hash_layer.0": (48, 4096)}, DENSE[:2]),
    "two heads": ({**FC6, **FC7, "classifier.6.age": (5, 4096), "classifier.6.sex": (2, 4096)}, DENSE[:2]),
    "an auxiliary layer": ({**FC6, **FC7, "classifier.6": (14, 4096), "aux": (5, 256)}, DENSE),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.net."])
def test_replaced_heads(head, prefix):
    """cheXpert#3, DIGITS#1742, HashNet: the layers below a new head are taken, and no others."""
    layers, taken = HEADS[head]
    names = list(seeded.TORCHVISION)
    arrays = arrays_of([prefix + name for name in names[:5]])
    for name, shape in layers.items():
        arrays |= arrays_of([prefix + name], {name: shape})
    expected = dict(zip((*CONVOLUTIONS, *taken), (prefix + name for name in names), strict=False))
    assert found_in(arrays) == expected


EXTRAS = {
    "n_averaged": (),
    "epoch": (1,),
    "criterion.weight": (1000,),
    "criterion.pos_weight": (14,),
    "normalize.mean": (1, 3, 1, 1),
    "mean": (3, 1, 1),
    "loss_fn.lpips.lin0.model.1.weight": (1, 64, 1, 1),
    "head.weight": (10, 256),
    "projector.0.weight": (128, 9216),
    "projector.1.weight": (128,),
    "decoder.0.weight": (256, 64, 4, 4),
    "queue": (128, 65536),
    "metric.confusion_matrix": (1000, 1000),
    "features.0.num_batches_tracked": (),
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("prefix", ["", "net.", "module.backbone."])
def test_extra_tensors(extra, prefix):
    """pytorch#65495 (n_averaged), lightning#3629 (a loss's weights): tensors beside the net are left out."""
    names = [prefix + name for name in seeded.TORCHVISION]
    for key in {extra, prefix + extra}:
        arrays = {**arrays_of(names), key: zeros(*EXTRAS[extra])}
        assert found_in(arrays) == dict(zip(LAYERS, names, strict=True))
        assert find_layers(arrays).ignored == (key,)


# What changes the activations although the convolutions are AlexNet's, beside `names` of convolutions.
def norms(places: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    widths = [shape[0] for shape in ONE_COLUMN.values()][:5]
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{place}.{part}": (n,) for place, n in zip(places, widths, strict=True) for part in parts}


CONVS = list(seeded.TORCHVISION)[:5]
OTHERS = {
    "batch norms": (CONVS, norms(("features.1", "features.4", "features.7", "features.9", "features.11"))),
    "batch norms by layer": (CONVOLUTIONS, norms(tuple(f"bn{i}" for i in range(1, 6)))),
    "batch norms in each layer": (
        [f"layer{i}.0" for i in range(5)],
        norms(tuple(f"layer{i}.1" for i in range(5))),
    ),
    "batch norms in a list": ([f"convs.{i}" for i in range(5)], norms(tuple(f"bns.{i}" for i in range(5)))),
    "one norm": (CONVS, {"features.1.weight": (64,)}),
    "PReLU": (CONVS, {"features.1.weight": (1,)}),
    "PReLU by layer": (CONVOLUTIONS, {"prelu1.weight": (64,)}),
    "a sixth convolution": (CONVS, {"features.12.weight": (1, 1, 3, 3)}),
    "a sixth convolution by layer": (CONVOLUTIONS, {"conv6.weight": (256, 256, 3, 3)}),
    "squeeze and excitation": (CONVS, {"features.3.se.fc1.weight": (12, 192, 1, 1)}),
    "masks": (CONVS, {"features.3.weight_mask": (192, 64, 5, 5)}),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_nets_that_compute_something_else_are_refused(other, prefix):
    """Their convolutions have AlexNet's shapes, but the activations would be wrong."""
    names, more = OTHERS[other]
    arrays = arrays_of([prefix + name for name in names])
    arrays |= {prefix + key: zeros(*shape) for key, shape in more.items()}
    with pytest.raises(
        UserError, match=f"not an AlexNet: it also has {prefix}{next(iter(more)).split('.')[0]}"
    ):
        find_layers(arrays)


@pytest.mark.parametrize(
    "shapes",
    [
        {"conv1": (32, 3, 3, 3), "conv2": (64, 32, 3, 3), "fc": (10, 64)},
        {f"conv{i}": (32, 32, 3, 3) for i in range(1, 6)},
        {
            f"features.{i}": shape
            for i, shape in enumerate([*list(ONE_COLUMN.values())[:4], (8, 256, 3, 3)] * 2)
        },
        {},
    ],
)
def test_other_nets_are_refused_in_a_line(shapes):
    arrays = {k: a for name, shape in shapes.items() for k, a in arrays_of([name], {name: shape}).items()}
    number = sum(len(shape) == 4 for shape in shapes.values())
    with pytest.raises(UserError, match=f"^not an AlexNet: {number} convolutions and .* it has ") as caught:
        find_layers(arrays)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_odd_shapes_are_no_layers():
    """fc6 for maps that are no squares, a bias that is one number."""
    arrays = arrays_of(CONVOLUTIONS, GROUPED, "weights", "biases", "/")
    arrays = {key: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a for key, a in arrays.items()}
    arrays |= {"fc6/weights": zeros(256 * 35, 4096), "fc6/biases": zeros(4096)}
    assert tuple(find_layers(arrays).names) == CONVOLUTIONS
    with pytest.raises(UserError, match=r"has conv3.weight but no bias for it"):
        find_layers({**arrays_of(LAYERS), "conv3.bias": zeros()})


def test_norms_in_the_head_leave_the_convolutions():
    for key, size in (("classifier.0", 9216), ("classifier.2", 4096), ("classifier.2", 1)):
        arrays = {**arrays_of(seeded.TORCHVISION), f"{key}.weight": zeros(size)}
        assert tuple(found_in(arrays)) == CONVOLUTIONS


TENSORFLOW = [("weights", "biases"), ("W", "b"), ("kernel", "bias"), ("0", "1"), ("weights:0", "biases:0")]


@pytest.mark.parametrize("weight, bias", TENSORFLOW)
def test_the_layout_of_tensorflow(weight, bias):
    """caffe-tensorflow, tensorpack: `[h, w, I, O]`, fc6 by position, the colours of Caffe."""
    torch = seeded.layers({name: GROUPED[name] for name in CONVOLUTIONS}, seed=5)
    if weight == "weights":
        torch |= seeded.layers({"fc6": (4096, 9216)}, seed=6)
    arrays = {}
    for name, (w, b) in torch.items():
        if name == "fc6":  # as caffe-tensorflow does: channels, rows, columns become rows, columns, channels
            w = w.reshape(4096, 256, 6, 6).transpose(2, 3, 1, 0).reshape(9216, 4096)
        else:
            w = w.transpose(2, 3, 1, 0)
        arrays |= {f"{name}/{weight}": w, f"{name}/{bias}": b}
    found = find_layers(arrays)
    assert found.variant is None and found.ignored == ()
    for name, (w, b) in torch.items():
        rgb = w[:, ::-1] if name == "conv1" else w
        np.testing.assert_array_equal(found.layers[name][0], rgb)
        np.testing.assert_array_equal(found.layers[name][1], b)


def test_colours_and_variant_follow_names_and_shapes():
    for names, shapes, leaf, variant, swapped in (
        (LAYERS, GROUPED, ("0", "1", "/"), None, True),  # pycaffe's blobs
        (LAYERS, GROUPED, ("weight", "bias", "."), None, False),
        (LAYERS, ONE_COLUMN, ("weight", "bias", "."), "torchvision", False),
    ):
        arrays = arrays_of(names, shapes, *leaf)
        first = next(iter(arrays))
        arrays[first] = np.arange(3, dtype=np.float32)[:, None, None] * np.ones(shapes["conv1"], np.float32)
        found = find_layers(arrays)
        assert found.variant == variant
        assert found.layers["conv1"][0][0, :, 0, 0].tolist() == ([2, 1, 0] if swapped else [0, 1, 2])
