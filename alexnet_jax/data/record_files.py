"""array_record and TFRecord files of `tf.train.Example` records: writing, and reading by position.

Reading needs neither TensorFlow nor an index file: any record of any file is found by its number alone, so an
exact order costs nothing.
"""

import contextlib
import functools
import importlib
import io
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from alexnet_jax.common import files, host
from alexnet_jax.common.errors import Fault, UserError, vanished


def encode_example(values: Mapping[str, bytes | int]) -> bytes:
    """Serializes a `tf.train.Example` with a bytes or an int64 feature for each of `values`."""
    example = _example_type()()
    for key, value in values.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    # Protocol buffers do not define the order of a map; the same records must give the same files.
    return example.SerializeToString(deterministic=True)


def parse_example(record: bytes) -> Any:
    """The features of a serialized example by name; None if the record is broken or empty."""
    try:
        features = _example_type().FromString(record).features.feature
    except Exception:  # the module of protobuf's DecodeError differs between versions
        return None
    return features or None


def write_shard(path: pathlib.Path, records: Iterable[bytes], group_size: int = 1) -> None:
    """Writes an array_record file atomically.

    A random read decompresses a whole group: groups of one suit photographs, larger groups save space for
    small records.
    """
    with files.replacing(path) as temporary:
        writer = _array_record().ArrayRecordWriter(str(temporary), f"group_size:{group_size}")
        for record in records:
            writer.write(record)
        writer.close()


def count_records(path: pathlib.Path) -> int:
    """The number of records in an array_record file."""
    reader = _array_record().ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


class Shard:
    """The records of one file by position, opened at the first read; thread-safe."""

    def __init__(self, path: str, key: str) -> None:
        """Checks that the file is there and can be read at random; `key` is named in errors.

        Raises:
          UserError: the file is missing, or its format has no random access.
        """
        openers = {".array_record": _open_array_record, ".tfrecord": _open_tfrecord}
        name = os.path.basename(path)
        found = next((opener for mark, opener in openers.items() if mark in name), None)
        if not os.path.exists(path):
            raise UserError(f"{key}: {path} is missing from the data set; make or fetch the set again")
        if found is None:
            raise UserError(
                f"{key}: {path} is stored without random access; prepare the set again as array_record"
            )
        self._path, self._open, self._lock = path, found, threading.Lock()
        self._read: Callable[[list[int]], Sequence[bytes]] | None = None

    def read(self, positions: list[int]) -> Sequence[bytes]:
        """Reads records at once or, if that fails, one by one; a broken record is `b""`.

        Raises:
          Fault: the file has vanished.
        """
        try:
            return self._opened()(positions)
        except Fault:
            raise
        except Exception:  # array_record raises its own types
            if len(positions) == 1:
                return [b""]
            return [self.read([position])[0] for position in positions]

    def _opened(self) -> Callable[[list[int]], Sequence[bytes]]:
        with self._lock:
            if self._read is None:
                if not os.path.exists(self._path):
                    raise vanished(self._path)
                self._read = self._open(self._path)
            return self._read


def _open_array_record(path: str) -> Callable[[list[int]], Sequence[bytes]]:
    # No read-ahead: the next record in our order is elsewhere. array_record's own data source would start
    # threads for each read.
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
    return _array_record().ArrayRecordReader(path, **options).read


def _open_tfrecord(path: str) -> Callable[[list[int]], Sequence[bytes]]:
    """A record is its length (8 bytes), a checksum (4), its bytes and a checksum (4).

    The lengths lead from one record to the next: they are followed once, with one small read a record.
    """
    file = os.open(path, os.O_RDONLY)

    def length(start: int) -> int:
        return int.from_bytes(os.pread(file, 8, start), "little")

    starts, start, end = [], 0, os.fstat(file).st_size
    while start < end:
        starts.append(start)
        start += 16 + length(start)
    return lambda positions: [os.pread(file, length(starts[p]), starts[p] + 12) for p in positions]


@functools.cache
def _example_type() -> Any:
    # TFDS carries a copy of the definition, which works without TensorFlow. Importing TFDS without TensorFlow
    # prints dozens of lines of complaints.
    if host.has_tensorflow():
        return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
    finally:
        logging.disable(before)


def _array_record() -> Any:
    return importlib.import_module("array_record.python.array_record_module")
