"""Initial weights from a trained net: which of its layers a new net takes (`init.path`, `init.layers`)."""

import pathlib
from typing import Any

from alexnet_jax.common.errors import UserError
from alexnet_jax.config import Config
from alexnet_jax.conv_local import ConvLocal
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet
from alexnet_jax.run import checkpoint
from alexnet_jax.variants import layer_names, param_shapes
from alexnet_jax.weights.pretrained import DESCRIPTION, Pretrained, read, read_description

# Fields in which a net may differ from the one that provides its initial weights: those that do not change
# what its layers compute, and those of which the shapes of the layers tell.
_MAY_DIFFER = {"num_classes", "dropout", "init_scheme", "init_scale", "hidden_bias", "compute_dtype"}
_MAY_DIFFER |= {"fc_widths"}
_SHAPES = {"widths", "conv6", "low_resolution", "removed_layers", "cross_column_layers"}


def read_starting_point(config: Config, workdir: pathlib.Path) -> Pretrained | None:
    """The net of `init.path`; of a run that resumes its own, without weights; None for random weights."""
    if checkpoint.exist(workdir):
        return read_description(workdir) if (workdir / DESCRIPTION).exists() else None
    if not config.init.path:
        return None
    variant = config.model["variant"]
    return read(config.init.path, partial=True, default_variant=variant, mean=config.init.mean)


def start_from(
    loaded: Pretrained,
    model: AlexNet,
    preprocess: Preprocess,
    source: Source,
    layers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The layers with which a net for the images of `source` starts from `loaded`.

    Args:
      layers: names of those to take. By default all convolutions, and the fully connected layers below the
        first that has another shape, as with other `fc_widths` or another image size; fc8 only if the classes
        are the same.

    Raises:
      UserError: the weights belong to another net, or lack one of `layers`.
    """
    theirs, params = loaded.model, loaded.variables["params"]
    may_differ = _MAY_DIFFER | (_SHAPES if layers else set())
    for key in {**AlexNet.__dataclass_fields__, **ConvLocal.__dataclass_fields__}:
        own, other = (getattr(net, key, None) for net in (model, theirs))
        if key not in {"parent", "name", *may_differ} and own != other:
            raise UserError(
                f"init.path={loaded.path}: its net has {key}={other!r}, this config "
                f"{own!r}; set model.variant or model.{key} to match"
            )
    same_classes = loaded.has_classes_of(source)
    names: tuple[str, ...] = layer_names(model)
    shapes, taken = param_shapes(model, preprocess.crop_size), {}
    for name in layers or names:
        if name not in params or name not in shapes:
            problem = "not in both nets"
        elif name == names[-1] and not same_classes:
            problem = "of other classes"
        elif (found := params[name]["kernel"].shape) != (wanted := shapes[name]["kernel"].shape):
            side = loaded.preprocess.crop_size
            problem = f"of shape {list(found)}, not {list(wanted)} (its data.image_size is {side})"
        else:
            taken[name] = params[name]
            continue
        if layers or not name.startswith("fc"):
            raise UserError(f"init.path={loaded.path}: {name} is {problem}; leave it out of init.layers")
        break  # what stands above a new layer is new
    return taken
