"""Runs the notebook from top to bottom with small settings and prints the time; CI does this on the CPU.

    python -m notebooks.execute [--out=EXECUTED.ipynb]
    WEIGHTS=FILE python -m notebooks.execute --pictures

The second runs it in full and keeps its pictures, and no other output, in the notebook, for readers on
GitHub.

The form fields can be set in the environment (EPOCHS, WEIGHTS, ...). Trained weights cannot be downloaded
everywhere, so random convolutions take their place. Needs nbclient and ipykernel.
"""

import argparse
import os
import pathlib
import tempfile
import time
from typing import Any

NOTEBOOK = pathlib.Path(__file__).parent / "alexnet_colab.ipynb"
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


def pictures_of(cell: Any) -> list[Any]:
    """The pictures among a cell's outputs, without its text."""
    import nbformat

    pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    return [nbformat.v4.new_output("display_data", data={"image/png": picture}) for picture in pictures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, help="where to write the executed notebook")
    parser.add_argument("--pictures", action="store_true", help="run it in full and keep its pictures in it")
    given = parser.parse_args()

    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        sizes = {} if given.pictures else SMALL
        for name, value in {**sizes, "WORKDIR": str(work / "run"), "PHOTOS": ""}.items():
            os.environ.setdefault(name, value)
        if "WEIGHTS" not in os.environ:
            random_convolutions(work / "convolutions.npz")
            os.environ["WEIGHTS"] = str(work / "convolutions.npz")
        client = nbclient.NotebookClient(
            notebook, timeout=900, resources={"metadata": {"path": NOTEBOOK.parent}}
        )
        try:
            client.execute()
        finally:
            if given.out is not None:
                nbformat.write(notebook, given.out)
    if given.pictures:
        kept = nbformat.read(NOTEBOOK, as_version=4)
        for cell, executed in zip(kept.cells, notebook.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs = pictures_of(executed)
        nbformat.write(kept, NOTEBOOK)
    print(f"{NOTEBOOK.name}: every cell ran, in {time.monotonic() - began:.0f} seconds")


if __name__ == "__main__":
    main()
