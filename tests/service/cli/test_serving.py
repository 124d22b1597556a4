"""The commands that serve models and score images."""

import socket
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.service.bundles import write_bundle
from tests.service.cli.commands import image_file
from tests.service.conftest import running


class TestServe:
    def test_a_setting_that_is_none(self, equipoise, monkeypatch):
        monkeypatch.setenv("EQUIPOISE_WORKERS", "-1")
        ran = equipoise("serve")
        assert ran.code == 1
        assert "error: EQUIPOISE_WORKERS: Input should be greater than or equal to 0" in ran.err

    @pytest.mark.parametrize(
        ("text", "words"),
        [("s3://bucket", "is a JSON list"), ('["s3://bucket", "ftp://host"]', "got 'ftp://host'")],
    )
    def test_prefixes_that_are_none(self, equipoise, monkeypatch, tmp_path, text, words):
        monkeypatch.setenv("EQUIPOISE_BUNDLE_URL_PREFIXES", text)
        ran = equipoise("serve", "--state-dir", tmp_path / "state")
        assert ran.code == 1
        assert "error: EQUIPOISE_BUNDLE_URL_PREFIXES" in ran.err
        assert words in ran.err

    def test_a_port_in_use(self, equipoise, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            ran = equipoise("serve", "--port", taken.getsockname()[1], "--state-dir", tmp_path / "state")
        assert ran.code == 1
        assert "cannot listen" in ran.err

    def test_a_state_folder_that_cannot_be_made(self, equipoise, tmp_path):
        (tmp_path / "file").touch()
        ran = equipoise("serve", "--port", 0, "--state-dir", tmp_path / "file" / "state")
        assert ran.code == 1
        assert "EQUIPOISE_STATE_DIR" in ran.err

    def test_a_port_that_is_none_is_wrong_usage(self, equipoise):
        assert equipoise("serve", "--port", 99999).code == 2

    def test_a_damaged_bundle(self, equipoise, tmp_path):
        made = write_bundle(tmp_path / "bundle")
        (made.path / "model.onnx").write_bytes(b"garbage")
        ran = equipoise("serve", made.path, "--port", 0, "--state-dir", tmp_path / "state")
        assert ran.code == 1
        assert "SHA-256" in ran.err

    def test_beyond_loopback_only_when_told_so(self, equipoise, tmp_path):
        ran = equipoise("serve", "--host", "0.0.0.0", "--port", 0, "--state-dir", tmp_path / "state")
        assert ran.code == 1
        assert "EQUIPOISE_ALLOW_ANONYMOUS" in ran.err


class TestScore:
    def test_with_a_bundle_says_what_the_service_would(self, equipoise, tmp_path):
        made = write_bundle(tmp_path / "bundle")
        image = image_file(tmp_path / "image.png")
        pixels = np.asarray(Image.open(image))[None]
        expected = made.scores(made.raw(pixels), [1, 1, 1, 5]).max()
        ran = equipoise("score", made.path, image, "--prior", "[1, 1, 1, 5]", "--top-k", 1)
        assert f"{expected:.4f}" in ran.out

    def test_with_a_service_that_asks_for_a_key(self, equipoise, tmp_path):
        made, image, keys = (
            write_bundle(tmp_path / "bundle"),
            image_file(tmp_path / "image.png"),
            tmp_path / "keys.json",
        )
        key = equipoise("keys", "create", "shop", "--scope", "score", "--file", keys).out.strip()
        app = create_app(Settings(state_dir=tmp_path / "state", workers=0, keys_file=keys), [made.path])
        with running(app) as url:
            model = f"{url}/v1/models/pets"
            assert equipoise("score", model, image, "--key", key).code == 0
            without = equipoise("score", model, image)
        app.close()
        assert without.code == 1
        assert "key" in without.err

    def test_what_cannot_be_scored(self, equipoise, tmp_path):
        made = write_bundle(tmp_path / "bundle")
        (tmp_path / "text.jpg").write_text("not an image")
        assert "not an image" in equipoise("score", made.path, tmp_path / "text.jpg").err
        assert "cannot be read" in equipoise("score", made.path, tmp_path / "missing.png").err
        image = image_file(tmp_path / "image.png")
        assert equipoise("score", made.path, image, "--top-k", 0).code == 2
        unreachable = equipoise("score", "http://127.0.0.1:1/v1/models/pets", image)
        assert unreachable.code == 1
        assert "does not answer" in unreachable.err

    def test_with_an_address_of_something_else(self, equipoise, tmp_path):
        image = image_file(tmp_path / "image.png")
        assert "does not answer" in equipoise("score", "http://[broken/v1/models/pets", image).err
        with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
            threading.Thread(target=other.handle_request, daemon=True).start()
            ran = equipoise("score", f"http://127.0.0.1:{other.server_port}", image)
        assert ran.code == 1
        assert "not a model of an Equipoise service" in ran.err
