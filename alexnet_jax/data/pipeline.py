"""The input pipeline: the order of examples, and batches decoded ahead of the training loop.

The order is pure arithmetic: epoch e is a permutation computed from (seed, e) alone, step s takes the next B
examples of the infinite concatenation of epochs, and each host takes its slice of them. A run can therefore
resume at any step at no cost, and the global batch is the same for any number of hosts.

Threads read and decode a bounded number of batches ahead. The decoders release the GIL, handle every format
and return None for a broken image (`decode.py`); an error inside tf.data would change the number of examples.
tf.data is used only for prepared squares of the right size without `simplejpeg`: there it beats Pillow.
"""

import atexit
import collections
import functools
import itertools
import os
import weakref
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode
from alexnet_jax.data.records import RecordSource
from alexnet_jax.data.sources import Source

Batch = dict[str, np.ndarray]

_KEYS = ("image", "label", "weight", "index")
_CHUNK_EXAMPLES = 128  # at most, per task of tf.data: 25 MB of pixels at 256 x 256
_TASK_EXAMPLES = 16  # per task of our own threads
_BATCHES_AHEAD = 2
_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


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


def batch_indices(step: int, num_examples: int, batch_size: int, seed: int) -> np.ndarray:
    """The examples in the global batch of step s: int64 `[B]`; B may exceed the number of examples.

    These are positions `[s*B, (s+1)*B)` of the infinite concatenation of shuffled epochs.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within_epoch = np.divmod(positions, num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_order(num_examples, seed, int(epoch))[within_epoch[here]]
    return indices


def train_batches(
    source: Source,
    *,
    batch_size: int,
    resize_size: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """This host's slices of the global batches from `start_step` on, without end.

    Args:
      source: the training examples.
      batch_size: B over all hosts; this host's slice has b = B / host_count.
      resize_size: S, side of the images' central squares in pixels.
      seed: determines the order.
      start_step: the step of the first batch; any step costs the same.
      host_index: h of the slice `[h*b, (h+1)*b)`.
      host_count: H; divides B.

    Returns:
      An iterator of batches `{"image": uint8 [b, S, S, 3], "label": int32 [b], "weight": float32 [b],
      "index": int64 [b]}`. A bad image is black with weight 0. Closing or dropping the iterator stops the
      threads.

    Raises:
      UserError: `batch_size` cannot be divided among the hosts.
    """
    per_host = _per_host(batch_size, host_count)

    def slices() -> Iterator[np.ndarray]:
        step = start_step
        while True:
            global_batch = batch_indices(step, len(source), batch_size, seed)
            yield global_batch[host_index * per_host : (host_index + 1) * per_host]
            step += 1

    return _decoded_ahead(source, slices(), resize_size)


def eval_batches(
    source: Source, *, batch_size: int, resize_size: int, host_index: int = 0, host_count: int = 1
) -> Iterator[Batch]:
    """Every example exactly once over all hosts, in the source's order.

    The last batch is padded with examples of index -1 and weight 0, so each host has the same number of
    batches. Arguments, batches and errors are as in `train_batches`.
    """
    per_host = _per_host(batch_size, host_count)

    def slices() -> Iterator[np.ndarray]:
        for first in range(0, len(source), batch_size):
            indices = np.arange(per_host) + first + host_index * per_host
            yield np.where(indices < len(source), indices, -1)

    return _decoded_ahead(source, slices(), resize_size)


def _per_host(batch_size: int, host_count: int) -> int:
    if batch_size < 1 or batch_size % host_count:
        raise UserError(f"data.batch_size: {batch_size} cannot be divided among {host_count} hosts")
    return batch_size // host_count


def _decoded_ahead(source: Source, slices: Iterable[np.ndarray], resize_size: int) -> Iterator[Batch]:
    """Reads and decodes batches of indices in order, a bounded number of them ahead of the consumer."""
    # Threads decode directly into the batch, while tf.data's functions copy inputs and outputs. With
    # simplejpeg, threads read 1.7 times as many prepared images per second (docs/imagenet.md).
    squares = isinstance(source, RecordSource) and source.jpeg_size == resize_size
    by_tf_data = squares and decode.simplejpeg is None and host.has_tensorflow()
    batches = (_ahead_by_tf_data if by_tf_data else _ahead_by_threads)(source, slices, resize_size)
    _open.add(batches)
    return batches


@atexit.register
def _close_all() -> None:
    # TensorFlow's threads cannot enter the interpreter during shutdown, and it would wait for them forever.
    for batches in list(_open):
        batches.close()


def _ahead_by_tf_data(
    source: Source, slices: Iterable[np.ndarray], resize_size: int
) -> Generator[Batch, None, None]:
    tf = host.tensorflow()
    slices = iter(slices)
    first = next(slices, None)
    if first is None:
        return
    # A batch is one chunk or several of equal size: joining chunks costs half as much as decoding them.
    chunk_size = max(n for n in range(1, _CHUNK_EXAMPLES + 1) if len(first) % n == 0)
    pixels = {"image": (resize_size, resize_size, 3)}
    failures: list[BaseException] = []

    def chunks() -> Iterator[np.ndarray]:
        all_slices = itertools.chain([first], slices)
        return (chunk for indices in all_slices for chunk in indices.reshape(-1, chunk_size))

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return _read(source, indices)
        except BaseException as failure:  # TensorFlow would keep only its message
            failures.append(failure)
            raise

    def read_chunk(indices):
        encoded, labels = tf.numpy_function(read, [indices], [tf.string, tf.int32], stateful=False)
        return tf.ensure_shape(encoded, chunk_size), tf.ensure_shape(labels, chunk_size), indices

    def decode_any(encoded, labels, indices):
        decode_chunk = functools.partial(_decode, resize_size=resize_size)
        squares, weights = tf.numpy_function(decode_chunk, [encoded], [tf.uint8, tf.float32], stateful=False)
        squares = tf.ensure_shape(squares, (chunk_size, resize_size, resize_size, 3))
        return squares, labels, tf.ensure_shape(weights, chunk_size), indices

    def decode_squares(encoded, labels, indices):
        # Bit-identical to Pillow, but without the GIL; raises for any other image.
        squares = [tf.io.decode_jpeg(one, 3, dct_method="INTEGER_ACCURATE") for one in tf.unstack(encoded)]
        squares = tf.stack([tf.ensure_shape(square, (resize_size, resize_size, 3)) for square in squares])
        return squares, labels, tf.ones(chunk_size), indices

    def decode_squares_or_any(*chunk):
        one = tf.data.Dataset.from_tensors(chunk)
        return one.map(decode_squares).ignore_errors().concatenate(one.map(decode_any)).take(1)

    parallel = {"num_parallel_calls": threads(), "deterministic": True}
    dataset = tf.data.Dataset.from_generator(chunks, output_signature=tf.TensorSpec((chunk_size,), tf.int64))
    dataset = dataset.map(read_chunk, **parallel)
    dataset = dataset.interleave(decode_squares_or_any, cycle_length=threads(), **parallel)
    if chunk_size < len(first):
        dataset = dataset.batch(len(first) // chunk_size, drop_remainder=True)
    dataset = dataset.prefetch(_BATCHES_AHEAD)
    options = tf.data.Options()
    options.autotune.enabled = False  # its buffers grow with the free memory
    options.threading.private_threadpool_size = threads() + 2  # decoders, generator, batcher
    try:
        for values in dataset.with_options(options).as_numpy_iterator():
            yield {k: v.reshape(len(first), *pixels.get(k, ())) for k, v in zip(_KEYS, values, strict=True)}
    except tf.errors.OpError as error:
        raise failures[0] if failures else error from None


def _ahead_by_threads(
    source: Source, slices: Iterable[np.ndarray], resize_size: int
) -> Generator[Batch, None, None]:
    in_progress: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="input")

    def finished_batch() -> Batch:
        batch, tasks = in_progress.popleft()
        for task in tasks:
            task.result()
        return batch

    try:
        for indices in slices:
            batch = {
                "image": np.empty((len(indices), resize_size, resize_size, 3), np.uint8),
                "label": np.empty(len(indices), np.int32),
                "weight": np.empty(len(indices), np.float32),
                "index": indices,
            }
            parts = [slice(i, i + _TASK_EXAMPLES) for i in range(0, len(indices), _TASK_EXAMPLES)]
            tasks = [pool.submit(_read_and_decode, source, batch, part) for part in parts]
            in_progress.append((batch, tasks))
            num_tasks = sum(len(tasks) for _, tasks in in_progress)
            if len(in_progress) > _BATCHES_AHEAD and num_tasks > 2 * threads():
                yield finished_batch()
        while in_progress:
            yield finished_batch()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads() -> int:
    """Number of decoding threads: the cores this process may use, which a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_and_decode(source: Source, batch: Batch, part: slice) -> None:
    encoded, batch["label"][part] = _read(source, batch["index"][part])
    _decode_into(encoded, batch["image"][part], batch["weight"][part])


def _read(source: Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoded images (object array) and int32 labels; index -1 is padding."""
    encoded, labels = np.full(len(indices), b"", object), np.zeros(len(indices), np.int32)
    present = np.flatnonzero(indices >= 0)
    encoded[present], labels[present] = source.read(indices[present])
    return encoded, labels


def _decode(encoded: np.ndarray, resize_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares `[n, S, S, 3]` and weights `[n]`."""
    squares = np.empty((len(encoded), resize_size, resize_size, 3), np.uint8)
    weights = np.empty(len(encoded), np.float32)
    _decode_into(encoded, squares, weights)
    return squares, weights


def _decode_into(encoded: np.ndarray, squares: np.ndarray, weights: np.ndarray) -> None:
    """Fills in squares `[n, S, S, 3]` and weights `[n]`; a bad image is black with weight 0."""
    for i, data in enumerate(encoded):
        square = decode.decode_square(data, squares.shape[1])
        squares[i], weights[i] = (0, 0.0) if square is None else (square, 1.0)
