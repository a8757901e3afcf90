"""The paper's Figure 4: a net's predictions for test images, and the training images nearest to them.

    python -m experiments.figure4 --weights=runs/mine --source=embedded --out=figure4.png

Left: test images with their labels and the five most probable classes, the correct one in another colour.
Right: for some of them the training images nearest by Euclidean distance between a layer's activations; the
paper takes the last hidden layer, 4096 numbers. Weights without a classifier give the right half only.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from alexnet_jax.common import command_line, progress

if TYPE_CHECKING:  # imported late, as they import JAX, which takes seconds
    from matplotlib.axes import Axes

    from alexnet_jax.data.sources import Source
    from alexnet_jax.weights.pretrained import Pretrained

BARS = 5
ACROSS = 4  # images a row on the left
RIGHT, WRONG = "C1", "C0"


@dataclasses.dataclass(frozen=True)
class Shown:
    """Stored images `[N, S, S, 3]`, and labels `[N]`."""

    images: np.ndarray
    labels: np.ndarray


def decode(source: "Source", indices: np.ndarray, loaded: "Pretrained") -> Shown:
    """Some of a source's images as the net's preprocessing stores them, without bad ones."""
    from alexnet_jax.data import inference

    decoder = inference.SourceDecoder(source, loaded.preprocess)
    images = {index: image for index in indices.tolist() if (image := decoder(index)) is not None}
    return Shown(np.stack(list(images.values())), decoder.labels[list(images)])


def points(
    source: "Source", indices: np.ndarray, loaded: "Pretrained", layer: str
) -> tuple[np.ndarray, np.ndarray]:
    """A layer's activations `[N, D]` of some images, and the indices of those that could be read."""
    from alexnet_jax.data import inference
    from alexnet_jax.tools import features

    answers = inference.run_batches(
        features.layer_function(loaded, layer),
        indices.tolist(),
        inference.SourceDecoder(source, loaded.preprocess),
    )
    bar = progress.bar(len(indices), "image", layer, iterable=answers)
    good = [(index, activations.ravel()) for index, image, activations in bar if image is not None]
    kept, rows = zip(*good, strict=True)
    return np.stack(rows), np.array(kept)


def spread_over_classes(source: "Source", count: int, seed: int) -> np.ndarray:
    """Indices of `count` random images: one of each class, then a second of each, and so on."""
    _, labels = source.read(np.arange(len(source)))
    generator = np.random.default_rng(seed)
    by_class = [generator.permutation(np.flatnonzero(labels == label)) for label in range(source.num_classes)]
    rounds = max(map(len, by_class))
    order = [own[turn] for turn in range(rounds) for own in by_class if turn < len(own)]
    return np.array(order[:count])


def same_class(near: np.ndarray, own: np.ndarray) -> float:
    """The share of the nearest images' labels `[Q, k]` that equal the image's own label `[Q]`."""
    return float(np.mean(near == own[:, None]))


def draw(
    path: pathlib.Path,
    shown: Shown,
    names: Sequence[str],
    predicted: tuple[np.ndarray, np.ndarray] | None,
    near: np.ndarray,
) -> None:
    """Writes the figure.

    Args:
      names: the names of the classes, by label.
      predicted: probabilities and labels `[N, 5]`, most probable first, or None.
      near: for the first Q images shown, images `[Q, k, S, S, 3]`, nearest first.
    """
    from experiments import plots

    left_rows = 0 if predicted is None else -(-len(shown.images) // ACROSS)
    queries, k = near.shape[:2]
    widths = [*([1.5 * ACROSS] if predicted else []), 0.85 * (k + 1)]
    with plots.canvas(path, (sum(widths), max(2.4 * left_rows, 0.85 * queries))) as picture:
        panels = picture.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0]
        if predicted is not None:
            heights = [1.5, 1] * left_rows
            grid = panels[0].subplots(2 * left_rows, ACROSS, squeeze=False, height_ratios=heights)
            for row, column in np.ndindex(grid.shape):
                grid[row, column].set_axis_off()
                index = row // 2 * ACROSS + column
                if index >= len(shown.images):
                    continue
                label = int(shown.labels[index])
                if row % 2 == 0:
                    grid[row, column].imshow(shown.images[index])
                    grid[row, column].set_title(_short(names[label]), fontsize=8)
                else:
                    bars(grid[row, column], predicted[0][index], predicted[1][index], label, names)
        grid = panels[-1].subplots(queries, k + 1, squeeze=False)
        for row, column in np.ndindex(grid.shape):
            grid[row, column].set_axis_off()
            grid[row, column].imshow(shown.images[row] if column == 0 else near[row, column - 1])
        grid[0, 0].set_title("image", fontsize=8)
        grid[0, 1].set_title("nearest", fontsize=8)


def bars(
    panel: "Axes", probabilities: np.ndarray, labels: np.ndarray, right: int, names: Sequence[str]
) -> None:
    places = np.arange(len(labels))[::-1]
    colours = [RIGHT if label == right else WRONG for label in labels]
    panel.barh(places, probabilities, color=colours, alpha=0.6, height=0.85)
    for place, label in zip(places, labels, strict=True):
        panel.text(0.02, place, _short(names[int(label)]), va="center", fontsize=7)
    panel.set(xlim=(0, 1), ylim=(-0.5, len(labels) - 0.5))


def _short(name: str) -> str:
    """The first of a class's names, since WordNet gives several."""
    return name.split(",")[0][:22]


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.figure4", __doc__)
    parser.add_argument(
        "--weights", default="torchvision", help="a file of weights, a workdir or a name of published weights"
    )
    parser.add_argument("--source", required=True, help="the images, a value of data.source")
    picture = command_line.new_file(".png", ".svg")
    parser.add_argument("--out", required=True, type=picture, help="the picture to write: .png, .svg")
    parser.add_argument("--layer", default="activation7", help="the layer whose activations are compared")
    parser.add_argument("--count", type=int, default=8, help="number of test images")
    parser.add_argument("--queries", type=int, default=5, help="how many of them to find neighbours for")
    parser.add_argument("--k", type=int, default=6, help="number of nearest images for each")
    parser.add_argument("--among", type=int, default=12_000, help="most training images to search")
    parser.add_argument(
        "--measure", type=int, default=200, help="test images for the share of the same class"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for the choice of images")
    args = parser.parse_args(argv)
    from alexnet_jax.data import sources
    from alexnet_jax.tools import nearest, predict
    from alexnet_jax.weights import pretrained

    loaded = pretrained.read(args.weights, partial=True)
    train, test = (sources.open_source(args.source, split) for split in ("train", "test"))
    chosen = spread_over_classes(test, args.count, args.seed)
    shown = decode(test, chosen, loaded)
    predicted = None
    if not loaded.missing:
        probabilities, classes = predict.predictor(loaded, BARS, 1)(shown.images)
        predicted = np.asarray(probabilities), np.asarray(classes)
    measured = spread_over_classes(test, max(args.measure, args.queries), args.seed)
    queries, asked = points(test, measured, loaded, args.layer)
    others, kept = points(train, np.arange(min(len(train), args.among)), loaded, args.layer)
    found, _ = nearest.nearest(queries, others, args.k)
    near = np.stack([decode(train, kept[row], loaded).images for row in found[: args.queries]])
    draw(args.out, shown, test.class_names, predicted, near)
    own, labels = test.read(asked)[1], train.read(kept)[1]
    share, chance = same_class(labels[found], own), np.mean(labels == own[:, None])
    print(
        f"{args.out}: of the {args.k} images nearest by {args.layer} among {len(kept):,}, "
        f"{100 * share:.1f} % are of the image's own class ({len(own)} test images; "
        f"by chance {100 * chance:.1f} %)"
    )
    return 0


if __name__ == "__main__":
    command_line.command(main)
