"""The README's picture: a run's first filters and curves, what it sees in photographs, and its predictions.

    python main.py --config=configs/finetune.py --config.data.source=embedded --workdir=runs/clothes \\
        --config.data.resize_size=128 --config.data.image_size=128 --config.data.batch_size=128 \\
        --config.model.fc_widths="(1024, 1024)" --config.optimizer.learning_rate=0.01 \\
        --config.optimizer.drop_epochs="(8.0,)" --config.run.total_epochs=10
    python -m experiments.run_picture --workdir=runs/clothes --out=docs/run.png

Needs matplotlib.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import command_line

PHOTOGRAPHS = pathlib.Path(__file__).parents[1] / "alexnet_jax" / "data" / "photographs"
SHOWN = ("cat", "coffee")
CURVES = {"train/loss": "training loss", "eval/top1_error": "top-1 test error, %"}
SEEN, NAMED = 5, 5  # responses to a photograph; test images


def responses(loaded: Any, photograph: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """A photograph as the net gets it, uint8 `[224, 224, 3]`, and conv1's responses, `[55, 55, O]`, >= 0."""
    colour = loaded.preprocess.mean.reshape(-1, 3).mean(axis=0)
    large = dataclasses.replace(loaded.preprocess, resize_size=224, crop_size=224, mean=colour)
    square = large.stored(photograph)
    params = {"conv1": loaded.variables["params"]["conv1"]}  # the others may be of another image size
    _, seen = loaded.model.apply({"params": params}, large.view(square[None]), capture="conv1")
    return square, np.maximum(seen["conv1"][0], 0)


def draw(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Above, conv1's filters as in the paper's Figure 3, and loss and error by epoch. Below, photographs with
    the responses of the filters that vary most over them, and test images with their likeliest classes."""
    from alexnet_jax.run import logs
    from alexnet_jax.weights import pretrained
    from experiments import plots

    loaded, lines = pretrained.read(workdir), logs.read_metrics(workdir)
    kernel = np.asarray(loaded.variables["params"]["conv1"]["kernel"])
    with plots.canvas(out, (10, 4.4)) as picture:
        above, below = picture.subfigures(2, 1, height_ratios=(1.2, 1))
        first, *curves = above.subplots(1, 3, width_ratios=(2.6, 1, 1))
        first.imshow(logs.filters_image(kernel))
        first.set_title("first filters (conv1)")
        first.set_axis_off()
        for axes, (key, title) in zip(curves, CURVES.items(), strict=True):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), marker="o" if key.startswith("eval") else None, ms=4)
            top = 1.08 * max(value for _, value in points)
            axes.set(xlabel="epoch", title=title, ylim=(0, top), xlim=(0, None))
            axes.grid(alpha=0.3)
        near = {"xytext": (0, -12), "textcoords": "offset points", "ha": "center"}
        curves[1].annotate(f"{points[-1][1]:.1f}", points[-1], **near)
        left, right = below.subfigures(1, 2)
        left.suptitle("photographs, and the responses of the filters in the corners", fontsize=8)
        _draw_responses(left.subplots(len(SHOWN), 1 + SEEN), loaded, kernel)
        _draw_predictions(right.subplots(2, NAMED, height_ratios=(1.2, 1)), loaded, workdir)


def _draw_responses(grid: Any, loaded: Any, kernel: np.ndarray) -> None:
    """A photograph a row with responses, each with its filter in the corner."""
    from alexnet_jax.run import logs

    for row, name in zip(grid, SHOWN, strict=True):
        square, maps = responses(loaded, PHOTOGRAPHS / f"{name}.jpg")
        row[0].imshow(square)
        filters = np.argsort(maps.std(axis=(0, 1)))[::-1][:SEEN]
        for axes, number in zip(row[1:], filters, strict=True):
            axes.imshow(maps[:, :, number], cmap="magma")
            one = np.concatenate(kernel, axis=-1)[None, ..., number, None]
            axes.inset_axes((0, 0, 0.3, 0.3)).imshow(logs.filters_image(one, across=1))
            axes.child_axes[0].set_axis_off()
    for axes in grid.flat:
        axes.set_axis_off()


def _draw_predictions(grid: Any, loaded: Any, workdir: pathlib.Path) -> None:
    """A random test image of every second class of the run, below it the most probable classes."""
    from alexnet_jax import config
    from alexnet_jax.data import sources
    from alexnet_jax.tools import predict
    from experiments import figure4

    test = sources.open_source(config.of_workdir(workdir).data.source, "test")
    shown = figure4.decode(test, figure4.spread_over_classes(test, 2 * NAMED, seed=0)[1::2], loaded)
    probabilities, classes = map(np.asarray, predict.predictor(loaded, 3, 1)(shown.images))
    for column, (image, label) in enumerate(zip(shown.images, shown.labels, strict=True)):
        grid[0, column].imshow(image)
        grid[0, column].set_title(test.class_names[label], fontsize=8)
        figure4.bars(grid[1, column], probabilities[column], classes[column], label, test.class_names)
    for axes in grid.flat:
        axes.set_axis_off()


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.run_picture", __doc__)
    parser.add_argument(
        "--workdir", required=True, type=command_line.user_path, help="workdir of a run that has ended"
    )
    parser.add_argument("--out", required=True, type=command_line.new_file(".png"), help="the .png to write")
    args = parser.parse_args(argv)
    draw(args.workdir, args.out)
    return 0


if __name__ == "__main__":
    command_line.command(main)
