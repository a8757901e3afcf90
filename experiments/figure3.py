"""The paper's Figure 3: conv1's filters, the first column's (GPU 1) above the second's (GPU 2).

    python -m experiments.figure3 --weights=runs/mine --out=filters.png

WEIGHTS is anything that `load_pretrained` reads. Each filter is scaled to the full range around mid-grey. In
the paper the first column's filters became grey and the second's coloured, "during every run".
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from alexnet_jax.common import command_line
from alexnet_jax.common.files import replacing


def colourfulness(kernel: np.ndarray) -> list[float]:
    """For each column, the share of a filter's energy that is not grey, 0 to 1, averaged over its filters.

    Args:
      kernel: `[columns, h, w, 3, O]`.
    """
    grey = kernel.mean(axis=3, keepdims=True)
    energy = np.sum(np.square(kernel), axis=(1, 2, 3))
    coloured = np.sum(np.square(kernel - grey), axis=(1, 2, 3))
    return np.mean(coloured / np.maximum(energy, 1e-12), axis=1).tolist()


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.figure3", __doc__)
    parser.add_argument(
        "--weights", default="torchvision", help="a file of weights, a workdir or a name of published weights"
    )
    parser.add_argument("--out", required=True, type=command_line.new_file(".png"), help="the .png to write")
    parser.add_argument("--across", type=int, default=16, help="filters in a row")
    args = parser.parse_args(argv)
    from alexnet_jax.run import logs  # imported late, as they import JAX, which takes seconds
    from alexnet_jax.weights import pretrained

    loaded = pretrained.read(args.weights, partial=True)
    kernel = np.asarray(loaded.variables["params"]["conv1"]["kernel"])
    pixels = logs.filters_image(kernel, across=args.across)
    with replacing(args.out) as temporary:
        Image.fromarray(pixels).save(temporary, "png")
    for number, share in enumerate(colourfulness(kernel), 1):
        print(f"column {number}: {kernel.shape[-1]} filters, {100 * share:.1f} % of their energy is colour")
    return 0


if __name__ == "__main__":
    command_line.command(main)
