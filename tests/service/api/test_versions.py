"""Versions of a model: activated, named, asked for by a request, deleted where nothing needs them."""

from collections.abc import Callable
from typing import Any

import httpx
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
    upload,
)
from tests.service.bundles import Made
from tests.service.conftest import Service, png

Make = Callable[..., Made]
Start = Callable[..., Service]


@pytest.fixture
def old(make_bundle: Make) -> Made:
    return make_bundle("old", seed=1)


@pytest.fixture
def new(make_bundle: Make) -> Made:
    return make_bundle("new", seed=2)


@pytest.fixture
def two(make_service: Start, old: Made, new: Made) -> Service:
    """Version 2 is live; its calibration is c2."""
    return make_service(old, new)


def name_it(service: Service, alias: str, version: Any, **options: Any) -> httpx.Response:
    return service.put(f"{MODEL}/aliases/{alias}", json={"version": version}, **options)


def versions(service: Service) -> list[dict]:
    return list(service.get(MODEL).json()["versions"])


# Activating


def test_an_activated_version_answers_with_its_own_network_and_calibration(
    two: Service, old: Made, new: Made, pixels: np.ndarray
) -> None:
    answer = two.post(f"{MODEL}/versions/1/activate")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    assert (live(two)["version"], live(two)["calibration"]["id"]) == ("1", "c1")
    got = two.post(f"{MODEL}/scores", content=png(pixels[0]))
    np.testing.assert_allclose(scores(got), old.scores(old.raw(pixels[:1])), atol=1e-6)
    assert two.post(answer.json()["undo"]["href"]).json()["active"]["version"] == "2"
    got = two.post(f"{MODEL}/scores", content=png(pixels[0]))
    np.testing.assert_allclose(scores(got), new.scores(new.raw(pixels[:1])), atol=1e-6)


def test_a_version_comes_back_with_the_calibration_that_was_last_live_with_it(two: Service) -> None:
    upload(two, TRAINING, role="training")
    assert live(two)["calibration"]["id"] == "c3"
    two.post(f"{MODEL}/versions/1/activate")
    assert two.post(f"{MODEL}/versions/2/activate").json()["active"]["calibration"]["id"] == "c3"
    two.post(f"{MODEL}/versions/1/activate")
    two.delete(f"{MODEL}/calibrations/c3")
    assert two.post(f"{MODEL}/versions/2/activate").json()["active"]["calibration"]["id"] == "c2"


# Aliases


def test_an_alias_is_listed_and_can_be_asked_for(two: Service, old: Made) -> None:
    before = ask(two).content
    answer = name_it(two, "candidate", "1", headers={"from": "ada"})
    assert (answer.status_code, answer.json()["action"]) == (200, "alias candidate of version 1")
    assert answer.json()["undo"] is None  # it is no change of what is live
    assert two.get(f"{MODEL}/aliases").json() == {"aliases": {"production": "2", "candidate": "1"}}
    assert [row["aliases"] for row in versions(two)] == [["candidate"], []]
    asked = ask(two, params={"version": "candidate"})
    np.testing.assert_allclose(scores(asked), old.scores(np.array(LOGITS)), atol=1e-12)
    assert (asked.json()["version"], asked.json()["calibration"]["id"]) == ("1", "c1")
    assert ask(two).content == before
    assert history(two)[-1]["actor"] == "ada"


def test_an_alias_moves_and_goes(two: Service) -> None:
    name_it(two, "candidate", "1")
    name_it(two, "candidate", "2")
    assert two.get(f"{MODEL}/aliases").json()["aliases"] == {"production": "2", "candidate": "2"}
    assert ask(two, params={"version": "candidate"}).content == ask(two).content
    assert two.delete(f"{MODEL}/aliases/candidate").status_code == 200
    assert two.get(f"{MODEL}/aliases").json()["aliases"] == {"production": "2"}
    refused(two.delete(f"{MODEL}/aliases/candidate"), 404, "unknown-alias")
    refused(ask(two, params={"version": "candidate"}), 404, "unknown-version", "production")


def test_production_is_what_is_live_and_giving_it_activates(two: Service) -> None:
    assert ask(two, params={"version": "production"}).content == ask(two).content
    answer = name_it(two, "production", "1")
    assert answer.json()["action"] == "activated version 1, calibration c1"
    assert live(two)["version"] == "1"
    assert two.get(f"{MODEL}/aliases").json()["aliases"] == {"production": "1"}
    assert ask(two, params={"version": "production"}).content == ask(two).content
    refused(two.delete(f"{MODEL}/aliases/production"), 409, "in-use", "what is live")


@pytest.mark.parametrize(
    ("alias", "version", "status", "kind"),
    [
        ("candidate", "3", 404, "unknown-version"),
        ("candidate", "v1", 404, "unknown-version"),
        ("production", "3", 404, "unknown-version"),
        ("7", "1", 422, "invalid-request"),
        ("a b", "1", 422, "invalid-request"),
        ("x" * 65, "1", 422, "invalid-request"),
        ("candidate", 1, 422, "invalid-request"),
        ("candidate", None, 422, "invalid-request"),
    ],
)
def test_an_alias_that_says_nothing_is_refused(two: Service, alias: str, version: Any, status: int, kind: str) -> None:
    refused(name_it(two, alias, version), status, kind)
    assert len(history(two)) == 2


# Asking for another version or calibration


def test_a_request_may_name_a_version_or_a_calibration(two: Service, old: Made, pixels: np.ndarray) -> None:
    upload(two, TRAINING, role="training")
    expected = old.scores(old.raw(pixels[:1]))
    for params in ({"version": "1"}, {"calibration": "c1"}):
        got = two.post(f"{MODEL}/scores", content=png(pixels[0]), params=params)
        np.testing.assert_allclose(scores(got), expected, atol=1e-6)
        assert (got.json()["version"], got.json()["calibration"]["id"]) == ("1", "c1")
    assert ask(two, params={"calibration": "c2"}).json()["version"] == "2"
    assert ask(two, params={"calibration": "c2"}).content != ask(two).content
    assert ask(two, params={"calibration": "c3"}).content == ask(two).content
    assert ask(two, params={"version": "2"}).content == ask(two).content


def test_the_active_prior_counts_for_other_versions_too(two: Service, old: Made) -> None:
    upload(two, name="summer")
    asked = ask(two, params={"version": "1"})
    assert asked.json()["prior"]["name"] == "summer"
    np.testing.assert_allclose(scores(asked), old.scores(np.array(LOGITS), LAW), atol=1e-12)


@pytest.mark.parametrize(
    ("params", "status", "kind"),
    [
        ({"version": "3"}, 404, "unknown-version"),
        ({"version": "candidate"}, 404, "unknown-version"),
        ({"version": "99999999999999999999"}, 404, "unknown-version"),
        ({"calibration": "c9"}, 404, "unknown-calibration"),
        ({"calibration": "9"}, 404, "unknown-calibration"),
        ({"version": "1", "calibration": "c1"}, 422, "invalid-request"),
    ],
)
def test_a_request_for_what_is_not_there_is_refused(two: Service, params: dict, status: int, kind: str) -> None:
    refused(ask(two, params=params), status, kind)


# Deleting


def test_a_deleted_version_is_gone_with_its_calibrations(two: Service) -> None:
    answer = two.delete(f"{MODEL}/versions/1")
    assert (answer.status_code, answer.json()["active"]["version"]) == (200, "2")
    assert [row["version"] for row in versions(two)] == ["2"]
    assert [row["id"] for row in two.get(f"{MODEL}/calibrations").json()["calibrations"]] == ["c2"]
    for asked in (ask(two, params={"version": "1"}), two.post(f"{MODEL}/versions/1/activate")):
        refused(asked, 404, "unknown-version", "no longer has")
    refused(ask(two, params={"calibration": "c1"}), 404, "unknown-calibration")
    refused(two.delete(f"{MODEL}/versions/1"), 404, "unknown-version")
    refused(two.post(f"{MODEL}/undo"), 409, "nothing-to-undo", "was deleted")
    assert [row["version"] for row in history(two)] == ["1", "2", "2"]


def test_an_undo_passes_over_a_state_that_was_deleted(make_service: Start, two: Service, make_bundle: Make) -> None:
    two = make_service(make_bundle("third", seed=9))  # version 3, in the same state folder
    assert two.delete(f"{MODEL}/versions/2").status_code == 200
    assert two.post(f"{MODEL}/undo").json()["active"]["version"] == "1"


def test_what_is_live_or_has_a_name_is_not_deleted(two: Service) -> None:
    name_it(two, "candidate", "1")
    refused(two.delete(f"{MODEL}/versions/1"), 409, "in-use", "candidate")
    refused(two.delete(f"{MODEL}/versions/2"), 409, "in-use", "is live")
    assert len(versions(two)) == 2
    two.delete(f"{MODEL}/aliases/candidate")
    assert two.delete(f"{MODEL}/versions/1").status_code == 200


def test_a_deleted_bundle_can_be_given_again_under_a_new_number(make_service: Start, old: Made, new: Made) -> None:
    service = make_service(old, new)
    service.delete(f"{MODEL}/versions/1")
    again = make_service(old)
    assert (live(again)["version"], live(again)["calibration"]["id"]) == ("3", "c3")
    np.testing.assert_allclose(scores(ask(again)), old.scores(np.array(LOGITS)), atol=1e-12)


def test_a_calibration_is_deleted_unless_it_is_live_or_came_in_a_bundle(two: Service) -> None:
    upload(two, TRAINING, role="training")
    refused(two.delete(f"{MODEL}/calibrations/c3"), 409, "in-use", "is live")
    refused(two.delete(f"{MODEL}/calibrations/c1"), 409, "in-use", "versions/1")
    two.post(f"{MODEL}/calibrations/c2/activate")
    assert two.delete(f"{MODEL}/calibrations/c3").status_code == 200
    refused(two.get(f"{MODEL}/calibrations/c3"), 404, "unknown-calibration", "no longer has")
    assert upload(two, TRAINING, role="training").json()["active"]["calibration"]["id"] == "c4"


def test_a_deletion_may_demand_the_state_it_was_meant_for(two: Service) -> None:
    refused(two.delete(f"{MODEL}/versions/1", headers={"if-match": '"1"'}), 409, "changed-since")
    assert len(versions(two)) == 2
    assert two.delete(f"{MODEL}/versions/1", headers={"if-match": '"2"'}).status_code == 200
