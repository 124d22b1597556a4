"""Calibration sets as clients upload them: real files, real images, and a real network where one is needed."""

import gzip
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import orjson
import pytest

from models.calibration.errors import (
    CalibrationError,
    InvalidCalibrationSet,
    InvalidLogits,
    LeakedSplit,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.manifest import MODEL_FILE, InputSize
from models.calibration.types import LogitSet
from models.images import decode_image
from service import archive, labelled
from service.errors import LogitsOnly
from service.labelled import LogitsOf, read_labelled
from service.runtime.onnx import OnnxRunner
from tests.service.bundles import CLASSES, HEIGHT, WIDTH, Made
from tests.service.conftest import npy, png

LOGITS = np.array([[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 3.0], [1.0, 2.0, 0.0, 0.0]])
LABELS = ["ant", "dog", "bee"]

Files = list[tuple[str, bytes]]
Read = Callable[..., LogitSet]


@pytest.fixture
def read() -> Read:
    def reader(data: bytes, *, logits_of: LogitsOf | None = None, **options: Any) -> LogitSet:
        file = io.BytesIO(data)
        return read_labelled(file, class_names=CLASSES, logits_of=logits_of, drawn="uploaded", **options)

    return reader


@pytest.fixture
def network(pets: Made) -> LogitsOf:
    graph = (pets.path / MODEL_FILE).read_bytes()
    size = InputSize(height=HEIGHT, width=WIDTH)
    runner = OnnxRunner(graph, num_classes=len(CLASSES), input_size=size)

    def logits_of(files: list[bytes]) -> np.ndarray:
        return runner.run(np.stack([decode_image(data, height=HEIGHT, width=WIDTH) for data in files]))

    return logits_of


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(files: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Files, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def images(pixels: np.ndarray, folders: list[str]) -> Files:
    return [(f"{folder}/{index}.png", png(pixels[index])) for index, folder in enumerate(folders)]


def refused(read: Callable[[], Any]) -> list[str]:
    with pytest.raises(InvalidCalibrationSet) as error:
        read()
    return list(error.value.problems)


# Logits


@pytest.mark.parametrize("labels", [LABELS, [0, 3, 1], ["ant", 3, "bee"]])
def test_json_logits_have_labels_by_name_or_by_index(read: Read, labels: list[Any]) -> None:
    found = read(orjson.dumps({"logits": LOGITS.tolist(), "labels": labels}))
    assert found.labels.tolist() == [0, 3, 1]
    np.testing.assert_allclose(found.logits, LOGITS - LOGITS.mean(axis=1, keepdims=True))
    assert (found.split, found.drawn) == ("calibration", "uploaded")


@pytest.mark.parametrize("labels", [LABELS, np.array([0, 3, 1], dtype=np.uint8)])
def test_npz_logits_say_themselves_how_they_were_drawn(read: Read, labels: Any) -> None:
    found = read(npz(logits=LOGITS.astype(np.float32), labels=labels, split="val", drawn="10 % of each class"))
    assert found.labels.tolist() == [0, 3, 1]
    assert (found.split, found.drawn) == ("calibration", "10 % of each class")


def test_a_label_is_found_however_its_accents_are_stored() -> None:
    file = io.BytesIO(orjson.dumps({"logits": [[0, 1], [1, 0]], "labels": ["cafe\u0301", "tea"]}))
    found = read_labelled(file, class_names=["tea", "caf\u00e9"], logits_of=None, drawn="")
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize("split", ["train", "Training", "trainval"])
def test_training_data_are_refused(read: Read, network: LogitsOf, pixels: np.ndarray, split: str) -> None:
    uploads = [
        npz(logits=LOGITS, labels=LABELS, split=split),
        orjson.dumps({"logits": LOGITS.tolist(), "labels": LABELS, "split": split}),
        zipped(images(pixels, [f"{split}/ant", f"{split}/dog"])),
    ]
    for data in uploads:
        with pytest.raises(LeakedSplit, match=split):
            read(data, logits_of=network)


def test_every_wrong_label_is_told_once_with_the_nearest_class(read: Read) -> None:
    labels = ["Ant", "ant", "dogs", "dogs", 4, -1, True, None, 1.0, [1], "\u0001"]
    data = orjson.dumps({"logits": [[0, 0, 0, 0]] * len(labels), "labels": labels})
    problems = refused(lambda: read(data))
    assert problems[:2] == [
        "the model has no class 'Ant'. Did you mean 'ant'?",
        "the model has no class 'dogs'. Did you mean 'dog'?",
    ]
    assert [text.rsplit("got ")[1] for text in problems[2:7]] == ["4.", "-1.", "True.", "None.", "1.0."]
    assert "'\\x01'" in problems[-1]
    assert len(problems) == 9


def test_no_more_than_twenty_problems_are_told(read: Read) -> None:
    labels = [f"class {index}" for index in range(50)]
    problems = refused(lambda: read(orjson.dumps({"logits": [[0, 0, 0, 0]] * 50, "labels": labels})))
    assert len(problems) == 21
    assert problems[-1] == "30 more are not listed."


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"logits": LOGITS[:, :3], "labels": LABELS}, ShapeMismatch, r"\(N, 4\).*got \(3, 3\)"),
        ({"logits": LOGITS[None], "labels": LABELS}, ShapeMismatch, r"got \(1, 3, 4\)"),
        ({"logits": LOGITS, "labels": LABELS[:2]}, ShapeMismatch, r"\(3,\) like the logits; got 2"),
        ({"logits": LOGITS * [[np.nan], [1], [1]], "labels": LABELS}, InvalidLogits, "row 0, class 0 is nan"),
        ({"logits": LOGITS + np.array([[0], [np.inf], [0]]), "labels": LABELS}, InvalidLogits, "row 1, class 0 is inf"),
        ({"logits": LOGITS[:1], "labels": LABELS[:1]}, NotEnoughData, "at least 2 labelled examples; got 1"),
        ({"logits": LOGITS}, InvalidCalibrationSet, "no labels.npy"),
        ({"labels": LABELS}, InvalidCalibrationSet, "no logits.npy"),
        ({"logits": LOGITS, "labels": [0.0, 3.0, 1.0]}, InvalidCalibrationSet, "whole numbers or text.*float64"),
        ({"logits": LOGITS, "labels": LABELS, "split": 3}, InvalidCalibrationSet, "split.npy must be text"),
        ({"logits": LOGITS, "labels": LABELS, "drawn": "x" * 1001}, InvalidCalibrationSet, "1,000 characters"),
    ],
)
def test_arrays_that_are_no_labelled_logits_are_refused(
    read: Read, arrays: dict[str, Any], error: type[CalibrationError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read(npz(**arrays))


def test_pickles_are_never_read(read: Read) -> None:
    logits = np.array([[object()] * 4] * 3)
    with pytest.raises(InvalidLogits, match="object"):
        read(zipped([("logits.npy", npy(logits)), ("labels.npy", npy(np.array([0, 1, 2])))]))
    data = zipped([("logits.npy", npy(LOGITS)), ("labels.npy", npy(np.array(LABELS, dtype=object)))])
    assert "object" in refused(lambda: read(data))[0]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b'{"logits": [[1, 2, 3, 4]], "labels": [0]', "cannot be read"),
        (b'{"logits": [[NaN, 2, 3, 4]], "labels": [0]}', "NaN"),
        (b'{"logits": [[1, 2, 3, 4]]}', "one label a row"),
        (b'{"logits": [[1, 2, 3, 4]], "labels": {"0": 1}}', "one label a row"),
        (b"class,count\nant,3\n", ".npz file with logits"),
        (b"", "begins with b''"),
    ],
)
def test_a_text_that_holds_no_labelled_logits_is_told_what_they_are(read: Read, document: bytes, words: str) -> None:
    (problem,) = refused(lambda: read(document))
    assert words in problem


# Images


@pytest.mark.parametrize("top", ["", "./", "my pets/"])
@pytest.mark.parametrize("pack", [zipped, tarred, partial(tarred, mode="w:gz"), partial(tarred, mode="w:")])
def test_folders_of_images_go_through_the_network(
    read: Read, pets: Made, network: LogitsOf, pixels: np.ndarray, pack: Callable[[Files], bytes], top: str
) -> None:
    left_behind = [(f"{top}.DS_Store", b"x"), (f"{top}ant/Thumbs.db", b"x"), ("__MACOSX/._0.png", b"x")]
    found = read(pack([*left_behind, *images(pixels, [f"{top}dog", f"{top}ant/wild", f"{top}dog"])]), logits_of=network)
    raw = pets.raw(pixels)
    np.testing.assert_allclose(found.logits, raw - raw.mean(axis=1, keepdims=True), atol=1e-5)  # float32, |z| < 20
    assert found.labels.tolist() == [3, 0, 3]
    assert (found.split, found.drawn) == ("calibration", "uploaded")


def test_images_of_one_class_only_may_lie_deeper_in_its_folder(
    read: Read, network: LogitsOf, pixels: np.ndarray
) -> None:
    found = read(zipped(images(pixels, ["cat/wild", "cat/tame", "cat"])), logits_of=network)
    assert found.labels.tolist() == [2, 2, 2]


def test_images_are_given_in_batches_and_the_progress_is_told(
    read: Read, pixels: np.ndarray, network: LogitsOf
) -> None:
    sizes, shares = [], []

    def counted(files: list[bytes]) -> np.ndarray:
        sizes.append(len(files))
        return network(files)

    seventy = [(f"ant/{index}.png", png(pixels[index % 3])) for index in range(70)]
    found = read(zipped(seventy), logits_of=counted, progress=shares.append)
    assert len(found.labels) == 70
    assert sizes == [32, 32, 6]
    assert shares == pytest.approx([32 / 70, 64 / 70, 1])


def test_large_images_come_in_small_batches(
    read: Read, pixels: np.ndarray, network: LogitsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "BATCH_BYTES", 100)  # less than one file
    shares: list[float] = []
    read(zipped(images(pixels, ["ant", "bee", "cat"])), logits_of=network, progress=shares.append)
    assert len(shares) == 3


def test_a_model_without_a_network_is_told_to_send_logits(read: Read, pixels: np.ndarray) -> None:
    with pytest.raises(LogitsOnly, match="Send labelled logits: an"):
        read(zipped(images(pixels, ["ant", "dog"])))


def test_every_unknown_folder_is_told_with_the_nearest_class(read: Read, network: LogitsOf, pixels: np.ndarray) -> None:
    problems = refused(lambda: read(tarred(images(pixels, ["ants", "DOG", "ant"])), logits_of=network))
    assert problems == [
        "the model has no class 'ants'. Did you mean 'ant'?",
        "the model has no class 'DOG'. Did you mean 'dog'?",
    ]


def test_a_single_unknown_folder_is_not_taken_for_one_around_the_classes(
    read: Read, network: LogitsOf, pixels: np.ndarray
) -> None:
    problems = refused(lambda: read(zipped(images(pixels, ["cats", "cats"])), logits_of=network))
    assert problems == ["the model has no class 'cats'. Did you mean 'cat'?"]


def test_an_image_outside_of_the_folders_is_refused(read: Read, network: LogitsOf, pixels: np.ndarray) -> None:
    files = [*images(pixels, ["top/ant", "top/bee"]), ("top/stray.png", png(pixels[2]))]
    (problem,) = refused(lambda: read(zipped(files), logits_of=network))
    assert problem.startswith("'top/stray.png' lies in no folder")


def test_every_image_that_cannot_be_decoded_is_told_and_nothing_is_kept(
    read: Read, network: LogitsOf, pixels: np.ndarray
) -> None:
    sound = [(f"ant/{index}.png", png(pixels[index % 3])) for index in range(40)]
    broken = [("bee/notes.txt", b"no image"), ("cat/half.png", png(pixels[0])[:-40])]
    problems = refused(lambda: read(zipped([broken[0], *sound, broken[1]]), logits_of=network))
    assert [text.split(":")[0] for text in problems] == ["'bee/notes.txt'", "'cat/half.png'"]
    assert "damaged" in problems[1]


def test_fewer_than_two_images_are_too_few(read: Read, network: LogitsOf, pixels: np.ndarray) -> None:
    for files in ([], images(pixels, ["ant"])):
        with pytest.raises(NotEnoughData, match=f"got {len(files)}"):
            read(zipped(files), logits_of=network)


# Archives that mean harm, or are damaged


@pytest.mark.parametrize("pack", [zipped, partial(tarred, mode="w:gz")])
@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_UNPACKED_BYTES", 29_999), ("MAX_MEMBERS", 9), ("MAX_IMAGE_BYTES", 2999)]
)
def test_an_archive_over_a_limit_is_refused_before_an_image_is_read(
    read: Read, pack: Callable[[Files], bytes], limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (archive, labelled):
        monkeypatch.setattr(module, limit, value, raising=False)

    def never(files: list[bytes]) -> np.ndarray:
        raise AssertionError("an image was read")

    zeros = pack([(f"ant/{index}.png", bytes(3000)) for index in range(10)])
    assert f"{value:,}" in refused(lambda: read(zeros, logits_of=never))[0]


def test_what_lies_behind_the_limit_is_not_unpacked(read: Read, network: LogitsOf) -> None:
    huge = tarfile.TarInfo("ant/0.png")
    huge.size = archive.MAX_UNPACKED_BYTES + 1
    data = gzip.compress(huge.tobuf() + bytes(10_000))  # cut off, which reading on would find
    assert "unpacks to at most" in refused(lambda: read(data, logits_of=network))[0]


def test_a_header_that_claims_to_be_huge_is_not_read(read: Read, network: LogitsOf) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 64 << 20
    data = gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(65 << 20))
    assert "header is larger" in refused(lambda: read(data, logits_of=network))[0]


def test_a_zip_that_claims_to_be_small_is_not_unpacked_further(read: Read, network: LogitsOf) -> None:
    data = zipped([("ant/0.png", bytes(64 << 20)), ("bee/1.png", b"x")])
    lying = data.replace((64 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    tracemalloc.start()
    try:
        assert "damaged" in refused(lambda: read(lying, logits_of=network))[0]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_array_that_claims_to_be_huge_is_not_reserved(read: Read) -> None:
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4)}".ljust(117) + "\n"
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    with pytest.raises(InvalidLogits, match="not a sound"):
        read(zipped([("logits.npy", header + LOGITS.tobytes()), ("labels.npy", npy(np.arange(3)))]))


def test_large_arrays_and_documents_are_refused(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MAX_ARRAY_BYTES", 200)
    assert "logits.npy" in refused(lambda: read(npz(logits=LOGITS, labels=LABELS)))[0]
    monkeypatch.setattr(labelled, "MAX_JSON_BYTES", 20)
    document = orjson.dumps({"logits": LOGITS.tolist(), "labels": LABELS})
    assert "Send an .npz" in refused(lambda: read(document))[0]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../ant/1.png", "ant/../../1.png", "/ant/1.png"])
def test_a_name_that_climbs_is_refused(
    read: Read, network: LogitsOf, pixels: np.ndarray, name: str, pack: Callable[[Files], bytes]
) -> None:
    data = pack([*images(pixels, ["ant", "bee"]), (name, png(pixels[0]))])
    assert "climbs out" in refused(lambda: read(data, logits_of=network))[0]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(read: Read, network: LogitsOf, kind: bytes) -> None:
    link = tarfile.TarInfo("ant/0.png")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "not a plain file" in refused(lambda: read(link.tobuf() + bytes(1024), logits_of=network))[0]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_in_an_unusual_way_is_refused(
    read: Read, network: LogitsOf, pixels: np.ndarray, compression: int
) -> None:
    data = zipped(images(pixels, ["ant", "bee"]), compression)
    assert "unusual way" in refused(lambda: read(data, logits_of=network))[0]


@pytest.mark.parametrize("pack", [zipped, tarred, partial(tarred, mode="w:gz")])
def test_an_archive_cut_off_anywhere_is_refused(
    read: Read, network: LogitsOf, pixels: np.ndarray, pack: Callable[[Files], bytes]
) -> None:
    data = pack(images(pixels, ["ant", "bee", "cat"]))
    end = len(data) if pack is not tarred else 3 * 1024  # behind it are zeros only
    for length in range(1, end, 61):
        refused(lambda cut=data[:length]: read(cut, logits_of=network))


@pytest.mark.parametrize("pack", [zipped, partial(tarred, mode="w:gz")])
def test_an_archive_with_a_wrong_byte_is_refused(
    read: Read, network: LogitsOf, pixels: np.ndarray, pack: Callable[[Files], bytes]
) -> None:
    data = bytearray(pack(images(pixels, ["ant", "bee"])))
    data[100] ^= 0xFF
    refused(lambda: read(bytes(data), logits_of=network))


def test_a_tar_that_goes_wrong_in_the_middle_is_not_taken_for_its_first_part(
    read: Read, network: LogitsOf, pixels: np.ndarray
) -> None:
    data = bytearray(tarred(images(pixels, ["ant", "bee", "cat"])))
    third = data.index(b"cat/2.png")
    data[third + 150] ^= 0xFF  # its checksum
    assert "2 files" in refused(lambda: read(bytes(data), logits_of=network))[0]
