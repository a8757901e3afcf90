"""A trained net for Python programs: its parts, class names, predictions and features."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.common import host, progress
from alexnet_jax.data import inference
from alexnet_jax.data.preprocess import Preprocess, is_one
from alexnet_jax.model import AlexNet
from alexnet_jax.tools import predict
from alexnet_jax.variants import create_model, layer_names
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained


class Prediction(NamedTuple):
    """One of the most probable classes of an image.

    Attributes:
      label: from 0.
      name: its name, or `class 7` where the weights have no names.
      probability: 0 to 1.
    """

    label: int
    name: str
    probability: float


class Net(tuple[AlexNet, dict[str, Any], Preprocess]):
    """A trained net: `model, variables, preprocess = net`.

    Images are paths, bytes of image files, Pillow images or uint8 arrays `[H, W, 3]` or `[H, W]`: one, or a
    list of them. `UserError` is raised for an image that cannot be read.

    Attributes:
      path: the file or workdir it was read from.
      model: a Flax Linen module; `model.apply(variables, preprocess(images))` are logits.
      variables: `{"params": ...}`.
      preprocess: from images to the net's input.
      classes: names by label, or None if unknown.
      missing: names of the layers that the weights lack.
    """

    path: pathlib.Path
    model: AlexNet
    variables: dict[str, Any]
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    missing: tuple[str, ...]
    _loaded: Pretrained
    _compiled: dict[Any, Any]

    def __new__(cls, loaded: Pretrained) -> "Net":
        net = super().__new__(cls, (loaded.model, loaded.variables, loaded.preprocess))
        net.model, net.variables, net.preprocess = net
        net.path, net.classes, net.missing = loaded.path, loaded.classes, loaded.missing
        net._loaded, net._compiled = loaded, {}
        return net

    def __repr__(self) -> str:
        numbers = sum(x.size for x in jax.tree.leaves(self.variables))
        end = f"no {', '.join(self.missing)}" if self.missing else f"{self.model.num_classes:,} classes"
        return f"Net({str(self.path)!r}: {numbers:,} parameters, {end})"

    def predict(self, images: Any, *, topk: int = 5, views: int = 1) -> Any:
        """Names what is in images: a list of `topk` `Prediction`, best first, or a list of them by image.

        Args:
          topk: number of classes to name.
          views: 1 for the central patch; 10 for the mean softmax output of the ten views (section 4.1).

        Raises:
          UserError: the weights have no classifier.
        """
        run = self._once(("predict", topk, views), lambda: predict.predictor(self._loaded, topk, views))
        names = predict.class_names(self._loaded)

        def best(result: Any) -> list[Prediction]:
            pairs = zip(*(values.tolist() for values in result), strict=True)
            return [Prediction(label, names[label], probability) for probability, label in pairs]

        found = [best(result) for result in self._run(run, images)]
        return found[0] if is_one(images) else found

    def features(self, images: Any, layers: str | Sequence[str] = "pool5") -> Any:
        """The activations of layers: float32 `[...]`, or `[N, ...]` for a list of images.

        Args:
          layers: `conv1`, `activation1`, `pool1`, ..., `pool5`, `fc6`, `activation6`, ..., `fc8`. The weights
            may lack the layers above. For a sequence of names the result is a dictionary.

        Raises:
          UserError: there is no such layer.
        """
        names = (layers,) if isinstance(layers, str) else tuple(layers)

        def activations(variables: Any, images: jax.Array) -> Any:
            return self.model.apply(variables, self.preprocess.view(images), capture=names)[1]

        compiled = self._once(names, lambda: jax.jit(activations, compiler_options=host.eigen_options()))
        rows = self._run(lambda x: compiled(self.variables, x), images)
        found = rows[0] if is_one(images) else jax.tree.map(lambda *values: np.stack(values), *rows)
        return found[layers] if isinstance(layers, str) else found

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` compiles, kept for the next call with the same key."""
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]

    def _run(self, function: Callable[[np.ndarray], Any], images: Any) -> list[Any]:
        """The function's results by image; a bar shows how far a list is."""
        items = [images] if is_one(images) else list(images)
        answers = inference.run_batches(function, items, self.preprocess.stored)
        few = len(items) <= inference.BATCH_SIZES[-1]
        return [answer.result for answer in progress.bar(len(items), "image", iterable=answers, disable=few)]


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    compute_dtype: Any = None,
    variant: str | None = None,
    partial: bool = False,
    mean: Any = None,
    seed: int = 0,
) -> Net:
    """Loads a trained net: `model, variables, preprocess = load_pretrained(path)`, or its methods.

    `model.apply(variables, preprocess(image)[None])` returns logits `[1, num_classes]`.

    Args:
      path: torchvision's `.pth`, Caffe's `.caffemodel`, their layers under any names in a `.pth`,
        `.safetensors`, `.npz` or `.npy`, the workdir of a run, or `torchvision`, `caffe` or `caffenet` for
        the published weights.
      num_classes: gives the net a new last layer for as many classes, unless it has as many. Layers that the
        file lacks are new, too.
      compute_dtype: `jnp.bfloat16` or `"bfloat16"` for activations and products; weights stay float32.
      variant: the net's variant, if the shapes of the weights do not determine it.
      partial: allows missing layers, which are then absent from `variables`.
      mean: the mean image of a Caffe net: a file (see `caffe_files.read_mean`) or an array, RGB
        `[256, 256, 3]` in grey levels.
      seed: of the new layers.

    Raises:
      UserError: the file is missing, damaged, from another net, or could run code.
    """
    new = {"num_classes": num_classes, "compute_dtype": compute_dtype}
    changes = {key: value for key, value in new.items() if value is not None}
    any_layers = partial or num_classes is not None
    loaded = pretrained.read(path, variant=variant, partial=any_layers, mean=mean)
    checked = create_model(**changes)  # raises for impossible values
    model = loaded.model.clone(**{key: getattr(checked, key) for key in changes})
    loaded, had = dataclasses.replace(loaded, model=model), loaded.model.num_classes
    if num_classes is not None:
        loaded = _completed(loaded, has_head=had == num_classes, seed=seed)
    return Net(loaded)


def _completed(loaded: Pretrained, *, has_head: bool, seed: int) -> Pretrained:
    """Initialises the layers that are missing, and the last one unless the net has that `head`."""
    size, last = loaded.preprocess.crop_size, layer_names(loaded.model)[-1]
    kept = {key: layer for key, layer in loaded.variables["params"].items() if has_head or key != last}

    def new_layers(key: jax.Array) -> dict[str, Any]:
        params = loaded.model.init(key, jnp.zeros((1, size, size, 3)))["params"]
        return {name: layer for name, layer in params.items() if name not in kept}

    params = {**kept, **jax.jit(new_layers)(jax.random.key(seed))}
    names = {} if last in kept else {"classes": None, "class_ids": None}
    return dataclasses.replace(loaded, variables={"params": params}, missing=(), **names)
