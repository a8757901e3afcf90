"""Runs the notebook from top to bottom with small settings and prints the time; CI does this on the CPU.

    python -m notebooks.execute [--out=EXECUTED.ipynb]
    WEIGHTS=FILE PHOTOS=FOLDER python -m notebooks.execute --keep

The second runs it in full and keeps its outputs in the notebook, for readers on a web page: of long ones the
end, and no pictures of cells tagged `text-only`, which show photographs that are not ours to print.

The form fields can be set in the environment (EPOCHS, WEIGHTS, ...). Trained weights and photographs cannot
be downloaded everywhere, so random convolutions and patches of the package's photographs take their place.
Needs nbclient and ipykernel.
"""

import argparse
import os
import pathlib
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "alexnet_colab.ipynb"
MOST_LINES = 12  # of text kept for a cell
SMALL = {"EPOCHS": "0.04", "FINETUNE_EPOCHS": "1", "SWEEP_STEPS": "3", "BATCH_SIZE": "16"}


def random_convolutions(path: pathlib.Path) -> None:
    """Writes torchvision's convolutions with random weights."""
    import numpy as np

    from alexnet_jax.weights.layouts import TORCH_NAMES

    rng = np.random.default_rng(0)
    shapes = {
        "conv1": (64, 3, 11, 11),
        "conv2": (192, 64, 5, 5),
        "conv3": (384, 192, 3, 3),
        "conv4": (256, 384, 3, 3),
        "conv5": (256, 256, 3, 3),
    }
    arrays = {}
    for layer, shape in shapes.items():
        std = (2 / np.prod(shape[1:])) ** 0.5
        arrays[f"{TORCH_NAMES[layer]}.weight"] = (std * rng.standard_normal(shape)).astype(np.float32)
        arrays[f"{TORCH_NAMES[layer]}.bias"] = np.zeros(shape[0], np.float32)
    np.savez(path, **arrays)


def patches(folder: pathlib.Path) -> None:
    """Makes a folder to fine-tune on: random patches of the package's photographs, one class for each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for path in sorted((ROOT / "alexnet_jax" / "data" / "photographs").glob("*.jpg")):
        with Image.open(path) as photograph:
            for number in range(12):
                left, top = (int(rng.integers(side - 224)) for side in photograph.size)
                place = folder / ("train" if number < 8 else "val") / path.stem
                place.mkdir(parents=True, exist_ok=True)
                photograph.crop((left, top, left + 224, top + 224)).save(place / f"{number}.jpg")


def kept_outputs(cell: Any, paths: dict[str, str]) -> list[Any]:
    """A cell's pictures and the end of its text, with the machine's `paths` replaced."""
    import nbformat

    kept, text = [], ""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data and "text-only" not in cell.metadata.get("tags", []):
            kept.append(nbformat.v4.new_output("display_data", data={"image/png": data["image/png"]}))
        text += output.get("text", "") if output.get("name") == "stdout" else ""
    for path, name in paths.items():
        text = text.replace(path, name)
    lines = [line for line in text.splitlines() if ", left " not in line]  # without progress
    if len(lines) > MOST_LINES:
        lines = [f"... {len(lines) - MOST_LINES} lines before", *lines[-MOST_LINES:]]
    if lines:
        kept.append(nbformat.v4.new_output("stream", name="stdout", text="\n".join(lines) + "\n"))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, help="where to write the executed notebook")
    parser.add_argument("--keep", action="store_true", help="run it in full and keep its outputs in it")
    given = parser.parse_args()

    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        sizes = {} if given.keep else SMALL
        for name, value in {**sizes, "WORKDIR": str(work / "colab")}.items():
            os.environ.setdefault(name, value)
        if "PHOTOS" not in os.environ:
            patches(work / "patches")
            os.environ["PHOTOS"] = str(work / "patches")
        if "WEIGHTS" not in os.environ:
            random_convolutions(work / "convolutions.npz")
            os.environ["WEIGHTS"] = str(work / "convolutions.npz")
        client = nbclient.NotebookClient(
            notebook, timeout=3600, resources={"metadata": {"path": NOTEBOOK.parent}}
        )
        try:
            client.execute()
        finally:
            if given.out is not None:
                nbformat.write(notebook, given.out)
    if given.keep:
        paths = {os.environ["WEIGHTS"]: "WEIGHTS", os.environ["PHOTOS"]: "PHOTOS"}
        paths |= {str(pathlib.Path(os.environ["WORKDIR"]).parent): "runs", str(ROOT): "alexnet-jax"}
        kept = nbformat.read(NOTEBOOK, as_version=4)
        for cell, executed in zip(kept.cells, notebook.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs = kept_outputs(executed, paths)
        nbformat.write(kept, NOTEBOOK)
    print(f"{NOTEBOOK.name}: every cell ran, in {time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
