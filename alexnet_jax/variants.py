"""The nets called "AlexNet", as differences from the paper's text, and the bounds of all switches."""

from collections.abc import Callable
from typing import Any

from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.common.typed import as_type
from alexnet_jax.model import ACTIVATIONS, LAYERS, PLAIN_POOLING_PADDING, AlexNet

POST_OPS = ("activation", "lrn", "map_norm", "pool")
REMOVABLE = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
INITS = ("paper", "original", "caffe", "he", "torch")
ROUNDINGS = ("2012", "caffe", "torch")
DTYPES = ("float32", "bfloat16")

# BVLC's bvlc_alexnet: groups instead of columns, norms across groups, 227 x 227 images.
_CAFFE: dict[str, Any] = {
    "lrn_k": 1.0,
    "lrn_alpha": 1e-4 / 5,
    "lrn_across_columns": True,
    "rounding": "caffe",
    "dropout_scaled": True,
    "init_scheme": "caffe",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},  # the defaults of `AlexNet`
    # Run 145, the code that made the paper's numbers: layers/layers-145.cfg, layer-params-145.cfg.
    "original": {
        "layer1": "lrn pool activation",
        "layer2": "activation lrn map_norm pool",
        "layer5": "pool activation",
        "lrn_alpha": 1e-4 / 5,  # the released code divides the scale by the window
        "init_scheme": "original",
    },
    "caffe": _CAFFE,
    # BVLC's bvlc_reference_caffenet: the same with norms after pooling.
    "caffenet": {
        **_CAFFE,
        "layer1": "activation pool lrn",
        "layer2": "activation pool lrn",
        "hidden_bias": 1.0,  # its train_val.prototxt has the paper's 1; only bvlc_alexnet has 0.1
    },
    # torchvision's alexnet: the later "one weird trick" net (2014), one column, no norms.
    "torchvision": {
        "columns": 1,
        "widths": (64, 192, 384, 256, 256, 256),
        "norm": False,
        "padding": (2, 2, 1, 1, 1),
        "rounding": "torch",
        "dropout_before": True,
        "dropout_scaled": True,
        "init_scheme": "torch",
    },
}


def _divisible(widths: tuple[int, ...], columns: int) -> bool:
    return all(width >= columns and width % columns == 0 for width in widths)


def _distinct_post_ops(order: str) -> bool:
    ops = order.split()
    return set(ops) <= set(POST_OPS) and len(ops) == len(set(ops))


_PLAIN_PADDINGS = (AlexNet.padding[1::3], tuple(PLAIN_POOLING_PADDING.values()))
_MULTIPLE = "each must be a positive multiple of the {m.columns} columns"
_ORDER = f"list each of {', '.join(POST_OPS)} at most once, separated by spaces"

# Key, condition, and advice if it does not hold; checked in this order.
BOUNDS: tuple[tuple[str, Callable[[AlexNet], bool], str], ...] = (
    ("num_classes", lambda m: m.num_classes >= 1, "a net needs at least one class"),
    ("columns", lambda m: m.columns >= 1, "must be 1 or more; the paper has 2"),
    ("column_shards", lambda m: m.column_shards >= 1, "must be 1 or more"),
    ("columns", lambda m: m.columns % m.column_shards == 0, "cannot lie over {m.column_shards} devices"),
    (
        "widths",
        lambda m: len(m.widths) == 6,
        "give the filters of conv1 to conv6 (the last is used with conv6)",
    ),
    ("widths", lambda m: _divisible(m.widths, m.columns), _MULTIPLE),
    ("fc_widths", lambda m: _divisible(m.fc_widths, m.columns), _MULTIPLE),
    ("padding", lambda m: len(m.padding) == 5 and min(m.padding) >= 0, "give five paddings of 0 or more"),
    (
        "padding",
        lambda m: m.overlapping_pooling or m.padding[1::3] in _PLAIN_PADDINGS,
        "overlapping_pooling=False has its own paddings of conv2 and conv5, 1 and 0; leave one out",
    ),
    (
        "cross_column_layers",
        lambda m: set(m.cross_column_layers) <= set(LAYERS[1:]),  # all columns of conv1 see the image
        f"choose from {', '.join(LAYERS[1:])}",
    ),
    (
        "removed_layers",
        lambda m: set(m.removed_layers) <= set(REMOVABLE),
        f"choose from {', '.join(REMOVABLE)}",
    ),
    ("activation", lambda m: m.activation in ACTIVATIONS, f"choose one of {', '.join(ACTIVATIONS)}"),
    ("init_scheme", lambda m: m.init_scheme in INITS, f"choose one of {', '.join(INITS)}"),
    ("rounding", lambda m: m.rounding in ROUNDINGS, f"choose one of {', '.join(ROUNDINGS)}"),
    ("compute_dtype", lambda m: m.compute_dtype in DTYPES, f"choose one of {', '.join(DTYPES)}"),
    ("reads", lambda m: m.reads in ("images", "pool5"), "choose images or pool5"),
    ("dropout", lambda m: 0 <= m.dropout < 1, "must be at least 0 and below 1"),
    (
        "lrn_size",
        lambda m: m.lrn_size > 0 and m.lrn_size % 2 == 1,
        "must be above 0 and odd, so that the window has a middle",
    ),
    ("lrn_k", lambda m: m.lrn_k > 0, "must be above 0, so that nothing is divided by 0"),
    ("lrn_alpha", lambda m: m.lrn_alpha >= 0, "must be 0 or more, so that nothing is divided by 0"),
    ("lrn_beta", lambda m: m.lrn_beta > 0, "must be above 0; norm=False leaves the normalisation out"),
    ("layer1", lambda m: _distinct_post_ops(m.layer1), _ORDER),
    ("layer2", lambda m: _distinct_post_ops(m.layer2), _ORDER),
    ("layer5", lambda m: _distinct_post_ops(m.layer5), _ORDER),
)


def create_model(variant: str = "paper", num_classes: int = 1000, **overrides: Any) -> AlexNet:
    """Builds a variant's net, with any fields of `AlexNet` overridden.

    Raises:
      UserError: the variant or a switch does not exist, a value has the wrong type, or a value or
        combination is impossible.
    """
    if as_type(variant, str, "model.variant") not in VARIANTS:
        raise UserError(f"model.variant={variant!r}: {did_you_mean(variant, VARIANTS)}")
    fields = sorted(set(AlexNet.__dataclass_fields__) - {"parent", "name"})
    given = {"num_classes": num_classes, **overrides}
    for key in given:
        if key not in fields:
            raise UserError(f"model.{key}: no such switch; {did_you_mean(key, fields)}")
    switches = {
        key: as_type(value, AlexNet.__annotations__[key], f"model.{key}") for key, value in given.items()
    }
    model = AlexNet(**{**VARIANTS[variant], **switches})
    for key, holds, advice in BOUNDS:
        if not holds(model):
            raise UserError(f"model.{key}={getattr(model, key)!r}: {advice.format(m=model)}")
    return model
