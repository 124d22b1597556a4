import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.calibration.manifest import CALIBRATION_SET_FILE, MANIFEST_FILE, MODEL_FILE
from service.bundle import read_bundle
from service.errors import InvalidBundle
from tests.service.bundles import Made, edit_manifest


def pack(folder: Path, *, top: str = "", edit: Callable[[tarfile.TarFile], None] = lambda archive: None) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, top + file.name)
        edit(archive)
    return path


def member(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b"") -> Callable:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(content)
        archive.addfile(info, io.BytesIO(content))

    return add


def test_a_folder_is_read_with_its_manifest_and_files(pets: Made) -> None:
    bundle = read_bundle(pets.path)
    assert bundle.manifest.class_names == pets.manifest.class_names
    assert bundle.files[MODEL_FILE] == (pets.path / MODEL_FILE).read_bytes()
    assert set(bundle.files) == {MODEL_FILE, CALIBRATION_SET_FILE}


@pytest.mark.parametrize("top", ["", "./", "pets/", "./pets/"])
def test_an_archive_is_the_same_bundle_wherever_its_top_is(pets: Made, top: str) -> None:
    assert read_bundle(pack(pets.path, top=top)).fingerprint == read_bundle(pets.path).fingerprint


def test_other_content_has_another_fingerprint(make_bundle: Callable[..., Made]) -> None:
    one, other = make_bundle("one", seed=1), make_bundle("other", seed=2)
    assert read_bundle(one.path).fingerprint != read_bundle(other.path).fingerprint


def test_a_changed_file_is_refused_by_its_checksum(pets: Made) -> None:
    with (pets.path / MODEL_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InvalidBundle, match=r"model.onnx has the SHA-256 .* its manifest says"):
        read_bundle(pets.path)


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE, CALIBRATION_SET_FILE])
def test_a_missing_file_is_named(pets: Made, name: str) -> None:
    (pets.path / name).unlink()
    with pytest.raises(InvalidBundle, match=name):
        read_bundle(pets.path)


def test_a_network_without_its_graph_is_refused(pets: Made) -> None:
    edit_manifest(pets.path, lambda document: document["files"].pop(MODEL_FILE))
    with pytest.raises(InvalidBundle, match=r"lists no model\.onnx"):
        read_bundle(pets.path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", "..", "a\\b", "", "manifest.json", "a\0b"])
def test_a_name_that_leaves_the_folder_is_refused(pets: Made, name: str) -> None:
    (pets.path.parent / "secret").write_text("secret")
    edit_manifest(pets.path, lambda document: document["files"].update({name: "0" * 64}))
    for path in (pets.path, pack(pets.path)):
        with pytest.raises(InvalidBundle, match="by plain name"):
            read_bundle(path)


def test_a_link_out_of_the_folder_is_refused(pets: Made) -> None:
    outside = pets.path.parent / "outside.onnx"
    (pets.path / MODEL_FILE).rename(outside)
    (pets.path / MODEL_FILE).symlink_to(outside)
    with pytest.raises(InvalidBundle, match="leads out of the folder"):
        read_bundle(pets.path)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (member("../evil", content=b"x"), "climbs out"),
        (member("pets/../../evil", content=b"x"), "climbs out"),
        (member("/etc/evil", content=b"x"), "climbs out"),
        (member("link", kind=tarfile.SYMTYPE, target="/etc/passwd"), "not a plain file"),
        (member("hard", kind=tarfile.LNKTYPE, target="model.onnx"), "not a plain file"),
        (member("pipe", kind=tarfile.FIFOTYPE), "not a plain file"),
        (member("device", kind=tarfile.CHRTYPE), "not a plain file"),
    ],
)
def test_an_archive_with_paths_that_climb_or_links_is_refused(pets: Made, edit: Callable, reason: str) -> None:
    with pytest.raises(InvalidBundle, match=reason):
        read_bundle(pack(pets.path, edit=edit))


@pytest.mark.parametrize("content", [b"", b"neither a folder nor an archive", b"\x1f\x8b\x08 compressed"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.tar").write_bytes(content)
    with pytest.raises(InvalidBundle, match=r"uncompressed \.tar"):
        read_bundle(tmp_path / "bundle.tar")


def test_a_cut_archive_is_refused(pets: Made) -> None:
    path = pack(pets.path)
    os.truncate(path, 3000)
    with pytest.raises(InvalidBundle):
        read_bundle(path)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="nowhere"):
        read_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"{}", b'{"format_version": 99}'])
def test_a_manifest_that_is_none_is_refused(pets: Made, text: bytes) -> None:
    (pets.path / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(InvalidBundle, match=r"not JSON|JSON object|format version"):
        read_bundle(pets.path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "with space", "x" * 65, "ü"])
def test_a_name_that_cannot_stand_in_an_address_is_refused(pets: Made, name: str) -> None:
    edit_manifest(pets.path, lambda document: document.update(name=name))
    with pytest.raises(InvalidBundle, match="model's name"):
        read_bundle(pets.path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"logits": np.zeros((3, 4))},
        {"logits": np.zeros((3, 4)), "labels": [0, 1, 9], "split": "calibration", "drawn": ""},
        {"logits": np.zeros((3, 4)), "labels": [0, 1, 2], "split": "elsewhere", "drawn": ""},
        {"logits": np.zeros((3, 5)), "labels": [0, 1, 2], "split": "calibration", "drawn": ""},
        {"logits": np.full((3, 4), np.nan), "labels": [0, 1, 2], "split": "calibration", "drawn": ""},
        {"logits": np.array([{}]), "labels": [0], "split": "calibration", "drawn": ""},
    ],
)
def test_a_calibration_set_that_is_none_is_refused(pets: Made, arrays: dict) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace_file(pets, CALIBRATION_SET_FILE, buffer.getvalue())
    with pytest.raises(InvalidBundle):
        read_bundle(pets.path)


def test_a_calibration_set_that_is_no_archive_is_refused(pets: Made) -> None:
    replace_file(pets, CALIBRATION_SET_FILE, b"PK\x03\x04 not a zip file")
    with pytest.raises(InvalidBundle, match=r"calibration_set\.npz"):
        read_bundle(pets.path)


def replace_file(made: Made, name: str, content: bytes) -> None:
    (made.path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit_manifest(made.path, lambda document: document["files"].update({name: digest}))
