"""From a source to batches: which examples, in which order, decoded ahead by threads.

The order is arithmetic: epoch e is a permutation that follows from (seed, e) alone, step s takes the next B
places of the endless row of epochs, and a host takes its slice of those. So a run goes on at any step at no
cost, and the global batch is the same for any number of hosts.

Threads read ahead in bounded memory. What they decode with gives up Python's lock while it works, takes every
format, and leaves a broken image as an ordinary None, where an error inside tf.data would change the count
(`images.py`). Only where `simplejpeg` is missing do records that are squares of the right size already go
through tf.data, which is faster than Pillow there.
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
from alexnet_jax.data import decode as images
from alexnet_jax.data.records import RecordSource
from alexnet_jax.data.sources import Source

Batch = dict[str, np.ndarray]

_KEYS = ("image", "label", "weight", "index")
_CHUNK_EXAMPLES = 128  # at most, what one thread reads and decodes at a time: 25 MB of pixels at 256 x 256
_SHARE_EXAMPLES = 16  # the same where threads share a batch
_BATCHES_AHEAD = 2
_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@functools.lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    Args:
      num_examples: N, at most 2**31.
      seed: of the run, not negative.
      epoch: counted from 0.

    Returns:
      int32 `[N]`, read-only: a permutation of 0..N-1, the same on every platform and with every NumPy.
    """
    # Random keys with the example's number in the low bits: sorting those is a shuffle without ties.
    # Philox's raw stream is fixed for good; NumPy's own `permutation` may change between versions.
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
    """The examples of the global batch of one step.

    Args:
      step: s, counted from 0.
      num_examples: N of the source.
      batch_size: B, the global batch; may be larger than N.
      seed: of the run.

    Returns:
      int64 `[B]`: the places `[s*B, (s+1)*B)` of the endless row of epochs.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, num_examples)
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_order(num_examples, seed, int(epoch))[within[here]]
    return indices


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    start_step: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """This host's slices of the global batches from `start_step` on, without end.

    Args:
      source: the training examples.
      batch_size: B, of all hosts together; b = B / host_count come from here.
      image_size: S, the side of the square images in pixels.
      seed: of the order.
      start_step: the step of the first batch; any step costs the same.
      host_index: h of the slice `[h*b, (h+1)*b)`.
      host_count: H; divides B.

    Returns:
      An iterator of batches `{"image": uint8 [b, S, S, 3], "label": int32 [b], "weight": float32 [b],
      "index": int64 [b]}`. A bad image is a black placeholder with weight 0. Close it (or let it go) to
      stop the threads.

    Raises:
      UserError: `batch_size` cannot be divided among the hosts.
    """
    per_host = _per_host(batch_size, host_count)

    def slices() -> Iterator[np.ndarray]:
        step = start_step
        while True:
            whole = batch_indices(step, len(source), batch_size, seed)
            yield whole[host_index * per_host : (host_index + 1) * per_host]
            step += 1

    return _decoded_ahead(source, slices(), image_size)


def eval_batches(
    source: Source, *, batch_size: int, image_size: int, host_index: int = 0, host_count: int = 1
) -> Iterator[Batch]:
    """Every example of the source exactly once over all hosts, in the source's order.

    The last batch is filled up with places of index -1 and weight 0, and each host gives the same number of
    batches. Arguments, batches and errors are those of `train_batches`.
    """
    per_host = _per_host(batch_size, host_count)

    def slices() -> Iterator[np.ndarray]:
        for first in range(0, len(source), batch_size):
            mine = np.arange(per_host) + first + host_index * per_host
            yield np.where(mine < len(source), mine, -1)

    return _decoded_ahead(source, slices(), image_size)


def _per_host(batch_size: int, host_count: int) -> int:
    if batch_size < 1 or batch_size % host_count:
        raise UserError(f"data.batch_size: {batch_size} cannot be divided among {host_count} hosts")
    return batch_size // host_count


def _decoded_ahead(source: Source, slices: Iterable[np.ndarray], image_size: int) -> Iterator[Batch]:
    """Reads and decodes batches of indices in their order, a bounded number of them ahead of the reader."""
    # Threads put each image where it belongs in its batch; tf.data's functions copy what goes in and what
    # comes out. With simplejpeg, threads bring 1.7 times as many prepared images a second (docs/imagenet.md).
    squares = isinstance(source, RecordSource) and source.jpeg_size == image_size
    by_tf_data = squares and images.simplejpeg is None and host.has_tensorflow()
    batches = (_ahead_by_tf_data if by_tf_data else _ahead_by_threads)(source, slices, image_size)
    _open.add(batches)
    return batches


@atexit.register
def _close_all() -> None:
    # TensorFlow's threads cannot enter a Python that is going down, and it waits for them for ever.
    for batches in list(_open):
        batches.close()


def _ahead_by_tf_data(
    source: Source, slices: Iterable[np.ndarray], image_size: int
) -> Generator[Batch, None, None]:
    tf = host.tensorflow()
    first, slices = _peek(slices)
    if first is None:
        return
    # A batch is one chunk, or several of one size: joining them costs as much as half of the decoding.
    chunk_size = max(n for n in range(1, _CHUNK_EXAMPLES + 1) if len(first) % n == 0)
    pixels = {"image": (image_size, image_size, 3)}
    failures: list[BaseException] = []

    def chunks() -> Iterator[np.ndarray]:
        return (chunk for indices in slices for chunk in indices.reshape(-1, chunk_size))

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return _read(source, indices)
        except BaseException as failure:  # TensorFlow would pass on no more than its text
            failures.append(failure)
            raise

    def read_chunk(indices):
        encoded, labels = tf.numpy_function(read, [indices], [tf.string, tf.int32], stateful=False)
        return tf.ensure_shape(encoded, chunk_size), tf.ensure_shape(labels, chunk_size), indices

    def decode_any(encoded, labels, indices):
        decode = functools.partial(_decode, image_size=image_size)
        squares, weights = tf.numpy_function(decode, [encoded], [tf.uint8, tf.float32], stateful=False)
        squares = tf.ensure_shape(squares, (chunk_size, image_size, image_size, 3))
        return squares, labels, tf.ensure_shape(weights, chunk_size), indices

    def decode_squares(encoded, labels, indices):
        # Bit for bit what Pillow makes of them, without a stop at Python's lock; any other image is an
        # error here.
        squares = [tf.io.decode_jpeg(one, 3, dct_method="INTEGER_ACCURATE") for one in tf.unstack(encoded)]
        squares = tf.stack([tf.ensure_shape(square, (image_size, image_size, 3)) for square in squares])
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
    options.autotune.enabled = False  # the bounds are those above, not whatever memory there is
    options.threading.private_threadpool_size = threads() + 2  # the decoders, the generator and the batcher
    try:
        for values in dataset.with_options(options).as_numpy_iterator():
            yield {k: v.reshape(len(first), *pixels.get(k, ())) for k, v in zip(_KEYS, values, strict=True)}
    except tf.errors.OpError as error:
        raise failures[0] if failures else error from None


def _ahead_by_threads(
    source: Source, slices: Iterable[np.ndarray], image_size: int
) -> Generator[Batch, None, None]:
    waiting: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()
    pool = ThreadPoolExecutor(threads(), thread_name_prefix="input")

    def whole() -> Batch:
        batch, parts = waiting.popleft()
        for part in parts:
            part.result()
        return batch

    try:
        for indices in slices:
            batch = {
                "image": np.empty((len(indices), image_size, image_size, 3), np.uint8),
                "label": np.empty(len(indices), np.int32),
                "weight": np.empty(len(indices), np.float32),
                "index": indices,
            }
            parts = [slice(i, i + _SHARE_EXAMPLES) for i in range(0, len(indices), _SHARE_EXAMPLES)]
            waiting.append((batch, [pool.submit(_read_and_decode, source, batch, part) for part in parts]))
            if len(waiting) > _BATCHES_AHEAD and sum(len(its) for _, its in waiting) > 2 * threads():
                yield whole()
        while waiting:
            yield whole()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def threads() -> int:
    """As many as this process may use cores, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _peek(slices: Iterable[np.ndarray]) -> tuple[np.ndarray | None, Iterator[np.ndarray]]:
    rest = iter(slices)
    first = next(rest, None)
    return first, itertools.chain([] if first is None else [first], rest)


def _read_and_decode(source: Source, batch: Batch, part: slice) -> None:
    encoded, batch["label"][part] = _read(source, batch["index"][part])
    _decode_into(encoded, batch["image"][part], batch["weight"][part])


def _read(source: Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoded images (objects) and int32 labels of some examples; index -1 is a place without one."""
    encoded, labels = np.full(len(indices), b"", object), np.zeros(len(indices), np.int32)
    places = np.flatnonzero(indices >= 0)
    encoded[places], labels[places] = source.read(indices[places])
    return encoded, labels


def _decode(encoded: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Squares and weights."""
    squares = np.empty((len(encoded), image_size, image_size, 3), np.uint8)
    weights = np.empty(len(encoded), np.float32)
    _decode_into(encoded, squares, weights)
    return squares, weights


def _decode_into(encoded: np.ndarray, squares: np.ndarray, weights: np.ndarray) -> None:
    """Fills in squares `[n, S, S, 3]` and weights `[n]`; what is no image is black and weighs nothing."""
    for place, data in enumerate(encoded):
        square = images.decode_square(data, squares.shape[1])
        squares[place], weights[place] = (0, 0.0) if square is None else (square, 1.0)
