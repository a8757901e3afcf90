"""The README's picture: first filters and curves of a run, and its predictions for photographs.

    python -m experiments.run_picture --workdir=runs/cifar10 --out=docs/run.png

The photographs are those in the package unless --images names others.

Needs matplotlib.
"""

import pathlib
from collections.abc import Sequence

from alexnet_jax.common import command_line

PHOTOGRAPHS = pathlib.Path(__file__).parents[1] / "alexnet_jax" / "data" / "photographs"
CURVES = {"train/loss": "training loss", "eval/top1_error": "top-1 test error, %"}


def draw(workdir: pathlib.Path, images: Sequence[str], out: pathlib.Path) -> None:
    """Draws conv1's filters as in the paper's Figure 3, loss and error by epoch, and below them each image
    with its most probable classes; a class is coloured as correct if the image's file has its name."""
    import numpy as np  # all imported late, as they take seconds

    from alexnet_jax.run import logs
    from alexnet_jax.tools import predict
    from alexnet_jax.weights import pretrained
    from experiments import figure4, plots

    lines, loaded = logs.read_metrics(workdir), pretrained.read(workdir)
    files = [pathlib.Path(image) for image in images]
    squares = np.stack([loaded.preprocess.stored(file) for file in files])
    best = [np.asarray(values) for values in predict.predictor(loaded, 4, 1)(squares)]
    names = predict.class_names(loaded)
    with plots.canvas(out, (10, 5.2)) as picture:
        above, below = picture.subfigures(2, 1, height_ratios=(1, 1.1))
        first, *curves = above.subplots(1, 3, width_ratios=(2.4, 1, 1))
        first.imshow(logs.filters_image(np.asarray(loaded.variables["params"]["conv1"]["kernel"])))
        first.set(title="first filters (conv1)")
        first.set_axis_off()
        for axes, (key, title) in zip(curves, CURVES.items(), strict=True):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), marker="o" if key.startswith("eval") else None, ms=4)
            axes.set(xlabel="epoch", title=title, ylim=(0, None), xlim=(0, None))
            axes.grid(alpha=0.3)
        curves[1].annotate(
            f"{points[-1][1]:.1f}", points[-1], (0, -12), textcoords="offset points", ha="center"
        )
        grid = below.subplots(2, len(files), height_ratios=(1.9, 1), squeeze=False)
        for column, file in enumerate(files):
            image, bars = grid[:, column]
            image.imshow(loaded.preprocess.stored(file))
            image.set(title=file.stem)
            right = names.index(file.stem) if file.stem in names else -1
            figure4.bars(bars, best[0][column], best[1][column], right, names)
            for axes in (image, bars):
                axes.set_axis_off()


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.run_picture", __doc__)
    parser.add_argument(
        "--workdir", required=True, type=command_line.user_path, help="workdir of a run that has ended"
    )
    parser.add_argument("--out", required=True, type=command_line.new_file(".png"), help="the .png to write")
    shipped = [str(PHOTOGRAPHS / f"{name}.jpg") for name in ("cat", "rocket", "coffee", "astronaut")]
    parser.add_argument("--images", nargs="+", default=shipped, help="photographs to predict")
    args = parser.parse_args(argv)
    draw(args.workdir, args.images, args.out)
    return 0


if __name__ == "__main__":
    command_line.command(main)
