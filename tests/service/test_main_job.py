"""The main job over a real port: score, upload a class-frequency file, score again, undo."""

import httpx
import numpy as np

from tests.service.bundles import Made
from tests.service.conftest import Service, png, running

CSV = b"class,count\nant,5\nbee,10\ncat,20\ndog,65\n"


def test_upload_changes_the_scores_and_undo_brings_the_first_answer_back_byte_for_byte(
    service: Service, pets: Made, pixels: np.ndarray
) -> None:
    image = png(pixels[0])
    with running(service.app) as url, httpx.Client(base_url=url) as client:
        first = client.post("/v1/models/pets/scores", content=image)
        upload = client.post("/v1/models/pets/class-frequencies?role=target", content=CSV)
        second = client.post("/v1/models/pets/scores", content=image)
        undone = client.post(upload.json()["undo"]["href"])
        third = client.post("/v1/models/pets/scores", content=image)
    raw = pets.raw(pixels[:1])
    np.testing.assert_allclose(first.json()["results"][0]["scores"], pets.scores(raw)[0], atol=1e-6)
    assert upload.status_code == 201
    np.testing.assert_allclose(second.json()["results"][0]["scores"], pets.scores(raw, [5, 10, 20, 65])[0], atol=1e-6)
    assert undone.status_code == 200
    assert third.content == first.content
    assert second.content != first.content
