"""The nets called "AlexNet", as differences from the paper's text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.common.typed import as_type
from alexnet_jax.conv_local import STDS, ConvLocal
from alexnet_jax.model import LAYERS, PLAIN_POOLING_PADDING, AlexNet

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

# The four-layer nets of section 3.3, for CIFAR-10.
CIFAR_VARIANTS: dict[str, dict[str, Any]] = {
    "conv-local-13pct": {"norm": False, "local_widths": (32, 32)},
    "conv-local-11pct": {},  # the defaults of `ConvLocal`
}


def layer_names(model: AlexNet) -> tuple[str, ...]:
    """The layers with parameters that a net has, in order."""
    left_out = {*model.removed_layers, *(() if model.conv6 else ("conv6",))}
    return tuple(STDS) if isinstance(model, ConvLocal) else tuple(n for n in LAYERS if n not in left_out)


def param_shapes(model: AlexNet, image_size: int) -> dict[str, Any]:
    """`kernel` and `bias` of each layer as `ShapeDtypeStruct`; raises `UserError` for too small images."""
    return _param_shapes(model, image_size)  # pyright: ignore  (Flax's modules have a hash)


@functools.cache
def _param_shapes(model: AlexNet, image_size: int) -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def create_model(variant: str = "paper", num_classes: int = 1000, **overrides: Any) -> AlexNet:
    """Builds a variant's net, with any fields of `AlexNet` overridden; dtypes may be objects or names.

    Raises:
      UserError: the variant or a switch does not exist, a value has the wrong type, or a value or
        combination is impossible.
    """
    variants = {**VARIANTS, **CIFAR_VARIANTS}
    if as_type(variant, str, "model.variant") not in variants:
        raise UserError(f"model.variant={variant!r}: {did_you_mean(variant, variants)}")
    hints = {key: hint for key, hint in AlexNet.__annotations__.items() if key not in ("parent", "name")}
    net: type[AlexNet] = AlexNet
    if variant in CIFAR_VARIANTS:
        hints |= ConvLocal.__annotations__
        net, hints = ConvLocal, {key: hints[key] for key in ConvLocal.SWITCHES}
    switches = dict(variants[variant])
    for key, value in {"num_classes": num_classes, **overrides}.items():
        if key not in hints:
            raise UserError(f"model.{key}: no such switch; {did_you_mean(key, sorted(hints))}")
        switches[key] = as_type(getattr(value, "__name__", value), hints[key], f"model.{key}")
    model = net(**switches)
    _check_together(model)
    return model


def _check_together(model: AlexNet) -> None:
    """Raises `UserError` for fields that do not fit each other."""

    def mistake(key: str, advice: str) -> UserError:
        return UserError(f"model.{key}={getattr(model, key)!r}: {advice}")

    if model.columns % model.column_shards:
        raise mistake("columns", f"cannot be split over {model.column_shards} devices")
    for key in ("widths", "fc_widths"):
        if any(width < 1 or width % model.columns for width in getattr(model, key)):
            raise mistake(key, f"each must be a positive multiple of the {model.columns} columns")
    if model.init_scale == "fan_in" and model.init_scheme in ("he", "torch"):
        raise mistake(
            "init_scale", f"model.init_scheme={model.init_scheme!r} scales by the fan-in; set 'none'"
        )
    own_paddings = (AlexNet.padding[1::3], tuple(PLAIN_POOLING_PADDING.values()))
    if not model.overlapping_pooling and model.padding[1::3] not in own_paddings:
        advice = "overlapping_pooling=False sets the paddings of conv2 and conv5 to 1 and 0; set one of them"
        raise mistake("padding", advice)
    if model.low_resolution and "conv2" in model.removed_layers:
        raise mistake("low_resolution", "is an input of conv2, which model.removed_layers leaves out")
