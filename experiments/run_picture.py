"""The README's picture: curves and first filters of a run.

    python -m experiments.run_picture --workdir=runs/mine --out=docs/run.png

Needs matplotlib.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import command_line
from alexnet_jax.common.files import replacing


def draw(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Draws loss and error by epoch, and conv1's filters as in the paper's Figure 3."""
    import jax  # all imported late, as they take seconds
    import matplotlib

    from alexnet_jax.run import checkpoint, logs

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = logs.read_metrics(workdir)
    params, _ = checkpoint.restore_params(workdir, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    kernel = np.asarray(params["conv1"]["kernel"])
    filters = logs.filters_image(kernel)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (loss, error, first) = plt.subplots(
        1, 3, figsize=(10, 3), layout="constrained", width_ratios=(1, 1, 1.9)
    )
    for axes, key, title in (
        (loss, "train/loss", "training loss"),
        (error, "eval/top1_error", "top-1 error, test images, %"),
    ):
        points = [(line["epoch"], line[key]) for line in lines if key in line]
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 20 else None, color="C0")
        axes.set(xlabel="epoch", title=title, ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
    error.annotate(f"{points[-1][1]:.2f}", points[-1], textcoords="offset points", xytext=(0, 8), ha="center")
    first.imshow(filters)
    first.set_title("conv1: first column above, second below" if len(kernel) == 2 else "conv1")
    first.set_axis_off()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


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
