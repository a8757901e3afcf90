"""Sources: one interface to labelled images in any form.

A source returns encoded bytes and labels by index and knows the classes; it does not decode.
"""

import pathlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alexnet_jax.common import paths
from alexnet_jax.common.errors import UserError, closest, did_you_mean, one_line
from alexnet_jax.common.files import refuse_url
from alexnet_jax.data.folders import FileSource, open_folder
from alexnet_jax.data.kaggle import open_kaggle
from alexnet_jax.data.records import RecordSource, open_tfds
from alexnet_jax.data.statistics import ILSVRC, Statistics
from alexnet_jax.data.tars import open_tars

if TYPE_CHECKING:  # the config imports JAX, which sources do not need
    from alexnet_jax import config as configs

EMBEDDED = pathlib.Path(__file__).parent / "fashion_mnist"
_OPEN_PATH = {"folder": open_folder, "kaggle": open_kaggle, "tars": open_tars, "prepared": RecordSource}
KINDS = ("embedded", "tfds", *_OPEN_PATH)


class Source(Protocol):
    """One split of a set of labelled images, with random access."""

    @property
    def num_classes(self) -> int: ...  # K; labels are 0..K-1
    @property
    def class_names(self) -> tuple[str, ...]: ...  # readable names, by label
    @property
    def class_ids(self) -> tuple[str, ...]: ...  # WordNet ids or folder names, by label; else the names
    @property
    def statistics(self) -> Statistics | None: ...  # of the training split, if known
    @property
    def description(self) -> str: ...  # one line for the log
    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """The encoded images and int32 labels `[n]` at `indices` `[n]`; thread-safe.

        An unreadable image is `b""`, which counts as a bad image.

        Raises:
          Fault: a file has vanished since the source was opened; continuing without it would change the run.
        """
        ...

    def name(self, index: int) -> str:
        """A file name or record id for the log."""
        ...


def open_source(spec: str, split: str, *, data_dir: str | None = None) -> Source:
    """Opens a source by the value of a config's `data.source`.

    Args:
      spec: `embedded`, `tfds:<name>[/<config>][:<version>]`, `folder:<path>`, `kaggle:<path>`,
        `tars:<path>` or `prepared:<path>`.
      split: "train" or "test", whatever the source has for testing, such as ImageNet's validation images.
      data_dir: TFDS's data directory; None for TFDS's default.

    Raises:
      UserError: there is no such source, or it is incomplete.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    try:
        return _open(spec, split, data_dir)
    except UserError as error:
        raise UserError(f"data.source={spec}: {error}") from error
    except (OSError, UnicodeError) as error:
        raise UserError(f"data.source={spec}: cannot be read ({one_line(error)})") from error


def _open(spec: str, split: str, data_dir: str | None) -> Source:
    kind, _, name = spec.partition(":")
    if kind not in KINDS:
        refuse_url(spec)
        if "/" in spec or pathlib.Path(spec).is_dir():
            raise UserError(f"begin with the kind of source: {_kind_of(pathlib.Path(spec))}:{spec}")
        raise UserError(f"no such kind of source; {did_you_mean(kind, KINDS)}")
    if kind == "embedded":
        return RecordSource(EMBEDDED, split)
    if not name:
        raise UserError(f"name one after the colon, as in {kind}:{'cifar10' if kind == 'tfds' else 'PATH'}")
    if kind == "tfds":
        return open_tfds(name, split, None if data_dir is None else str(paths.expanded(data_dir)))
    refuse_url(name)
    path = paths.expanded(name)
    if path.is_file():
        raise UserError(f"{path} is a file; give the folder")
    if not path.exists():
        raise UserError(f"{path} does not exist; {_suggest_path(path)}")
    return _OPEN_PATH[kind](path, split)


def _kind_of(path: pathlib.Path) -> str:
    """The kind of source that a path looks like: `folder`, unless its files say otherwise."""
    signs = (("prepared", "dataset_info.json"), ("tars", "ILSVRC*.tar"), ("kaggle", "ILSVRC"))
    return next((kind for kind, sign in signs if any(path.expanduser().glob(sign))), "folder")


def _suggest_path(path: pathlib.Path) -> str:
    parent = next(p for p in path.absolute().parents if p.exists())
    close = closest(path.name, [other.name for other in parent.iterdir()])
    return f"did you mean {parent / close}?" if close else f"the nearest existing folder is {parent}"


# --- From a config --------------------------------------------------------------------------------


def open_configured(data: "configs.DataConfig", split: str) -> Source:
    """The `train` or `test` images of a config.

    Raises:
      UserError: there is no such source, it is incomplete, or it has a different number of classes.
    """
    source = open_source(data.source, split, data_dir=data.data_dir)
    absent = source.absent if isinstance(source, FileSource) else frozenset[int]()
    if len(absent) > data.max_bad_fraction * len(source):
        raise UserError(
            f"data.source={data.source}: {len(absent):,} of {len(source):,} {split} images are missing, more "
            f"than data.max_bad_fraction={data.max_bad_fraction}, such as {source.name(min(absent))}; unpack "
            "the archive again"
        )
    found = source.num_classes
    if data.num_classes not in (None, found):
        raise UserError(f"data.num_classes={data.num_classes}: give {found}, the classes of {data.source}")
    return source


def statistics_of(source: Source) -> Statistics:
    """The source's own statistics, else the authors' for ILSVRC."""
    return ILSVRC if source.statistics is None else source.statistics
