"""Cached features: with frozen convolutions and no augmentation, pool5 is computed once per image."""

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
from alexnet_jax.data import inference, pipeline
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet

CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
_BATCH_SIZES = (32,)


def is_frozen(config: configs.Config) -> bool:
    """Whether pool5 is constant and cached: frozen convolutions, no augmentation, a single process."""
    if jax.process_count() > 1:
        return False
    rates, augment = config.optimizer.layer_rates, config.augment
    own = [configs.events_of(rates, name, kind) for name in CONVOLUTIONS for kind in ("kernel", "bias")]
    frozen = all((0.0, 0.0) in events and not any(rate for _, rate in events) for events in own)
    return frozen and not augment.crop and not augment.mirror and augment.colour == "none"


def file_name(source: str, model: AlexNet, params: Any, preprocess: Preprocess) -> str:
    """`pool5-<digest>.npy`; the digest covers the source, the net, its convolutions and the preprocessing.

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
    """Reads pool5 of every example from `path`; computes and writes the file first if it is missing.

    Returns:
      Records `[N]` with the fields `image` (pool5, float32 `[6, 6, C]`), `label` and `weight`, 0 for bad
      images.
    """
    if path.exists() and len(records := np.load(path, mmap_mode="r")) == len(source):
        return records
    with replacing(path) as temporary:
        _compute(temporary, model, jax.device_get(params), preprocess, source)
    return np.load(path, mmap_mode="r")


def _compute(path: pathlib.Path, model: AlexNet, params: Any, preprocess: Preprocess, source: Source) -> None:
    @functools.partial(jax.jit, compiler_options=host.eigen_options())
    def pool5(params: Any, images: jax.Array) -> Any:
        _, seen = model.apply({"params": params}, preprocess.view(images), capture=("pool5",))
        return seen["pool5"]

    params = jax.device_put(params, jax.devices()[0])
    side = preprocess.resize_size
    shape = jax.eval_shape(pool5, params, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)).shape[1:]
    fields = [("image", "<f4", shape), ("label", "<i4"), ("weight", "<f4")]
    records = np.lib.format.open_memmap(path, "w+", np.dtype(fields), (len(source),))
    decode = inference.SourceDecoder(source, preprocess)
    answers = inference.run_batches(
        functools.partial(pool5, params), range(len(source)), decode, _BATCH_SIZES
    )
    with progress.bar(len(source), "image", "pool5, once") as bar:
        for index, image, maps in answers:
            if image is not None:
                records["image"][index], records["weight"][index] = maps, 1
            bar.update()
    records["label"] = decode.labels
    records.flush()


def batches(
    records: np.ndarray, batch_size: int, seed: int, order: str, start_step: int
) -> Iterator[pipeline.Batch]:
    """The batches of `pipeline.train_batches`, with pool5 instead of images."""
    for step in itertools.count(start_step):
        index = pipeline.batch_indices(step, len(records), batch_size, seed, order)
        own = records[index]
        yield {"image": own["image"], "label": own["label"], "weight": own["weight"], "index": index}
