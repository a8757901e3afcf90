"""The four-layer net of sections 3.1 and 3.3, and its training on CIFAR-10.

The paper only says that the net has four layers. This is the net that the authors' code starts from on
CIFAR-10, `layers-cifar/layers-18pct.cfg`: three convolutions with 5 x 5 windows and 32, 32 and 64 filters,
each followed by 3 x 3 pooling at stride 2 (max, mean, mean), and one fully connected layer; with norms, one
after each of the first two poolings. The first weights are the authors', or of today's scale (`STARTS`).
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax import lax

from alexnet_jax import layers, optimizer, steps
from alexnet_jax.common import files, host
from alexnet_jax.data import pipeline, sources
from alexnet_jax.data.decode import decode_square

Array = jax.Array

BATCH_SIZE = 128
SIDE, CLASSES = 32, 10
WIDTHS = (32, 32, 64)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}
LOGS_PER_EPOCH = 4


@dataclasses.dataclass(frozen=True)
class Start:
    """The scale of the inputs and of the first weights.

    Attributes:
      scale: divides the grey levels minus the mean.
      deviations: standard deviations of each layer's first weights; None for 1 / sqrt(inputs of a unit).
    """

    scale: float
    deviations: tuple[float, float, float, float] | None


STARTS = {
    "authors": Start(1.0, (0.0001, 0.01, 0.01, 0.01)),  # initW of layers-18pct.cfg
    "unit": Start(64.0, None),  # inputs and outputs of each layer are about 1
}


@dataclasses.dataclass(frozen=True)
class Images:
    """CIFAR-10 in memory: uint8 `[N, 32, 32, 3]`, int32 `[N]`, and the mean of the training images."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    mean: np.ndarray  # float32 [32, 32, 3]

    @property
    def name(self) -> str:
        """A directory's name for histories on these training images: their number and a digest."""
        return f"{len(self.train)}-{hashlib.sha256(self.train.tobytes()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Attributes:
      start: a key of `STARTS`.
      rate: learning rate of the weights; that of the biases is twice as high, as in the authors' file.
      epochs: the most epochs.
      stop_at: the training error over the last epoch at which the run ends, in %.
      drop_at: the epoch at which the rate drops to a tenth; None for never.
    """

    activation: str
    norm: bool
    start: str
    rate: float
    seed: int
    epochs: float
    stop_at: float | None = None
    drop_at: float | None = None

    @property
    def name(self) -> str:
        norm = "-lrn" if self.norm else ""
        marks = {"stop": self.stop_at, "drop": self.drop_at}
        ends = "".join(f"-{word}{at:g}" for word, at in marks.items() if at)
        which = f"{self.activation}{norm}-{self.start}"
        return f"{which}-rate{self.rate:g}-seed{self.seed}-{self.epochs:g}epochs{ends}"


def load(source: str, per_class: int | None) -> Images:
    """Decodes a source of 32 x 32 images; with `per_class`, only the first training images of each class."""
    arrays = []
    for split, limit in (("train", per_class), ("test", None)):
        opened = sources.open_source(source, split)
        encoded, labels = opened.read(np.arange(len(opened)))
        kept = np.sort(np.concatenate([np.flatnonzero(labels == k)[:limit] for k in range(CLASSES)]))
        images = [
            decode_square(encoded[i], SIDE)
            for i in tqdm.tqdm(kept, f"reading {split}", unit="image", disable=None)
        ]
        arrays += [np.stack([image for image in images if image is not None]), labels[kept]]
    return Images(*arrays, mean=arrays[0].mean(axis=0, dtype=np.float64).astype(np.float32))


def initial_weights(key: Array, start: Start) -> dict[str, dict[str, Array]]:
    """Normally distributed weights, the same for each activation; zero biases."""
    shapes, inputs = {}, 3
    for number, width in enumerate(WIDTHS, 1):
        shapes[f"conv{number}"], inputs = (5, 5, inputs, width), width
    shapes["fc4"] = ((SIDE // 8) ** 2 * inputs, CLASSES)
    keys = jax.random.split(key, len(shapes))
    deviations = start.deviations or [1 / math.sqrt(math.prod(shape[:-1])) for shape in shapes.values()]
    return {
        name: {"kernel": deviation * jax.random.normal(k, shape), "bias": jnp.zeros(shape[-1])}
        for (name, shape), deviation, k in zip(shapes.items(), deviations, keys, strict=True)
    }


def logits(params: Any, x: Array, activation: str, norm: bool) -> Array:
    """The net: float32 `[B, 32, 32, 3]` to `[B, 10]`."""
    act = ACTIVATIONS[activation]

    def convolve(name: str, x: Array) -> Array:
        return layers.convolution(x, params[name]["kernel"], padding=2) + params[name]["bias"]

    def normalise(x: Array) -> Array:
        # layer-params-18pct normalises over 3 x 3 places within a map, with scale 0.00005; this is section
        # 3.3's form, over 5 neighbouring channels, with its constants.
        return layers.local_response_norm(x, k=2.0, alpha=1e-4, beta=0.75, size=5) if norm else x

    x = normalise(act(layers.max_pool(convolve("conv1", x), 3, 2)))  # [B, 16, 16, 32]
    x = normalise(_mean_pool(act(convolve("conv2", x))))  # [B, 8, 8, 32]
    x = _mean_pool(act(convolve("conv3", x)))  # [B, 4, 4, 64]
    return x.reshape(x.shape[0], -1) @ params["fc4"]["kernel"] + params["fc4"]["bias"]


def _mean_pool(x: Array) -> Array:
    """Means over 3 x 3 places at stride 2; a window over the edge divides by the places that it sees.

    As in cuda-convnet (`include/cudaconv2/conv_util.cuh`, `regionSize`).
    """
    edges = ((0, 0), (0, 1), (0, 1), (0, 0))
    pool = functools.partial(
        lax.reduce_window,
        init_value=0.0,
        computation=lax.add,
        window_dimensions=(1, 3, 3, 1),
        window_strides=(1, 2, 2, 1),
        padding=edges,
    )
    return pool(x) / pool(jnp.ones((1, *x.shape[1:3], 1)))


def train(settings: Settings, images: Images, runs: pathlib.Path) -> list[dict[str, float]]:
    """Trains, or reads the history from `runs` if the run was made before.

    Returns:
      for each quarter of an epoch `epoch`, `train_error` and `train_loss` (means over its training steps);
      once an epoch is complete, `epoch_error` over the last four quarters; the last entry also has
      `test_error` and `seconds`. Errors in %.
    """
    path = runs / f"{settings.name}.json"
    if path.exists():
        return json.loads(path.read_text())
    started = time.monotonic()
    history = _train(settings, images)
    history[-1]["seconds"] = time.monotonic() - started
    runs.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(history))
    return history


def _train(settings: Settings, images: Images) -> list[dict[str, float]]:
    count = len(images.train)
    every = max(1, round(count / BATCH_SIZE / LOGS_PER_EPOCH))
    total = math.ceil(settings.epochs * LOGS_PER_EPOCH) * every
    drops = () if settings.drop_at is None else (round(settings.drop_at * count / BATCH_SIZE),)
    weights, biases = (optimizer.step_decay(factor * settings.rate, 0.1, drops) for factor in (1, 2))
    update = optimizer.sgd_2012(optimizer.Rates(weights, biases), weight_decay=0.0)
    params = initial_weights(jax.random.key(settings.seed), STARTS[settings.start])
    state, step_function = update.init(params), make_step(settings, update, images.mean)
    history: list[dict[str, float]] = []
    sums = jnp.zeros(2)
    started = time.monotonic()
    with tqdm.tqdm(total=total, desc=settings.name, unit="step", disable=None) as bar:
        for step in range(total):
            index = pipeline.batch_indices(step, count, BATCH_SIZE, settings.seed)
            batch = images.train[index], images.train_labels[index]
            params, state, sums = step_function(params, state, sums, jnp.int32(step), *batch)
            bar.update()
            if (step + 1) % every:
                continue
            loss, error = (np.asarray(sums) / every).tolist()
            sums = jnp.zeros(2)
            line = {"epoch": (step + 1) * BATCH_SIZE / count, "train_loss": loss, "train_error": error}
            history.append(line)
            if len(history) >= LOGS_PER_EPOCH:
                last = [h["train_error"] for h in history[-LOGS_PER_EPOCH:]]
                line["epoch_error"] = float(np.mean(last))
            bar.set_postfix_str(f"training error {error:.1f} %")
            if bar.disable and len(history) % LOGS_PER_EPOCH == 0:  # without a terminal, a line each epoch
                left = (time.monotonic() - started) * (total - step - 1) / (step + 1)
                words = f"epoch {line['epoch']:.2f} of {settings.epochs:g}  training error {error:.1f} %"
                print(f"{settings.name}  {words}  left {tqdm.tqdm.format_interval(left)}", file=sys.stderr)
            if not math.isfinite(loss) or line.get("epoch_error", 100.0) <= (settings.stop_at or -1.0):
                break
    history[-1]["test_error"] = test(settings, params, images)
    return history


def make_step(
    settings: Settings, update: optax.GradientTransformationExtraArgs, mean: np.ndarray
) -> Callable[..., Any]:
    """Compiles a step, which adds the batch's loss and error in % to `sums`."""

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2), compiler_options=host.eigen_options())
    def step_function(params: Any, state: Any, sums: Array, step: Array, images: Array, labels: Array) -> Any:
        x, ones = _inputs(images, mean, settings), jnp.ones(len(labels))

        def loss_of(params: Any) -> tuple[Array, Array]:
            scores = logits(params, x, settings.activation, settings.norm)
            return steps.cross_entropy(scores, labels, ones) / len(labels), scores

        (loss, scores), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = update.update(gradients, state, params, step=step, drops=jnp.int32(0))
        error = 100.0 * jnp.mean(steps.topk_errors(scores, labels, 1))
        return optax.apply_updates(params, updates), state, sums + jnp.stack([loss, error])

    return step_function


def test(settings: Settings, params: Any, images: Images) -> float:
    """Error on the test images in %."""

    @functools.partial(jax.jit, compiler_options=host.eigen_options())
    def mistakes(params: Any, images_: Array, labels: Array) -> Array:
        scores = logits(params, _inputs(images_, images.mean, settings), settings.activation, settings.norm)
        return jnp.sum(steps.topk_errors(scores, labels, 1))

    parts = range(0, len(images.test), 500)
    counts = [mistakes(params, images.test[i : i + 500], images.test_labels[i : i + 500]) for i in parts]
    return 100.0 * float(sum(map(float, counts))) / len(images.test)


def _inputs(images: Array, mean: np.ndarray, settings: Settings) -> Array:
    return (images.astype(jnp.float32) - mean) / STARTS[settings.start].scale


def epochs_until(history: list[dict[str, float]], error: float) -> float | None:
    """Epochs until the training error over an epoch is at most `error` %; None for never."""
    return next((line["epoch"] for line in history if line.get("epoch_error", 100.0) <= error), None)
