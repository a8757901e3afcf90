"""The nets called "AlexNet", as differences from the paper's text."""

from collections.abc import Callable
from typing import Any

from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.common.typed import as_type
from alexnet_jax.model import PLAIN_POOLING_PADDING, AlexNet

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
        "pool_ties": "all",  # kLocalMaxUndo of cuda-convnet, which the released code was built with
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


_PLAIN_PADDINGS = (AlexNet.padding[1::3], tuple(PLAIN_POOLING_PADDING.values()))
_PLAIN = "overlapping_pooling=False has its own paddings of conv2 and conv5, 1 and 0; leave one out"
_MULTIPLE = "each must be a positive multiple of the {m.columns} columns"

# What holds between the fields of `AlexNet`: key, condition, and advice if it does not hold.
TOGETHER: tuple[tuple[str, Callable[[AlexNet], bool], str], ...] = (
    ("columns", lambda m: m.columns % m.column_shards == 0, "cannot lie over {m.column_shards} devices"),
    ("widths", lambda m: _divisible(m.widths, m.columns), _MULTIPLE),
    ("fc_widths", lambda m: _divisible(m.fc_widths, m.columns), _MULTIPLE),
    ("padding", lambda m: m.overlapping_pooling or m.padding[1::3] in _PLAIN_PADDINGS, _PLAIN),
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
    for key, holds, advice in TOGETHER:
        if not holds(model):
            raise UserError(f"model.{key}={getattr(model, key)!r}: {advice.format(m=model)}")
    return model
