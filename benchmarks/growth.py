"""How time and memory of the training step grow with the batch, the images and the devices.

    python -m benchmarks.growth [--out=DIR] [--batches=16,32,...] [--sizes=64,128,...] [--devices=1,2,4]

Each point is the paper's net in a process of its own. `--at` is the image size while the batch or the devices
grow, and the batch while the images or the devices grow. The devices are forced host devices, which share the
machine's cores: they add overhead, not speed. A point that would need more memory than is free, extrapolated
from the two points before it, is left out, and the table says so.
DIR gets growth.csv, growth.md and growth.png.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from alexnet_jax.common import command_line
from benchmarks import tables

COLUMNS = ("what grows", "batch", "image size", "devices", "seconds a step", "images/s", "peak GB", "note")
MARGIN = 1.1  # on the estimate of memory


def main() -> None:
    parser = tables.Parser("growth", __doc__)
    parser.add_argument("--batches", type=tables.numbers, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--sizes", type=tables.numbers, default=[64, 128, 224, 256])
    parser.add_argument("--devices", type=tables.numbers, default=[1, 2, 4])
    at_help = "the image size and batch that stay"
    parser.add_argument("--at", type=tables.numbers, default=[224, 128], help=at_help)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--net", default="{}", help="arguments of create_model, a JSON object")
    parser.add_argument("--out", type=command_line.new_folder)
    given = parser.parse_args()
    size, batch = given.at
    points = [("batch", b, size, 1) for b in sorted(given.batches)]
    points += [("image size", batch, s, 1) for s in sorted(given.sizes)]
    points += [("devices", batch, size, d) for d in sorted(given.devices)]
    rows: list[dict[str, Any]] = []
    for point in points:
        row = dict(zip(COLUMNS, point, strict=False))
        same = next((r for r in rows if [r[c] for c in COLUMNS[1:4]] == list(point[1:])), None)
        rows.append({**same, "what grows": point[0]} if same else {**row, **measure(given, row, rows)})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)

    about = tables.answer(tables.ours_command("about"))
    label = {**tables.machine(), "device": about["device"], "precision": "float32", **about["versions"]}
    tables.publish(given.out, "growth", rows, COLUMNS, label)
    if given.out:
        plot(rows, given.out / "growth.png")


def measure(
    given: argparse.Namespace, row: dict[str, Any], before: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A point's seconds and memory, or a note why it has none."""
    free, needed = tables.available_bytes(), expected_gigabytes(row, before)
    if free is not None and needed is not None and needed * MARGIN > free / 1e9:
        return {"note": f"left out: would need about {needed:.0f} GB, {free / 1e9:.0f} GB are free"}
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = f"{others} --xla_force_host_platform_device_count={row['devices']}".strip()
    result = tables.answer(
        tables.ours_command(
            "train",
            f"--batch={row['batch']}",
            f"--image_size={row['image size']}",
            f"--net={json.dumps(json.loads(given.net))}",
            f"--steps={given.steps}",
            f"--warm={given.warm}",
        ),
        {"XLA_FLAGS": flags},
    )
    if "failed" in result:
        return {"note": f"failed: {result['failed']}"}
    seconds = statistics.median(result["seconds"])
    return {
        "seconds a step": seconds,
        "images/s": row["batch"] / seconds,
        "peak GB": result["peak_bytes"] / 1e9,
        "first step seconds": result["first_seconds"],
        "slowest step seconds": max(result["seconds"]),
        "fastest step seconds": min(result["seconds"]),
    }


def pixels(row: dict[str, Any]) -> int:
    return row["batch"] * row["image size"] ** 2


def expected_gigabytes(row: dict[str, Any], before: Sequence[dict[str, Any]]) -> float | None:
    """Peak GB by the line through the two largest of the smaller points; None if there are fewer."""
    known = sorted({(pixels(r), r["peak GB"]) for r in before if "peak GB" in r and pixels(r) < pixels(row)})
    if len(known) < 2:
        return None
    (x0, y0), (x1, y1) = known[-2:]
    if x0 == x1:
        return y1
    return y1 + max(y1 - y0, 0.0) / (x1 - x0) * (pixels(row) - x1)


def plot(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Seconds a step above, memory below; one column of panels for each quantity that grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"batch": "images a batch", "image size": "image side in pixels", "devices": "host devices"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for column, (what, name) in enumerate(names.items()):
        points = [row for row in rows if row["what grows"] == what and "seconds a step" in row]
        for line, key in enumerate(("seconds a step", "peak GB")):
            ax = axes[line][column]
            xs, ys = ([row[k] for row in points] for k in (what, key))
            ax.plot(xs, ys, "o-", color=f"C{line}")
            ax.set(
                xlabel=name, xticks=[x for x in xs if 8 * x >= max(xs)], ylim=(0, 1.08 * max(ys, default=1))
            )
            if column == 0:
                ax.set_ylabel(key)
            ax.grid(alpha=0.3)
    figure.suptitle("The training step of the paper's net")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
