"""The description that other programs read: complete enough to send a request without looking into the code."""

import pytest

from tests.service.conftest import Service


@pytest.fixture
def document(service: Service) -> dict:
    return dict(service.get("/openapi.json").json())


def test_every_route_has_a_summary_a_description_and_a_tag(document: dict) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 13
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]


def test_the_bodies_of_the_raw_routes_are_described_with_examples(document: dict) -> None:
    scores = document["paths"]["/v1/models/{model}/scores"]["post"]
    assert set(scores["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
        "application/x-npy",
    }
    assert scores["requestBody"]["content"]["application/json"]["example"]["logits"]
    assert scores["responses"]["200"]["content"]["application/json"]["example"]["results"]
    assert {each["name"] for each in scores["parameters"]} == {"model", "prior", "top_k", "explain"}
    upload = document["paths"]["/v1/models/{model}/class-frequencies"]["post"]
    assert {"text/csv", "application/json", "multipart/form-data"} == set(upload["requestBody"]["content"])
    role = next(each for each in upload["parameters"] if each["name"] == "role")
    assert role["required"]
    assert role["schema"]["enum"] == ["target", "training"]


def test_errors_are_described_as_problem_documents_only(document: dict) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], operation["summary"]


def test_the_page_for_people_is_there(service: Service) -> None:
    assert service.get("/docs").status_code == 200
