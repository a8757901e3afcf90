"""Published weights by name: fetched once, checked, kept."""

import dataclasses
import hashlib
import pathlib
import urllib.error
import urllib.request

from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing


@dataclasses.dataclass(frozen=True)
class Published:
    """Where a file lies and how its hash begins."""

    url: str
    algorithm: str
    digest: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


PUBLISHED = {
    # torchvision keeps the beginning of the SHA-256 in the name.
    "torchvision": Published(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "sha256", "7be5be79"
    ),
    # Caffe's model zoo lists SHA-1.
    "caffe": Published(
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
    """The path of the published weights `name`, a key of `PUBLISHED`, fetched where they are not yet here.

    Raises:
      UserError: they cannot be fetched, or are not what was published.
    """
    published = PUBLISHED[name]
    path = host.cache_directory() / published.file_name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _download(published, temporary, path)
            _check(published, temporary, f"{published.url}: what came")
    return path


def _download(published: Published, temporary: pathlib.Path, path: pathlib.Path) -> None:
    try:
        with (
            urllib.request.urlopen(published.url, timeout=_TIMEOUT_SECONDS) as response,
            open(temporary, "wb") as file,
            progress.bar(
                int(response.headers.get("Content-Length", 0)) or None,
                "B",
                published.file_name,
                unit_scale=True,
                unit_divisor=1024,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot fetch {published.url} ({reason}); fetch it on a machine that can and put it at {path}"
        ) from error


def _check(published: Published, temporary: pathlib.Path, what: str) -> None:
    with open(temporary, "rb") as file:
        digest = hashlib.file_digest(file, published.algorithm).hexdigest()
    if not digest.startswith(published.digest):
        raise UserError(
            f"{what} has the {published.algorithm} {digest[: len(published.digest)]}... instead of "
            f"{published.digest}; the download was cut short or changed on its way, so try again"
        )
