"""Downloads published weights by name, checks them and keeps them in the cache directory."""

import dataclasses
import hashlib
import pathlib
import urllib.request

from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing


@dataclasses.dataclass(frozen=True)
class Published:
    """A file's URL, the algorithm of its hash, and the first digits of that."""

    url: str
    algorithm: str
    digest: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


PUBLISHED = {
    "torchvision": Published(  # the file name contains the first digits
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "sha256", "7be5be79"
    ),
    "caffe": Published(  # these digits are from Caffe's model zoo
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
        "sha1",
        "9116a64c0fbe4459d18f4bb6b56d647b63920377",
    ),
    "caffenet": Published(
        "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel", "sha1", "4c8d77de"
    ),
}
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30


def fetch(name: str) -> pathlib.Path:
    """The path of the published weights `name`, a key of `PUBLISHED`; downloads them if not cached.

    Raises:
      UserError: the download fails or does not match the hash.
    """
    published = PUBLISHED[name]
    path = host.cache_directory() / published.file_name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            digest = _download(published, temporary)
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(
                f"cannot fetch {published.url} ({reason}); download it elsewhere and put it at {path}"
            ) from error
        if not digest.startswith(published.digest):
            raise UserError(
                f"{published.url}: the download was cut short or altered (its {published.algorithm} begins "
                f"with {digest[: len(published.digest)]} instead of {published.digest}); try again"
            )
    return path


def _download(published: Published, path: pathlib.Path) -> str:
    """Downloads the file to `path`, with a progress bar; returns its hash."""
    digest = hashlib.new(published.algorithm)
    with (
        urllib.request.urlopen(published.url, timeout=_TIMEOUT_SECONDS) as response,
        open(path, "wb") as file,
    ):
        total = int(response.headers.get("Content-Length", 0)) or None
        with progress.bar(total, "B", published.file_name, unit_scale=True, unit_divisor=1024) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    return digest.hexdigest()
