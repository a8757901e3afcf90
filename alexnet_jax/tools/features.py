"""What the net makes of images: any of its layers, written for other programs.

python -m alexnet_jax.tools.features PHOTOS --weights=alexnet.pth --layer=pool5 --out=pool5.npz
"""

import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax.common import command_line, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing, write_npz
from alexnet_jax.data import image_files
from alexnet_jax.model import param_shapes
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained

GROUP = 32  # images at a time


def layer_function(loaded: Pretrained, layer: str) -> Callable[[Any], jax.Array]:
    """Compiles `images -> activities` of a layer: uint8 `[B, S, S, 3]` to float32 `[B, ...]`.

    Works with the convolutions alone as far as they reach.

    Raises:
      UserError: the net has no such layer, or its weights are missing.
    """
    model, params = loaded.model, loaded.variables["params"]
    size = loaded.preprocess.crop_size
    absent = [int(name[-1]) for name in loaded.missing]
    if absent and layer[-1:].isdigit() and int(layer[-1]) >= min(absent):
        raise UserError(f"--layer={layer}: {loaded.path} has no {', '.join(loaded.missing)}, which it needs")
    shapes = param_shapes(model, size)

    def activities(params: Any, images: jax.Array) -> Any:
        # Layers beyond what is wanted are never computed; their parameters only have to be there.
        zeros = {name: jax.tree.map(jnp.zeros_like, shapes[name]) for name in loaded.missing}
        x = loaded.preprocess.view(images)
        _, seen = model.apply({"params": {**params, **zeros}}, x, capture=(layer,))
        return seen[layer]

    jax.eval_shape(activities, params, jnp.zeros((1, *(loaded.preprocess.resize_size,) * 2, 3), jnp.uint8))
    compiled = jax.jit(activities)
    return lambda images: compiled(params, images)


def extract(
    loaded: Pretrained, names: Iterable[str], layer: str, on_bad: Callable[[str], None] | None = None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """A layer of each image, in groups: names, and float32 `[n, ...]`. Bad images are left out.

    Args:
      on_bad: told the name of each image that cannot be read.
    """
    function = layer_function(loaded, layer)
    for items in image_files.decoded(names, loaded.preprocess, GROUP):
        good = [(name, image) for name, image in items if image is not None]
        for name, image in items:
            if image is None and on_bad is not None:
                on_bad(name)
        if good:
            batch = image_files.padded([image for _, image in good], GROUP)
            yield [name for name, _ in good], np.asarray(function(batch))[: len(good)]


def write(path: pathlib.Path, groups: Iterable[tuple[list[str], np.ndarray]], layer: str) -> tuple[int, ...]:
    """Writes groups of names and activities; gives the shape of all of them together.

    `.npz` holds `files` `[N]`, `features` `[N, ...]` and `layer`, and is gathered in memory; `.parquet` has
    columns `file` and `features` (flat; the shape is in its metadata), and is written as the groups come.
    """
    if path.suffix == ".parquet":
        return _write_parquet(path, groups, layer)
    if path.suffix != ".npz":
        raise UserError(f"--out={path}: features are written as .npz or .parquet")
    files, parts = [], []
    for names, activities in groups:
        files += names
        parts.append(activities)
    if not files:
        raise UserError("none of the images can be read")
    features = np.concatenate(parts)
    write_npz(path, {"files": np.array(files), "features": features, "layer": np.array(layer)})
    return features.shape


def _write_parquet(
    path: pathlib.Path, groups: Iterable[tuple[list[str], np.ndarray]], layer: str
) -> tuple[int, ...]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"--out={path}: needs pyarrow; pip install pyarrow, or write .npz") from error
    count, shape, writer = 0, (), None
    with replacing(path) as temporary:
        try:
            for names, activities in groups:
                count, shape = count + len(names), activities.shape[1:]
                flat = activities.reshape(-1)
                column = pa.FixedSizeListArray.from_arrays(pa.array(flat), flat.size // len(names))
                files = [name.encode("utf-8", "backslashreplace").decode() for name in names]
                table = pa.table({"file": pa.array(files), "features": column})
                table = table.replace_schema_metadata({"layer": layer, "shape": json.dumps(shape)})
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise UserError("none of the images can be read")
    return (count, *shape)


def load(path: str | pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Reads what `write` wrote: names, and float32 `[N, D]` with each image's activities in a row.

    Raises:
      UserError: it is not there, or not such a file.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            flat = table["features"].combine_chunks().flatten().to_numpy()
            return table["file"].to_pylist(), flat.reshape(table.num_rows, -1)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["files"].tolist(), arrays["features"].reshape(len(arrays["files"]), -1)
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{path}: not a file of features ({reason}); python -m alexnet_jax.tools.features makes one"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("alexnet_jax.tools.features", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files and folders of them")
    parser.add_argument("--weights", default="torchvision", help="a file of weights, a workdir, or a name")
    parser.add_argument(
        "--layer", default="pool5", help="conv1, activation1, pool1, ..., fc7, activation7, fc8"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="what to write: .npz or .parquet")
    args = parser.parse_args(argv)

    names = image_files.find(args.images)
    loaded = pretrained.read(args.weights, partial=True)
    bad: list[str] = []

    def on_bad(name: str) -> None:
        bad.append(name)
        tqdm.tqdm.write(f"bad image, left out: {name}", file=sys.stderr)

    def groups() -> Iterator[tuple[list[str], np.ndarray]]:
        with progress.bar(len(names), "image", args.layer) as bar:
            for group in extract(loaded, names, args.layer, on_bad):
                yield group
                bar.update(len(group[0]))

    shape = write(args.out, groups(), args.layer)
    print(
        f"{args.out}: {args.layer} of {shape[0]} images, {' x '.join(map(str, shape[1:]))} each; "
        f"{len(bad)} bad"
    )
    return 0


if __name__ == "__main__":
    command_line.command(main)
