"""AlexNet as the paper's table: five convolutions, three fully connected layers, two columns.

Every parameter has a leading axis of columns, one per GPU in 2012; `exchange` gives each column the other's
channels before conv3, fc6, fc7 and fc8, and joins the logits. `variants.py` has the 2012 code's own net.
"""

import bisect
import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamNotFoundError

from alexnet_jax import layers, low_resolution
from alexnet_jax.columns import add, exchange
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.typed import Bound, above, at_least, below, one_of

Array = jax.Array

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "tanh": jnp.tanh}
PLAIN_POOLING_PADDING = {"conv2": 1, "conv5": 0}  # layers-147.cfg
CROSS_COLUMN_LAYERS = ("conv3", "conv6", "fc6", "fc7", "fc8")
REMOVABLE = ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
NORMS = ("lrn", "map_norm")
POST_OPS = ("activation", *NORMS, "pool")

_ORDER = Bound(
    lambda order: set(order.split()) <= set(POST_OPS) and len(order.split()) == len(set(order.split())),
    f"list each of {', '.join(POST_OPS)} at most once, separated by spaces",
)
_SIX = Bound(lambda widths: len(widths) == 6, "give the filters of conv1 to conv6, even without conv6")
_FIVE = Bound(lambda pads: len(pads) == 5 and min(pads) >= 0, "give five paddings of 0 or more")
_ODD = Bound(lambda size: size % 2 == 1, "must be odd, so that the window has a middle")
_POWER = Bound(lambda beta: beta > 0, "must be above 0; norm=False leaves the normalisation out")


class AlexNet(nn.Module):
    """The net: `[B, S, S, 3]` float32 images to `[B, num_classes]` logits. Defaults follow the paper's text.

    Widths are totals over all columns. `create_model` checks the fields.
    """

    num_classes: Annotated[int, at_least(1)] = 1000
    columns: Annotated[int, at_least(1)] = 2  # with 1, every layer sees all channels
    # Layers that see all columns; all columns of conv1 see the image. Without fc8, the columns' partial
    # logits are added. (): run 150.
    cross_column_layers: tuple[Annotated[str, one_of(*LAYERS[1:])], ...] = CROSS_COLUMN_LAYERS
    widths: Annotated[tuple[int, ...], _SIX] = (96, 256, 384, 384, 256, 256)  # filters of conv1 to conv6
    fc_widths: tuple[int, int] = (4096, 4096)  # units of fc6 and fc7
    layer1: Annotated[str, _ORDER] = "activation lrn pool"  # what follows conv1, in order; also map_norm
    layer2: Annotated[str, _ORDER] = "activation lrn pool"
    layer5: Annotated[str, _ORDER] = "activation pool"
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "relu"
    norm: bool = True  # False removes every lrn and map_norm (run 148)
    lrn_k: Annotated[float, above(0)] = 2.0  # section 3.3, like the next three
    lrn_alpha: Annotated[float, at_least(0)] = 1e-4  # multiplies each term of the sum
    lrn_beta: Annotated[float, _POWER] = 0.75
    lrn_size: Annotated[int, above(0), _ODD] = 5  # channels
    # True: over all kernels of the layer, section 3.3's N, as in Caffe; columns then exchange their maps.
    # False: over a column's own, as in Figure 2 and in 2012; four channels of each layer differ.
    lrn_across_columns: bool = False
    overlapping_pooling: bool = True  # 3 x 3 windows at stride 2 (3.4); False: 2 x 2, run 147's paddings
    pool_ties: Annotated[str, one_of("first", "all")] = "first"  # equal maxima that get a window's gradient
    padding: Annotated[tuple[int, ...], _FIVE] = (0, 2, 1, 1, 1)  # of conv1 to conv5
    # Output sizes are rounded up (2012), up in pooling only (caffe), or down (torch).
    rounding: Annotated[str, one_of("2012", "caffe", "torch")] = "2012"
    # Section 7: "the depth really is important". A layer is removed with its activation and norms, but its
    # pooling stays; if it saw all columns, the next layer does instead.
    removed_layers: tuple[Annotated[str, one_of(*REMOVABLE)], ...] = ()
    conv6: bool = False  # a sixth convolution on the pooled maps, across columns (section 7.2, run 146)
    low_resolution: bool = False  # conv2 sees the image, too, blurred and at a quarter of its size (run 141)
    dropout: Annotated[float, at_least(0), below(1)] = 0.5  # fraction of fc6's and fc7's outputs dropped
    dropout_before: bool = False  # drops the inputs of fc6 and fc7 instead (torchvision)
    dropout_scaled: bool = False  # divides by the kept fraction in training; False halves at test time (4.2)
    # Std 0.01 everywhere in `paper`, 0.03 for conv3 to conv5 in `original`.
    init_scheme: Annotated[str, one_of("paper", "original", "caffe", "he", "torch")] = "paper"
    # fan_in: std times sqrt(the paper's fan-in / own), for nets of other widths or image sizes.
    init_scale: Annotated[str, one_of("none", "fan_in")] = "none"
    hidden_bias: float | None = None  # initial bias of `layers.BIASED`; None for that of init_scheme
    # bfloat16: activations and products; all else stays float32.
    compute_dtype: Annotated[str, one_of("float32", "bfloat16")] = "float32"
    reads: Annotated[str, one_of("images", "pool5")] = "images"  # pool5: channels of all columns in order
    column_axis: str | None = None  # inside `shard_map`: the mesh axis of the columns
    column_shards: Annotated[int, at_least(1)] = 1  # devices along it; each holds `columns / column_shards`

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False, example_ids: Array | None = None) -> Array:
        """Computes logits `[B, num_classes]` float32.

        Args:
          images: `[B, S, S, 3]` float32 in the variant's input range; for all but `torchvision` this is
            0-255 minus the mean of the training set.
          train: applies dropout, which needs `rngs={"dropout": key}`.
          example_ids: `[B]` int32, positions in the global batch, which key the dropout masks, so they do not
            depend on the layout; by default 0 to B-1.

        Raises:
          UserError: the images have another shape or type.
        """
        if self.reads == "images":
            check_images(images)
        ids = jnp.arange(images.shape[0]) if example_ids is None else example_ids
        drop = functools.partial(self._dropout, train=train, example_ids=ids)

        # Shapes of one column of the paper's net, for 224 x 224 images.
        images = images.astype(self.compute_dtype)
        xs = [images] * (self.columns // self.column_shards)  # [B, 224, 224, 3], the same for both columns
        if self.reads == "images":
            xs = self._conv("conv1", xs, window=11, stride=4)  # [B, 55, 55, 48]
            xs = self._post_ops(1, self.layer1, xs)  # [B, 27, 27, 48]
            low = low_resolution.blurred(images) if self.low_resolution else None  # [B, 56, 56, 3]
            xs = self._conv("conv2", xs, window=5, low=low)  # [B, 27, 27, 128]
            xs = self._post_ops(2, self.layer2, xs)  # [B, 13, 13, 128]
            xs = self._conv("conv3", xs, window=3)  # [B, 13, 13, 192], sees both columns
            xs = self._post_ops(3, "activation", xs)
            xs = self._conv("conv4", xs, window=3)  # [B, 13, 13, 192]
            xs = self._post_ops(4, "activation", xs)
            xs = self._conv("conv5", xs, window=3)  # [B, 13, 13, 128]
            xs = self._post_ops(5, self.layer5, xs)  # [B, 6, 6, 128]
        else:
            xs = self._local_channels(xs, self.widths[4] // self.columns)  # [B, 6, 6, 128]
        if self.conv6:
            xs = self._conv("conv6", xs, window=3)  # [B, 6, 6, 128], sees both columns
            xs = self._record("conv6_activation", [ACTIVATIONS[self.activation](x) for x in xs])
        if self.dropout_before:
            xs = drop(5, xs)
        xs = self._dense("fc6", xs)  # [B, 2048], sees both columns
        xs = self._post_ops(6, "activation", xs)
        xs = drop(6, xs)
        xs = self._dense("fc7", xs)  # [B, 2048], sees both columns
        xs = self._post_ops(7, "activation", xs)
        if not self.dropout_before:
            xs = drop(7, xs)
        return self._classify(xs)  # [B, 1000], sees both columns

    @nn.nowrap
    def apply(self, variables: Any, images: Any, *, capture: Sequence[str] | str = (), **kwargs: Any) -> Any:
        """Flax's `apply`: logits, or with `capture` `(logits, activations)`.

        Args:
          capture: name or names: `conv1`, `activation1`, `lrn1`, `pool1`, ..., `fc6`, `activation6`,
            `dropout6`, `fc7`, ..., `fc8`. Activations are `[B, ...]` float32 by name, with the channels of
            this device's columns concatenated. XLA drops later layers; if weights lack one, logits are None.

        Raises:
          UserError: as in `__call__`, the images are too small for the net, or a name does not exist.
        """
        names = (capture,) if isinstance(capture, str) else tuple(capture)
        with self._explained_sizes(images):
            if not names:
                return super().apply(variables, images, **kwargs)
            kwargs.update(method="_partial", mutable="intermediates")
            logits, state = super().apply(variables, images, **kwargs)
        activations: dict[str, Any] = dict(state["intermediates"]["activations"])
        if unknown := sorted(set(names) - set(activations)):
            raise UserError(f"this net has no activation {unknown[0]!r}; it has {', '.join(activations)}")
        return logits, {name: exchange(activations[name])[0].astype(jnp.float32) for name in names}

    def _partial(self, images: Array, **kwargs: Any) -> Array | None:
        """As `__call__`, but stops at the first layer that the weights lack."""
        with contextlib.suppress(ScopeParamNotFoundError):
            return self(images, **kwargs)

    @nn.nowrap
    def init(self, rngs: Any, images: Any, **kwargs: Any) -> Any:
        """Flax's `init`: `{"params": ...}`, `kernel` and `bias` by layer, with a leading column axis."""
        with self._explained_sizes(images):
            return super().init(rngs, images, **kwargs)

    @nn.nowrap
    @contextlib.contextmanager
    def _explained_sizes(self, images: Any) -> Iterator[None]:
        """If the images are too small for a layer, raises an error with the minimum size."""
        try:
            yield
        except layers.TooSmall as error:
            least = 1 + bisect.bisect_left(range(1, 2048), True, key=self._has_room)
            raise UserError(
                f"the images of {images.shape[1]} x {images.shape[2]} are too small for the net: {error}; "
                f"use larger images (data.image_size), of at least {least} x {least}"
            ) from None

    @nn.nowrap
    def _has_room(self, side: int) -> bool:
        net = self.clone(column_axis=None, column_shards=1)
        with contextlib.suppress(layers.TooSmall):
            images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
            return bool(jax.eval_shape(functools.partial(nn.Module.init, net), jax.random.key(0), images))
        return False

    def _conv(self, name: str, xs: list[Array], window: int, stride: int = 1, low: Any = None) -> list[Array]:
        if name in self.removed_layers:
            return xs
        number = int(name[-1])
        plain = {} if self.overlapping_pooling else PLAIN_POOLING_PADDING
        padding = plain.get(name, (*self.padding, 1)[number - 1])
        xs = self._exchange_before(name, xs)
        inputs, features = xs[0].shape[-1], self.widths[number - 1] // self.columns
        size = {"stride": stride, "padding": padding, "ceil": self.rounding == "2012"}
        convolve = functools.partial(layers.convolution, **size, name=name)
        if low is not None:
            inputs += low.shape[-1]
            convolve = functools.partial(low_resolution.convolution, convolve, low)
        kernel, bias = self._parameters(name, (len(xs), window, window, inputs, features))
        kernels = [k.astype(xs[0].dtype) for k in kernel]
        if len(xs) > 1 and all(x is xs[0] for x in xs):  # same input: a single, wider convolution
            ys = jnp.split(convolve(xs[0], jnp.concatenate(kernels, axis=-1)), len(xs), axis=-1)
        else:
            ys = list(map(convolve, xs, kernels))
        return self._record(name, [layers.add_bias(y, b) for y, b in zip(ys, bias, strict=True)])

    def _dense(self, name: str, xs: list[Array]) -> list[Array]:
        if name in self.removed_layers:
            return xs
        xs = self._exchange_before(name, xs)
        units = self.fc_widths[int(name[-1]) - 6] // self.columns
        kernel, bias = self._parameters(name, (len(xs), xs[0][0].size, units))
        return self._record(name, layers.dense(xs, kernel, list(bias)))

    def _parameters(self, name: str, shape: tuple[int, ...], biases: int | None = None) -> Any:
        """`kernel` of this shape, `[columns, ..., outputs]`, and `bias` `[columns, biases or outputs]`."""
        scheme = self.init_scheme, self.init_scale, self.hidden_bias
        init = layers.initialisers(*scheme, name, math.prod(shape[1:-1]))
        return layers.Parameters(name=name)(init, shape, (shape[0], biases or shape[-1]))

    def _post_ops(self, number: int, order: str, xs: list[Array]) -> list[Array]:
        """Applies the operations in `order` after layer `number`."""
        removed = not {f"conv{number}", f"fc{number}"}.isdisjoint(self.removed_layers)
        for op in order.split():
            if op == "pool" or not (removed or (op in NORMS and not self.norm)):
                xs = self._record(f"{op}{number}", self._post_op(op, f"{op}{number}", xs))
        return xs

    def _post_op(self, op: str, name: str, xs: list[Array]) -> list[Array]:
        if op == "activation":
            return [ACTIVATIONS[self.activation](x) for x in xs]
        if op == "pool":
            how = {"ceil": self.rounding != "torch", "name": name, "ties": self.pool_ties}
            return [layers.max_pool(x, 3 if self.overlapping_pooling else 2, 2, **how) for x in xs]
        if op == "map_norm":  # layers-145.cfg: scale 0.001 over the 25 places of the window, power 0.75
            return [layers.within_map_norm(x, k=1.0, alpha=0.001 / 25, beta=0.75, size=5) for x in xs]
        constants = {"k": self.lrn_k, "alpha": self.lrn_alpha, "beta": self.lrn_beta, "size": self.lrn_size}
        lrn = functools.partial(layers.local_response_norm, **constants)
        if not self.lrn_across_columns:
            return [lrn(x) for x in xs]
        joined = lrn(self._exchange(name.replace("lrn", "norm"), xs)[0])
        return self._local_channels([joined] * len(xs), xs[0].shape[-1])

    def _dropout(self, number: int, xs: list[Array], train: bool, example_ids: Array) -> list[Array]:
        if f"fc{number + self.dropout_before}" in self.removed_layers:
            return xs
        if self.dropout > 0 and train:
            key, how = self.make_rng("dropout"), {"rate": self.dropout, "scaled": self.dropout_scaled}
            keys = [jax.random.fold_in(key, self._column(i)) for i in range(len(xs))]
            xs = [layers.dropout(x, key, example_ids, **how) for x, key in zip(xs, keys, strict=True)]
        elif self.dropout > 0 and not self.dropout_scaled:
            xs = [x * (1.0 - self.dropout) for x in xs]
        return self._record(f"dropout{number}", xs)

    def _classify(self, xs: list[Array]) -> Array:
        """fc8: each column computes its share of the classes, or independent columns add partial logits."""
        share = -(-self.num_classes // self.columns)  # an odd number leaves the last output unused
        crosses = self.is_cross_column("fc8")
        xs = self._exchange_before("fc8", xs)
        outputs = share if crosses else share * self.columns
        kernel, biases = self._parameters("fc8", (len(xs), xs[0][0].size, outputs), biases=share)
        if not crosses:
            zeros = jnp.zeros(outputs, biases.dtype)
            place = functools.partial(jax.lax.dynamic_update_slice_in_dim, zeros, axis=0)
            biases = [place(own, start_index=self._column(i) * share) for i, own in enumerate(biases)]
        ys = layers.dense(xs, kernel, biases, jnp.float32)
        with jax.named_scope("exchange_logits"):
            logits = exchange(ys, self.column_axis)[0] if crosses else add(ys, self.column_axis)
        return self._record("fc8", [logits[:, : self.num_classes]])[0]

    def _record(self, name: str, xs: list[Array]) -> list[Array]:
        """Sows activations for `apply` to return; no effect without `capture`."""
        self.sow("intermediates", "activations", {name: xs}, init_fn=dict, reduce_fn=operator.or_)
        return xs

    def is_cross_column(self, name: str) -> bool:
        """Whether a layer sees all columns, by itself or because of a layer removed just before it."""
        names = [layer for layer in LAYERS if layer != "conv6" or self.conv6]
        before = reversed(names[: names.index(name)])
        removed = itertools.takewhile(lambda layer: layer in self.removed_layers, before)
        return not {name, *removed}.isdisjoint(self.cross_column_layers)

    def _exchange_before(self, name: str, xs: list[Array]) -> list[Array]:
        return self._exchange(name, xs) if self.is_cross_column(name) else xs

    def _exchange(self, name: str, xs: list[Array]) -> list[Array]:
        with jax.named_scope(f"exchange_{name}"):  # the name in communication reports
            return exchange(xs, self.column_axis)

    def _local_channels(self, xs: list[Array], width: int) -> list[Array]:
        """Selects from the channels of all columns those of each column held here, `width` each."""
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=width, axis=-1)
        return [cut(x, self._column(i) * width) for i, x in enumerate(xs)]

    def _column(self, index: int) -> Any:
        """The global index of this device's column `index`."""
        device = 0 if self.column_axis is None else jax.lax.axis_index(self.column_axis)
        return device * (self.columns // self.column_shards) + index


def check_images(images: Any) -> None:
    """Raises `UserError` unless `images` is a batch `[B, S, S, 3]` of floats."""
    shape, dtype = getattr(images, "shape", ()), getattr(images, "dtype", jnp.dtype(bool))
    if len(shape) != 4 or shape[0] == 0 or shape[3] != 3 or not jnp.issubdtype(dtype, jnp.floating):
        what = f"{dtype}{list(shape)}" if hasattr(images, "shape") else type(images).__name__
        raise UserError(f"images: the net reads a batch [B, S, S, 3] of floats, not {what}")
