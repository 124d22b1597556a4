"""Every error is a problem document, below /v2 an `error`, and its code is the one that the table says."""

import asyncio

import httpx
import pytest

from models.calibration import errors as family
from models.calibration.errors import CalibrationError
from service import errors
from service.errors import STATUS, UnknownModel, problem_type, status_of
from tests.service.api.asking import LOGITS, SCORES, inference_refused, refused, upload
from tests.service.conftest import Service


def classes() -> list[type[CalibrationError]]:
    found = {**vars(family), **vars(errors)}.values()
    return [each for each in found if isinstance(each, type) and issubclass(each, CalibrationError)]


def test_the_type_is_the_class_in_kebab_case() -> None:
    assert problem_type(UnknownModel) == "/problems/unknown-model"


def test_types_are_distinct_and_every_class_says_what_it_is() -> None:
    assert len({problem_type(each) for each in classes()}) == len(set(classes()))
    assert all((each.__doc__ or "").strip().endswith(".") for each in classes())


def test_a_class_has_the_code_of_its_nearest_listed_parent() -> None:
    assert status_of(family.UnknownClass) == 422
    assert status_of(errors.ChangedSince) == 409
    assert set(map(status_of, classes())) <= set(STATUS.values())


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/models/pets/nothing", "/v1/models/../../etc/passwd", "/v20"])
def test_an_unknown_route_is_a_problem_document(service: Service, path: str) -> None:
    refused(service.get(path), 404, "unknown-route", "/docs")


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/models/pets/config", "/v2/models/pets/versions"])
def test_below_v2_it_is_what_clients_of_the_inference_protocol_read(service: Service, path: str) -> None:
    inference_refused(service.get(path), 404, "/docs")


def test_below_v2_a_wrong_method_is_told_the_right_one(service: Service) -> None:
    answer = service.get("/v2/models/pets/infer")
    inference_refused(answer, 405, "GET")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/models/pets/scores", "POST"),
        ("DELETE", "/v1/models/pets/history", "GET"),
        ("PUT", "/v1/models", "GET, POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(service: Service, method: str, path: str, allowed: str) -> None:
    answer = service.request(method, path)
    refused(answer, 405, "method-not-allowed", method)
    assert answer.headers["allow"] == allowed


def test_a_wrong_parameter_is_named_with_what_came(service: Service) -> None:
    answer = service.post("/v1/models/pets/undo?revision=latest")
    refused(answer, 422, "invalid-request", "revision", "'latest'")
    assert answer.json()["errors"][0]["where"] == "query.revision"


def test_a_file_with_many_faults_is_told_the_first_and_all_in_a_list(service: Service) -> None:
    answer = upload(service, b"class,count\nant,-1\nbee,-2\ncat,3\ndog,4\n")
    refused(answer, 422, "frequency-file-error", "2 problems", "line 2")
    assert "line 3" not in answer.json()["detail"]
    assert [each["line"] for each in answer.json()["errors"]] == [2, 3]


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/models/pets/undo?revison=1", "'revison'; its options are revision"),
        ("/v1/models?actvate=false", "'actvate'; its options are activate"),
        ("/v1/models/pets/priors/uniform/activate?dry_run=true", "'dry_run'; it has none"),
        ("/v1/models/pets/class-frequencies?role=target&dry_run=true&dry_run=false", "more than once"),
    ],
)
def test_an_option_that_is_not_known_or_stands_twice_is_refused_and_nothing_happens(
    service: Service, path: str, word: str
) -> None:
    refused(service.post(path, content=b"ant,1\nbee,1\ncat,1\ndog,1\n"), 422, "invalid-request", word)
    assert service.get("/v1/models/pets").json()["revision"] == 1


def test_an_address_with_a_slash_at_its_end_is_no_redirect_without_a_word(service: Service) -> None:
    refused(service.post("/v1/models/pets/undo/"), 404, "unknown-route")


def test_a_defect_answers_500_and_tells_nothing_of_itself(service: Service) -> None:
    service.app.state.follower.registry = None  # what no request can do
    in_v1 = asyncio.run(_ask_and_survive(service, "POST", SCORES))
    refused(in_v1, 500, "internal-error")
    in_v2 = asyncio.run(_ask_and_survive(service, "GET", "/v2/health/ready"))
    inference_refused(in_v2, 500, "The log has the reason")
    for answer in (in_v1, in_v2):
        assert "NoneType" not in answer.text
        assert "Traceback" not in answer.text


async def _ask_and_survive(service: Service, method: str, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=service.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, json={"logits": LOGITS})
