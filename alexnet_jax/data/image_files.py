"""Images by name, decoded by threads: what `predict` and `features` read."""

import os
import pathlib
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.data.preprocess import Preprocess

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_AHEAD = 4  # how many groups may be in the making or waiting

Item = tuple[str, np.ndarray | None]


def find(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Each file as it is, and each folder's images, those of its folders too, in the order of their names.

    Raises:
      UserError: a path does not exist, or there is no image at all.
    """
    found: list[str] = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"{path}: no such file or folder")
            found.append(str(path))
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found += [str(p) for p in inside if not p.name.startswith(".")]
    if not found:
        raise UserError(f"{', '.join(map(str, paths)) or 'no paths'}: no images there")
    return found


def decoded(names: Iterable[str | bytes], preprocess: Preprocess, group: int) -> Iterator[list[Item]]:
    """Decodes images ahead of the reader, in order.

    A list comes in full groups. Of any other iterable, such as the lines of a pipe, a group is what is there:
    1 to `group` images, so that what trickles in is answered at once.

    Args:
      names: paths, or the bytes of an image; may block.

    Returns:
      Groups of name and uint8 `[S, S, 3]`, or None where it is not a whole image.
    """
    waiting: queue.Queue[tuple[str, Future[np.ndarray | None]] | None] = queue.Queue(_AHEAD * group)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")

    def feed() -> None:
        try:
            for name in names:
                if stopped.is_set():
                    break
                shown = "standard input" if isinstance(name, bytes) else name
                waiting.put((shown, pool.submit(_decode, name, preprocess)))
        except RuntimeError:  # the reader has gone, and the pool with it
            pass
        finally:
            waiting.put(None)

    threading.Thread(target=feed, daemon=True).start()
    try:
        last = False
        while not last:
            ready = [waiting.get()]
            while len(ready) < group and ready[-1] is not None:
                try:
                    ready.append(waiting.get(block=isinstance(names, list)))
                except queue.Empty:
                    break
            last = ready[-1] is None
            if items := [(item[0], item[1].result()) for item in ready if item is not None]:
                yield items
    finally:
        stopped.set()
        while not waiting.empty():  # lets a waiting feeder see it
            waiting.get_nowait()
        pool.shutdown(wait=False, cancel_futures=True)


def _decode(name: str | bytes, preprocess: Preprocess) -> np.ndarray | None:
    if isinstance(name, bytes):
        return preprocess.decode(name)
    try:
        return preprocess.decode(pathlib.Path(name).read_bytes())
    except OSError:
        return None


def padded(images: list[np.ndarray], group: int) -> np.ndarray:
    """One image as a batch of one, more of them filled up to `group` with zeros: two shapes to compile."""
    batch = np.stack(images)
    missing = 0 if len(images) == 1 else group - len(images)
    return np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
