"""Trained nets: reading and writing weights, and a run's net.json."""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alexnet_jax.common import paths
from alexnet_jax.common.errors import UserError, named
from alexnet_jax.common.files import refuse_url, write_text
from alexnet_jax.conv_local import ConvLocal
from alexnet_jax.data.classes import ids_of, imagenet_classes, match_labels
from alexnet_jax.data.preprocess import CAFFE, TORCHVISION, Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet
from alexnet_jax.run import checkpoint, processes
from alexnet_jax.variants import VARIANTS, create_model
from alexnet_jax.weights import caffe_files, formats, published
from alexnet_jax.weights.layouts import COMMON_LAYERS, DENSE, layer_shapes, to_layers, to_params
from alexnet_jax.weights.recognise import Stored

DESCRIPTION = "net.json"  # in a workdir
_Names = tuple[str, ...] | None  # by label


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A net with weights, preprocessing and class names.

    Attributes:
      path: the file or workdir it was read from.
      variables: `{"params": ...}`, without layers missing from the file.
      missing: names of the layers missing from the file.
      classes: readable names by label, or None if unknown.
      class_ids: WordNet ids or folder names by label, or None if unknown.
    """

    path: pathlib.Path
    model: AlexNet
    variables: dict[str, Any]
    preprocess: Preprocess
    missing: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    class_ids: tuple[str, ...] | None = None

    def require_classifier(self) -> None:
        """Raises `UserError` if layers are missing."""
        if self.missing:
            raise UserError(
                f"{self.path}: no classifier ({', '.join(self.missing)} missing), so it cannot name classes; "
                "train one (configs/finetune.py), or use python -m alexnet_jax features"
            )

    def labels_of(self, source: Source) -> np.ndarray | None:
        """The net's label of each class of a data set, or None if they are the same; see `match_labels`.

        A line says so if the data set lacks classes of the net.
        """
        own = (self.model.num_classes, self.class_ids, self.classes)
        with named(f"{self.path} and {source.description}"):
            labels = match_labels(source.class_ids, source.class_names, *own)
        if labels is not None and len(labels) < own[0] and processes.is_first():
            what = f"{len(labels)} of the {own[0]} classes of {self.path}"
            print(f"{source.description}: {what}; the other logits are left out", file=sys.stderr)
        return labels

    def has_classes_of(self, source: Source) -> bool:
        """Whether the net and the data set have the same classes in the same order."""
        try:
            return self.model.num_classes == source.num_classes and self.labels_of(source) is None
        except UserError:
            return False


# --- reading ----------------------------------------------------------------------------------------------


def read(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    partial: bool = False,
    mean: Any = None,
    default_variant: str | None = None,
) -> Pretrained:
    """Loads a trained net; arguments and errors are those of `load_pretrained` in tools/net.py.

    Args:
      default_variant: the net's variant, if neither the file nor `variant` determines it.
    """
    path = _locate(path)
    jax.devices()  # raises if there are none: not to be taken for damage of the file
    if path.is_dir():
        if mean is not None:
            raise UserError(f"{path}: a run has its own mean; leave mean out")
        _refuse_hugging_face(path)
        net = read_description(path)
        params, _ = checkpoint.restore_params(path, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        return dataclasses.replace(net, variables={"params": params})
    if isinstance(mean, str | os.PathLike):
        with named(mean):
            mean = caffe_files.read_mean(paths.expanded(mean))
    with named(path):
        stored, classes, class_ids = formats.read(path), None, None
        if stored.description:
            model, preprocess, classes, class_ids = _from_description(stored.description)
        else:
            model, preprocess = _guess(stored, variant or stored.variant or default_variant)
        if classes is None and model.num_classes == 1000:
            class_ids, classes = zip(*imagenet_classes(), strict=True)
        if mean is not None and preprocess.resize != CAFFE.resize:
            raise UserError("has a mean of its own; a mean image is for Caffe's nets")
        if mean is not None:
            preprocess = dataclasses.replace(preprocess, mean=mean)
        shapes = layer_shapes(model, preprocess.crop_size)
        if partial and not stored.description:
            stored = _without_other_heads(stored, shapes)
        _check_layers(stored, shapes)
        missing = tuple(name for name in COMMON_LAYERS if name not in stored.layers)
        if missing and not partial:
            raise UserError(
                f"has no {', '.join(missing)}, only {', '.join(stored.layers)}; "
                "load_pretrained(..., partial=True) accepts that"
            )
    if stored.ignored:
        more = ", ..." if len(stored.ignored) > 3 else ""
        taken = f"{', '.join(stored.layers)} (conv1 is {stored.names['conv1'][0]})"
        print(f"{path}: takes {taken}; ignores {', '.join(stored.ignored[:3])}{more}", file=sys.stderr)
    variables = {"params": to_params(model, stored.layers, preprocess.crop_size)}
    return Pretrained(path, model, variables, preprocess, missing, classes, class_ids)


def _locate(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file or directory at `path`, or else the published weights of that name, downloaded if needed."""
    found = paths.expanded(path)
    if found.exists():
        return found
    if str(path) in published.PUBLISHED:
        return published.fetch(str(path))
    with named(path):
        refuse_url(path)
    names = ", ".join(published.PUBLISHED)
    raise UserError(f"{found}: no such file or directory; give a path, or one of {names} to download weights")


def _from_description(text: str) -> tuple[AlexNet, Preprocess, _Names, _Names]:
    """Parses net, preprocessing, names and ids of the classes from a text written by `_description`."""
    try:
        values = json.loads(text)
        names, ids = (values.get(key) and tuple(map(str, values[key])) for key in ("classes", "class_ids"))
        ids = ids or (names and ids_of(names))
        return create_model(**values["model"]), Preprocess.from_json(values["preprocess"]), names, ids
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the description of the net is damaged ({error}); export the net again") from error


def _guess(stored: Stored, variant: str | None) -> tuple[AlexNet, Preprocess]:
    """Chooses net and preprocessing for weights of other programs, by variant."""
    if variant is None:
        raise UserError(
            "the shapes of the weights fit several nets; pass variant= or --variant=, one of "
            f"{', '.join(VARIANTS)}"
        )
    num_classes = stored.layers["fc8"][1].size if "fc8" in stored.layers else 1000
    preprocess = TORCHVISION if variant == "torchvision" else CAFFE
    if variant in ("paper", "original"):
        preprocess = dataclasses.replace(CAFFE, crop_size=224, resize="central")
    if stored.crop_size:
        preprocess = dataclasses.replace(preprocess, crop_size=stored.crop_size)
    return create_model(variant, num_classes), preprocess


def _without_other_heads(stored: Stored, shapes: Mapping[str, Any]) -> Stored:
    """Leaves out fully connected layers from the first one on that does not fit the convolutions."""
    kept, ignored = dict(stored.layers), list(stored.ignored)
    for name in (name for name in DENSE if name in kept):
        below_is_missing = name != DENSE[0] and DENSE[DENSE.index(name) - 1] not in kept
        if below_is_missing or kept[name][0].shape != shapes[name][0]:
            del kept[name]
            ignored += stored.names[name]
    return dataclasses.replace(stored, layers=kept, ignored=tuple(ignored))


def _check_layers(stored: Stored, shapes: Mapping[str, Any]) -> None:
    """Raises a `UserError` that lists arrays of another shape or type, or the first that is not finite."""
    named_arrays = [
        (key, array, shape)
        for name, arrays in stored.layers.items()
        for key, array, shape in zip(stored.names[name], arrays, shapes[name], strict=True)
    ]
    wrong = []
    for key, array, shape in named_arrays:
        if tuple(array.shape) != shape:
            wrong.append(f"{key} is {list(array.shape)}, not {list(shape)}")
        elif np.dtype(array.dtype).kind in "iubc" or np.dtype(array.dtype).itemsize < 2:
            wrong.append(f"{key} is of {np.dtype(array.dtype).name}, not floats")
    if wrong:
        raise UserError(f"not this AlexNet: {'; '.join(wrong)}")
    for key, array, _ in named_arrays:
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = np.asarray(array, np.float32)
            extremes = numbers.min(initial=0), numbers.max(initial=0)  # NaN passes through both
        if not np.isfinite(extremes).all():
            raise UserError(f"{key} has NaN or infinity; give weights from before the training diverged")


def _refuse_hugging_face(folder: pathlib.Path) -> None:
    """Raises a `UserError` that names the weight file if the folder is a model's from Hugging Face."""
    for file in (folder / "model.safetensors", folder / "pytorch_model.bin"):
        if file.exists() and not (folder / DESCRIPTION).exists():
            raise UserError(f"{folder}: a folder of Hugging Face, not the workdir of a run; give {file}")


# --- writing ----------------------------------------------------------------------------------------------


def save_pretrained(
    path: str | os.PathLike[str],
    model: AlexNet,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    classes: tuple[str, ...] | None = None,
    class_ids: tuple[str, ...] | None = None,
) -> None:
    """Writes a net for other programs; `load_pretrained` restores it exactly.

    Args:
      classes, class_ids: readable names by label, and WordNet or other ids where they differ.
      path: ends in `.safetensors` for torchvision's names and layout (two columns become grouped
        convolutions), which PyTorch loads with `safetensors.torch.load_file`; or in `.npz` for Caffe's (BGR):
        `conv1/0` and `conv1/1` are pycaffe's `net.params["conv1"]`.

    Raises:
      UserError: `path` has another suffix, or other programs cannot express the net.
    """
    with named(path):
        layer_shapes(model, preprocess.crop_size)  # raises for such nets
        layers = to_layers(model, variables["params"])
        formats.write(pathlib.Path(path), layers, _description(model, preprocess, classes, class_ids))


def _description(model: AlexNet, preprocess: Preprocess, classes: _Names, class_ids: _Names) -> str:
    """The description of a net as JSON: `create_model`'s arguments, the preprocessing and the classes."""
    skipped = {"parent", "name", "reads", "column_axis", "column_shards"}
    fields = {
        key: value
        for key, field in type(model).__dataclass_fields__.items()
        if key not in skipped and (value := getattr(model, key)) != field.default
    }
    if isinstance(model, ConvLocal):
        fields["variant"] = "conv-local-11pct"  # has its defaults
    names = {"classes": classes, "class_ids": class_ids}
    return json.dumps({"model": fields, "preprocess": preprocess.to_json(), **names})


# --- runs -------------------------------------------------------------------------------------------------


def describe(
    workdir: pathlib.Path, model: AlexNet, preprocess: Preprocess, source: Source, may_be_renamed: bool
) -> None:
    """Writes a run's `net.json`, which makes its weights usable without config or data.

    Args:
      may_be_renamed: whether the classes of a resumed run may have new names in the place of old ones.

    Raises:
      UserError: the classes of a resumed run are not those it started with.
    """
    path = workdir / DESCRIPTION
    if checkpoint.exist(workdir) and path.exists():
        _check_resumed(read_description(workdir), source, may_be_renamed)
    write_text(path, _description(model, preprocess, source.class_names, source.class_ids))


def _check_resumed(trained: Pretrained, source: Source, may_be_renamed: bool) -> None:
    before, now = trained.class_ids or (), source.class_ids
    pairs = itertools.zip_longest(before, now, fillvalue="no class")
    changed = [(label, old, new) for label, (old, new) in enumerate(pairs) if old != new]
    renamed = len(before) == len(now) and not any(new in before for _, _, new in changed)
    if not changed or (renamed and may_be_renamed) or trained.has_classes_of(source):
        return
    label, old, new = changed[0]
    remedy = ", or set run.allow_changes if only the names are new" if renamed else ""
    raise UserError(
        f"{source.description}: label {label} was {old} when the run in {trained.path} started, now it is "
        f"{new}; use the same classes{remedy}"
    )


def read_description(workdir: str | os.PathLike[str]) -> Pretrained:
    """Reads a run's `net.json`: the net without weights.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = pathlib.Path(workdir) / DESCRIPTION
    with named(path):
        try:
            text = path.read_text()
        except OSError as error:
            raise UserError(f"unreadable ({error.strerror}); give the workdir of a run") from error
        model, preprocess, classes, class_ids = _from_description(text)
    return Pretrained(path.parent, model, {}, preprocess, classes=classes, class_ids=class_ids)
