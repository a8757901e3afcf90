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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

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


class Shard(Protocol):
    """The records of one file by position; thread-safe."""

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        """Raises if a record cannot be read."""
        ...


def open_shard(path: str, key: str) -> Shard:
    """Opens one file of records; `key` is named in errors.

    Raises:
      UserError: the file is missing, or its format has no random access.
    """
    name = os.path.basename(path)
    if not os.path.exists(path):
        raise UserError(f"{key}: {path} is missing from the data set; make or fetch the set again")
    if ".array_record" in name:
        return ArrayRecordShard(path)
    if ".tfrecord" in name:
        return TfRecordShard(path)
    raise UserError(f"{key}: {path} is stored without random access; prepare the set again as array_record")


def read_records(shard: Shard, positions: list[int]) -> Sequence[bytes]:
    """Reads records at once or, if that fails, one by one; a broken record is `b""`."""
    try:
        return shard.read(positions)
    except Fault:
        raise
    except Exception:  # array_record raises its own types
        if len(positions) == 1:
            return [b""]
        return [read_records(shard, [position])[0] for position in positions]


class ArrayRecordShard:
    """One array_record file, opened at the first read. array_record's data source would start threads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: Any = None
        self._lock = threading.Lock()

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        with self._lock:
            if self._reader is None:
                if not os.path.exists(self._path):
                    raise vanished(self._path)
                # No read-ahead: the next record in our order is elsewhere.
                self._reader = _array_record().ArrayRecordReader(
                    self._path, "readahead_buffer_size:0", file_reader_buffer_size=32768
                )
        return self._reader.read(list(positions))


class TfRecordShard:
    """One TFRecord file, read at random.

    A record is its length (8 bytes), a checksum (4), its bytes and a checksum (4). The lengths lead from one
    record to the next: the first read follows them once, with one small read a record.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = -1
        self._starts: list[int] = []
        self._lock = threading.Lock()

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        with self._lock:
            if self._file < 0:
                try:
                    self._file = os.open(self._path, os.O_RDONLY)
                except FileNotFoundError as error:
                    raise vanished(self._path) from error
                self._starts = self._find_starts()
        starts = [self._starts[position] for position in positions]
        return [os.pread(self._file, self._length(start), start + 12) for start in starts]

    def _find_starts(self) -> list[int]:
        starts, start, end = [], 0, os.fstat(self._file).st_size
        while start < end:
            starts.append(start)
            start += 16 + self._length(start)
        return starts

    def _length(self, start: int) -> int:
        return int.from_bytes(os.pread(self._file, 8, start), "little")


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
