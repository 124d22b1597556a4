"""`POST /v1/models`: bundles sent or fetched, tried before they are known, and refused without a trace."""

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import ModelProto

from models.calibration.manifest import MODEL_FILE
from tests.service.api.asking import LOGITS, MODEL, SCORES, history, live, refused, scores
from tests.service.bundles import Made, edit_manifest
from tests.service.conftest import Service, names, png

Make = Callable[..., Made]
Start = Callable[..., Service]


def tarred(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


def register(service: Service, data: bytes, **params: str) -> httpx.Response:
    return service.post("/v1/models", content=data, params=params, headers={"content-type": "application/x-tar"})


def by_url(service: Service, url: str) -> httpx.Response:
    return service.post("/v1/models", json={"url": url})


def nothing_came_of_it(service: Service, tmp_path: Path) -> None:
    assert service.get("/v1/models").json() == {"models": []}
    assert [path.name for path in (tmp_path / "state").iterdir() if path.name.startswith("upload-")] == []


@pytest.fixture
def empty(make_service: Start) -> Service:
    return make_service()


# Sent


@pytest.mark.parametrize("how", ["raw", "form"])
def test_a_bundle_that_is_sent_is_live_at_once(empty: Service, pets: Made, pixels: np.ndarray, how: str) -> None:
    data = tarred(pets.path)
    answer = register(empty, data) if how == "raw" else empty.post("/v1/models", files={"file": ("pets.tar", data)})
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"'), answer.text
    assert answer.json() == {
        "model": "pets",
        "version": "1",
        "known": False,
        "revision": 1,
        "warnings": [],
        "active": live(empty),
        "undo": None,
    }
    got = empty.post(SCORES, content=png(pixels[0]))
    np.testing.assert_allclose(scores(got), pets.scores(pets.raw(pixels[:1])), atol=1e-6)


def test_a_known_bundle_changes_nothing(empty: Service, pets: Made) -> None:
    register(empty, tarred(pets.path))
    again = register(empty, tarred(pets.path))
    assert (again.status_code, again.json()["known"], again.json()["version"]) == (200, True, "1")
    assert "known version" in again.json()["warnings"][0]
    assert len(history(empty)) == 1


@pytest.mark.parametrize("activate", ["true", "false"])
def test_a_new_version_goes_live_only_where_the_request_says_so(
    make_bundle: Make, empty: Service, activate: str
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    register(empty, tarred(old.path))
    before = empty.post(SCORES, json={"logits": LOGITS}).content
    answer = register(empty, tarred(new.path), activate=activate)
    assert (answer.status_code, answer.json()["version"]) == (201, "2")
    assert [row["version"] for row in empty.get(MODEL).json()["versions"]] == ["1", "2"]
    if activate == "true":
        assert live(empty)["version"] == "2"
        assert empty.post(answer.json()["undo"]["href"]).json()["active"]["version"] == "1"
    else:
        assert (live(empty)["version"], answer.json()["undo"]) == ("1", None)
        assert empty.post(SCORES, json={"logits": LOGITS}).content == before
        asked = empty.post(SCORES, json={"logits": LOGITS}, params={"version": "2"})
        np.testing.assert_allclose(scores(asked), new.scores(np.array(LOGITS)), atol=1e-12)


# Refused


def cut_off(pets: Made) -> bytes:
    return tarred(pets.path)[:3000]


def without_the_graph(pets: Made) -> bytes:
    (pets.path / MODEL_FILE).unlink()
    return tarred(pets.path)


def with_a_changed_graph(pets: Made) -> bytes:
    (pets.path / MODEL_FILE).write_bytes(b"another graph")
    return tarred(pets.path)


def with_many_members(pets: Made) -> bytes:
    for number in range(200):
        (pets.path / f"{number}.txt").touch()
    return tarred(pets.path)


def with_a_climbing_member(pets: Made) -> bytes:
    buffer = io.BytesIO(tarred(pets.path))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        archive.addfile(tarfile.TarInfo("pets/../../outside"))
    return buffer.getvalue()


def with_a_huge_header(pets: Made) -> bytes:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 8**11 - 1
    return header.tobuf(tarfile.USTAR_FORMAT) + tarred(pets.path)


def compressed(pets: Made) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(pets.path, "pets")
    return buffer.getvalue()


def with_an_unsound_name(pets: Made) -> bytes:
    edit_manifest(pets.path, lambda document: document.update(name="../pets"))
    return tarred(pets.path)


def with_a_file_from_elsewhere(pets: Made) -> bytes:
    edit_manifest(pets.path, lambda document: document["files"].update({"../secret": "0" * 64}))
    return tarred(pets.path)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (cut_off, ""),
        (without_the_graph, "model.onnx, which is missing"),
        (with_a_changed_graph, "SHA-256"),
        (with_many_members, "members"),
        (with_a_climbing_member, "climbs out"),
        (with_a_huge_header, "header is larger"),
        (compressed, "uncompressed .tar"),
        (with_an_unsound_name, "model's name"),
        (with_a_file_from_elsewhere, "by plain name"),
        (lambda pets: b"not an archive", "uncompressed .tar"),
    ],
)
def test_an_archive_that_is_no_sound_bundle_is_refused(
    empty: Service, pets: Made, tmp_path: Path, spoil: Callable[[Made], bytes], word: str
) -> None:
    answer = register(empty, spoil(pets))
    refused(answer, 422, "invalid-bundle", "the upload is not a sound bundle", word)
    assert str(tmp_path) not in answer.text  # where the service keeps its files is nobody's business
    nothing_came_of_it(empty, tmp_path)


def test_a_graph_that_does_not_run_leaves_no_trace(
    make_bundle: Make, make_service: Start, pets: Made, tmp_path: Path
) -> None:
    def wrong_shape(graph: ModelProto) -> None:
        graph.graph.initializer[2].dims[:] = [7, graph.graph.initializer[2].dims[1]]

    broken = make_bundle("broken", seed=2, edit_graph=wrong_shape)
    service = make_service(pets)
    before = service.post(SCORES, json={"logits": LOGITS}).content
    refused(register(service, tarred(broken.path)), 422, "invalid-bundle")
    refused(register(service, tarred(broken.path), activate="false"), 422, "invalid-bundle")
    assert (len(history(service)), len(service.get(MODEL).json()["versions"])) == (1, 1)
    assert service.post(SCORES, json={"logits": LOGITS}).content == before
    fresh = make_service(state_dir=tmp_path / "other")
    refused(register(fresh, tarred(broken.path)), 422, "invalid-bundle")
    assert fresh.get("/v1/models").json() == {"models": []}


def test_an_upload_over_the_limit_is_refused(make_service: Start, pets: Made, tmp_path: Path) -> None:
    service = make_service(max_upload_bytes=5000)
    refused(register(service, tarred(pets.path)), 413, "body-too-large", "EQUIPOISE_MAX_UPLOAD_BYTES")
    nothing_came_of_it(service, tmp_path)


def test_a_disk_that_takes_no_upload_is_no_defect_of_the_service(
    make_service: Start, pets: Made, tmp_path: Path
) -> None:
    urls = {"database_url": f"sqlite:///{tmp_path / 'a.db'}", "artifacts_url": (tmp_path / "artifacts").as_uri()}
    service = make_service(**urls)
    (tmp_path / "state").rename(tmp_path / "aside")
    refused(register(service, tarred(pets.path)), 503, "storage-unavailable", "nothing was changed")
    (tmp_path / "aside").rename(tmp_path / "state")
    assert register(service, tarred(pets.path)).status_code == 201


# By URL


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder over HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def shelf(tmp_path: Path, pets: Made) -> Path:
    folder = tmp_path / "shelf"
    (folder / "allowed").mkdir(parents=True)
    for name in ("allowed/pets.tar", "secret.tar"):
        (folder / name).write_bytes(tarred(pets.path))
    (folder / "allowed" / "broken.tar").write_bytes(b"not an archive")
    return folder


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_bundle_is_fetched_from_under_an_allowed_prefix(
    make_service: Start, shelf: Path, tmp_path: Path, scheme: str
) -> None:
    with served(shelf) as http:
        root = http if scheme == "http" else shelf.as_uri()
        service = make_service(bundle_url_prefixes=(f"{root}/allowed",))
        answer = by_url(service, f"{root}/allowed/pets.tar")
        assert (answer.status_code, answer.json()["version"]) == (201, "1"), answer.text
        assert by_url(service, f"{root}/allowed/pets.tar").json()["known"] is True
        refused(by_url(service, f"{root}/secret.tar"), 422, "url-not-allowed", "allowed")
        refused(by_url(service, f"{root}/allowed/../secret.tar"), 422, "url-not-allowed")
        refused(by_url(service, f"{root}/allowed/broken.tar"), 422, "invalid-bundle", f"{root}/allowed/broken.tar")
        refused(by_url(service, f"{root}/allowed/nowhere.tar"), 503, "storage-unavailable", "nowhere.tar")
    assert names(service.get("/v1/models").json()["models"]) == ["pets"]
    assert list((tmp_path / "state").glob("**/bundle-*.tar")) == []


def test_without_a_prefix_no_url_is_fetched(empty: Service, shelf: Path, tmp_path: Path) -> None:
    url = (shelf / "allowed" / "pets.tar").as_uri()
    refused(by_url(empty, url), 422, "url-not-allowed", "EQUIPOISE_BUNDLE_URL_PREFIXES")
    nothing_came_of_it(empty, tmp_path)


@pytest.mark.parametrize("body", [b"{", b"{}", b"[]", b'{"url": 5}', b'{"url": "s3://b/x.tar", "name": "x"}'])
def test_a_json_body_that_tells_no_url_is_refused(empty: Service, body: bytes) -> None:
    answer = empty.post("/v1/models", content=body, headers={"content-type": "application/json; charset=utf-8"})
    refused(answer, 422, "invalid-request", "URL of a bundle")
