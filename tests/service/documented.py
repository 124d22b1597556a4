"""The state that the names in the examples of the OpenAPI document speak of."""

import io
import tarfile
from pathlib import Path

import httpx
import numpy as np

from tests.service.bundles import Made
from tests.service.conftest import Service, npy

MODEL = "/v1/models/pets"
COUNTS = b"class,count\nant,900\nbee,90\ncat,30\ndog,10\n"
CLASSES = b"ant\nbee\ncat\ndog\n"


def prepare(service: Service, second: Made) -> None:
    """`pets` at revision 6: version 2 and calibration c2 not live, an alias, a stored prior, finished jobs."""
    upload = {"content": b'{"ant": 4000, "bee": 100, "cat": 60, "dog": 9}', "params": {"role": "training"}}
    tar = {"content": packed(second.path), "headers": {"Content-Type": "application/x-tar"}}
    for answer in (
        service.post(f"{MODEL}/class-frequencies", **upload),
        service.post(f"{MODEL}/calibrations/c1/activate"),
        service.post("/v1/models?activate=false", **tar),
        service.put(f"{MODEL}/aliases/candidate", json={"version": "1"}),
        service.put(f"{MODEL}/priors/summer", json={"weights": {"ant": 5, "bee": 10, "cat": 20, "dog": 65}}),
    ):
        succeeded(answer)
    assert service.get(MODEL).json()["revision"] == 6


def succeeded(answer: httpx.Response) -> None:
    assert answer.status_code < 300, f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"


def packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return buffer.getvalue()


def labelled_logits() -> bytes:
    """An .npz of 40 examples, ten a class."""
    labels = np.repeat(np.arange(4), 10)
    logits = 3 * np.eye(4)[labels] + np.random.default_rng(3).normal(size=(40, 4))
    buffer = io.BytesIO()
    np.savez(buffer, logits=logits, labels=labels)
    return buffer.getvalue()


def logits_file() -> bytes:
    return npy(np.array([[2.0, 0.1, 0.0, 0.0]]))
