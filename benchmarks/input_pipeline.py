"""The speed of the input pipeline, compared with the decoder alone and with torchvision's DataLoader.

    python -m benchmarks.input_pipeline --photos=DIR [--torch_python=PYTHON] [--out=FILE.json]

DIR holds photographs of the usual sizes in `<split>/<class>/`. All pipelines do the same work: shorter side
to 256 with antialiasing, central square, uint8, shuffled batches of 128. They take turns, round after round,
so that other load on the machine affects all alike; the table has the median of the rounds. `--torch_python`
is a Python with torchvision; it needs nothing of this project.

Measured are:
  decode only     tf.data reading and decoding the photographs, nothing else: the machine's limit
  raw             this project, from the photographs
  prepared        this project, from records made by `python -m alexnet_jax prepare`
  torchvision N   ImageFolder, Resize, CenterCrop and DataLoader with N workers

All but torchvision keep freed memory (`alexnet_jax.common.host`), as every command of this project does.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from alexnet_jax.common import command_line
from benchmarks import tables

BATCH = 128
SIZE = 256


def decode_only(photos: pathlib.Path) -> Iterator[int]:
    """Yields the number of images in each batch that tf.data decodes, with one thread for each core."""
    from alexnet_jax.common.host import tensorflow

    tf = tensorflow()
    paths = [str(path) for path in sorted(photos.glob("*/*/*"))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).cache().repeat()
    dataset = dataset.map(
        lambda path: tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))[0],
        num_parallel_calls=tables.cores(),
        deterministic=True,
    )
    for batch in dataset.batch(BATCH).prefetch(2):
        yield len(batch)


def ours(spec: str) -> Iterator[int]:
    """Yields the number of images in each batch of this project's pipeline."""
    from alexnet_jax.data import pipeline, sources

    source = sources.open_source(spec, "test")
    for batch in pipeline.train_batches(source, batch_size=BATCH, resize_size=SIZE, seed=0):
        yield int(batch["weight"].sum())


def torchvision(photos: pathlib.Path, workers: int, images: int) -> Iterator[int]:
    """Yields the number of images in each of torchvision's batches."""
    import torch
    from torchvision import datasets, transforms

    steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    (split,) = [path for path in sorted(photos.iterdir()) if path.is_dir()][:1]
    data = datasets.ImageFolder(str(split), transforms.Compose(steps))
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=100 * images)
    for batch, _ in torch.utils.data.DataLoader(data, BATCH, sampler=sampler, num_workers=workers):
        yield len(batch)


def serve(batches: Iterator[int], images: int) -> None:
    """Measures a round for each line on stdin, and prints its images/s."""
    with contextlib.closing(batches):
        for _ in range(4):  # until the threads or workers have started and their buffers are empty again
            next(batches)
        print("ready", flush=True)
        for _ in sys.stdin:
            done, began = 0, time.perf_counter()
            while done < images:
                done += next(batches)
            print(done / (time.perf_counter() - began), flush=True)


def main() -> None:
    parser = tables.Parser("input_pipeline", __doc__)
    parser.add_argument("--photos", required=True, type=command_line.user_path)
    parser.add_argument("--torch_python")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=3840, help="images in a round (3840)")
    parser.add_argument("--out", type=command_line.new_file(".json"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        name, _, workers = given.serve.partition(" ")
        if name == "torchvision":
            serve(torchvision(given.photos, int(workers), given.images), given.images)
        else:
            from alexnet_jax.common import host

            host.keep_memory()  # as every command of this project does
            pipelines: dict[str, Callable[[], Iterator[int]]] = {
                "decode only": lambda: decode_only(given.photos),
                "raw": lambda: ours(f"folder:{given.photos}"),
                "prepared": lambda: ours(f"prepared:{given.prepared}"),
            }
            serve(pipelines[given.serve](), given.images)
        return
    with tempfile.TemporaryDirectory() as directory:
        compare(given, pathlib.Path(directory) / "prepared")


def compare(given: argparse.Namespace, prepared: pathlib.Path) -> None:
    """Runs all pipelines in turns and prints the table."""
    from alexnet_jax.data.prepare import prepare

    prepare(f"folder:{given.photos}", prepared, splits=("test",))
    cores = tables.cores()
    pythons = {name: sys.executable for name in ("decode only", "raw", "prepared")}
    if given.torch_python:
        pythons |= {
            f"torchvision {n}": given.torch_python for n in sorted({cores // 2, cores, 2 * cores} - {0})
        }
    rates: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(given.rounds):
        for name, python in pythons.items():
            rates[name].append(one_round(name, python, given, prepared))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, {given.rounds} rounds")
    print(f"{'':16}{'images/s':>10}{'spread':>16}{'of decode only':>16}")
    for name, values in rates.items():
        spread = f"{min(values):,.0f}-{max(values):,.0f}"
        print(f"{name:16}{median[name]:10,.0f}{spread:>16}{median[name] / median['decode only']:16.2f}")
    others = [value for name, value in median.items() if name.startswith("torchvision")]
    if others:
        for name in ("raw", "prepared"):
            print(f"{name}: {median[name] / max(others):.2f} times torchvision's best")
    if given.out:
        record = {"cores": cores, "machine": platform.machine(), "batch": BATCH, "size": SIZE, "rates": rates}
        given.out.write_text(json.dumps(record, indent=2) + "\n")


def one_round(name: str, python: str, given: argparse.Namespace, prepared: pathlib.Path) -> float:
    """Starts a pipeline in a process of its own, warms it up, and returns the images/s of one round."""
    command = [python, __file__, f"--photos={given.photos}", f"--images={given.images}"]
    command += [f"--serve={name}", f"--prepared={prepared}"]
    environment = os.environ | {"PYTHONPATH": str(tables.ROOT)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{name} did not start; try: {' '.join(command)}")
        process.stdin.write("go\n")
        process.stdin.flush()
        rate = float(process.stdout.readline())
        process.stdin.close()
        process.wait(timeout=60)
    return rate


if __name__ == "__main__":
    main()
