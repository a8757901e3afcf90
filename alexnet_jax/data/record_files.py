"""array_record and TFRecord files of `tf.train.Example` records: writing and random access.

Reading needs neither TensorFlow nor an index file.
"""

import functools
import importlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from alexnet_jax.common import files
from alexnet_jax.common.errors import Fault, vanished

array_record: Any = importlib.import_module("array_record.python.array_record_module")  # untyped
Reader = Callable[[list[int]], Sequence[bytes]]  # from positions to records


def encode_example(values: Mapping[str, bytes | int]) -> bytes:
    """Serializes a `tf.train.Example` with one bytes or int64 feature per item of `values`."""
    example = _example_type()()
    for key, value in values.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    # Protocol buffers leave the order of a map undefined, but equal records must give equal files.
    return example.SerializeToString(deterministic=True)


def parse_example(record: bytes) -> Any:
    """The features of a serialized example by name; None if the record is broken or empty."""
    try:
        return _example_type().FromString(record).features.feature or None
    except DecodeError:
        return None


def write_shard(path: pathlib.Path, records: Iterable[bytes], group_size: int = 1) -> None:
    """Writes an array_record file atomically.

    Larger groups save space for small records, but a random read decompresses an entire group.
    """
    with files.replacing(path) as temporary:
        writer = array_record.ArrayRecordWriter(str(temporary), f"group_size:{group_size}")
        for record in records:
            writer.write(record)
        writer.close()


def count_records(path: pathlib.Path) -> int:
    """The number of records in an array_record file."""
    return array_record.ArrayRecordReader(str(path)).num_records()


class Shard:
    """Random access to the records of one file, which is opened at the first read; thread-safe."""

    def __init__(self, path: str, file_format: str) -> None:
        """`file_format` is a key of `READERS`."""
        self._path, self._open, self._lock = path, READERS[file_format], threading.Lock()
        self._reader: Reader | None = None

    def read(self, positions: list[int]) -> Sequence[bytes]:
        """Reads records together or, if that fails, one by one; a broken record is `b""`.

        Raises:
          Fault: the file has vanished.
        """
        try:
            with self._lock:
                if self._reader is None:
                    if not os.path.exists(self._path):
                        raise vanished(self._path)
                    self._reader = self._open(self._path)
            return self._reader(positions)
        except Fault:
            raise
        except Exception:  # array_record raises its own types
            if len(positions) == 1:
                return [b""]
            return [self.read([position])[0] for position in positions]


def _open_array_record(path: str) -> Reader:
    # No read-ahead, as reads are in random order. TFDS's data source reads the same way, but starts threads
    # for each batch and logs an error for groups larger than one, which the embedded set has.
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
    return array_record.ArrayRecordReader(path, **options).read


def _open_tfrecord(path: str) -> Reader:
    """Indexes the file: a record is its length (8 bytes), a checksum (4), its bytes and a checksum (4)."""
    file = os.open(path, os.O_RDONLY)

    def length(start: int) -> int:
        return int.from_bytes(os.pread(file, 8, start), "little")

    starts, start, end = [], 0, os.fstat(file).st_size
    while start < end:
        starts.append(start)
        start += 16 + length(start)
    return lambda positions: [os.pread(file, length(starts[p]), starts[p] + 12) for p in positions]


READERS = {"array_record": _open_array_record, "tfrecord": _open_tfrecord}


@functools.cache
def _example_type() -> Any:
    return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
