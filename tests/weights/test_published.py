"""Downloads of published weights, from a local server."""

import functools
import hashlib
import http.server
import threading

import pytest

from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.weights import published as download

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `w.pth`, which `PUBLISHED["torchvision"]` names; yields the requested paths."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "w.pth").write_bytes(CONTENT)
    requested = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requested.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/w.pth"
        published = download.Published(url, "sha256", hashlib.sha256(CONTENT).hexdigest()[:8])
        monkeypatch.setitem(download.PUBLISHED, "torchvision", published)
        monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
        yield requested
        running.shutdown()


def test_a_file_is_fetched_once_with_progress(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    path = download.fetch("torchvision")
    assert path == tmp_path / "cache" / "w.pth" and path.read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert "\r" not in said and said.splitlines()[-1].startswith("w.pth: 250k/250k B, ")
    assert download.fetch("torchvision") == path
    assert server == ["/w.pth"]


def test_an_altered_download_is_not_kept(server, tmp_path):
    (tmp_path / "served" / "w.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(
        UserError, match=r"the download was cut short or altered .its sha256 begins with .* instead of"
    ):
        download.fetch("torchvision")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline_the_message_says_where_to_put_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path))
    published = download.Published("http://127.0.0.1:9/w.pth", "sha256", "00")
    monkeypatch.setitem(download.PUBLISHED, "torchvision", published)
    with pytest.raises(UserError, match=rf"cannot fetch http.*put it at {tmp_path}/w.pth") as caught:
        download.fetch("torchvision")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_urls_and_hashes():
    assert download.PUBLISHED["torchvision"].file_name == "alexnet-owt-7be5be79.pth"
    assert download.PUBLISHED["torchvision"].digest in download.PUBLISHED["torchvision"].url
    assert {len(p.digest) for p in download.PUBLISHED.values() if p.algorithm == "sha1"} <= {8, 40}
