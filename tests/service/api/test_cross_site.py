"""A page of another site cannot change a model through somebody's browser; everything else goes on as before."""

import pytest

CSV = b"class,count\nant,5\nbee,10\ncat,20\ndog,65\n"
UPLOAD = "/v1/models/pets/class-frequencies?role=target"


def test_a_page_of_another_site_is_refused_and_changes_nothing(service):
    answer = service.post(UPLOAD, content=CSV, headers={"Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"})
    assert answer.status_code == 403
    assert answer.json()["type"] == "/problems/cross-site"
    assert service.get("/v1/models/pets").json()["revision"] == 1


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none"])
def test_pages_of_the_service_and_people_are_not(service, site):
    assert service.post(UPLOAD, content=CSV, headers={"Sec-Fetch-Site": site}).status_code == 201


def test_reading_is_not_refused(service):
    assert service.get("/v1/models", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_without_the_mark_the_origin_decides(service):
    own, foreign = {"Origin": "http://localhost"}, {"Origin": "http://evil.example"}
    assert service.post(UPLOAD, content=CSV, headers=foreign).status_code == 403
    assert service.post(UPLOAD, content=CSV, headers={"Origin": "null"}).status_code == 403
    assert service.post(UPLOAD, content=CSV, headers=own).status_code == 201
