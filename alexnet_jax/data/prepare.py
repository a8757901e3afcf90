"""Any source to prepared records: a TFDS directory of square JPEGs and the statistics of their colours.

    python -m alexnet_jax prepare --source=folder:PHOTOS --out=PREPARED

What takes most of the time of reading ImageNet, decoding large photographs and scaling them down, is done
once. A run that was stopped, in whatever way, goes on where it was: shards are finished one at a time in
`OUT.partial`, which becomes `OUT` when all are there and their counts were checked.
"""

import dataclasses
import io
import json
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from alexnet_jax.common import command_line, files, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline, records, sources
from alexnet_jax.data.colour_sums import ColourSums
from alexnet_jax.data.decode import decode_square

BAD_IMAGES_FILE = "bad_images.txt"
_SETTINGS_FILE = "settings.json"
_REPORTS = "reports"
_CHUNK_EXAMPLES = 16  # what one thread reads, decodes and encodes at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes that are written; a stopped run goes on only with the same."""

    source: str
    splits: dict[str, int]  # number of examples of the source, by split
    image_size: int
    quality: int
    shard_examples: int

    def shards(self, split: str) -> int:
        return -(-self.splits[split] // self.shard_examples)

    def indices(self, split: str, shard: int) -> np.ndarray:
        first = shard * self.shard_examples
        return np.arange(first, min(first + self.shard_examples, self.splits[split]))


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What is known of a finished shard, kept beside it until all are."""

    sums: ColourSums
    bad: list[str]  # names of the images that could not be decoded

    def save(self, path: pathlib.Path) -> None:
        files.write_npz(path, {**dataclasses.asdict(self.sums), "bad": np.array(json.dumps(self.bad))})

    @classmethod
    def load(cls, path: pathlib.Path) -> "ShardReport":
        with np.load(path, allow_pickle=False) as arrays:
            sums = ColourSums(int(arrays["count"]), arrays["pixels"], arrays["products"])
            return cls(sums, json.loads(str(arrays["bad"])))


def prepare(
    source: str,
    out: pathlib.Path,
    *,
    data_dir: str | None = None,
    splits: Sequence[str] = ("train", "test"),
    image_size: int = 256,
    quality: int = 95,
    shard_examples: int = 1250,
) -> list[str]:
    """Makes the directory `out` of prepared records from a source, or goes on making it.

    The shorter side of each image is brought to `image_size` with antialiasing and the central square
    stored, as section 2 of the paper has it. Images that cannot be decoded are left out and listed in
    `bad_images.txt`. The statistics are those of the stored training images.

    Args:
      source: as `data.source` in a config.
      out: the directory to make.
      data_dir: where TFDS keeps its data sets.
      splits: of "train" and "test".
      image_size: side of the squares in pixels.
      quality: of the JPEGs, 1-100.
      shard_examples: images in a file.

    Returns:
      The names of the bad images, each with its split before it.

    Raises:
      UserError: a setting makes no sense, the source cannot be opened, `out` exists or cannot be written,
        or was begun with other settings.
    """
    if not (1 <= quality <= 100 and image_size >= 1 and shard_examples >= 1):
        raise UserError("--quality must be 1 to 100, --image_size and --shard_examples at least 1")
    if out.exists():
        raise UserError(f"--out: {out} exists already; delete it or choose another")
    opened = {split: sources.open_source(source, split, data_dir=data_dir) for split in splits}
    lengths = {split: len(opened[split]) for split in splits}
    settings = Settings(source, lengths, image_size, quality, shard_examples)
    partial = _begin(out, settings)
    name = _dataset_name(out)
    shards = [(split, shard) for split in splits for shard in range(settings.shards(split))]

    def path(split: str, shard: int) -> pathlib.Path:
        return records.shard_path(partial, name, split, shard, settings.shards(split))

    # A report is written after its shard: where it is, the shard is whole.
    to_do = [
        shard for shard in shards if not (_report_path(partial, *shard).exists() and path(*shard).exists())
    ]
    total, left = (sum(len(settings.indices(*shard)) for shard in some) for some in (shards, to_do))
    with progress.bar(total, "image", f"preparing {out.name}", initial=total - left) as bar:
        for split, shard in to_do:
            indices = settings.indices(split, shard)
            report = _write_shard(path(split, shard), opened[split], indices, image_size, quality, bar)
            report.save(_report_path(partial, split, shard))
    bad = _finish(partial, name, settings, opened)
    partial.rename(out)
    shutil.rmtree(out / _REPORTS)  # after the name: killed before it, nothing is to be done again
    (out / _SETTINGS_FILE).unlink()
    return bad


def _begin(out: pathlib.Path, settings: Settings) -> pathlib.Path:
    """Makes `out`'s partial directory, or checks that it was begun with the same settings."""
    partial = out.with_name(out.name + ".partial")
    path = partial / _SETTINGS_FILE
    text = json.dumps(dataclasses.asdict(settings), indent=2)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            files.write_text(path, text)
    except OSError as error:
        raise UserError(
            f"--out: {partial} cannot be written ({error.strerror}); choose another place"
        ) from error
    if path.read_text() != text:
        raise UserError(
            f"--out: {partial} was begun with other settings (see its {_SETTINGS_FILE}); "
            "delete it, or give the same settings to go on"
        )
    return partial


def _write_shard(
    path: pathlib.Path,
    source: sources.Source,
    indices: np.ndarray,
    image_size: int,
    quality: int,
    bar: tqdm.tqdm,
) -> ShardReport:
    """Writes the records of `indices`, decoded and encoded in parallel, in their order."""
    sums, bad = ColourSums.zeros(image_size), []

    def chunk(first: int) -> tuple[list[tuple[str, int, bytes | None]], ColourSums]:
        some = indices[first : first + _CHUNK_EXAMPLES]
        encoded, labels = source.read(some)
        its_sums, results = ColourSums.zeros(image_size), []
        for index, data, label in zip(some, encoded, labels, strict=True):
            square = _square_jpeg(data, image_size, quality, its_sums)
            results.append((source.name(int(index)), int(label), square))
        return results, its_sums

    def examples() -> Iterator[bytes]:
        with ThreadPoolExecutor(pipeline.threads()) as pool:
            for results, its_sums in pool.map(chunk, range(0, len(indices), _CHUNK_EXAMPLES)):
                sums.add(its_sums)
                for name, label, data in results:
                    if data is None:
                        bad.append(name)
                    else:
                        yield records.encode_example(
                            {"image": data, "label": label, "file_name": name.encode()}
                        )
                    bar.update()

    records.write_shard(path, examples())
    return ShardReport(sums, bad)


def _square_jpeg(data: bytes, image_size: int, quality: int, sums: ColourSums) -> bytes | None:
    """The central square as a JPEG, None for a bad image; what it decodes to is added to `sums`."""
    image = decode_square(data, image_size)
    if image is None:
        return None
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    stored = decode_square(out.getvalue(), image_size)
    assert stored is not None  # it was encoded a line ago
    sums.add(ColourSums.of(stored))
    return out.getvalue()


def _finish(
    partial: pathlib.Path, name: str, settings: Settings, opened: dict[str, sources.Source]
) -> list[str]:
    """Checks the counts, then writes statistics, bad images and metadata; what is left is to name it."""
    lengths: dict[str, list[int]] = {}
    bad: list[str] = []
    for split in settings.splits:
        reports = [ShardReport.load(_report_path(partial, split, i)) for i in range(settings.shards(split))]
        lengths[split] = [report.sums.count for report in reports]
        sums = ColourSums.zeros(settings.image_size)
        for shard, report in enumerate(reports):
            path = records.shard_path(partial, name, split, shard, len(reports))
            if records.count(path) != report.sums.count:
                raise UserError(
                    f"{path}: holds another number of records than were written; delete it and go on"
                )
            sums.add(report.sums)
            bad += [f"{split}/{name}" for name in report.bad]
        if not sums.count:
            raise UserError(f"data.source={settings.source}: none of the {split} images could be decoded")
        if split == "train":
            sums.statistics().save(partial)
    source = next(iter(opened.values()))
    (partial / BAD_IMAGES_FILE).write_text("".join(f"{line}\n" for line in bad), encoding="utf-8")
    records.write_info(
        partial,
        name=name,
        shard_lengths=lengths,
        class_ids=source.class_ids,
        class_names=source.class_names,
        image_shape=(settings.image_size, settings.image_size, 3),
        encoding="jpeg",
        description=(
            f"{source.description}: shorter side to {settings.image_size} pixels, central square, "
            f"JPEG quality {settings.quality}."
        ),
    )
    for left_by_a_kill in partial.glob(".*.tmp"):
        left_by_a_kill.unlink()
    for path in partial.iterdir():
        if path.is_file():
            files.sync(path)
    return bad


def _report_path(partial: pathlib.Path, split: str, shard: int) -> pathlib.Path:
    directory = partial / _REPORTS
    directory.mkdir(exist_ok=True)
    return directory / f"{split}-{shard:05d}.npz"


def _dataset_name(out: pathlib.Path) -> str:
    """A name that TFDS takes: letters, digits and underscores, the first a letter."""
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in out.name.lower()).strip("_")
    # Of TFDS's own set of that name other splits and sizes would be expected.
    if not name[:1].isalpha() or name in (*sources.TFDS_SIZES, *sources.TEST_LABELS_UNPUBLISHED):
        return f"images_{name}".rstrip("_")
    return name


def _flags(argv: Sequence[str] | None) -> dict[str, Any]:
    parser = command_line.Parser("alexnet_jax prepare", __doc__)
    parser.add_argument("--source", required=True, help="what to prepare, as data.source in a config")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the directory to make")
    parser.add_argument("--data_dir", help="where TFDS keeps its data sets")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "test"],
        choices=["train", "test"],
        help="which, by default both",
    )
    parser.add_argument("--image_size", type=int, default=256, help="side of the squares in pixels (256)")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs, 1 to 100 (95)")
    parser.add_argument("--shard_examples", type=int, default=1250, help="images in a file (1250)")
    return vars(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `prepare` from the command line and gives its exit code."""
    given = _flags(argv)
    out = given["out"] = given["out"].expanduser()
    try:
        bad = prepare(**given)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return command_line.EXIT_CODES["interrupted"]
    for split in given["splits"]:
        print(sources.open_source(f"prepared:{out}", split).description)
    if bad:
        print(f"{len(bad)} bad images were left out; {out / BAD_IMAGES_FILE} lists them. The first: {bad[0]}")
    print(f"To train on them: --config.data.source=prepared:{out}")
    return 0
