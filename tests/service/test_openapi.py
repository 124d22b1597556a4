"""The description that other programs read: complete enough to send a request without looking into the code."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.conftest import Service

CHANGES = ("post", "put", "delete")


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    return dict(service.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in document["paths"].values():
        yield from path.items()


def by_path(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        yield from ((path, operation) for operation in methods.values())


def test_every_route_has_a_summary_a_description_and_one_known_tag(document: dict[str, Any]) -> None:
    tags = {each["name"] for each in document["tags"]}
    found = list(operations(document))
    assert len(found) >= 33
    for _, operation in found:
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= tags
        assert len(operation["tags"]) == 1


def test_operation_ids_are_short_and_stable_names_for_generated_clients(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(each.isidentifier() and len(each) <= 24 for each in ids)
    assert {"score", "upload_class_frequencies", "get_model", "put_prior", "undo"} <= set(ids)


def test_every_parameter_and_answer_is_described(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (operation["operationId"], parameter["name"])
        for status, response in operation["responses"].items():
            described = response["description"]
            assert described not in ("", "Successful Response"), (operation["operationId"], status)


def test_every_successful_answer_has_a_schema(document: dict[str, Any]) -> None:
    for _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status.startswith("2") and status != "204":
                assert response["content"], (operation["operationId"], status)
                assert all(content["schema"] for content in response["content"].values()), operation["operationId"]


def test_the_bodies_of_the_raw_routes_are_described_with_examples(document: dict[str, Any]) -> None:
    scores = document["paths"]["/v1/models/{model}/scores"]["post"]
    assert set(scores["requestBody"]["content"]) == {
        "image/*",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
        "application/x-npy",
    }
    body = scores["requestBody"]["content"]["application/json"]
    assert [each["value"]["logits"] for each in body["examples"].values()]
    row = {"type": "array", "minItems": 1, "items": {"type": "number"}}
    assert body["schema"]["properties"]["logits"]["anyOf"] == [row, {"type": "array", "minItems": 1, "items": row}]
    assert scores["responses"]["200"]["content"]["application/json"]["example"]["results"]
    asked = {each["name"] for each in scores["parameters"]}
    assert asked == {"model", "prior", "kappa", "version", "calibration", "top_k", "explain", "timeout"}
    upload = document["paths"]["/v1/models/{model}/class-frequencies"]["post"]
    assert set(upload["requestBody"]["content"]) == {"text/csv", "application/json", "multipart/form-data"}
    role = next(each for each in upload["parameters"] if each["name"] == "role")
    assert role["required"]
    assert role["schema"]["enum"] == ["target", "training"]


def test_errors_have_one_schema_in_each_protocol_and_say_when_to_try_again(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(schemas["Problem"]["required"]) == {"type", "title", "status", "detail"}
    assert schemas["InferenceError"]["required"] == ["error"]
    told = {
        "v1": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "v2": {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceError"}}},
    }
    told["metrics"] = told["v1"]
    for path, operation in by_path(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert response["content"] == told[path.split("/")[1]], operation["operationId"]
                assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))
        assert ("422" in operation["responses"]) <= path.startswith("/v1")


def test_the_bodies_of_the_inference_protocol_are_described_with_examples(document: dict[str, Any]) -> None:
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        operation = document["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        assert set(content) == {"application/json", "application/octet-stream"}
        assert [each["value"]["inputs"] for each in content["application/json"]["examples"].values()]
        name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
        assert document["components"]["schemas"][name]["required"] == ["inputs"]
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "application/octet-stream"}


def test_a_route_documents_the_errors_that_it_gives_and_no_others(document: dict[str, Any]) -> None:
    assert set(document["paths"]["/v2/health/live"]["get"]["responses"]) == {"200", "500"}
    assert set(document["paths"]["/v1/models"]["get"]["responses"]) == {"200", "422", "500", "503"}
    assert set(document["paths"]["/v1/models/{model}"]["get"]["responses"]) == {"200", "404", "422", "500", "503"}
    for method, operation in operations(document):
        assert ("403" in operation["responses"]) == (method in CHANGES), operation["operationId"]


def test_changes_and_uploads_tell_the_revision_and_where_the_job_is(document: dict[str, Any]) -> None:
    changed = document["paths"]["/v1/models/{model}/undo"]["post"]["responses"]
    assert set(changed["200"]["headers"]) == set(changed["409"]["headers"]) == {"ETag"}
    upload = document["paths"]["/v1/models/{model}/class-frequencies"]["post"]["responses"]
    assert set(upload["201"]["headers"]) == {"ETag", "Content-Location"}
    assert set(upload["202"]["headers"]) == {"Location", "Retry-After"}


def test_the_page_for_people_is_there(service: Service) -> None:
    assert service.get("/docs").status_code == 200
