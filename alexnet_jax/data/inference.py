"""Runs a net on images: find, decode ahead, batch, pad, run, un-pad."""

import collections
import contextlib
import os
import pathlib
import queue
import stat
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from alexnet_jax.common.errors import UserError, named
from alexnet_jax.common.files import refuse_url
from alexnet_jax.common.paths import expanded
from alexnet_jax.data import folders, pipeline
from alexnet_jax.data.decode import set_up
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source

BATCH_SIZES = (1, 32)  # for a single image, for many
_BATCHES_AHEAD = 4  # batches being decoded or queued

Item = TypeVar("Item")
Decoded = tuple[Item, np.ndarray | None]


class Answer(NamedTuple, Generic[Item]):
    """What the net computed for one item: the image's file name, bytes or index."""

    item: Item
    image: np.ndarray | None  # uint8 [S, S, 3]; None if the image is bad
    result: Any  # the item's row of each of the function's arrays; None if the image is bad


def find(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Expands paths: files as given, and folders to the images in them, recursively, sorted by name.

    A note says what is left out of a folder (`folders.list_images`).

    Raises:
      UserError: a path does not exist, is a URL or cannot be read, or there are no images.
    """
    return [file for file, _ in find_with_classes(paths)]


def find_with_classes(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str]]:
    """As `find`, each image with the name of its class: `folders.classes_of`, or the folder of a file."""
    found: list[tuple[str, str]] = []
    for name in paths:
        with named(name):
            refuse_url(name)
        path = expanded(name)
        if _is_folder(path):
            listing = folders.list_images(path)
            classes = folders.classes_of(path, listing.images)
            pairs = list(zip(listing.images, classes, strict=True))
            beside = [image for image, name in pairs if name == folders.NO_CLASS]
            choices = {folders.NO_IMAGES: listing.others, folders.HIDDEN: listing.hidden}
            folders.note_choices(path, {**choices, "of no class, beside the classes": beside})
            found += [(str(path / image), name) for image, name in pairs]
        else:
            found.append((str(path), path.parent.name))
    if not found:
        raise UserError(f"{', '.join(map(str, paths)) or 'no paths'}: no images there")
    return found


def _is_folder(path: pathlib.Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file or folder") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


class SourceDecoder:
    """Decodes a source's images by index, uint8 `[S, S, 3]` or None if bad, and collects their labels.

    Attributes:
      labels: int32 `[N]`, filled in as images are decoded.
    """

    def __init__(self, source: Source, preprocess: Preprocess) -> None:
        self.labels = np.zeros(len(source), np.int32)
        self._source, self._preprocess = source, preprocess

    def __call__(self, index: int) -> np.ndarray | None:
        (encoded,), (self.labels[index],) = self._source.read(np.array([index]))
        return self._preprocess.decode(encoded)


def run_batches(
    function: Callable[[np.ndarray], Any],
    items: Iterable[Item],
    decode: Callable[[Item], np.ndarray | None],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Iterator[Answer[Item]]:
    """Runs `function` on the images of `items`; yields an answer for each item, in order.

    Threads decode images while earlier batches run, and a batch's results are fetched once the next batch is
    in flight. A sequence is cut into full batches. For any other iterable, such as the lines of a pipe, a
    batch is whatever has arrived.

    Args:
      function: from uint8 `[B, S, S, 3]` to arrays (any pytree) whose first axis is B.
      items: anything that `decode` takes; iterating may block.
      decode: from an item to uint8 `[S, S, 3]`, or None if the image is bad; called in threads.
      batch_sizes: the allowed values of B, ascending, which limit the shapes compiled. A batch is padded with
        zeros to the next of them.
    """
    batch_size = batch_sizes[-1]
    running = collections.deque[tuple[list[Decoded[Item]], Any]]()
    with contextlib.closing(_decode_ahead(items, decode, batch_size)) as batches:
        for batch in batches:
            good = [image for _, image in batch if image is not None]
            running.append((batch, function(_padded(good, batch_sizes)) if good else None))
            # Wait for this batch only if nothing more has arrived yet.
            while len(running) > (len(batch) == batch_size):
                yield from _answers(*running.popleft())
    for batch, results in running:
        yield from _answers(batch, results)


def _answers(batch: list[Decoded[Item]], results: Any) -> Iterator[Answer[Item]]:
    results, row = jax.device_get(results), 0
    for item, image in batch:
        if image is None:
            yield Answer(item, None, None)
        else:
            yield Answer(item, image, jax.tree.map(lambda values, row=row: values[row], results))
            row += 1


def _padded(images: list[np.ndarray], batch_sizes: Sequence[int]) -> np.ndarray:
    size = min(size for size in batch_sizes if size >= len(images))
    return np.pad(np.stack(images), [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])


def _decode_ahead(
    items: Iterable[Item], decode: Callable[[Item], np.ndarray | None], batch_size: int
) -> Generator[list[Decoded[Item]], None, None]:
    """Batches of items with their images; threads decode up to `_BATCHES_AHEAD` batches ahead."""
    # Not tf.data: importing it takes longer than to predict an image, and it cannot tell what has arrived.
    set_up()
    waiting = queue.Queue[tuple[Item, Future[np.ndarray | None]] | None](_BATCHES_AHEAD * batch_size)
    pool = ThreadPoolExecutor(pipeline.threads(), thread_name_prefix="decode")
    failures: list[BaseException] = []

    def feed() -> None:
        try:
            for item in items:
                waiting.put((item, pool.submit(decode, item)))
        except BaseException as error:  # from the iterable, or from the pool after the consumer has stopped
            failures.append(error)
        waiting.put(None)

    threading.Thread(target=feed, daemon=True).start()
    try:
        last = False
        while not last:
            ready = [waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(ready) < batch_size and ready[-1] is not None:
                    ready.append(waiting.get(block=isinstance(items, Sequence)))
            last = ready[-1] is None
            if batch := [(pair[0], pair[1].result()) for pair in ready if pair is not None]:
                yield batch
        if failures:
            raise failures[0]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while not waiting.empty():  # wakes a feeder that waits for room, so that the pool can stop it
            waiting.get_nowait()
