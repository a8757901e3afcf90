"""The input pipeline: the order of examples, and batches read and decoded ahead of training by tf.data.

The order is pure arithmetic: epoch e is a permutation computed from (seed, e) alone, step s takes the next B
examples of the infinite concatenation of epochs, and each host takes its slice of them. A run can therefore
resume at any step at no cost, and the global batch is the same for any number of hosts.

A bad image becomes a placeholder, as an error inside tf.data would change the number of examples.
"""

import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.host import tensorflow
from alexnet_jax.data import decode
from alexnet_jax.data.sources import Source

Batch = dict[str, np.ndarray]

_NO_END = 2**40  # steps
_CALLS_PER_CORE = 2  # one at work, one finished or waiting: they are taken in order
_CALLS_BYTES = 256 * 2**20
# Decoding images of fewer encoded bytes to a smaller side is mostly Python: threads that do it at once wait
# for Python's lock at every call (Fashion-MNIST on two cores: 8,100 images/s; batch by batch 10,900).
_SMALL_BYTES, _SMALL_SIDE = 2500, 128
_running: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@functools.lru_cache(maxsize=2)  # a batch may span two epochs
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: int32 `[N]`, read-only, the same on every platform and NumPy version.

    N is `num_examples`, at most 2**31; `seed` is not negative.
    """
    # Shuffle by sorting random keys with the example's index in the low bits, so there are no ties.
    # Philox's raw stream is stable; NumPy's `permutation` may change between versions.
    bits = np.uint64(max(1, (num_examples - 1).bit_length()))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    keys = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    keys &= ~mask
    keys |= np.arange(num_examples, dtype=np.uint32)
    keys.sort()
    keys &= mask
    order = keys.astype(np.int32)
    order.flags.writeable = False
    return order


def batch_indices(
    step: int, num_examples: int, batch_size: int, seed: int, order: str = "shuffled"
) -> np.ndarray:
    """The examples in the global batch of step s: int64 `[B]`; B may exceed the number of examples.

    These are positions `[s*B, (s+1)*B)` of the infinite concatenation of epochs, each `shuffled` anew, or all
    in the order of the first (`fixed`): 2012 read files of 1,024 images in the same order each epoch
    (cuda-convnet's data.py:86-93), but began each epoch with a full batch instead of going on in one.
    """
    epochs, within_epoch = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        examples = epoch_order(num_examples, seed, 0 if order == "fixed" else int(epoch))
        indices[here] = examples[within_epoch[here]]
    return indices


def train_batches(
    source: Source,
    *,
    batch_size: int,
    resize_size: int,
    seed: int,
    order: str = "shuffled",
    start_step: int = 0,
    host: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """This host's slices of the global batches from `start_step` on, without end.

    Args:
      source: the training examples.
      batch_size: B over all hosts.
      resize_size: S, side of the images' central squares in pixels.
      seed: determines the order.
      order: `shuffled` or `fixed`, as in `batch_indices`.
      start_step: the step of the first batch; any step costs the same.
      host: h and H; host h of H takes the slice `[h*b, (h+1)*b)` of each batch, where b = B / H.

    Returns:
      An iterator of batches `{"image": uint8 [b, S, S, 3], "label": int32 [b], "weight": float32 [b],
      "index": int64 [b]}`. A bad image is black with weight 0. Closing or dropping the iterator stops the
      threads.

    Raises:
      UserError: `batch_size` cannot be divided among the hosts.
    """

    def indices(step: int) -> np.ndarray:
        return batch_indices(step, len(source), batch_size, seed, order)

    return _open(source, resize_size, indices, range(start_step, _NO_END), batch_size, host)


def eval_batches(
    source: Source, *, batch_size: int, resize_size: int, host: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Every example exactly once over all hosts, in the source's order.

    The last batch is padded with examples of index -1 and weight 0, so each host has the same number of
    batches. Arguments, batches and errors are as in `train_batches`.
    """

    def indices(step: int) -> np.ndarray:
        found = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.where(found < len(source), found, -1)

    steps = range(-(-len(source) // batch_size))
    return _open(source, resize_size, indices, steps, batch_size, host)


def _open(
    source: Source,
    resize_size: int,
    indices: Callable[[int], np.ndarray],
    steps: range,
    batch_size: int,
    host: tuple[int, int],
) -> Iterator[Batch]:
    """This host's slices of the global batches `indices(step)` `[batch_size]`, loaded ahead."""
    host_index, host_count = host
    if batch_size < 1 or batch_size % host_count:
        raise UserError(f"data.batch_size: {batch_size} cannot be divided among {host_count} hosts")
    per_host = batch_size // host_count
    parts, part_size = part_sizes(per_host, resize_size, threads())
    # This pipeline's own: closing one waits for its threads, maybe in a thread that holds another's lock.
    ordering, turns = threading.Lock(), threading.Lock()

    def load(number: int) -> Batch:
        step, part = divmod(number, parts)
        with ordering:  # else each thread would compute a new epoch's order
            own = indices(step)[host_index * per_host : (host_index + 1) * per_host]
        return load_batch(source, own[part * part_size : (part + 1) * part_size], resize_size, turns)

    batches = _load_ahead(load, range(steps.start * parts, steps.stop * parts), per_host)
    _running.add(batches)
    return batches


def load_batch(
    source: Source, indices: np.ndarray, resize_size: int, turns: "threading.Lock | None" = None
) -> Batch:
    """Reads and decodes the examples at `indices` `[n]`, -1 for padding; batches as in `train_batches`.

    Small images are decoded holding `turns`, the lock of one pipeline's threads.
    """
    count, present = len(indices), np.flatnonzero(indices >= 0)
    batch = {
        "image": np.zeros((count, resize_size, resize_size, 3), np.uint8),
        "label": np.zeros(count, np.int32),
        "weight": np.zeros(count, np.float32),
        "index": indices,
    }
    encoded, batch["label"][present] = source.read(indices[present])
    small = resize_size < _SMALL_SIDE and sum(map(len, encoded)) < _SMALL_BYTES * len(encoded)
    with turns if turns and small else contextlib.nullcontext():
        for place, data in zip(present, encoded, strict=True):
            if (square := decode.decode_square(data, resize_size)) is not None:
                batch["image"][place], batch["weight"][place] = square, 1
    return batch


def part_sizes(batch_size: int, resize_size: int, cores: int) -> tuple[int, int]:
    """The number of parts in which a host's batch is loaded, one unless it is large, and a part's examples.

    All calls of `load_batch` together make at most `_CALLS_BYTES` of pixels.
    """
    most = max(1, _CALLS_BYTES // (_CALLS_PER_CORE * cores * 3 * resize_size**2))
    parts = -(-batch_size // most)
    return parts, -(-batch_size // parts)


def threads() -> int:
    """Number of decoding threads: the cores this process may use, which a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load_ahead(
    load: Callable[[int], Batch], numbers: range, batch_size: int
) -> Generator[Batch, None, None]:
    """Yields `load(number)` in order, called in parallel and ahead, joined to batches of `batch_size`."""
    tf = tensorflow()
    decode.set_up()
    types = {"image": tf.uint8, "label": tf.int32, "weight": tf.float32, "index": tf.int64}
    failures: list[BaseException] = []

    def values(number: np.ndarray) -> list[np.ndarray]:
        try:
            batch = load(int(number))
            return [batch[key] for key in types]
        except BaseException as failure:  # TensorFlow would keep only its message
            failures.append(failure)
            raise

    def tensors(number: Any) -> dict[str, Any]:
        found = tf.numpy_function(values, [number], list(types.values()), stateful=False)
        return dict(zip(types, found, strict=True))

    calls = _CALLS_PER_CORE * threads()  # in parallel, as the decoders release Python's lock
    dataset = tf.data.Dataset.range(numbers.start, numbers.stop)
    dataset = dataset.map(tensors, num_parallel_calls=calls, deterministic=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # its buffers grow with the free memory
    options.threading.private_threadpool_size = threads() + 1  # one more, for the times when one waits
    try:
        yield from dataset.rebatch(batch_size).prefetch(1).with_options(options).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise failures[0] if failures else error from None


@atexit.register
def _close_all() -> None:
    # TensorFlow's threads cannot enter the interpreter during shutdown, and it would wait for them forever.
    for batches in list(_running):
        batches.close()
