"""AlexNet, as the paper's table: five convolutions, three fully connected layers, two columns.

Every parameter has a leading axis of columns (one column a GPU in 2012). The columns held on a device are
computed side by side as dense convolutions, and `exchange` lets them talk before conv3, fc6, fc7 and fc8.
Where the paper's words and the code that made its numbers differ, each has its variant.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from alexnet_jax import layers as ops
from alexnet_jax.columns import exchange
from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.common.typed import as_type

Array = jax.Array

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")
POST_OPS = ("activation", "lrn", "map_norm", "pool")
REMOVABLE = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
PLAIN_POOLING_PADDING = (1, 0)  # of conv2 and conv5 in layers-147.cfg
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "tanh": jnp.tanh}
COMPUTE_DTYPES = ("float32", "bfloat16")

# Standard deviation of each layer's initial weights, and the bias of conv2, conv4, conv5, conv6, fc6, fc7.
INITS = ("paper", "original", "caffe", "he", "torch")
_STD_ORIGINAL = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "conv6": 0.03}  # layers-145.cfg; conv6: run 146
_STD_CAFFE = {"fc6": 0.005, "fc7": 0.005}  # bvlc_alexnet train_val.prototxt
_BIASED = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")  # section 5: "the early stages of learning"


class AlexNet(nn.Module):
    """The net, `[B, S, S, 3]` float32 images to `[B, num_classes]` logits. Defaults are the paper's words.

    Attributes:
      num_classes: size of the last layer.
      columns: columns of the net, 2 in the paper; 1 makes every layer see everything.
      cross_column_layers: layers that see all columns: before each, the columns exchange their activations;
        `()` for independent columns (run 150). Where fc8 is not among them, the columns' partial logits are
        added.
      widths: filters of conv1 to conv5, and of conv6 where there is one, over all columns.
      fc_widths: units of fc6 and fc7 over all columns.
      layer1, layer2, layer5: what follows the convolution, in order, out of `activation`, `lrn`, `map_norm`
        and `pool`.
      activation: `relu` or `tanh`.
      norm: False leaves out every `lrn` and `map_norm` (run 148).
      lrn_k, lrn_alpha, lrn_beta, lrn_size: section 3.3; alpha multiplies each term of the sum.
      lrn_across_columns: the normalisation sees the channels of all columns (Caffe) rather than its own.
      overlapping_pooling: 3 x 3 windows at stride 2 (section 3.4), or 2 x 2 at stride 2 with run 147's
        paddings, 1 at conv2 and 0 at conv5, beside which `padding` may ask for no others.
      padding: of conv1 to conv5.
      rounding: `2012`, output sizes rounded up; `caffe`, up for pooling only; `torch`, down.
      removed_layers: middle layers to leave out (section 7: "the depth really is important"), of `conv2` to
        `fc7`; of what follows such a layer only the pooling stays, and an exchange before it moves to the
        next layer.
      conv6: a sixth convolution on the pooled maps, before which the columns talk (section 7.2 and run 146).
      dropout: share of fc6's and fc7's outputs dropped in training.
      dropout_before: drops the inputs of fc6 and fc7 instead (torchvision).
      dropout_scaled: training divides by the share kept, as is usual today; False halves outputs at test
        time instead (section 4.2).
      init_scheme: `paper` (std 0.01 everywhere), `original` (0.03 for conv3 to conv5), `caffe`, `he` or
        `torch`.
      hidden_bias: initial bias of conv2, conv4, conv5, conv6, fc6 and fc7; None for the one of `init_scheme`.
      compute_dtype: `float32`, or `bfloat16` for activities, and for products of numbers so rounded.
        Parameters and their gradients, the normalisations and the logits are float32 all the same.
      reads: `images`, or `pool5` for a net that is given what its convolutions made of them, the channels of
        all columns side by side.
      column_axis: inside `shard_map`, the mesh axis along which the columns lie.
      column_shards: over how many devices they lie; each then holds `columns / column_shards`.
    """

    num_classes: int = 1000
    columns: int = 2
    cross_column_layers: tuple[str, ...] = ("conv3", "conv6", "fc6", "fc7", "fc8")
    widths: tuple[int, ...] = (96, 256, 384, 384, 256, 256)
    fc_widths: tuple[int, int] = (4096, 4096)
    layer1: str = "activation lrn pool"
    layer2: str = "activation lrn pool"
    layer5: str = "activation pool"
    activation: str = "relu"
    norm: bool = True
    lrn_k: float = 2.0
    lrn_alpha: float = 1e-4
    lrn_beta: float = 0.75
    lrn_size: int = 5
    lrn_across_columns: bool = False
    overlapping_pooling: bool = True
    padding: tuple[int, ...] = (0, 2, 1, 1, 1)
    rounding: str = "2012"
    removed_layers: tuple[str, ...] = ()
    conv6: bool = False
    dropout: float = 0.5
    dropout_before: bool = False
    dropout_scaled: bool = False
    init_scheme: str = "paper"
    hidden_bias: float | None = None
    compute_dtype: str = "float32"
    reads: str = "images"
    column_axis: str | None = None
    column_shards: int = 1

    @nn.compact
    def __call__(
        self,
        images: Array,
        *,
        train: bool = False,
        example_ids: Array | None = None,
        capture: Sequence[str] | str = (),
    ) -> Any:
        """Computes logits, and on request what the layers before them say.

        Args:
          images: `[B, S, S, 3]` float32 in the variant's input range; for all but `torchvision` this is
            0-255 minus the mean of the training set.
          train: drops units at random, for which `rngs={"dropout": key}` is needed.
          example_ids: `[B]` int32, each example's place in the global batch, by which its dropout mask is
            drawn whatever the layout; by default 0 to B-1.
          capture: name or names of activations to return: `conv1`, `activation1`, `lrn1`, `pool1`, ...,
            `fc6`, `activation6`, `dropout6`, `fc7`, ..., `fc8`.

        Returns:
          Logits `[B, num_classes]` float32; or, with `capture`, logits and a dictionary of the named
          activations `[B, ...]` float32, the channels of the columns held here side by side.

        Raises:
          UserError: the images are not of that shape and type or too small for the net, or a captured name
            does not exist.
        """
        if self.reads == "images":
            self._check_images(images)
        if isinstance(capture, str):
            capture = (capture,)
        if example_ids is None:
            example_ids = jnp.arange(images.shape[0])
        names: list[str] = []
        seen: dict[str, Array] = {}
        conv1, conv2, conv3, conv4, conv5, conv6 = self.widths
        pad1, pad2, pad3, pad4, pad5 = self._paddings()
        fc6, fc7 = self.fc_widths

        def keep(name: str, xs: list[Array]) -> list[Array]:
            names.append(name)
            if name in capture:
                whole = jnp.concatenate(xs, axis=-1) if len(xs) > 1 else xs[0]
                seen[name] = whole.astype(jnp.float32)
            return xs

        def convolve(
            name: str, xs: list[Array], width: int, window: int, padding: int, stride: int = 1
        ) -> list[Array]:
            if name in self.removed_layers:
                return xs
            layer = Convolution(
                features=width // self.columns,
                window=window,
                stride=stride,
                padding=padding,
                ceil=self.rounding == "2012",
                initialisers=self._initialisers(name),
                name=name,
            )
            return keep(name, layer(self._exchange_before(name, xs)))

        def follow(number: int, order: str, xs: list[Array]) -> list[Array]:
            for step in self._steps(number, order):
                xs = keep(f"{step}{number}", self._follow(step, number, xs))
            return xs

        def connect(name: str, xs: list[Array], width: int) -> list[Array]:
            if name in self.removed_layers:
                return xs
            layer = Dense(width // self.columns, self._initialisers(name), name=name)
            return keep(name, layer(self._exchange_before(name, xs)))

        def drop(number: int, xs: list[Array]) -> list[Array]:
            if f"fc{number}" in self.removed_layers:
                return xs
            return keep(f"dropout{number}", self._drop(xs, train, example_ids))

        # The shapes are those of one column of the paper's net, for images of 224 x 224.
        images = images.astype(self.compute_dtype)
        xs = [images] * (self.columns // self.column_shards)  # [B, 224, 224, 3], both columns see the image
        if self.reads == "images":
            xs = convolve("conv1", xs, conv1, window=11, stride=4, padding=pad1)  # [B, 55, 55, 48]
            xs = follow(1, self.layer1, xs)  # [B, 27, 27, 48]
            xs = convolve("conv2", xs, conv2, window=5, padding=pad2)  # [B, 27, 27, 128]
            xs = follow(2, self.layer2, xs)  # [B, 13, 13, 128]
            xs = convolve("conv3", xs, conv3, window=3, padding=pad3)  # [B, 13, 13, 192], sees both columns
            xs = follow(3, "activation", xs)
            xs = convolve("conv4", xs, conv4, window=3, padding=pad4)  # [B, 13, 13, 192]
            xs = follow(4, "activation", xs)
            xs = convolve("conv5", xs, conv5, window=3, padding=pad5)  # [B, 13, 13, 128]
            xs = follow(5, self.layer5, xs)  # [B, 6, 6, 128]
        else:
            xs = [self._own(x, i, conv5 // self.columns) for i, x in enumerate(xs)]  # [B, 6, 6, 128]
        if self.conv6:
            xs = convolve("conv6", xs, conv6, window=3, padding=1)  # [B, 6, 6, 128], sees both columns
            xs = keep("conv6_activation", [ACTIVATIONS[self.activation](x) for x in xs])
        if self.dropout_before:
            xs = drop(5, xs)
        xs = connect("fc6", xs, fc6)  # [B, 2048], sees both columns
        xs = follow(6, "activation", xs)
        xs = drop(6, xs)
        xs = connect("fc7", xs, fc7)  # [B, 2048], sees both columns
        xs = follow(7, "activation", xs)
        if not self.dropout_before:
            xs = drop(7, xs)
        logits = self._classify(xs)  # [B, 1000], sees both columns

        if not capture:
            return logits
        if "fc8" in capture:
            seen["fc8"] = logits
        if unknown := sorted(set(capture) - set(seen)):
            raise UserError(f"this net has no activation {unknown[0]!r}; it has {', '.join([*names, 'fc8'])}")
        return logits, seen

    def _paddings(self) -> tuple[int, ...]:
        """Of conv1 to conv5."""
        if self.overlapping_pooling:
            return self.padding
        conv1, _, conv3, conv4, _ = self.padding
        conv2, conv5 = PLAIN_POOLING_PADDING
        return conv1, conv2, conv3, conv4, conv5

    def _windows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The layers with windows up to pool5, in order, and their arguments of `ops.output_size`."""
        orders = (self.layer1, self.layer2, "", "", self.layer5)
        for number, padding in enumerate(self._paddings(), 1):
            window, stride = {1: (11, 4), 2: (5, 1)}.get(number, (3, 1))
            ceil = self.rounding == "2012"
            if f"conv{number}" not in self.removed_layers:
                yield f"conv{number}", {"window": window, "stride": stride, "padding": padding, "ceil": ceil}
            if "pool" in orders[number - 1].split():
                window = 3 if self.overlapping_pooling else 2
                yield f"pool{number}", {"window": window, "stride": 2, "ceil": self.rounding != "torch"}

    def _too_small(self, side: int) -> str:
        """Says at which layer no window fits into the maps of images of `side`; empty where all do."""
        for layer, size in self._windows():
            given, side = side, ops.output_size(side, **size)
            if side < 1:
                window = size["window"]
                return f"{layer} has windows of {window} x {window}, but sees maps of {given} x {given}"
        return ""

    def _check_images(self, images: Array) -> None:
        shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", jnp.dtype(bool))
        if len(shape) != 4 or shape[0] == 0 or shape[3] != 3 or not jnp.issubdtype(dtype, jnp.floating):
            what = f"{dtype}{list(shape)}" if hasattr(images, "shape") else type(images).__name__
            raise UserError(f"images: the net reads a batch [B, S, S, 3] of floats, not {what}")
        if where := self._too_small(min(shape[1:3])):
            least = next(side for side in itertools.count(1) if not self._too_small(side))
            raise UserError(
                f"the images of {shape[1]} x {shape[2]} are too small for the net: {where}; "
                f"use larger images (data.image_size), of at least {least} x {least}"
            )

    def _exchange_before(self, name: str, xs: list[Array]) -> list[Array]:
        return self._exchange(name, xs) if self.is_cross_column(name) else xs

    def _exchange(self, name: str, xs: list[Array]) -> list[Array]:
        with jax.named_scope(f"exchange_{name}"):  # by which reports name it
            return exchange(xs, self.column_axis)

    def is_cross_column(self, name: str) -> bool:
        """Whether the columns talk before a layer, or would have before one left out just before it."""
        layers = [layer for layer in LAYERS if layer != "conv6" or self.conv6]
        before = reversed(layers[: layers.index(name)])
        left_out = itertools.takewhile(lambda layer: layer in self.removed_layers, before)
        return not {name, *left_out}.isdisjoint(self.cross_column_layers)

    def _steps(self, number: int, order: str) -> list[str]:
        """What follows the layer of that number."""
        left_out = not {f"conv{number}", f"fc{number}"}.isdisjoint(self.removed_layers)
        return [step for step in order.split() if step == "pool" or not left_out]

    def _follow(self, step: str, number: int, xs: list[Array]) -> list[Array]:
        if step == "activation":
            return [ACTIVATIONS[self.activation](x) for x in xs]
        if step == "pool":
            window = 3 if self.overlapping_pooling else 2
            return [ops.max_pool(x, window, 2, self.rounding != "torch") for x in xs]
        if not self.norm:
            return xs
        if step == "map_norm":
            return [self._map_norm(x) for x in xs]
        if not self.lrn_across_columns:
            return [self._lrn(x) for x in xs]
        whole = self._lrn(self._exchange(f"norm{number}", xs)[0])
        return [self._own(whole, i, xs[i].shape[-1]) for i in range(len(xs))]

    def _lrn(self, x: Array) -> Array:
        y = ops.local_response_norm(
            x.astype(jnp.float32),  # sums of squares need the digits
            k=self.lrn_k,
            alpha=self.lrn_alpha,
            beta=self.lrn_beta,
            size=self.lrn_size,
        )
        return y.astype(x.dtype)

    def _map_norm(self, x: Array) -> Array:
        # layers-145.cfg: scale 0.001 over the 25 places of the window, power 0.75.
        y = ops.within_map_norm(x.astype(jnp.float32), k=1.0, alpha=0.001 / 25, beta=0.75, size=5)
        return y.astype(x.dtype)

    def _own(self, whole: Array, index: int, width: int) -> Array:
        """The channels of the column `index` of those held here, out of the channels of all columns."""
        return jax.lax.dynamic_slice_in_dim(whole, self._column(index) * width, width, axis=whole.ndim - 1)

    def _column(self, index: int) -> Any:
        """Place among all columns of the column `index` of those held here."""
        if self.column_axis is None:
            return index
        return jax.lax.axis_index(self.column_axis) * (self.columns // self.column_shards) + index

    def _drop(self, xs: list[Array], train: bool, example_ids: Array) -> list[Array]:
        kept = 1.0 - self.dropout
        if self.dropout == 0:
            return xs
        if not train:
            return xs if self.dropout_scaled else [x * kept for x in xs]
        key = self.make_rng("dropout")

        def drop(x: Array, column: Any) -> Array:
            # One mask an example, drawn by its place in the global batch and its column: it does not
            # depend on the number of devices.
            own = jax.random.fold_in(key, column)
            mask = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(own, i), kept, x.shape[1:]))(
                example_ids
            )
            return jnp.where(mask, x / kept if self.dropout_scaled else x, jnp.zeros((), x.dtype))

        return [drop(x, self._column(i)) for i, x in enumerate(xs)]

    def _classify(self, xs: list[Array]) -> Array:
        """fc8: the classes are split over the columns, or, if these do not talk, their votes are added.

        An odd number of classes leaves the last output of the last column unused.
        """
        share = -(-self.num_classes // self.columns)
        if self.is_cross_column("fc8"):
            layer = Dense(share, self._initialisers("fc8"), out_dtype="float32", name="fc8")
            return self._exchange("logits", layer(self._exchange_before("fc8", xs)))[0][:, : self.num_classes]
        layer = Dense(
            share * self.columns,
            self._initialisers("fc8"),
            bias_features=share,
            out_dtype="float32",
            name="fc8",
        )
        votes = layer(xs, bias_places=[self._column(i) * share for i in range(len(xs))])
        logits = sum(votes[1:], votes[0])
        if self.column_axis is not None:
            with jax.named_scope("exchange_logits"):
                logits = jax.lax.psum(logits, self.column_axis)
        return logits[:, : self.num_classes]

    def _initialisers(self, name: str) -> "Initialisers":
        return functools.partial(_initialisers, self.init_scheme, self.hidden_bias, name)


Initialisers = Callable[[int], tuple[Callable, Callable]]


def _initialisers(init: str, hidden_bias: float | None, name: str, fan_in: int) -> tuple[Callable, Callable]:
    """How the weights and the biases of the layer `name` with `fan_in` inputs a unit begin."""
    constant = None if name not in _BIASED else hidden_bias
    if init == "torch":  # PyTorch's default for its convolutions and linear layers
        uniform = _uniform(1.0 / math.sqrt(fan_in))
        return uniform, uniform if constant is None else nn.initializers.constant(constant)
    std = {
        "paper": 0.01,  # section 5
        "original": _STD_ORIGINAL.get(name, 0.01),
        "caffe": _STD_CAFFE.get(name, 0.01),
        "he": math.sqrt(2.0 / fan_in),
    }[init]
    if constant is None:
        constant = {"paper": 1.0, "original": 1.0, "caffe": 0.1, "he": 0.0}[init] if name in _BIASED else 0.0
    return nn.initializers.normal(std), nn.initializers.constant(constant)


def _uniform(bound: float) -> Callable:
    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _same(xs: Sequence[Array]) -> bool:
    """Whether the columns see one and the same input, as after an exchange."""
    return all(x is xs[0] for x in xs)


class Convolution(nn.Module):
    """One convolution a column; parameters `kernel` `[columns, h, w, I, O]` and `bias` `[columns, O]`."""

    features: int
    window: int
    stride: int
    padding: int
    ceil: bool
    initialisers: Initialisers

    @nn.compact
    def __call__(self, xs: list[Array]) -> list[Array]:
        inputs = xs[0].shape[-1]
        kernel_init, bias_init = self.initialisers(self.window * self.window * inputs)
        kernel = self.param("kernel", kernel_init, (len(xs), self.window, self.window, inputs, self.features))
        bias = self.param("bias", bias_init, (len(xs), self.features))
        if len(xs) > 1 and _same(xs):  # columns that see the same are one wider convolution
            whole = self._convolve(xs[0], jnp.concatenate(list(kernel), axis=-1))
            ys = jnp.split(whole, len(xs), axis=-1)
        else:
            ys = [self._convolve(x, kernel[i]) for i, x in enumerate(xs)]
        return [y + bias[i].astype(y.dtype) for i, y in enumerate(ys)]

    def _convolve(self, x: Array, kernel: Array) -> Array:
        kernel = kernel.astype(x.dtype)
        return ops.convolution(x, kernel, stride=self.stride, padding=self.padding, ceil=self.ceil)


class Dense(nn.Module):
    """One fully connected layer a column; parameters `kernel` `[columns, I, O]` and `bias` `[columns, O]`.

    With `bias_features` each column has only that many biases, added at its place among the outputs.
    `out_dtype` is that of the sums and what they give, by default the inputs' own.
    """

    features: int
    initialisers: Initialisers
    bias_features: int | None = None
    out_dtype: str | None = None

    @nn.compact
    def __call__(self, xs: list[Array], bias_places: Sequence[Any] = ()) -> list[Array]:
        xs = [x.reshape(x.shape[0], -1) for x in xs]  # maps are read row by row, channels last
        inputs = xs[0].shape[-1]
        kernel_init, bias_init = self.initialisers(inputs)
        kernel = self.param("kernel", kernel_init, (len(xs), inputs, self.features))
        bias = self.param("bias", bias_init, (len(xs), self.bias_features or self.features))
        biases = list(bias)
        if bias_places:
            zeros = jnp.zeros(self.features, bias.dtype)
            biases = [
                jax.lax.dynamic_update_slice_in_dim(zeros, b, place, axis=0)
                for b, place in zip(biases, bias_places, strict=True)
            ]
        dtype = self.out_dtype or xs[0].dtype
        # One product with a batch of columns: a slice of the kernel for each would be a copy of it.
        kernel = kernel.astype(xs[0].dtype)
        ys = ops.connect(jnp.stack(xs), kernel, dtype)
        return [y + b.astype(dtype) for y, b in zip(ys, biases, strict=True)]


# BVLC's bvlc_alexnet: groups instead of columns, norms across them, images of 227 x 227.
_CAFFE: dict[str, Any] = {
    "lrn_k": 1.0,
    "lrn_alpha": 1e-4 / 5,
    "lrn_across_columns": True,
    "rounding": "caffe",
    "dropout_scaled": True,
    "init_scheme": "caffe",
}
# What people mean by "AlexNet", as differences from the paper's words (the defaults above).
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Run 145, the code that made the paper's numbers: layers/layers-145.cfg, layer-params-145.cfg.
    "original": {
        "layer1": "lrn pool activation",
        "layer2": "activation lrn map_norm pool",
        "layer5": "pool activation",
        "lrn_alpha": 1e-4 / 5,  # the released code divides the scale by the window
        "init_scheme": "original",
    },
    "caffe": _CAFFE,
    # BVLC's bvlc_reference_caffenet: the same with the norms after pooling.
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


def create_model(variant: str = "paper", num_classes: int = 1000, **overrides: Any) -> AlexNet:
    """The net of a variant, with single switches overridden: any field of `AlexNet`.

    Raises:
      UserError: the variant or a switch does not exist, a value is not of its type, or a value or a
        combination is impossible.
    """
    if as_type(variant, str, "model.variant") not in VARIANTS:
        raise UserError(f"model.variant={variant!r}: {did_you_mean(variant, VARIANTS)}")
    fields = {name for name in AlexNet.__dataclass_fields__ if name not in ("parent", "name")}
    for key in overrides:
        if key not in fields:
            raise UserError(f"model.{key}: no such switch; {did_you_mean(key, sorted(fields))}")
    given = {"num_classes": num_classes, **overrides}
    switches = {
        key: as_type(value, AlexNet.__annotations__[key], f"model.{key}") for key, value in given.items()
    }
    model = AlexNet(**{**VARIANTS[variant], **switches})
    _check(model)
    return model


def param_shapes(model: AlexNet, image_size: int) -> dict[str, Any]:
    """The shapes of the net's parameters: by layer, `kernel` and `bias` as `jax.ShapeDtypeStruct`.

    Raises:
      UserError: images of `image_size` x `image_size` are too small for the net.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(model.init, key, images)["params"]


def _check(model: AlexNet) -> None:
    """Refuses nets that cannot be, naming the switch."""

    def require(good: bool, key: str, mend: str) -> None:
        if not good:
            raise UserError(f"model.{key}={getattr(model, key)!r}: {mend}")

    require(model.num_classes >= 1, "num_classes", "a net needs at least one class")
    require(model.columns >= 1, "columns", "must be 1 or more; the paper has 2")
    require(model.column_shards >= 1, "column_shards", "must be 1 or more")
    require(
        model.columns % model.column_shards == 0, "columns", f"cannot lie over {model.column_shards} devices"
    )
    require(
        len(model.widths) == 6, "widths", "give the filters of conv1 to conv6 (the last is used with conv6)"
    )
    for key in ("widths", "fc_widths"):
        require(
            all(width >= model.columns and width % model.columns == 0 for width in getattr(model, key)),
            key,
            f"each must be a positive multiple of the {model.columns} columns",
        )
    require(len(model.padding) == 5 and min(model.padding) >= 0, "padding", "give five paddings of 0 or more")
    require(
        model.overlapping_pooling or model.padding[1::3] in (AlexNet.padding[1::3], PLAIN_POOLING_PADDING),
        "padding",
        "overlapping_pooling=False has its own paddings of conv2 and conv5, 1 and 0; leave one out",
    )
    talkers = LAYERS[1:]  # before conv1 there is nothing to tell: every column sees the image
    require(
        set(model.cross_column_layers) <= set(talkers),
        "cross_column_layers",
        f"choose from {', '.join(talkers)}",
    )
    require(
        set(model.removed_layers) <= set(REMOVABLE), "removed_layers", f"choose from {', '.join(REMOVABLE)}"
    )
    require(model.activation in ACTIVATIONS, "activation", f"choose one of {', '.join(ACTIVATIONS)}")
    require(model.init_scheme in INITS, "init_scheme", f"choose one of {', '.join(INITS)}")
    require(model.rounding in ("2012", "caffe", "torch"), "rounding", "choose one of 2012, caffe, torch")
    require(
        model.compute_dtype in COMPUTE_DTYPES, "compute_dtype", f"choose one of {', '.join(COMPUTE_DTYPES)}"
    )
    require(model.reads in ("images", "pool5"), "reads", "choose images or pool5")
    require(0 <= model.dropout < 1, "dropout", "must be at least 0 and below 1")
    require(
        model.lrn_size > 0 and model.lrn_size % 2 == 1,
        "lrn_size",
        "must be odd, so that the window has a middle, and above 0",
    )
    require(model.lrn_k > 0, "lrn_k", "must be above 0, so that nothing is divided by 0")
    require(model.lrn_alpha >= 0, "lrn_alpha", "must be 0 or more, so that nothing is divided by 0")
    require(model.lrn_beta > 0, "lrn_beta", "must be above 0; norm=False leaves the normalisation out")
    for key in ("layer1", "layer2", "layer5"):
        steps = getattr(model, key).split()
        require(
            set(steps) <= set(POST_OPS) and len(steps) == len(set(steps)),
            key,
            f"list each of {', '.join(POST_OPS)} at most once, separated by spaces",
        )
