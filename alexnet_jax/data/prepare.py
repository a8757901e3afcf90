"""The command `prepare`: any source to a TFDS directory of square JPEGs and colour statistics."""

import argparse
import dataclasses
import io
import json
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from PIL import Image

from alexnet_jax.common import command_line, files, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode, pipeline, record_files, records, sources, tfds_metadata
from alexnet_jax.data.statistics import ColourSums

BAD_IMAGES_FILE = "bad_images.txt"
_SETTINGS_FILE = "settings.json"
_REPORTS = "reports"
_CHUNK_EXAMPLES = 16  # read, decoded and encoded by one thread at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines the bytes written; an interrupted run must continue with the same settings."""

    source: str
    splits: dict[str, int]  # number of examples in the source, by split
    resize_size: int
    quality: int
    shard_examples: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records."""

    split: str
    indices: np.ndarray  # its examples in the source
    path: pathlib.Path
    report: pathlib.Path  # colour sums and bad images; written last, so it marks a complete shard


def prepare(
    source: str,
    out: pathlib.Path,
    *,
    data_dir: str | None = None,
    splits: Sequence[str] = ("train", "test"),
    resize_size: int = 256,
    quality: int = 95,
    shard_examples: int = 1250,
) -> list[str]:
    """Converts a source to prepared records in `out`, or continues an interrupted run.

    Resizes each image's shorter side to `resize_size` pixels with antialiasing and stores the central square,
    as in section 2 of the paper. Computes the statistics from the stored training images. Leaves out images
    that cannot be decoded and lists them in `bad_images.txt`.

    Args:
      source, data_dir: as in a config's `data` section.
      splits: "train", "test" or both.
      quality: of the JPEGs, 1-100. A JPEG or PNG that has the size already is kept.
      shard_examples: images per file.

    Returns:
      The names of the bad images, each as `<split>/<name>`.

    Raises:
      UserError: a setting is out of range, the source cannot be opened, or `out` exists, cannot be written,
        or was started with other settings.
    """
    if not (1 <= quality <= 100 and resize_size >= 1 and shard_examples >= 1):
        raise UserError("--quality must be 1 to 100, --resize_size and --shard_examples at least 1")
    if out.exists():
        raise UserError(f"--out: {out} exists already; delete it or choose another")
    opened = {split: sources.open_source(source, split, data_dir=data_dir) for split in splits}
    lengths = {split: len(opened[split]) for split in splits}
    settings = Settings(source, lengths, resize_size, quality, shard_examples)
    partial, name = _begin(out, settings), _dataset_name(out)
    shards = _plan(partial, name, settings)
    decode.set_up()
    record_files.encode_example({})  # imports protobuf's classes and with them TFDS, before threads start
    missing = [shard for shard in shards if not (shard.report.exists() and shard.path.exists())]
    total, remaining = (sum(len(shard.indices) for shard in some) for some in (shards, missing))
    with progress.bar(total, "image", f"preparing {out.name}", initial=total - remaining) as bar:
        for shard in missing:
            _write_shard(shard, opened[shard.split], settings, bar)
    bad = _finish(partial, name, shards, opened[splits[0]], settings)
    partial.rename(out)
    # Delete only after the rename: an interruption before it must not cost a second decoding.
    shutil.rmtree(out / _REPORTS)
    (out / _SETTINGS_FILE).unlink()
    return bad


def _begin(out: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Creates the partial directory of `out`, or checks that it was started with the same settings."""
    partial = out.with_name(out.name + ".partial")
    path, text = partial / _SETTINGS_FILE, json.dumps(dataclasses.asdict(settings), indent=2)
    try:
        (partial / _REPORTS).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            files.write_text(path, text)
    except OSError as error:
        raise UserError(f"--out: {partial} cannot be written ({error.strerror}); choose another") from error
    if path.read_text() != text:
        raise UserError(
            f"--out: {partial} was begun with other settings (see {path.name} in it); give those or delete it"
        )
    return partial


def _plan(partial: pathlib.Path, name: str, settings: Settings) -> list[Shard]:
    """All shards of the data set `name`, in order."""
    shards = []
    for split, length in settings.splits.items():
        starts = range(0, length, settings.shard_examples)
        for number, start in enumerate(starts):
            indices = np.arange(start, min(start + settings.shard_examples, length))
            path = tfds_metadata.shard_path(partial, name, split, number, len(starts))
            shards.append(Shard(split, indices, path, partial / _REPORTS / f"{split}-{number:05d}.npz"))
    return shards


def _write_shard(shard: Shard, source: sources.Source, settings: Settings, bar: tqdm.tqdm) -> None:
    """Writes a shard's records in order, decoded and encoded in parallel, then its report."""
    sums, bad = ColourSums.zeros(settings.resize_size), list[str]()

    def records() -> Iterator[bytes]:
        nonlocal sums
        chunks = np.split(shard.indices, range(_CHUNK_EXAMPLES, len(shard.indices), _CHUNK_EXAMPLES))
        with ThreadPoolExecutor(pipeline.threads()) as pool:
            converted = pool.map(lambda chunk: _convert(source, chunk, settings), chunks)
            for chunk_records, chunk_bad, chunk_sums in converted:
                sums += chunk_sums
                bad.extend(chunk_bad)
                yield from chunk_records
                bar.update(len(chunk_records) + len(chunk_bad))

    record_files.write_shard(shard.path, records())
    files.write_npz(shard.report, {**dataclasses.asdict(sums), "bad": np.array(json.dumps(bad))})


def _convert(
    source: sources.Source, indices: np.ndarray, settings: Settings
) -> tuple[list[bytes], list[str], ColourSums]:
    """The records of the examples at `indices`, the names of the bad ones, and the colour sums."""
    records, bad, squares, size = list[bytes](), list[str](), list[np.ndarray](), settings.resize_size
    for data, label, index in zip(*source.read(indices), indices, strict=True):
        name, square = source.name(int(index)), decode.decode_square(data, size)
        if square is None:
            bad.append(name)
            continue
        if not _is_square(data, size):
            data = _jpeg(square, settings.quality)
            square = decode.decode_square(data, size)  # the pixels stored
            assert square is not None  # just written
        squares.append(square)
        values = {"image": data, "label": int(label), "file_name": name.encode()}
        records.append(record_files.encode_example(values))
    return records, bad, ColourSums.of(np.array(squares, np.uint8).reshape(-1, size, size, 3))


def _is_square(data: bytes, size: int) -> bool:
    """Whether an image has the size already, in a form that TFDS reads: such a file is kept as it is."""
    with Image.open(io.BytesIO(data)) as image:
        return image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and image.size == (size, size)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _finish(
    partial: pathlib.Path, name: str, shards: Sequence[Shard], source: sources.Source, settings: Settings
) -> list[str]:
    """Checks the counts, then writes statistics, bad images and metadata: all but the final rename."""
    size = settings.resize_size
    lengths: dict[str, list[int]] = {split: [] for split in settings.splits}
    sums = {split: ColourSums.zeros(size) for split in settings.splits}
    bad: list[str] = []
    for shard in shards:
        with np.load(shard.report, allow_pickle=False) as report:
            shard_sums = ColourSums(int(report["count"]), report["pixels"], report["products"])
            bad += [f"{shard.split}/{image}" for image in json.loads(str(report["bad"]))]
        if record_files.count_records(shard.path) != shard_sums.count:
            raise UserError(f"{shard.path}: some of its records are missing; delete it and start again")
        lengths[shard.split].append(shard_sums.count)
        sums[shard.split] += shard_sums
    for split in settings.splits:
        if not sums[split].count:
            raise UserError(f"data.source={settings.source}: none of the {split} images could be decoded")
    if "train" in sums:
        sums["train"].statistics().save(partial)
    (partial / BAD_IMAGES_FILE).write_text("".join(f"{line}\n" for line in bad), encoding="utf-8")
    tfds_metadata.write_metadata(
        partial,
        name=name,
        shard_lengths=lengths,
        class_ids=source.class_ids,
        class_names=source.class_names,
        image_shape=(size, size, 3),
        encoding="jpeg",
        description=f"{source.description}: shorter side to {size} pixels, central square, "
        f"JPEG quality {settings.quality}.",
    )
    for temporary in partial.glob(".*.tmp"):  # left by a killed process
        temporary.unlink()
    for path in partial.iterdir():
        if path.is_file():
            files.sync(path)
    return bad


def _dataset_name(out: pathlib.Path) -> str:
    """A name that TFDS accepts: letters, digits and underscores, beginning with a letter."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in out.name.lower()).strip("_")
    # Some TFDS names imply particular splits and sizes.
    if not name[:1].isalpha() or name in (*records.TFDS_SIZES, *records.TEST_LABELS_UNPUBLISHED):
        return f"images_{name}".rstrip("_")
    return name


def main(args: argparse.Namespace) -> int:
    """Runs `prepare` from the command line and returns its exit code."""
    given = vars(args)
    out = given["out"]
    try:
        bad = prepare(**given)
    except KeyboardInterrupt:
        print("Stopped. The same command continues from here.", file=sys.stderr)
        return command_line.EXIT_CODES["interrupted"]
    for split in given["splits"]:
        print(sources.open_source(f"prepared:{out}", split).description)
    if bad:
        print(f"{len(bad)} bad images were left out, listed in {out / BAD_IMAGES_FILE}. The first: {bad[0]}")
    print(f"To train on them: --config.data.source={shlex.quote(f'prepared:{out}')}")
    return 0
