"""Thousands of generated requests, valid and broken, against a real server: none finds a fault or a surprise."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.config import SchemathesisConfig
from schemathesis.core.media_types import MEDIA_TYPE_STRATEGIES
from schemathesis.engine import events, from_schema

from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.conftest import Service, running
from tests.service.documented import CLASSES, COUNTS, labelled_logits, logits_file, packed, prepare

# A client may give a request less time than any answer takes: that is a 503 on the routes that score.
# Most names are known ones, so that requests get as far as the real work. All checks are on; a valid request may be
# refused for what a schema cannot say (a prior of other classes, a state that has moved on), and then only so.
CONFIG = """
seed = 20
[dictionaries]
model = {values = ["pets"]}
prior = {values = ["summer", "winter", "autumn", "uniform"]}
calibration = {values = ["c1", "c2", "c3", "c4", "c5"]}
version = {values = ["1", "2", "3"]}
alias = {values = ["candidate", "production", "beta"]}
revision = {values = ["1", "2", "3"]}
job = {values = ["j1", "j2", "j3"]}
revisions = {values = ["*", "*", '"6"']}
[parameters]
"header.if-match" = {dictionary = "revisions", probability = 0.8}
"path.model" = {dictionary = "model", probability = 0.9}
"path.prior" = {dictionary = "prior", probability = 0.8}
"path.calibration" = {dictionary = "calibration", probability = 0.8}
"path.other" = {dictionary = "calibration", probability = 0.8}
"path.version" = {dictionary = "version", probability = 0.8}
"path.alias" = {dictionary = "alias", probability = 0.8}
"path.revision" = {dictionary = "revision", probability = 0.8}
"path.job" = {dictionary = "job", probability = 0.8}
[generation]
deterministic = true
database = "none"
max-examples = 40
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "422", "428"]
[[operations]]
include-path-regex = "(scores|infer)$"
[operations.checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "422", "428", "503"]
"""
CASES = 2000


@pytest.fixture
def files(pets: Made) -> Iterator[None]:
    """Real files among the generated bodies."""
    kept = dict(MEDIA_TYPE_STRATEGIES)
    real = {
        "application/x-tar": packed(pets.path),
        "application/x-npz": labelled_logits(),
        "application/x-npy": logits_file(),
        "application/octet-stream": bytes(HEIGHT * WIDTH * 3),
        "image/*": picture(),
    }
    for kind, data in real.items():
        schemathesis.openapi.media_type(kind, st.one_of(st.just(data), st.binary(max_size=200)))
    schemathesis.openapi.format("binary", st.sampled_from([COUNTS, CLASSES, labelled_logits(), picture()]))
    yield
    MEDIA_TYPE_STRATEGIES.clear()
    MEDIA_TYPE_STRATEGIES.update(kept)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.usefixtures("files")
def test_no_generated_request_finds_a_server_error_or_an_undocumented_answer(
    make_service: Callable[..., Service], make_bundle: Callable[..., Made], pets: Made
) -> None:
    service = make_service(pets, max_body_bytes=1 << 20, max_upload_bytes=1 << 22)
    prepare(service, make_bundle("second", seed=1))
    answered: Counter[tuple[str, int]] = Counter()
    found: list[str] = []
    with running(service.app) as url:
        config = SchemathesisConfig.from_str(CONFIG)
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
        for event in from_schema(schema).execute():
            if isinstance(event, events.ScenarioFinished):
                answered.update(answers(event))
                found += failures(event)
            elif isinstance(event, events.NonFatalError):
                found.append(f"{event.label}: {event.value!r}")
            elif isinstance(event, events.FatalError):
                raise event.exception
    assert "\n\n".join(found) == ""
    assert answered.total() >= CASES
    succeeded = {label for label, status in answered if status < 300}
    assert len(succeeded) >= 40  # of 43: deleting the model or an idle prior takes luck, so does a form of three files


def answers(event: events.ScenarioFinished) -> Iterator[tuple[str, int]]:
    for number, interaction in event.recorder.interactions.items():
        assert interaction.response is not None, f"no answer to {interaction.request.uri}"
        yield event.recorder.cases[number].value.operation.label, interaction.response.status_code


def failures(event: events.ScenarioFinished) -> list[str]:
    checks: list[Any] = [check for each in event.recorder.checks.values() for check in each if check.failure_info]
    return [f"{each.name}: {each.failure_info.failure}\n{each.failure_info.code_sample}" for each in checks]
