"""Every example of the OpenAPI document is sent, and answered with a documented success."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.bundles import Made
from tests.service.conftest import Service
from tests.service.documented import CLASSES, COUNTS, packed, prepare
from tests.service.store.conftest import s3_endpoint, use_s3  # noqa: F401

Body = dict[str, Any]  # what httpx takes
Value = tuple[str, str, Any]  # of a parameter: where it stands, its name, and the value
PREFIX = "s3://bucket/bundles"
# A form of files has no example in the document.
FORMS = {
    "import_model": {
        "files": {"counts": ("counts.csv", COUNTS), "classes": ("classes.txt", CLASSES)},
        "data": {"trained_with": "balanced-softmax"},
    }
}


@dataclass(kw_only=True)
class Request:
    """One request that the document gives as an example, and the answers that it promises."""

    operation: str
    method: str
    path: str
    success: set[int]
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=dict)

    def send(self, service: Service) -> httpx.Response:
        headers = self.headers | self.body.get("headers", {})
        return service.request(self.method, self.path, **(self.body | {"params": self.params, "headers": headers}))


@pytest.fixture
def state(tmp_path: Path, make_bundle: Callable[..., Made], pets: Made) -> Path:
    """A state folder with everything in it that the examples name."""
    settings = Settings(state_dir=tmp_path / "prepared", workers=0, model_threads=1)
    service = Service(create_app(settings, [pets.path]))
    prepare(service, make_bundle("second", seed=1))
    service.close()
    return settings.state_dir


@pytest.fixture
def bundles_in_s3(make_bundle: Callable[..., Made], s3_endpoint: str, use_s3: Callable[[str], None]) -> None:  # noqa: F811
    """The bundle of the example, at its URL."""
    use_s3(s3_endpoint)
    httpx.put(f"{s3_endpoint}/bucket").raise_for_status()
    data = packed(make_bundle("third", seed=2).path)
    httpx.put(f"{s3_endpoint}/bucket/bundles/pets.tar", content=data).raise_for_status()


def test_every_example_is_answered_with_a_documented_success(state: Path, bundles_in_s3: None, tmp_path: Path) -> None:
    with copied(state, tmp_path) as service:
        document = service.get("/openapi.json").json()
    asked = list(requests(document))
    assert {each.operation for each in asked} == {each["operationId"] for *_, each in operations(document)}
    failed = []
    for each in asked:
        with copied(state, tmp_path) as service:
            answer = each.send(service)
        if answer.status_code not in each.success:
            failed.append((each, answer.status_code, answer.text))
    assert failed == []
    assert len(asked) >= 80


@contextmanager
def copied(state: Path, tmp_path: Path) -> Iterator[Service]:
    """The service on a copy of the state, so that one example does not disturb the next."""
    copy = tmp_path / "copy"
    shutil.copytree(state, copy)
    service = Service(create_app(Settings(state_dir=copy, workers=0, model_threads=1, bundle_url_prefixes=(PREFIX,))))
    try:
        yield service
    finally:
        service.close()
        shutil.rmtree(copy)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def requests(document: dict[str, Any]) -> Iterator[Request]:
    """For each operation: each body with what is required alone, then each example of each optional parameter."""
    for path, method, operation in operations(document):
        parameters = operation.get("parameters", [])
        required = [(each["in"], each["name"], examples(each)[0]) for each in parameters if each["required"]]
        build = partial(request, path, method, operation, required)
        bodies = list(body_examples(operation)) or [{}]
        if "428" not in operation["responses"]:  # that one says that If-Match is needed
            yield from (build(body=body) for body in bodies)
        for each in parameters:
            if each["in"] != "path":
                yield from (build(body=bodies[0], extra=(each["in"], each["name"], value)) for value in examples(each))


def request(
    path: str, method: str, operation: dict[str, Any], required: list[Value], *, body: Body, extra: Value | None = None
) -> Request:
    given = [*required, *([] if extra is None else [extra])]
    return Request(
        operation=operation["operationId"],
        method=method,
        path=path.format(**{name: value for where, name, value in required if where == "path"}),
        success={int(code) for code in operation["responses"] if code.startswith("2")},
        params={name: value for where, name, value in given if where == "query"},
        headers={name: str(value) for where, name, value in given if where == "header"},
        body=body,
    )


def examples(parameter: dict[str, Any]) -> list[Any]:
    return list(parameter["schema"].get("examples", []))


def body_examples(operation: dict[str, Any]) -> Iterator[Body]:
    if operation["operationId"] in FORMS:
        yield FORMS[operation["operationId"]]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        found = [each["value"] for each in content.get("examples", {}).values()]
        found += [content["example"]] if "example" in content else content["schema"].get("examples", [])
        for value in found:
            data = value.encode() if kind == "text/csv" else orjson.dumps(value)
            yield {"content": data, "headers": {"Content-Type": kind}}
