"""Named priors: stored, read, activated, given another meaning, deleted."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.service.api.asking import (
    LAW,
    LOGITS,
    MODEL,
    TRAINING,
    ask,
    history,
    live,
    refused,
    scores,
    stored_priors,
    upload,
)
from tests.service.bundles import CLASSES, COUNTS, Made
from tests.service.conftest import Service, names

SUMMER = f"{MODEL}/priors/summer"
BY_NAME = {"weights": dict(zip(CLASSES, LAW, strict=True))}


def test_a_prior_is_stored_under_its_name_and_changes_nothing_that_is_live(service: Service, pets: Made) -> None:
    before = ask(service).content
    answer = service.put(SUMMER, json=BY_NAME, headers={"from": "ada@example.org"})
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    assert answer.json()["action"] == "stored prior summer, edition 1"
    assert answer.json()["undo"] is None
    assert ask(service).content == before
    asked = ask(service, params={"prior": "summer"})
    np.testing.assert_allclose(scores(asked), pets.scores(np.array(LOGITS), LAW), atol=1e-12)
    assert asked.json()["prior"] == {"name": "summer", "edition": 1}
    assert history(service)[-1]["actor"] == "ada@example.org"


def test_weights_may_come_in_class_order_and_are_normalised(service: Service) -> None:
    service.put(SUMMER, json={"weights": LAW})
    service.put(f"{MODEL}/priors/winter", json={"weights": [each * 7 for each in LAW]})
    summer, winter = (service.get(f"{MODEL}/priors/{name}").json() for name in ("summer", "winter"))
    np.testing.assert_allclose([summer["probs"][name] for name in CLASSES], np.array(LAW) / 100)
    assert winter["probs"] == pytest.approx(summer["probs"])
    assert (summer["edition"], summer["active"], summer["file_digest"]) == (1, False, None)


@pytest.mark.parametrize("kappa", [-0.5, 0, 0.5, 1, 1.5])
def test_a_prior_by_kappa_is_a_power_of_the_training_counts(service: Service, kappa: float) -> None:
    assert service.put(SUMMER, json={"kappa": kappa}).status_code == 200
    law = np.array(COUNTS, dtype=float) ** kappa
    probs = service.get(SUMMER).json()["probs"]
    np.testing.assert_allclose([probs[name] for name in CLASSES], law / law.sum())


def test_kappa_means_the_counts_as_they_are_known_now(service: Service) -> None:
    upload(service, TRAINING, role="training")
    service.put(SUMMER, json={"kappa": 1})
    probs = service.get(SUMMER).json()["probs"]
    np.testing.assert_allclose([probs[name] for name in CLASSES], np.array([4000, 100, 60, 9]) / 4169)


def test_another_meaning_of_the_active_prior_is_live_at_once_and_can_be_undone(service: Service, pets: Made) -> None:
    service.put(SUMMER, json=BY_NAME)
    service.post(f"{SUMMER}/activate")
    before = scores(ask(service))
    again = service.put(SUMMER, json={"weights": [1, 1, 1, 5]})
    assert again.json()["undo"]["href"].endswith("revision=4")
    np.testing.assert_allclose(scores(ask(service)), pets.scores(np.array(LOGITS), [1, 1, 1, 5]), atol=1e-12)
    assert service.post(again.json()["undo"]["href"]).status_code == 200
    np.testing.assert_array_equal(scores(ask(service)), before)
    assert service.get(SUMMER).json()["edition"] == 3


@pytest.mark.parametrize("name", ["uniform", "training"])
def test_the_built_in_priors_can_be_read_and_neither_stored_nor_deleted(service: Service, name: str) -> None:
    url = f"{MODEL}/priors/{name}"
    law = [1, 1, 1, 1] if name == "uniform" else COUNTS
    found = service.get(url).json()
    np.testing.assert_allclose([found["probs"][each] for each in CLASSES], np.array(law) / sum(law))
    assert (found["edition"], found["active"]) == (None, name == "uniform")
    refused(service.put(url, json=BY_NAME), 422, "invalid-request", "uniform, training, none")
    refused(service.put(url, json={"kappa": 1}), 422, "invalid-request", "uniform, training, none")
    refused(service.delete(url), 409, "in-use", "built in")
    assert len(history(service)) == 1


def test_the_active_prior_is_not_deleted_and_another_one_is(service: Service) -> None:
    service.put(SUMMER, json=BY_NAME)
    service.post(f"{SUMMER}/activate")
    refused(service.delete(SUMMER), 409, "in-use", "Activate another first")
    service.post(f"{MODEL}/priors/uniform/activate")
    assert service.delete(SUMMER).status_code == 200
    assert stored_priors(service) == []
    refused(service.get(SUMMER), 404, "unknown-prior")
    refused(service.delete(SUMMER), 404, "unknown-prior")
    refused(ask(service, params={"prior": "summer"}), 404, "unknown-prior")
    refused(service.post(f"{SUMMER}/activate"), 404, "unknown-prior")


def test_an_undo_brings_a_deleted_prior_back_as_a_new_edition(service: Service, pets: Made) -> None:
    service.put(SUMMER, json=BY_NAME)
    service.post(f"{SUMMER}/activate")
    service.post(f"{MODEL}/priors/uniform/activate")
    service.delete(SUMMER)
    assert service.post(f"{MODEL}/undo").json()["active"]["prior"] == "summer"
    np.testing.assert_allclose(scores(ask(service)), pets.scores(np.array(LOGITS), LAW), atol=1e-12)
    assert service.get(SUMMER).json()["edition"] == 3


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "invalid-request"),
        ({"weights": LAW, "kappa": 1}, "invalid-request"),
        ({"weights": "many"}, "invalid-request"),
        ({"kappa": 1.6}, "invalid-request"),
        ({"kappa": -0.6}, "invalid-request"),
        ({"weight": LAW}, "invalid-request"),
        ({"weights": {"ant": 1, "bee": 1, "cat": 1, "cow": 1}}, "unknown-class"),
        ({"weights": {"ant": 1, "bee": 1, "cat": 1}}, "invalid-prior"),
        ({"weights": {}}, "invalid-prior"),
        ({"weights": [1, 1, 1]}, "invalid-prior"),
        ({"weights": [1, 1, 1, -1]}, "invalid-prior"),
        ({"weights": [0, 0, 0, 0]}, "invalid-prior"),
    ],
)
def test_numbers_that_are_no_prior_are_refused(service: Service, body: dict, kind: str) -> None:
    refused(service.put(SUMMER, json=body), 422, kind)
    assert len(history(service)) == 1


@pytest.mark.parametrize("text", [b'{"weights": [1, 1, 1, NaN]}', b'{"weights": [1, 1, 1, 1e999]}', b"{", b""])
def test_a_body_that_is_no_prior_is_refused(service: Service, text: bytes) -> None:
    answer = service.put(SUMMER, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("text", [b'{"weights": {"\\ud800": 1}}', b'{"\\ud800": 1}', b'{"weights": "\\ud800"}'])
def test_text_that_is_no_unicode_is_refused(service: Service, text: bytes) -> None:
    answer = service.put(SUMMER, content=text, headers={"content-type": "application/json"})
    refused(answer, 422, "invalid-request")


def test_a_prior_may_demand_the_state_it_was_meant_for(service: Service) -> None:
    assert service.put(SUMMER, json=BY_NAME, headers={"if-match": '"1"'}).status_code == 200
    refused(service.put(SUMMER, json=BY_NAME, headers={"if-match": '"1"'}), 409, "changed-since", "revision 2")
    refused(service.delete(SUMMER, headers={"if-match": '"1"'}), 409, "changed-since")
    assert names(stored_priors(service)) == ["summer"]


def test_the_priors_of_one_model_are_not_those_of_another(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service]
) -> None:
    service = make_service(make_bundle("one"), make_bundle("two", name="birds", seed=2))
    service.put(SUMMER, json=BY_NAME)
    refused(service.get("/v1/models/birds/priors/summer"), 404, "unknown-prior")
    assert live(service)["prior"] == "uniform"


def test_a_body_without_its_type_is_told_to_say_it(service: Service) -> None:
    answer = service.put(SUMMER, content=b'{"weights": [1, 2, 3, 4]}')
    refused(answer, 422, "invalid-request", "Content-Type: application/json")


def test_a_body_beyond_any_prior_is_refused_before_it_is_read(service: Service) -> None:
    body = b'{"weights": [' + b"1," * (5 << 20) + b"1]}"
    answer = service.put(SUMMER, content=body, headers={"content-type": "application/json"})
    refused(answer, 413, "body-too-large", "PUT")
