"""Which addresses need which key: nothing is open, or in reach of a key that may only score, by accident."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from service.api.access import foreign_host, scope_of
from service.keys import changing, new_key
from tests.service.api.asking import LOGITS, SCORES, inference_refused, refused, upload
from tests.service.bundles import Made
from tests.service.conftest import Service

OPEN = {"GET /v2/health/live", "GET /v2/health/ready"}
SCORE = {
    "GET /metrics",
    "POST /v1/models/{model}/scores",
    "GET /v2",
    "GET /v2/models/{model}",
    "GET /v2/models/{model}/ready",
    "GET /v2/models/{model}/versions/{version}",
    "GET /v2/models/{model}/versions/{version}/ready",
    "POST /v2/models/{model}/infer",
    "POST /v2/models/{model}/versions/{version}/infer",
}


@pytest.fixture
def bearers(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The headers with a key of each scope."""
    made = {scope: new_key(f"who may {scope}", scope) for scope in ("score", "manage")}
    with changing(tmp_path / "keys.json") as keys:
        keys.extend(entry for entry, _ in made.values())
    return {scope: {"Authorization": f"Bearer {key}"} for scope, (_, key) in made.items()}


@pytest.fixture
def keyed(make_service: Callable[..., Service], pets: Made, tmp_path: Path, bearers: dict) -> Service:
    """A service with keys and the model `pets`."""
    return make_service(pets, keys_file=tmp_path / "keys.json")


@pytest.fixture
def document(keyed: Service) -> dict[str, Any]:
    return dict(keyed.get("/openapi.json").json())


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    paths = document["paths"].items()
    return {f"{method.upper()} {path}": each for path, methods in paths for method, each in methods.items()}


def test_a_key_in_another_header_is_none(keyed: Service, bearers: dict[str, dict[str, str]]) -> None:
    key = bearers["score"]["Authorization"].removeprefix("Bearer ")
    for headers in ({}, {"X-API-Key": key}, {"Cookie": f"authorization=Bearer {key}"}, {"Authorization": ""}):
        answer = keyed.post(SCORES, json={"logits": LOGITS}, headers=headers)
        refused(answer, 401, "missing-key", "none came")


def test_every_route_is_open_scores_or_manages_as_it_should(document: dict[str, Any]) -> None:
    by_scope: dict[str | None, set[str]] = {None: set(), "score": set(), "manage": set()}
    for operation in operations(document):
        method, _, path = operation.partition(" ")
        by_scope[scope_of(method, path)].add(operation)
    assert by_scope[None] == OPEN
    assert by_scope["score"] == SCORE
    assert len(by_scope["manage"]) >= 33


def test_of_the_routes_that_are_not_described_only_the_pages_for_people_are_open(service: Service) -> None:
    pages = {route.path for route in service.app.routes if isinstance(route, Route)}
    assert {path for path in pages if scope_of("GET", path) is None} == {"/docs", "/redoc", "/openapi.json"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/pets/scores/"),
        ("POST", "/v1/models/pets//scores"),
        ("POST", "//v1/models/pets/scores"),
        ("POST", "/v1/models//scores"),
        ("POST", "/v1/models/a/b/scores"),
        ("POST", "/v1/models/scores"),
        ("POST", "/v1/models/scores/import"),
        ("PUT", "/v1/models/pets/priors/scores"),
        ("DELETE", "/v1/models/pets/aliases/scores"),
        ("POST", "/v1/models/pets/scores\n"),
        ("POST", "/v1/models/pets/Scores"),
        ("GET", "/v1/models/pets/scores"),
        ("DELETE", "/v1/models/pets"),
        ("GET", "/v1/models"),
        ("POST", "/v2/models/pets/versions/infer"),
        ("POST", "/v2/models/pets/versions//infer"),
        ("POST", "/v2/models/pets/infer/infer"),
        ("POST", "/v2/repository/models/infer/load"),
        ("POST", "/v2/repository/models/pets/infer"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/models/pets/versions/1/ready"),
        ("GET", "/v2/models/pets/versions/1/ready/ready"),
        ("GET", "/v2/models/"),
        ("GET", "/v2/"),
        ("POST", "/metrics"),
        ("GET", "/metrics/"),
        ("POST", "/v2/health/live"),
        ("GET", "/v2/health/live/"),
        ("GET", "/v2/health/../models"),
        ("GET", "/v2/health"),
        ("GET", "/v2/health/anything"),
        ("GET", "/docs/../v1/models"),
        ("GET", "/docs/oauth2-redirect"),
        ("GET", "/openapi.json/"),
        ("OPTIONS", "/docs"),
        ("GET", "/nothing"),
        ("GET", "/"),
        ("GET", ""),
        ("GET", "*"),
        ("post", "/v1/models/pets/scores"),
    ],
)
def test_what_only_looks_like_a_route_of_less_needs_a_key_that_manages(method: str, path: str) -> None:
    assert scope_of(method, path) == "manage"


@pytest.mark.parametrize("model", ["scores", "infer", "import", "versions", "v1", "pets%2F..", "..", "{model}"])
def test_a_name_of_a_model_changes_nothing(model: str) -> None:
    assert scope_of("POST", f"/v1/models/{model}/scores") == "score"
    assert scope_of("POST", f"/v1/models/{model}/undo") == "manage"
    assert scope_of("POST", f"/v2/repository/models/{model}/unload") == "manage"


def test_routes_are_found_by_the_decoded_path_that_scopes_go_by(service: Service) -> None:
    assert service.post("/v1/models%2Fpets%2Fundo").json()["type"] == "/problems/nothing-to-undo"
    assert service.post("/v1/models/pets%2Fundo%2Fscores").status_code == 404  # no model with a slash in its name


def test_no_route_answers_without_the_key_that_it_needs(
    keyed: Service, document: dict[str, Any], bearers: dict[str, dict[str, str]]
) -> None:
    for name in operations(document):
        method, path = name.replace("{model}", "pets").split(" ")
        scope = scope_of(method, path)
        bare, scoring, managing = (
            keyed.request(method, path, headers=headers) for headers in ({}, bearers["score"], bearers["manage"])
        )
        assert (bare.status_code == 401) == (scope is not None), name
        assert (scoring.status_code == 403) == (scope == "manage"), name
        assert scoring.status_code != 401, name
        assert managing.status_code not in (401, 403), name


def test_a_refusal_has_the_form_of_the_address_and_says_how_to_get_in(
    keyed: Service, bearers: dict[str, dict[str, str]]
) -> None:
    in_v1, in_v2 = keyed.post(SCORES, json={"logits": LOGITS}), keyed.get("/v2")
    refused(in_v1, 401, "missing-key", "none came", "Authorization: Bearer KEY")
    inference_refused(in_v2, 401, "none came")
    assert in_v1.headers["www-authenticate"] == in_v2.headers["www-authenticate"] == "Bearer"
    refused(upload(keyed, headers=bearers["score"]), 403, "wrong-scope", "scope manage", "who may score")
    assert len(keyed.get("/v1/models/pets/history", headers=bearers["manage"]).json()["changes"]) == 1


def test_the_history_names_the_key_of_a_change(keyed: Service, bearers: dict[str, dict[str, str]]) -> None:
    assert upload(keyed, headers=bearers["manage"]).status_code == 201
    changes = keyed.get("/v1/models/pets/history", headers=bearers["manage"]).json()["changes"]
    assert {each["revision"]: each["actor"] for each in changes} == {1: None, 2: "who may manage"}


def test_the_document_names_the_key_and_its_scope(document: dict[str, Any]) -> None:
    scheme = document["components"]["securitySchemes"]["key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for name, operation in operations(document).items():
        scope = scope_of(*name.split(" "))
        assert operation.get("security", []) == ([] if scope is None else [{"key": [scope]}])


def test_the_document_says_how_a_request_without_the_key_is_answered(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        scope, answers = scope_of(*name.split(" ")), operation["responses"]
        assert ("401" in answers) == (scope is not None), name
        assert ("may not do this" in answers.get("403", {}).get("description", "")) == (scope == "manage"), name
        if scope is not None:
            kind = "application/json" if " /v2" in name else "application/problem+json"
            assert set(answers["401"]["content"]) == {kind}, name
            assert set(answers["401"]["headers"]) == {"WWW-Authenticate"}
    assert "another site" in operations(document)["POST /v1/models"]["responses"]["403"]["description"]


def test_without_keys_the_document_promises_none(service: Service) -> None:
    document = service.app.openapi()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in each or "401" in each["responses"] for each in operations(document).values())


@pytest.mark.parametrize(
    ("host", "foreign"),
    [
        ("127.0.0.1:8000", False),
        ("127.0.0.1", False),
        ("[::1]:8000", False),
        ("[::1]", False),
        ("localhost:8000", False),
        ("LocalHost", False),
        ("192.0.2.7:8000", False),
        ("evil.example:8000", True),
        ("localhost.evil.example", True),
        ("127.0.0.1.evil.example", True),
        ("evil.example:127.0.0.1", True),
        ("", True),
    ],
)
def test_a_host_that_is_a_name_of_the_outside_is_foreign(host: str, foreign: bool) -> None:
    assert foreign_host([(b"accept", b"*/*"), (b"host", host.encode())]) is foreign


def test_a_program_that_names_no_host_is_not_foreign() -> None:
    assert not foreign_host([(b"accept", b"localhost")])
