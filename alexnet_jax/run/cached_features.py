"""A trunk at rest: where the convolutions are frozen and images always look the same, what the convolutions
make of each image is computed once, and training reads that instead.
"""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax import config as configs
from alexnet_jax.common import host, progress
from alexnet_jax.common.files import replacing
from alexnet_jax.data import pipeline
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_GROUP = 32  # images at a time


def is_frozen(config: configs.Config) -> bool:
    """Whether no convolution ever moves and no image is ever changed, so that pool5 never changes."""
    rates = config.optimizer.layer_rates
    frozen = all(
        (name, 0.0, 0.0) in rates and not any(rate for layer, _, rate in rates if layer == name)
        for name in CONVOLUTIONS
    )
    augment = config.augment
    unchanged = not augment.crop and not augment.mirror and augment.colour == "none"
    return frozen and unchanged and jax.process_count() == 1


def view(maps: jax.Array, key: jax.Array, example_ids: jax.Array, step: jax.Array) -> jax.Array:
    """In the place of `augment.training_views`: there is nothing to do."""
    del key, example_ids, step
    return maps


def file_name(source: str, model: AlexNet, params: Any, preprocess: Preprocess) -> str:
    """Of a workdir, `pool5-*.npy`: other images, another net, weights or preprocessing have another.

    Args:
      source: `config.data.source`.
    """
    sizes = preprocess.resize_size, preprocess.crop_size, preprocess.resize
    digest = hashlib.sha256(repr((source, model, sizes)).encode())
    kernels = jax.device_get({name: params[name] for name in CONVOLUTIONS})
    for array in (*jax.tree.leaves(kernels), preprocess.mean, preprocess.std):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"pool5-{digest.hexdigest()[:8]}.npy"


def pooled_maps(
    path: pathlib.Path, model: AlexNet, params: Any, preprocess: Preprocess, source: Source
) -> np.ndarray:
    """What training reads of every example, on disk at `path`, where it is made if it is not there.

    Returns:
      Records `[N]` with the fields `image` (pool5, float32 `[6, 6, C]`), `label` and `weight`.
    """
    if path.exists() and len(records := np.load(path, mmap_mode="r")) == len(source):
        return records
    with replacing(path) as temporary:
        _compute(temporary, model, jax.device_get(params), preprocess, source)
    return np.load(path, mmap_mode="r")


def _compute(path: pathlib.Path, model: AlexNet, params: Any, preprocess: Preprocess, source: Source) -> None:
    @functools.partial(jax.jit, compiler_options=host.forward_options())
    def pool5(params: Any, images: jax.Array) -> Any:
        _, seen = model.apply({"params": params}, preprocess.view(images), capture=("pool5",))
        return seen["pool5"]

    params = jax.device_put(params, jax.devices()[0])
    batches = pipeline.eval_batches(source, batch_size=_GROUP, resize_size=preprocess.resize_size)
    records: np.ndarray | None = None
    with progress.bar(len(source), "image", "convolutions, once") as bar:
        for batch in batches:
            maps = np.asarray(pool5(params, batch["image"]))
            if records is None:
                fields = [("image", "<f4", maps.shape[1:]), ("label", "<i4"), ("weight", "<f4")]
                records = np.lib.format.open_memmap(path, "w+", np.dtype(fields), (len(source),))
            there = batch["index"] >= 0
            own = batch["index"][there]
            records["image"][own] = maps[there]
            records["label"][own], records["weight"][own] = batch["label"][there], batch["weight"][there]
            bar.update(len(own))
    assert isinstance(records, np.memmap)  # sources have at least one example
    records.flush()


def batches(records: np.ndarray, batch_size: int, seed: int, start_step: int) -> Iterator[pipeline.Batch]:
    """The batches of `input_pipeline.train_batches`, with pooled maps in the place of images."""
    for step in itertools.count(start_step):
        index = pipeline.batch_indices(step, len(records), batch_size, seed)
        own = records[index]
        yield {"image": own["image"], "label": own["label"], "weight": own["weight"], "index": index}
