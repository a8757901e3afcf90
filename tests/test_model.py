"""The net against the paper's table, against float64 NumPy, and switch by switch."""

import copy
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import UserError, create_model, layers
from alexnet_jax.variants import VARIANTS
from alexnet_jax.weights import layouts
from tests import reference
from tests.reference import relative_error

# Side of the images that each variant was made for, in pixels.
IMAGE_SIZES = {"paper": 224, "original": 224, "caffe": 227, "caffenet": 227, "torchvision": 224}

SMALL = {"num_classes": 10, "widths": (8, 12, 16, 16, 12, 12), "fc_widths": (24, 20)}


def shapes_of(model, size):
    """By layer: the shapes of kernel and bias, without computing anything."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    return jax.tree.map(lambda leaf: leaf.shape, params)


def kernels_of(model, size=224):
    return {layer: leaves["kernel"] for layer, leaves in shapes_of(model, size).items()}


def parameters_of(model, size=224):
    leaves = jax.tree.leaves(shapes_of(model, size), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(shape) for shape in leaves)


def activations_of(model, size, names):
    """Shapes of the named activations of one image."""

    def run():
        variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        return model.apply(variables, jnp.zeros((1, size, size, 3)), capture=names)[1]

    return {name: leaf.shape[1:] for name, leaf in jax.eval_shape(run).items()}


def random_params(model, size, seed=0):
    return reference.random_params(shapes_of(model, size), seed)


def random_images(count, size, seed=0):
    return (60 * np.random.default_rng(seed).standard_normal((count, size, size, 3))).astype(np.float32)


@functools.cache
def compiled(model, names, train):
    return jax.jit(functools.partial(model.apply, capture=names, train=train))


def outputs_of(model, params, images, names=(), train=False, rngs=None):
    return compiled(model, tuple(names), train)({"params": params}, images, rngs=rngs)


# --- The parameter shapes of each variant ---

TWO_COLUMNS = {
    "conv1": {"kernel": (2, 11, 11, 3, 48), "bias": (2, 48)},
    "conv2": {"kernel": (2, 5, 5, 48, 128), "bias": (2, 128)},
    "conv3": {"kernel": (2, 3, 3, 256, 192), "bias": (2, 192)},
    "conv4": {"kernel": (2, 3, 3, 192, 192), "bias": (2, 192)},
    "conv5": {"kernel": (2, 3, 3, 192, 128), "bias": (2, 128)},
    "fc6": {"kernel": (2, 9216, 2048), "bias": (2, 2048)},
    "fc7": {"kernel": (2, 4096, 2048), "bias": (2, 2048)},
    "fc8": {"kernel": (2, 4096, 500), "bias": (2, 500)},
}
TORCHVISION = {
    "conv1": {"kernel": (1, 11, 11, 3, 64), "bias": (1, 64)},
    "conv2": {"kernel": (1, 5, 5, 64, 192), "bias": (1, 192)},
    "conv3": {"kernel": (1, 3, 3, 192, 384), "bias": (1, 384)},
    "conv4": {"kernel": (1, 3, 3, 384, 256), "bias": (1, 256)},
    "conv5": {"kernel": (1, 3, 3, 256, 256), "bias": (1, 256)},
    "fc6": {"kernel": (1, 9216, 4096), "bias": (1, 4096)},
    "fc7": {"kernel": (1, 4096, 4096), "bias": (1, 4096)},
    "fc8": {"kernel": (1, 4096, 1000), "bias": (1, 1000)},
}
TREES = {
    "paper": TWO_COLUMNS,
    "original": TWO_COLUMNS,
    "caffe": TWO_COLUMNS,
    "caffenet": TWO_COLUMNS,
    "torchvision": TORCHVISION,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_tree(variant):
    model = create_model(variant)
    assert shapes_of(model, IMAGE_SIZES[variant]) == TREES[variant]
    total = 61_100_840 if variant == "torchvision" else 60_965_224
    assert parameters_of(model, IMAGE_SIZES[variant]) == total


def test_parameters_by_layer():
    counts = {
        layer: math.prod(leaves["kernel"]) + math.prod(leaves["bias"])
        for layer, leaves in shapes_of(create_model("paper"), 224).items()
    }
    assert counts == {
        "conv1": 34_944,
        "conv2": 307_456,
        "conv3": 885_120,
        "conv4": 663_936,
        "conv5": 442_624,
        "fc6": 37_752_832,
        "fc7": 16_781_312,
        "fc8": 4_097_000,
    }


PAPER_ACTIVATIONS = {
    "conv1": (55, 55, 96),
    "activation1": (55, 55, 96),
    "lrn1": (55, 55, 96),
    "pool1": (27, 27, 96),
    "conv2": (27, 27, 256),
    "activation2": (27, 27, 256),
    "lrn2": (27, 27, 256),
    "pool2": (13, 13, 256),
    "conv3": (13, 13, 384),
    "activation3": (13, 13, 384),
    "conv4": (13, 13, 384),
    "activation4": (13, 13, 384),
    "conv5": (13, 13, 256),
    "activation5": (13, 13, 256),
    "pool5": (6, 6, 256),
    "fc6": (4096,),
    "activation6": (4096,),
    "dropout6": (4096,),
    "fc7": (4096,),
    "activation7": (4096,),
    "dropout7": (4096,),
    "fc8": (1000,),
}


def test_activations_of_the_paper():
    assert activations_of(create_model("paper"), 224, tuple(PAPER_ACTIVATIONS)) == PAPER_ACTIVATIONS


@pytest.mark.parametrize(
    ("variant", "maps"),
    [
        ("original", {"conv1": 55, "lrn1": 55, "pool1": 27, "map_norm2": 27, "pool2": 13, "pool5": 6}),
        ("caffe", {"conv1": 55, "lrn1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "pool5": 6}),
        ("caffenet", {"conv1": 55, "pool1": 27, "lrn1": 27, "lrn2": 13, "pool2": 13, "pool5": 6}),
        ("torchvision", {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "pool5": 6}),
    ],
)
def test_maps_of_the_other_variants(variant, maps):
    shapes = activations_of(create_model(variant), IMAGE_SIZES[variant], tuple(maps))
    assert {name: shape[:2] for name, shape in shapes.items()} == {name: (n, n) for name, n in maps.items()}


# --- Forward passes against NumPy ---


@pytest.mark.parametrize("variant", ["paper", "original"])
@pytest.mark.parametrize(("size", "count", "widths"), [(67, 3, SMALL), (90, 2, SMALL), (224, 1, {})])
def test_every_activation_against_numpy(variant, size, count, widths):
    """Small nets at odd sizes, and the real one."""
    model = create_model(variant, **widths)
    params, images = random_params(model, size), random_images(count, size)
    expected = {"paper": reference.paper_net, "original": reference.original_net}[variant](params, images)
    logits, seen = outputs_of(model, params, images, expected)
    errors = {name: relative_error(seen[name], value) for name, value in expected.items()}
    assert max(errors.values()) < 1e-5, errors
    assert relative_error(logits, expected["fc8"]) < 1e-5


def test_fc6_reads_rows_then_columns_then_channels():
    """The unit at (row, col, channel) of the 6 x 6 x 256 maps is input (row * 6 + col) * 256 + channel."""
    model = create_model("paper", num_classes=10, fc_widths=(2, 2))
    params = random_params(model, 224)
    row, col, channel = 4, 1, 200  # of the second column, whose channels begin at 128
    params["fc6"]["kernel"][:] = 0.0
    params["fc6"]["kernel"][0, (row * 6 + col) * 256 + channel, 0] = 1.0
    params["fc6"]["bias"][:] = 0.0
    _, seen = outputs_of(model, params, random_images(4, 224), ("pool5", "fc6"))
    assert np.any(seen["fc6"][:, 0] > 0)
    np.testing.assert_allclose(seen["fc6"][:, 0], seen["pool5"][:, row, col, channel])


# --- Columns ---


def dependents(model, size, changed):
    """Which activations of the second column move when a kernel of the first column does."""
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    params, images = random_params(model, size), random_images(2, size)
    before = outputs_of(model, params, images, names)[1]
    other = copy.deepcopy(params)  # JAX may still be reading `params`
    other[changed]["kernel"][0] *= 1.5
    after = outputs_of(model, other, images, names)[1]
    half = {name: before[name].shape[-1] // 2 for name in names}
    return {
        name for name in names if np.any(before[name][..., half[name] :] != after[name][..., half[name] :])
    }


def test_the_columns_exchange_where_the_paper_says():
    model = create_model("paper", **SMALL)
    assert dependents(model, 67, "conv1") == {"conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
    assert dependents(model, 67, "conv3") == {"fc6", "fc7", "fc8"}
    assert dependents(model, 67, "fc6") == {"fc7", "fc8"}
    assert dependents(model, 67, "fc7") == {"fc8"}


def test_independent_columns_add_their_partial_logits():
    model = create_model("paper", cross_column_layers=(), **SMALL)
    assert dependents(model, 67, "conv1") == {"fc8"}
    assert kernels_of(model, 67)["conv3"] == (2, 3, 3, 6, 8)
    params, images = random_params(model, 67), random_images(3, 67)
    logits, seen = outputs_of(model, params, images, ("dropout7",))
    first, second = np.split(np.asarray(seen["dropout7"], np.float64), 2, axis=-1)
    kernel, bias = params["fc8"]["kernel"], params["fc8"]["bias"]
    assert (kernel.shape, bias.shape) == ((2, 10, 10), (2, 5))
    assert relative_error(logits, first @ kernel[0] + second @ kernel[1] + np.concatenate(bias)) < 1e-5


def test_one_column_sees_everything():
    """And two columns that see all, with the same weights side by side, are one column twice as wide."""
    one = create_model("paper", columns=1, **SMALL)
    kernels = kernels_of(one, 67)
    assert kernels == {
        "conv1": (1, 11, 11, 3, 8),
        "conv2": (1, 5, 5, 8, 12),
        "conv3": (1, 3, 3, 12, 16),
        "conv4": (1, 3, 3, 16, 16),
        "conv5": (1, 3, 3, 16, 12),
        "fc6": (1, 12, 24),
        "fc7": (1, 24, 20),
        "fc8": (1, 20, 10),
    }
    everywhere = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    two = create_model("paper", cross_column_layers=everywhere, lrn_across_columns=True, **SMALL)
    params = random_params(two, 67)
    joined = jax.tree.map(lambda leaf: np.concatenate(list(leaf), axis=-1)[None], params)
    images = random_images(3, 67)
    assert relative_error(outputs_of(one, joined, images), np.asarray(outputs_of(two, params, images))) < 1e-5


@pytest.mark.parametrize("classes", [1, 9])
@pytest.mark.parametrize("cross_column_layers", [None, ()])
def test_odd_numbers_of_classes(classes, cross_column_layers):
    """The unused output of the second column is cut off and learns nothing."""
    switches = {} if cross_column_layers is None else {"cross_column_layers": cross_column_layers}
    model = create_model("paper", **{**SMALL, "num_classes": classes}, **switches)
    params, images = random_params(model, 67), random_images(2, 67)
    share = (classes + 1) // 2
    assert params["fc8"]["bias"].shape == (2, share)
    assert outputs_of(model, params, images).shape == (2, classes)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, images)).sum()))(params)[
        "fc8"
    ]
    assert np.all(gradient["bias"].reshape(-1)[:classes] != 0)
    assert gradient["bias"][1, -1] == 0
    assert not np.any(gradient["kernel"][1, :, -1])


# --- The table of runs ---


def test_half_net():
    """Run 145-half: one column of the net, but conv5 256 wide and fc layers of 4096."""
    half = create_model("original", columns=1, widths=(48, 128, 192, 192, 256, 256))
    assert kernels_of(half) == {
        "conv1": (1, 11, 11, 3, 48),
        "conv2": (1, 5, 5, 48, 128),
        "conv3": (1, 3, 3, 128, 192),
        "conv4": (1, 3, 3, 192, 192),
        "conv5": (1, 3, 3, 192, 256),
        "fc6": (1, 9216, 4096),
        "fc7": (1, 4096, 4096),
        "fc8": (1, 4096, 1000),
    }


def test_run_147_plain_pooling():
    """2 x 2 windows at stride 2; conv2 padded by 1 and conv5 by 0, so that 6 x 6 maps remain."""
    shapes = activations_of(
        create_model("original", overlapping_pooling=False),
        224,
        ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5"),
    )
    sides = {name: shape[0] for name, shape in shapes.items()}
    assert sides == {
        "conv1": 55,
        "pool1": 28,
        "conv2": 26,
        "pool2": 13,
        "conv3": 13,
        "conv4": 13,
        "conv5": 11,
        "pool5": 6,
    }
    assert parameters_of(create_model("original", overlapping_pooling=False)) == 60_965_224


def test_plain_pooling_takes_the_maximum_of_two_by_two():
    model = create_model("paper", overlapping_pooling=False, **SMALL)
    _, seen = outputs_of(model, random_params(model, 90), random_images(2, 90), ("lrn1", "pool1"))
    np.testing.assert_array_equal(seen["pool1"], reference.max_pool(np.asarray(seen["lrn1"]), 2, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_who_gets_the_gradient_of_pooling_at_ties(variant):
    """conv1's biases, through pooling and ReLU alone, where a third of the image is one colour: in run 145
    all equal maxima (cuda-convnet), in the others the first."""
    model = create_model(variant, norm=False, **SMALL)
    params, images = random_params(model, 99), random_images(2, 99)
    images[:, :33] = 100.0
    weights = np.random.default_rng(1).standard_normal((1, 1, 1, model.widths[0])).astype(np.float32)

    def loss(bias):
        own = {**params, "conv1": {**params["conv1"], "bias": bias}}
        _, seen = model.apply({"params": own}, images, capture=("conv1", "pool1"))
        return jnp.sum(weights * jax.nn.relu(seen["pool1"])), seen

    gradient, seen = jax.jit(jax.grad(loss, has_aux=True))(params["conv1"]["bias"])
    conv1, pool1 = (np.asarray(seen[name], np.float64) for name in ("conv1", "pool1"))
    if "pool activation" not in model.layer1:  # ReLU first: where it is 0 it passes nothing on
        pool1 = np.maximum(pool1, 0)
    g = weights * (pool1 > 0)
    ceil = model.rounding != "torch"
    by_rule = {
        "all": reference.local_max_undo(conv1, g, pool1, 3, 2).sum((0, 1, 2)),
        "first": reference.max_pool_gradient(np.maximum(conv1, 0), g, 3, 2, ceil).sum((0, 1, 2)),
    }
    assert relative_error(by_rule["first"], by_rule["all"]) > 0.1
    expected = by_rule["all" if variant == "original" else "first"]
    assert relative_error(gradient.reshape(-1), expected) < 1e-5


def test_run_148_no_norms():
    """Without norms the order of a layer's parts no longer matters, and nothing is divided."""
    plain = create_model("original", norm=False, **SMALL)
    params, images = random_params(plain, 67), random_images(2, 67)
    logits, seen = outputs_of(plain, params, images, ("activation2", "pool2"))
    with pytest.raises(
        UserError, match=r"no activation 'lrn1'; it has conv1, pool1, activation1, conv2, activ"
    ):
        outputs_of(plain, params, images, ("lrn1",))
    np.testing.assert_array_equal(seen["pool2"], reference.max_pool(np.asarray(seen["activation2"]), 3, 2))
    same = outputs_of(create_model("paper", norm=False, **SMALL), params, images)
    assert relative_error(same, np.asarray(logits)) < 1e-6


def test_run_150_independent_columns():
    """Independent columns, each with 160 filters in conv2 and 4096 units in fc6 and fc7."""
    model = create_model(
        "original", cross_column_layers=(), widths=(96, 320, 384, 384, 256, 256), fc_widths=(8192, 8192)
    )
    assert shapes_of(model, 224) == {
        "conv1": {"kernel": (2, 11, 11, 3, 48), "bias": (2, 48)},
        "conv2": {"kernel": (2, 5, 5, 48, 160), "bias": (2, 160)},
        "conv3": {"kernel": (2, 3, 3, 160, 192), "bias": (2, 192)},
        "conv4": {"kernel": (2, 3, 3, 192, 192), "bias": (2, 192)},
        "conv5": {"kernel": (2, 3, 3, 192, 128), "bias": (2, 128)},
        "fc6": {"kernel": (2, 4608, 4096), "bias": (2, 4096)},
        "fc7": {"kernel": (2, 4096, 4096), "bias": (2, 4096)},
        "fc8": {"kernel": (2, 4096, 1000), "bias": (2, 500)},
    }


def by_column(f, x):
    """`f` on the channels of each of two columns."""
    return np.concatenate([f(half) for half in np.split(np.asarray(x), 2, axis=-1)], axis=-1)


@pytest.mark.parametrize(
    ("layer2", "chain"),
    [
        ("lrn map_norm pool activation", ["conv2", "lrn2", "map_norm2", "pool2", "activation2"]),  # run 166
        ("activation pool", ["conv2", "activation2", "pool2"]),  # run 167
        ("pool lrn activation", ["conv2", "pool2", "lrn2", "activation2"]),
    ],
)
def test_order_of_layer_2(layer2, chain):
    """Runs 166 (norms below the ReLU) and 167 (none at conv2): each reads the output of the one before."""
    model = create_model("original", layer2=layer2, **SMALL)
    _, seen = outputs_of(model, random_params(model, 90), random_images(2, 90), chain)
    parts = {
        "activation2": reference.relu,
        "lrn2": functools.partial(reference.local_response_norm, k=2.0, alpha=2e-5, beta=0.75, size=5),
        "map_norm2": functools.partial(reference.within_map_norm, k=1.0, alpha=4e-5, beta=0.75, size=5),
        "pool2": lambda x: reference.max_pool(x, 3, 2),
    }
    for before, name in itertools.pairwise(chain):
        assert relative_error(seen[name], by_column(parts[name], seen[before])) < 1e-5, name
    with pytest.raises(UserError, match="norm2"):
        outputs_of(model, random_params(model, 90), random_images(2, 90), ("norm2",))


def test_conv6():
    """Two columns of 128 filters on the 6 x 6 maps, each seeing both (run 146 and section 7.2)."""
    model = create_model("original", conv6=True)
    shapes = shapes_of(model, 224)
    assert shapes == {**TWO_COLUMNS, "conv6": {"kernel": (2, 3, 3, 256, 128), "bias": (2, 128)}}
    names = ("pool5", "conv6", "conv6_activation", "fc6")
    assert activations_of(model, 224, names) == {
        "pool5": (6, 6, 256),
        "conv6": (6, 6, 256),
        "conv6_activation": (6, 6, 256),
        "fc6": (4096,),
    }
    small = create_model("original", conv6=True, **SMALL)
    params = random_params(small, 150)
    _, seen = outputs_of(small, params, random_images(2, 150), (*names, "activation5"))
    kernel, bias = (
        np.concatenate(list(params["conv6"]["kernel"]), axis=-1),
        params["conv6"]["bias"].reshape(-1),
    )
    expected = reference.convolution(seen["activation5"], kernel, bias, padding=1)
    assert relative_error(seen["conv6"], expected) < 1e-5
    flat = reference.relu(expected).reshape(2, -1)
    kernel, bias = np.concatenate(list(params["fc6"]["kernel"]), axis=-1), params["fc6"]["bias"].reshape(-1)
    assert relative_error(seen["fc6"], flat @ kernel + bias) < 1e-5


@pytest.mark.parametrize(
    ("removed", "after", "before", "both"),
    [
        ("conv2", "conv3", "pool2", True),
        ("conv3", "conv4", "pool2", True),  # the exchange moves to conv4
        ("conv4", "conv5", "activation3", False),
        ("conv5", "fc6", "pool5", True),
        ("fc6", "fc7", "pool5", True),
        ("fc7", "fc8", "dropout6", True),
    ],
)
def test_a_removed_middle_layer(removed, after, before, both):
    """Section 7: the next layer reads what the previous one gave; of what followed only the pooling stays."""
    model = create_model("paper", removed_layers=(removed,), **SMALL)
    shapes, complete = shapes_of(model, 90), shapes_of(create_model("paper", **SMALL), 90)
    assert set(shapes) == set(complete) - {removed}
    params, images = random_params(model, 90), random_images(2, 90)
    more = {"conv2": ["pool1"], "conv5": ["activation4"]}.get(removed, [])
    _, seen = outputs_of(model, params, images, [after, before, *more])
    kernel, bias = (np.asarray(params[after][key], np.float64) for key in ("kernel", "bias"))
    x = np.asarray(seen[before], np.float64)
    inputs = [x, x] if both else np.split(x, 2, axis=-1)
    if after.startswith("conv"):
        parts = [reference.convolution(inputs[i], kernel[i], bias[i], padding=1) for i in (0, 1)]
    else:
        parts = [inputs[i].reshape(2, -1) @ kernel[i] + bias[i] for i in (0, 1)]
    assert relative_error(seen[after], np.concatenate(parts, axis=-1)) < 1e-5
    if removed == "conv2":
        np.testing.assert_array_equal(seen["pool2"], reference.max_pool(np.asarray(seen["pool1"]), 3, 2))
    if removed == "conv5":
        assert relative_error(seen["pool5"], reference.max_pool(np.asarray(seen["activation4"]), 3, 2)) < 1e-6
    with pytest.raises(UserError, match=f"no activation '{removed}'"):
        outputs_of(model, params, images, (removed,))


@pytest.mark.parametrize(
    ("variant", "removed", "left"),
    [("paper", "fc6", 7), ("paper", "fc7", 6), ("torchvision", "fc6", 6), ("torchvision", "fc7", 5)],
)
def test_a_removed_layer_takes_its_dropout_with_it(variant, removed, left):
    """Section 4.2 drops outputs of fc6 and fc7, torchvision their inputs: after pool5 and activation6."""
    model = create_model(variant, removed_layers=(removed,), **SMALL)
    params, images = random_params(model, 90), random_images(2, 90)
    for number in (5, 6, 7):
        if number == left:
            outputs_of(model, params, images, (f"dropout{number}",))
        else:
            with pytest.raises(UserError, match=f"no activation 'dropout{number}'"):
                outputs_of(model, params, images, (f"dropout{number}",))


def test_removed_layers_and_cross_column_layers():
    """Independent columns stay independent; an exchange moves past a removed layer."""
    independent = create_model("paper", removed_layers=("conv3",), cross_column_layers=(), **SMALL)
    assert kernels_of(independent, 90)["conv4"] == (2, 3, 3, 6, 8)
    assert kernels_of(create_model("paper", removed_layers=("conv5", "conv3"), **SMALL), 90)["conv4"][3] == 12
    assert create_model("paper", removed_layers=("conv2",), **SMALL).is_cross_column("conv3")
    with pytest.raises(UserError, match=r"model\.removed_layers\[0\]='conv1': choose one of conv2"):
        create_model("paper", removed_layers=("conv1",))
    with pytest.raises(UserError, match=r"model\.removed_layers=\('conv4',\): other programs' AlexNets"):
        layouts.layer_shapes(create_model("paper", removed_layers=("conv4",), **SMALL), 90)


# --- Single switches ---


def test_tanh():
    model = create_model("paper", activation="tanh", **SMALL)
    names = [f"{part}{n}" for n in (1, 3) for part in ("conv", "activation")]
    params = random_params(model, 67)
    params["conv1"]["kernel"] /= 60
    _, seen = outputs_of(model, params, random_images(2, 67), [*names, "fc7", "activation7"])
    for before, after in (("conv1", "activation1"), ("conv3", "activation3"), ("fc7", "activation7")):
        assert relative_error(seen[after], np.tanh(np.asarray(seen[before], np.float64))) < 1e-6
    assert np.any(seen["activation1"] < -0.1)


@pytest.mark.parametrize("across", [False, True])
def test_norm_within_or_across_columns_with_other_constants(across):
    model = create_model(
        "paper", lrn_across_columns=across, lrn_k=1.5, lrn_alpha=0.01, lrn_beta=0.6, lrn_size=3, **SMALL
    )
    _, seen = outputs_of(model, random_params(model, 67), random_images(2, 67), ("activation1", "lrn1"))
    norm = functools.partial(reference.local_response_norm, k=1.5, alpha=0.01, beta=0.6, size=3)
    both, own = norm(seen["activation1"]), by_column(norm, seen["activation1"])
    assert relative_error(own, both) > 1e-2
    assert relative_error(seen["lrn1"], both if across else own) < 1e-5


@pytest.mark.parametrize(("variant", "first"), [("paper", "activation1"), ("original", "conv1")])
def test_the_norm_s_window_at_the_seam_between_columns(variant, first):
    """Section 3.3's N is all 96 or 256 kernels; Figure 2 has no connection there, nor has layers-145.cfg
    (channels=48). Both variants follow Figure 2, `lrn_across_columns` the formula: four channels differ."""
    assert not create_model(variant).lrn_across_columns
    for layer, before, seam in ((1, first, 48), (2, "activation2", 128)):
        seen = {}
        for across in (False, True):
            model = create_model(variant, 10, fc_widths=(24, 20), lrn_across_columns=across)
            params = random_params(model, 67)
            _, seen[across] = outputs_of(model, params, random_images(1, 67), (before, f"lrn{layer}"))
        constants = {name: getattr(model, f"lrn_{name}") for name in ("k", "alpha", "beta", "size")}
        norm = functools.partial(reference.local_response_norm, **constants)
        own, both = by_column(norm, seen[False][before]), norm(seen[True][before])
        assert relative_error(seen[False][f"lrn{layer}"], own) < 1e-5
        assert relative_error(seen[True][f"lrn{layer}"], both) < 1e-5
        differ = np.any(own != norm(seen[False][before]), axis=(0, 1, 2))
        assert np.flatnonzero(differ).tolist() == [seam - 2, seam - 1, seam, seam + 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_constants_of_the_norm(variant):
    constants = {
        "paper": (2.0, 1e-4, 0.75, 5, False),
        "original": (2.0, 2e-5, 0.75, 5, False),
        "caffe": (1.0, 2e-5, 0.75, 5, True),
        "caffenet": (1.0, 2e-5, 0.75, 5, True),
    }
    model = create_model(variant, **SMALL)
    if variant == "torchvision":
        assert not model.norm
        return
    k, alpha, beta, size, across = constants[variant]
    before = {"paper": "activation1", "original": "conv1", "caffe": "activation1", "caffenet": "pool1"}[
        variant
    ]
    params, images = random_params(model, 67), random_images(2, 67)
    params["conv1"]["kernel"] *= 3  # so that every constant counts
    _, seen = outputs_of(model, params, images, (before, "lrn1"))
    norm = functools.partial(reference.local_response_norm, k=k, alpha=alpha, beta=beta, size=size)
    expected = norm(seen[before]) if across else by_column(norm, seen[before])
    assert relative_error(seen["lrn1"], expected) < 1e-5


@pytest.mark.parametrize(
    ("rounding", "maps"),
    [
        ("2012", {"conv1": 20, "pool1": 10, "conv2": 10, "pool2": 5}),  # 84: (84 - 11) / 4 = 18.25
        ("caffe", {"conv1": 19, "pool1": 9, "conv2": 9, "pool2": 4}),
        ("torch", {"conv1": 19, "pool1": 9, "conv2": 9, "pool2": 4}),
    ],
)
def test_rounding(rounding, maps):
    shapes = activations_of(create_model("paper", rounding=rounding), 84, tuple(maps))
    assert {name: shape[0] for name, shape in shapes.items()} == maps


def test_caffe_and_torch_round_differently_in_pooling():
    """88 gives conv1 20 (19.25 rounded down, plus 1): pools of 3 at stride 2 give 10 rounded up, 9 down."""
    sides = {
        s: activations_of(create_model("paper", rounding=s), 88, ("conv1", "pool1"))
        for s in ("caffe", "torch")
    }
    assert {s: (a["conv1"][0], a["pool1"][0]) for s, a in sides.items()} == {
        "caffe": (20, 10),
        "torch": (20, 9),
    }


def test_padding():
    shapes = activations_of(
        create_model("paper", padding=(2, 0, 0, 2, 0)), 224, ("conv1", "conv2", "conv3", "conv4")
    )
    # 224 + 4 - 11 = 217, over 4 is 54.25: 56; pool 28; conv2 24; pool 12; conv3 10; conv4 12.
    assert [shape[0] for shape in shapes.values()] == [56, 24, 10, 12]


# --- Dropout ---


def fc_activations(train, names=("activation6", "dropout6", "activation7", "dropout7"), **switches):
    model = create_model("paper", **{**SMALL, "fc_widths": (2000, 2000)}, **switches)
    rngs = {"dropout": jax.random.key(1)} if train else None
    _, seen = outputs_of(model, random_params(model, 67), random_images(4, 67), names, train=train, rngs=rngs)
    return {name: np.asarray(value) for name, value in seen.items()}


@pytest.mark.parametrize("number", [6, 7])
def test_dropout_of_the_paper(number):
    """Masks are not rescaled in training; at test time all outputs are halved (section 4.2)."""
    tested, trained = fc_activations(False), fc_activations(True)
    np.testing.assert_allclose(tested[f"dropout{number}"], 0.5 * tested[f"activation{number}"], rtol=1e-6)
    before, after = trained[f"activation{number}"], trained[f"dropout{number}"]
    kept = after[before > 0] != 0
    np.testing.assert_array_equal(after, np.where(after != 0, before, 0))
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)
    # Each image, each column and each layer has a mask of its own.
    on = before.reshape(4, 2, 1000) > 0
    mask = after.reshape(4, 2, 1000) != 0
    for one, other in (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((2, 1), (3, 1))):
        both = on[one] & on[other]
        same = np.mean(mask[one][both] == mask[other][both])
        assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(both.sum())
    both = (trained["activation6"] > 0) & (trained["activation7"] > 0)
    same = np.mean((trained["dropout6"] != 0)[both] == (trained["dropout7"] != 0)[both])
    assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(both.sum())


def test_dropout_scaled_in_training():
    share = 0.25
    tested = fc_activations(False, dropout_scaled=True, dropout=share)
    trained = fc_activations(True, dropout_scaled=True, dropout=share)
    np.testing.assert_array_equal(tested["dropout6"], tested["activation6"])
    before, after = trained["activation6"], trained["dropout6"]
    np.testing.assert_allclose(after[after != 0], before[after != 0] / 0.75, rtol=1e-6)
    kept = after[before > 0] != 0
    assert abs(kept.mean() - 0.75) < 5 * np.sqrt(0.25 * 0.75 / kept.size)


def test_dropout_before_the_layers():
    """torchvision drops what goes into fc6 and fc7, and not what goes into fc8."""
    names = ("pool5", "dropout5", "activation6", "dropout6", "fc6", "fc7")
    tested = fc_activations(False, names, dropout_before=True)
    trained = fc_activations(True, names, dropout_before=True)
    np.testing.assert_allclose(tested["dropout5"], 0.5 * tested["pool5"], rtol=1e-6)
    dropped = (trained["dropout5"] == 0) & (trained["pool5"] > 0)
    assert 0.1 < dropped.sum() / (trained["pool5"] > 0).sum() < 0.9
    np.testing.assert_array_equal(np.where(dropped, 0, trained["pool5"]), trained["dropout5"])
    assert np.any((trained["dropout6"] == 0) & (trained["activation6"] > 0))
    with pytest.raises(UserError, match="no activation 'dropout7'"):
        fc_activations(False, ("dropout7",), dropout_before=True)


def test_no_dropout():
    trained = fc_activations(True, dropout=0.0)
    np.testing.assert_array_equal(trained["dropout6"], trained["activation6"])
    np.testing.assert_array_equal(fc_activations(False, dropout=0.0)["dropout7"], trained["activation7"])


def test_masks_follow_the_place_in_the_global_batch():
    model = create_model("paper", **SMALL)
    params, images = random_params(model, 67), random_images(6, 67)
    rngs = {"dropout": jax.random.key(1)}
    apply = jax.jit(lambda x, ids: model.apply({"params": params}, x, train=True, example_ids=ids, rngs=rngs))
    batch = np.asarray(apply(images, jnp.arange(6)))
    np.testing.assert_allclose(apply(images[3:], jnp.arange(3, 6)), batch[3:], rtol=1e-5)
    assert relative_error(apply(images[3:], jnp.arange(3)), batch[3:]) > 0.01
    default = jax.jit(lambda x: model.apply({"params": params}, x, train=True, rngs=rngs))(images)
    np.testing.assert_allclose(default, batch, rtol=1e-5)


# --- A net that reads pool5 ---


@pytest.mark.parametrize("cross_column_layers", [None, ()])
def test_a_net_that_reads_pool5_goes_on_from_there(cross_column_layers):
    switches = SMALL if cross_column_layers is None else {**SMALL, "cross_column_layers": cross_column_layers}
    model, head = create_model("paper", **switches), create_model("paper", reads="pool5", **switches)
    params, images = random_params(model, 67), random_images(3, 67)
    logits, seen = outputs_of(model, params, images, ("pool5",))
    own = {layer: params[layer] for layer in ("fc6", "fc7", "fc8")}
    assert relative_error(outputs_of(head, own, seen["pool5"]), np.asarray(logits)) < 1e-5


# --- Initial weights ---

ONES = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")
FAN_IN = {"conv1": 363, "conv2": 1200, "conv3": 2304, "conv4": 1728, "conv5": 1728, "conv6": 2304}
FAN_IN |= {"fc6": 256, "fc7": 400, "fc8": 400}  # of the net below, whose fc layers are narrow
LAYERS = tuple(FAN_IN)
STDS = {
    "paper": dict.fromkeys(LAYERS, 0.01),
    "original": {layer: 0.03 if layer in ("conv3", "conv4", "conv5", "conv6") else 0.01 for layer in LAYERS},
    "caffe": {layer: 0.005 if layer in ("fc6", "fc7") else 0.01 for layer in LAYERS},
    "he": {layer: math.sqrt(2 / fan_in) for layer, fan_in in FAN_IN.items()},
    "torch": {layer: 1 / math.sqrt(3 * fan_in) for layer, fan_in in FAN_IN.items()},
}
BIASES = {"paper": 1.0, "original": 1.0, "caffe": 0.1, "he": 0.0}


@functools.cache
def initial(scheme, hidden_bias=None):
    model = create_model(
        "paper", conv6=True, init_scheme=scheme, hidden_bias=hidden_bias, num_classes=60, fc_widths=(400, 400)
    )
    return jax.device_get(jax.jit(model.init)(jax.random.key(2), jnp.zeros((1, 64, 64, 3)))["params"])


@pytest.mark.parametrize("scheme", STDS)
def test_initial_weights(scheme):
    """Mean 0 and the scheme's spread, within 5 standard errors; no two columns alike."""
    params = initial(scheme)
    assert params.keys() == STDS[scheme].keys()
    for layer, std in STDS[scheme].items():
        kernel = params[layer]["kernel"].astype(np.float64)
        assert math.prod(kernel.shape[1:-1]) == FAN_IN[layer]
        for column in kernel:
            assert abs(column.mean()) < 5 * std / math.sqrt(column.size), layer
            assert column.std() == pytest.approx(std, rel=5 / math.sqrt(2 * column.size)), layer
        assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 5 / math.sqrt(kernel[0].size)
        if scheme == "torch":
            assert np.abs(kernel).max() <= 1 / math.sqrt(FAN_IN[layer])
        else:  # normal: about 0.27 % beyond 3 standard deviations
            assert np.mean(np.abs(kernel) > 3 * std) == pytest.approx(0.0027, abs=0.001), layer


@pytest.mark.parametrize(("variant", "side"), [("paper", 224), ("original", 224), ("caffe", 227)])
def test_init_scale_is_one_for_the_full_net(variant, side, monkeypatch):
    seen = {}
    original = layers.initialisers

    def spy(scheme, scale, hidden_bias, name, fan_in):
        with jax.ensure_compile_time_eval():
            drawn = [
                np.asarray(original(scheme, how, hidden_bias, name, fan_in)[0](jax.random.key(0), (99,)))
                for how in ("none", scale)
            ]
        seen[name] = np.array_equal(*drawn), scale, fan_in
        return original(scheme, scale, hidden_bias, name, fan_in)

    monkeypatch.setattr(layers, "initialisers", spy)
    model = create_model(variant, init_scale="fan_in", conv6=True)
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    full = {**FAN_IN, "fc6": 9216, "fc7": 4096, "fc8": 4096}
    assert seen == {layer: (True, "fan_in", fan_in) for layer, fan_in in full.items()}


# Of a net with a quarter of the paper's widths and 56 x 56 images, by hand: 0.01 or 0.03 (original), times
# sqrt(1200 / 300) for conv2, sqrt(2304 / 576) for conv3, sqrt(1728 / 432) for conv4 and conv5, and so on.
NARROW_STDS = {
    **{"conv1": 0.01, "conv2": 0.02, "conv3": 0.06, "conv4": 0.06, "conv5": 0.06, "conv6": 0.06},
    **{"fc6": 0.12, "fc7": 0.0282843, "fc8": 0.0282843},
}


def test_init_scale_of_a_narrow_net():
    model = create_model(
        "original",
        num_classes=60,
        init_scale="fan_in",
        widths=(24, 64, 96, 96, 64, 64),
        fc_widths=(512, 512),
        conv6=True,
    )
    params = jax.jit(model.init)(jax.random.key(2), jnp.zeros((1, 56, 56, 3)))["params"]
    assert params.keys() == NARROW_STDS.keys()
    for layer, std in NARROW_STDS.items():
        kernel = np.asarray(params[layer]["kernel"], np.float64)
        assert kernel.std() == pytest.approx(std, rel=5 / math.sqrt(2 * kernel.size)), layer
        assert np.all(params[layer]["bias"] == (1.0 if layer in ONES else 0.0)), layer


@pytest.mark.parametrize("scheme", ["he", "torch"])
def test_init_scale_is_not_for_schemes_that_follow_the_fan_in(scheme):
    with pytest.raises(UserError, match=f"model.init_scale='fan_in': model.init_scheme='{scheme}'"):
        create_model("paper", init_scheme=scheme, init_scale="fan_in")


@pytest.mark.parametrize("scheme", BIASES)
def test_initial_biases(scheme):
    for layer, leaves in initial(scheme).items():
        assert np.all(leaves["bias"] == np.float32(BIASES[scheme] if layer in ONES else 0.0)), layer


def test_initial_biases_of_torch_are_drawn():
    for layer, leaves in initial("torch").items():
        bound = 1 / math.sqrt(FAN_IN[layer])
        assert np.abs(leaves["bias"]).max() <= bound
        assert leaves["bias"].std() == pytest.approx(bound / math.sqrt(3), rel=0.3), layer


@pytest.mark.parametrize("scheme", ["paper", "torch"])
def test_hidden_bias(scheme):
    for layer, leaves in initial(scheme, 0.25).items():
        assert np.all(leaves["bias"] == 0.25) == (layer in ONES), layer


# --- Mistakes ---


@pytest.mark.parametrize(
    ("images", "what"),
    [
        (np.zeros((67, 67, 3), np.float32), r"float32\[67, 67, 3\]"),
        (np.zeros((2, 67, 67, 1), np.float32), r"float32\[2, 67, 67, 1\]"),
        (np.zeros((2, 3, 67, 67), np.float32), r"float32\[2, 3, 67, 67\]"),
        (np.zeros((2, 67, 67, 3), np.uint8), r"uint8\[2, 67, 67, 3\]"),
        (np.zeros((0, 67, 67, 3), np.float32), r"float32\[0, 67, 67, 3\]"),
        ([[[[0.0] * 3] * 67] * 67], "list"),
    ],
)
def test_what_is_no_batch_of_images(images, what):
    model = create_model("paper", **SMALL)
    with pytest.raises(UserError, match=rf"(?m)images: .*\[B, S, S, 3\] of floats, not {what}$"):
        model.apply({"params": {}}, images)


@pytest.mark.parametrize(
    ("variant", "smallest", "layer"),
    # 52 gives the paper's net maps of 12, 6, 3 and 1; 51 gives 11, 5, 2, where no 3 x 3 window fits.
    [("paper", 52, "pool5"), ("caffe", 55, "pool5"), ("torchvision", 63, "pool5")],
)
def test_images_too_small(variant, smallest, layer):
    model = create_model(variant, **SMALL)
    assert "fc6" in shapes_of(model, smallest)
    for size, name in ((smallest - 1, layer), (10, "conv1")):
        if variant == "torchvision" and name == "conv1":
            size = 6  # padded by 2 on both sides
        said = f"{size} x {size} are too small.*{name} has windows.*larger images.*at least {smallest} x"
        with pytest.raises(UserError, match=said):
            shapes_of(model, size)


@pytest.mark.parametrize(
    "switches",
    [
        {"overlapping_pooling": False},
        {"layer1": "activation", "layer2": "activation"},
        {"padding": (0, 0, 0, 0, 0)},
        {"padding": (9, 9, 0, 0, 0), "rounding": "torch"},
        {"variant": "original", "conv6": True},
        {"variant": "original", "low_resolution": True},
    ],
)
def test_the_least_size_is_the_least(switches):
    model = create_model(**{**SMALL, **switches})
    with pytest.raises(UserError, match="too small") as error:
        shapes_of(model, 1)
    least = int(str(error.value).rsplit(" ", 1)[1])
    assert shapes_of(model, least)["fc6"]["kernel"][1] > 0
    with pytest.raises(UserError, match="too small"):
        shapes_of(model, least - 1)


def test_captured_names():
    model = create_model("paper", **SMALL)
    params, images = random_params(model, 67), random_images(2, 67)
    logits = outputs_of(model, params, images)
    same, seen = outputs_of(model, params, images, ("fc8", "pool5"))
    assert set(seen) == {"fc8", "pool5"}
    np.testing.assert_array_equal(same, seen["fc8"])
    assert relative_error(same, np.asarray(logits)) < 1e-6
    one = functools.partial(model.apply, capture="fc7")
    assert set(jax.eval_shape(one, {"params": params}, images)[1]) == {"fc7"}
    with pytest.raises(
        UserError, match=r"no activation 'conv7'; it has conv1, activation1, lrn1, pool1, .*, fc8"
    ):
        outputs_of(model, params, images, ("pool5", "conv7"))


def test_weights_may_lack_the_layers_after_the_captured_ones():
    """Convolutions alone also take images of any size and shape: fc6 fixes the size otherwise."""
    model = create_model("torchvision", **SMALL)
    params, images = random_params(model, 64), random_images(2, 64)
    convolutions = {name: layer for name, layer in params.items() if name.startswith("conv")}
    _, expected = outputs_of(model, params, images, ("activation5", "pool5"))
    logits, seen = outputs_of(model, convolutions, images, ("activation5", "pool5"))
    assert logits is None
    for name in ("activation5", "pool5"):
        np.testing.assert_array_equal(seen[name], expected[name])
    wide = np.concatenate([images, images], axis=2)
    assert outputs_of(model, convolutions, wide, ["pool5"])[1]["pool5"].shape == (2, 1, 3, 12)
    with pytest.raises(UserError, match=r"no activation 'fc6'; it has conv1, .*, pool5, dropout5"):
        outputs_of(model, convolutions, images, ("pool5", "fc6"))
