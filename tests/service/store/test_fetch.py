import os
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from service.errors import BodyTooLarge, StorageUnavailable
from service.store.fetch import UrlNotAllowed, fetch
from tests.service.store.conftest import serving

DATA = bytes(range(256)) * 20_000
LIMIT = len(DATA)


class Files(BaseHTTPRequestHandler):
    """Serves DATA, with traps: `moved` leads to another path, `liar` announces no size, `cut` sends half."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.rsplit("/", 1)[1]
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        if name != "liar":
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        with suppress(ConnectionError):  # a reader that has enough hangs up
            self.wfile.write(DATA[: LIMIT // 2] if name == "cut" else DATA)

    def log_message(self, *args: object) -> None: ...


class Web:
    def __init__(self, root: str, asked: list[str]) -> None:
        self.root, self.asked = root, asked


@pytest.fixture
def web() -> Iterator[Web]:
    asked: list[str] = []
    handler = type("Handler", (Files,), {"asked": asked})
    with serving(handler) as root:
        yield Web(root, asked)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


@pytest.mark.parametrize("path", ["/models/a.tar", "/models/deep/er/a.tar", "/models/a%20b%C3%BC%3F%23.tar"])
def test_an_allowed_url_is_downloaded(web: Web, into: Path, path: str) -> None:
    fetched = fetch(web.root + path, allowed=["https://elsewhere", f"{web.root}/models"], limit=LIMIT, into=into)
    assert fetched.read_bytes() == DATA
    assert fetched.parent == into
    assert web.asked == [path]


@pytest.mark.parametrize("prefix", ["", "/", "/models", "/models/", "/models/a.tar", "/m%6Fdels"])
def test_a_prefix_ends_at_a_segment(web: Web, into: Path, prefix: str) -> None:
    assert fetch(f"{web.root}/models/a.tar", allowed=[web.root + prefix], limit=LIMIT, into=into).exists()


@pytest.mark.parametrize("name", ["a.tar", "a b+ü?#.tar"])
def test_an_object_of_a_bucket_is_downloaded(bucket: str, into: Path, name: str) -> None:
    store = from_url(bucket, client_options={"allow_http": True})
    obstore.put(store, f"models/{name}", DATA)
    escaped = name.replace(" ", "%20").replace("ü", "%C3%BC").replace("?", "%3f").replace("#", "%23")
    url = f"{bucket}/models/{escaped}"
    assert fetch(url, allowed=[bucket.upper()], limit=LIMIT, into=into).read_bytes() == DATA
    with pytest.raises(UrlNotAllowed):
        fetch(url, allowed=[f"{bucket}-2", f"{bucket}/model"], limit=LIMIT, into=into)


def test_a_file_is_taken_from_below_its_prefix(tmp_path: Path, into: Path) -> None:
    (tmp_path / "shared" / "deep").mkdir(parents=True)
    (tmp_path / "shared" / "deep" / "a b.tar").write_bytes(DATA)
    (tmp_path / "shared" / "link.tar").symlink_to("deep/a b.tar")
    (tmp_path / "entry").symlink_to("shared")
    for folder, name in (("shared", "deep/a b.tar"), ("shared", "link.tar"), ("entry", "link.tar")):
        prefix = (tmp_path / folder).as_uri()
        fetched = fetch(f"{prefix}/{name.replace(' ', '%20')}", allowed=[prefix], limit=LIMIT, into=into)
        assert fetched.read_bytes() == DATA


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_prefix_is_not_followed(tmp_path: Path, into: Path, link: str) -> None:
    (tmp_path / "shared-not").mkdir()
    (tmp_path / "shared-not" / "secret").write_bytes(b"secret")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").symlink_to(tmp_path / "shared-not" / "secret")
    (tmp_path / "shared" / "folder").symlink_to("../shared-not")
    url = (tmp_path / "shared").as_uri() + ("/file" if link == "file" else "/folder/secret")
    with pytest.raises(UrlNotAllowed, match="link"):
        fetch(url, allowed=[(tmp_path / "shared").as_uri()], limit=LIMIT, into=into)


def test_what_is_no_plain_file_is_refused(tmp_path: Path, into: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("folder", "pipe", "circle", "missing"):
        with pytest.raises(StorageUnavailable, match=name if name != "circle" else "circle"):
            fetch(f"{tmp_path.as_uri()}/{name}", allowed=[tmp_path.as_uri()], limit=LIMIT, into=into)


REFUSED = [
    "https://a.b/models-evil/x",
    "https://a.b/model",
    "https://a.b/models/",
    "https://a.b/",
    "https://a.b.evil/models/x",
    "https://evil/models/x",
    "https://evil/https://a.b/models/x",
    "https://a.b:8443/models/x",
    "http://a.b/models/x",
    "ftp://a.b/models/x",
    "s3://a.b/models/x",
    "//a.b/models/x",
    "a.b/models/x",
    "",
    "https://a.b@evil/models/x",
    "https://user:word@a.b/models/x",
    "https://a.b\\@evil/models/x",
    "https://evil\\.a.b/models/x",
    "https://a.b/models/../secret",
    "https://a.b/models/%2e%2e/secret",
    "https://a.b/models/%2E./secret",
    "https://a.b/models/%252e%252e/secret",
    "https://a.b/models/./x",
    "https://a.b/models/..%2fsecret",
    "https://a.b/models%2Fx",
    "https://a.b/models//x",
    "https://a.b//models/x",
    "https://a.b/models\\..\\secret",
    "https://a.b/models/..%5csecret",
    "https://a.b/models/x%00.tar",
    "https://a.b/models/x%0d%0aHost:evil",
    "https://a.b/models/x%zz",
    "https://a.b/models/x%ff",
    "https://a.b/models/x?y=z",
    "https://a.b/models/x?",
    "https://a.b/models/x#y",
    "https://a.b/models/x#",
    "https://a.b/mod\tels/x",
    " https://a.b/models/x",
    "https://a.b/models/x\n",
    "https://a.b/models/ü",
    "https://\uff41.b/models/x",
    "https://a%2eb/models/x",
    "https://a.b:port/models/x",
    "https://[a.b/models/x",
    "https:///models/x",
    "file://a.b/models/x",
    "file:///models/x",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_only_looks_allowed_is_refused(url: str, into: Path) -> None:
    with pytest.raises(UrlNotAllowed):
        fetch(url, allowed=["https://a.b/models", "s3://bucket/models"], limit=LIMIT, into=into)


@pytest.mark.parametrize("url", ["HTTPS://A.B/models/x", "https://a.b:443/models/x", "https://a.b:0443/%6dodels/x"])
def test_the_same_place_in_another_spelling_is_allowed(url: str, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # a closed port: the download fails, the check does not
    with pytest.raises(StorageUnavailable, match="cannot be downloaded"):
        fetch(url, allowed=["https://a.b/models"], limit=LIMIT, into=into)


def test_without_prefixes_nothing_is_allowed_and_the_setting_is_named(web: Web, into: Path) -> None:
    with pytest.raises(UrlNotAllowed, match="EQUIPOISE_BUNDLE_URL_PREFIXES"):
        fetch(f"{web.root}/models/a.tar", allowed=[], limit=LIMIT, into=into)
    assert web.asked == []


def test_a_redirect_is_not_followed(web: Web, into: Path) -> None:
    with pytest.raises(StorageUnavailable, match="not followed"):
        fetch(f"{web.root}/models/moved", allowed=[f"{web.root}/models"], limit=LIMIT, into=into)
    assert web.asked == ["/models/moved"]


@pytest.mark.parametrize("name", ["a.tar", "liar"])
def test_more_than_the_limit_is_refused_and_nothing_is_left(web: Web, into: Path, name: str) -> None:
    with pytest.raises(BodyTooLarge, match=str(LIMIT - 1)):
        fetch(f"{web.root}/{name}", allowed=[web.root], limit=LIMIT - 1, into=into)
    assert list(into.iterdir()) == []
    assert fetch(f"{web.root}/{name}", allowed=[web.root], limit=LIMIT, into=into).read_bytes() == DATA


def test_an_announced_size_above_the_limit_is_refused_before_the_download(web: Web, into: Path) -> None:
    with pytest.raises(BodyTooLarge):  # and not because half of it is missing
        fetch(f"{web.root}/cut", allowed=[web.root], limit=LIMIT - 1, into=into)


def test_the_limit_holds_for_files_and_buckets_too(bucket: str, tmp_path: Path, into: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    obstore.put(from_url(bucket, client_options={"allow_http": True}), "a.tar", DATA)
    for root in (tmp_path.as_uri(), bucket):
        with pytest.raises(BodyTooLarge):
            fetch(f"{root}/a.tar", allowed=[root], limit=LIMIT - 1, into=into)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "cut"])
def test_what_cannot_be_had_whole_is_unavailable_and_nothing_is_left(web: Web, into: Path, name: str) -> None:
    with pytest.raises(StorageUnavailable, match="cannot be downloaded"):
        fetch(f"{web.root}/{name}", allowed=[web.root], limit=LIMIT, into=into)
    assert list(into.iterdir()) == []


def test_a_place_that_is_down_or_has_no_such_object_is_unavailable(web: Web, bucket: str, into: Path) -> None:
    for root in ("http://127.0.0.1:9", bucket, "az://container"):
        with pytest.raises(StorageUnavailable, match="cannot be downloaded"):
            fetch(f"{root}/a.tar", allowed=[root], limit=LIMIT, into=into)
