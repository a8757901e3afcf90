"""From a source to batches: which examples, in which order, decoded ahead by threads.

The order is arithmetic: epoch e is a permutation that follows from (seed, e) alone, step s takes the next B
places of the endless row of epochs, and a host takes its slice of those. So a run goes on at any step at no
cost, and the global batch is the same for any number of hosts.

Pillow and threads do the decoding. Pillow gives up Python's lock while it works, so threads use all cores;
a broken image is an ordinary None; and nothing here needs TensorFlow.
"""

import collections
import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.images import decode_square
from alexnet_jax.sources import Source

Batch = dict[str, np.ndarray]

_CHUNK_EXAMPLES = 16  # what one thread reads and decodes at a time
_BATCHES_AHEAD = 3  # how many batches may be in the making or waiting
_CHUNKS_AHEAD = 4  # at least this many chunks a thread, so that small batches keep all of them busy


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
    """Decodes the batches of indices in order, a bounded number of them ahead of the reader."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="input")
    waiting: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()

    def start(indices: np.ndarray) -> None:
        batch = _empty_batch(indices, image_size)
        chunks = [slice(i, i + _CHUNK_EXAMPLES) for i in range(0, len(indices), _CHUNK_EXAMPLES)]
        waiting.append((batch, [pool.submit(_fill, source, batch, chunk) for chunk in chunks]))

    def enough() -> bool:
        return len(waiting) >= _BATCHES_AHEAD and sum(len(f) for _, f in waiting) >= _CHUNKS_AHEAD * threads

    try:
        upcoming = iter(slices)
        for indices in upcoming:
            start(indices)
            if enough():
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _finished(batch: Batch, parts: list[Future[None]]) -> Batch:
    for part in parts:
        part.result()
    return batch


def _empty_batch(indices: np.ndarray, image_size: int) -> Batch:
    count = len(indices)
    return {
        "image": np.zeros((count, image_size, image_size, 3), np.uint8),
        "label": np.zeros(count, np.int32),
        "weight": np.zeros(count, np.float32),
        "index": np.asarray(indices, np.int64),
    }


def _fill(source: Source, batch: Batch, chunk: slice) -> None:
    """Reads and decodes one chunk of a batch into its place."""
    indices = batch["index"][chunk]
    wanted = np.flatnonzero(indices >= 0)
    encoded, labels = source.read(indices[wanted])
    for place, data, label in zip(wanted + chunk.start, encoded, labels, strict=True):
        image = decode_square(data, batch["image"].shape[1])
        batch["label"][place] = label
        if image is not None:
            batch["image"][place] = image
            batch["weight"][place] = 1.0
