"""Uploading class frequencies: what changes, what is kept, what is refused."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.service.api.asking import (
    LAW,
    LOGITS,
    MODEL,
    TARGET,
    TRAINING,
    ask,
    history,
    live,
    other_target,
    refused,
    scores,
    stored_priors,
    upload,
)
from tests.service.bundles import CLASSES, COUNTS, Made, edit_manifest, formula
from tests.service.conftest import Service, names

# Target frequencies


def test_a_target_file_becomes_the_active_prior(service: Service, pets: Made) -> None:
    answer = upload(service, name="summer")
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"2"'
    assert answer.json()["active"] == {
        "version": "1",
        "calibration": {"id": "c1", "method": pets.manifest.calibration.method},
        "prior": "summer",
    }
    np.testing.assert_allclose(scores(ask(service)), pets.scores(np.array(LOGITS), LAW), atol=1e-12)
    assert ask(service).json()["prior"] == {"name": "summer", "edition": 1}


def test_the_report_says_how_the_file_was_read_and_what_it_changes(service: Service) -> None:
    report = upload(service).json()
    assert report["kind"] == "counts"
    assert "CSV" in report["format_detected"]
    assert [row["class"] for row in report["classes"]] == list(CLASSES)
    np.testing.assert_allclose([row["prior"] for row in report["classes"]], np.array(LAW) / 100)
    assert report["metrics"]["before"]["accuracy"] != report["metrics"]["after"]["accuracy"]
    assert report["metrics"]["sample"]["items"]["all"] == 100
    assert report["undo"] == {"method": "POST", "href": "/v1/models/pets/undo?revision=2"}


def test_the_file_is_kept_as_it_came(service: Service) -> None:
    upload(service, name="summer")
    digest = stored_priors(service)[0]["file_digest"]
    assert digest == hashlib.sha256(TARGET).hexdigest()
    kept = service.get(f"{MODEL}/history/2/file")
    assert (kept.content, kept.headers["etag"]) == (TARGET, f'"{digest}"')
    refused(service.get(f"{MODEL}/history/1/file"), 404, "unknown-revision", "without a file")


def test_a_stored_prior_can_be_asked_for_by_name_and_activated_again(service: Service, pets: Made) -> None:
    upload(service, name="summer")
    changed = service.post(f"{MODEL}/priors/uniform/activate")
    assert (changed.status_code, changed.json()["active"]["prior"]) == (200, "uniform")
    np.testing.assert_allclose(scores(ask(service)), pets.scores(np.array(LOGITS)), atol=1e-12)
    by_name = ask(service, params={"prior": "summer"})
    np.testing.assert_allclose(scores(by_name), pets.scores(np.array(LOGITS), LAW), atol=1e-12)
    assert service.post(f"{MODEL}/priors/summer/activate").status_code == 200
    assert ask(service).content == by_name.content
    listed = service.get(f"{MODEL}/priors").json()
    assert (listed["active"], names(listed["priors"])) == ("summer", ["uniform", "training", "summer"])
    assert [row["active"] for row in listed["priors"]] == [False, False, True]


def test_the_same_file_again_is_another_change_of_the_same_prior(service: Service) -> None:
    first, second = upload(service), upload(service)
    assert first.json()["active"]["prior"] == second.json()["active"]["prior"]
    assert (second.status_code, second.json()["revision"]) == (201, 3)
    assert len(stored_priors(service)) == 1


def test_a_known_name_gets_another_meaning_as_a_new_edition_and_an_undo_takes_it_back(service: Service) -> None:
    upload(service, name="summer")
    before = scores(ask(service))
    again = upload(service, other_target(50), name="summer")
    assert any("edition 2" in warning for warning in again.json()["warnings"])
    assert ask(service, params={"prior": "summer"}).json()["prior"] == {"name": "summer", "edition": 2}
    assert (scores(ask(service)) != before).any()
    service.post(f"{MODEL}/undo")
    after = ask(service, params={"prior": "summer"})
    np.testing.assert_array_equal(scores(after), before)
    assert after.json()["prior"] == {"name": "summer", "edition": 3}


def test_the_report_says_whether_an_undo_gives_a_name_its_former_meaning_back(service: Service) -> None:
    for active, words, edition in ((True, "gives the name its former meaning back", 3), (False, "leaves it so", 4)):
        upload(service, name="summer")
        if not active:
            service.post(f"{MODEL}/priors/uniform/activate")
        answer = upload(service, other_target(50), name="summer").json()
        assert any(f"An undo {words}." in warning for warning in answer["warnings"])
        service.post(answer["undo"]["href"])
        summer = service.get(f"{MODEL}/priors/summer").json()
        assert (summer["edition"], summer["probs"]["ant"] == pytest.approx(0.05)) == (edition, active)


@pytest.mark.parametrize("name", ["uniform", "training", "none", "", "a/b", "[1]", "x" * 65])
def test_a_reserved_or_unusable_name_is_refused(service: Service, name: str) -> None:
    refused(upload(service, name=name), 422, "invalid-request", "name")


def test_zeros_mean_what_the_request_says(service: Service) -> None:
    file = b"ant,0\nbee,1\ncat,1\ndog,2\n"
    refused(upload(service, file), 422, "frequency-file-error")
    assert upload(service, file, zeros="impossible").status_code == 201
    np.testing.assert_array_equal(scores(ask(service))[:, 0], [0, 0])
    assert upload(service, file, zeros="smooth").status_code == 201
    assert (scores(ask(service))[:, 0] > 0).all()


def test_a_list_of_examples_is_counted(service: Service) -> None:
    lines = [f"train/{number}.jpg {label}" for label, times in enumerate(LAW) for number in range(times)]
    report = upload(service, "\n".join(lines).encode()).json()
    np.testing.assert_allclose([row["prior"] for row in report["classes"]], np.array(LAW) / 100)
    assert report["reading"] == {
        "format": "split-list",
        "matched_by": "index",
        "header": False,
        "delimiter": " ",
        "classes": 4,
        "total": 100,
    }


def test_a_class_that_is_not_in_the_file_means_what_the_request_says(service: Service) -> None:
    file = b"bee,1\ncat,1\ndog,2\n"
    refused(upload(service, file), 422, "frequency-file-error", "missing: 'ant'", "missing=zero")
    report = upload(service, file, missing="zero", zeros="impossible").json()
    assert [row["prior"] for row in report["classes"]] == [0, 0.25, 0.25, 0.5]
    assert any("'ant'" in warning for warning in report["warnings"])
    smoothed = upload(service, file, missing="zero", zeros="smooth")
    assert smoothed.json()["active"]["prior"] != report["active"]["prior"]


def test_a_cap_bounds_what_a_target_can_do(service: Service) -> None:
    file = b"ant,1000000\nbee,10\ncat,10\ndog,1\n"
    wild = upload(service, file, dry_run="true").json()
    assert any("factor of 100" in warning for warning in wild["warnings"])
    held = upload(service, file, cap="5").json()
    np.testing.assert_allclose([row["prior"] for row in held["classes"]], np.array([50, 10, 10, 2]) / 72)
    assert held["active"]["prior"].endswith("-cap-5")
    for wrong in ("1", "inf", "nan", "-5", "much"):
        refused(upload(service, file, cap=wrong), 422, "invalid-request", "cap")
    refused(upload(service, file, cap="5", role="training"), 422, "invalid-request", "leave `cap` out")


def test_a_format_may_be_named(service: Service) -> None:
    file = b"5\n10\n20\n65\n"
    assert upload(service, file, format="numbers").json()["reading"]["format"] == "numbers"
    refused(upload(service, file, format="json"), 422, "frequency-file-error")
    refused(upload(service, file, format="excel"), 422, "invalid-request", "'folder-listing'")


@pytest.mark.parametrize("how", ["raw", "form", "with a wrong type"])
def test_the_file_may_come_raw_or_in_a_form(service: Service, how: str) -> None:
    url = f"{MODEL}/class-frequencies?role=target"
    if how == "form":
        answer = service.post(url, files={"file": ("any.csv", TARGET, "text/csv")})
    else:
        headers = {} if how == "raw" else {"content-type": "application/x-www-form-urlencoded"}
        answer = service.post(url, content=TARGET, headers=headers)
    np.testing.assert_allclose([row["prior"] for row in answer.json()["classes"]], np.array(LAW) / 100)


# Training counts


def test_training_counts_change_the_ledger_and_refit_the_calibration(service: Service) -> None:
    answer = upload(service, TRAINING, role="training")
    assert (answer.status_code, answer.json()["active"]["calibration"]["id"]) == (201, "c2")
    detail = service.get(MODEL).json()
    assert detail["class_counts"] == [4000, 100, 60, 9]
    np.testing.assert_allclose(detail["implied_prior"]["probs"], np.array([4000, 100, 60, 9]) / 4169)
    fitted = service.get(f"{MODEL}/calibrations/c2").json()
    assert fitted["report"]["classes"] == answer.json()["classes"]
    np.testing.assert_allclose(scores(ask(service)), formula(fitted["calibration"], np.array(LOGITS)), atol=1e-12)
    own = service.get(f"{MODEL}/calibrations/c1").json()
    assert fitted["calibration"]["offset"] != own["calibration"]["offset"]
    assert own["ledger"]["class_counts"] == list(COUNTS)


def test_the_active_prior_stays_while_the_training_prior_follows_the_counts(service: Service) -> None:
    upload(service, name="summer")
    upload(service, TRAINING, role="training")
    assert live(service)["prior"] == "summer"
    service.post(f"{MODEL}/priors/training/activate")
    report = upload(service, TRAINING.replace(b"4000", b"9000"), role="training").json()
    np.testing.assert_allclose([row["prior"] for row in report["classes"]], np.array([9000, 100, 60, 9]) / 9169)
    assert live(service)["prior"] == "training"
    fitted = service.get(f"{MODEL}/calibrations/c3").json()["calibration"]
    np.testing.assert_allclose(scores(ask(service)), formula(fitted, np.array(LOGITS), [9000, 100, 60, 9]), atol=1e-12)


def test_a_prior_has_no_place_in_training_counts(service: Service) -> None:
    refused(upload(service, TRAINING, role="training", name="x"), 422, "invalid-request", "name")


def test_a_calibration_can_be_activated_again(service: Service) -> None:
    before = ask(service).content
    upload(service, TRAINING, role="training")
    changed = service.post(f"{MODEL}/calibrations/c1/activate")
    assert (changed.status_code, changed.json()["active"]["calibration"]["id"]) == (200, "c1")
    assert ask(service).content == before
    rows = service.get(f"{MODEL}/calibrations").json()["calibrations"]
    assert [(row["id"], row["active"]) for row in rows] == [("c1", True), ("c2", False)]


# Files that are refused


@pytest.mark.parametrize(
    ("file", "role", "line"),
    [
        (b"class,count\nant,5\nbee,10\ncat,20\n", "target", None),
        (b"class,count\nant,5\nbee,10\ncat,20\ncow,65\n", "target", 5),
        (b"class,count\nant,5\nant,6\nbee,10\ncat,20\ndog,65\n", "target", 3),
        (b"class,count\nant,-5\nbee,10\ncat,20\ndog,65\n", "target", None),
        (b"class,count\nant,1.5\nbee,10\ncat,20\ndog,65\n", "training", 2),
        (b"class,count\nant,many\nbee,10\ncat,20\ndog,65\n", "target", 2),
        (b"class,count\nant,0\nbee,0\ncat,0\ndog,0\n", "target", None),
        (b"class,count\nant,0\nbee,10\ncat,20\ndog,65\n", "training", None),
        (b"class,percent\nant,5%\nbee,10%\ncat,20%\ndog,64%\n", "training", None),
        (b"{", "target", None),
        (b"\x00\x01\x02", "target", None),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_nothing_is_changed(
    service: Service, file: bytes, role: str, line: int | None
) -> None:
    before = ask(service).content
    answer = upload(service, file, role=role)
    refused(answer, 422, "frequency-file-error", "nothing applied")
    errors = answer.json()["errors"]
    assert all(error["message"] for error in errors)
    if line is not None:
        assert line in [error["line"] for error in errors]
    assert ask(service).content == before
    assert len(history(service)) == 1
    assert stored_priors(service) == []


@pytest.mark.parametrize("file", [b"\xef\xbb\xbf" + TARGET, TARGET.replace(b"\n", b"\r\n"), TARGET.split(b"\n", 1)[1]])
def test_a_byte_order_mark_windows_line_ends_and_a_missing_header_are_fine(service: Service, file: bytes) -> None:
    answer = upload(service, file)
    assert answer.status_code == 201, answer.text
    np.testing.assert_allclose([row["prior"] for row in answer.json()["classes"]], np.array(LAW) / 100)


@pytest.mark.parametrize(
    "params", [{}, {"role": "both"}, {"role": "target", "dryrun": True}, {"role": "target", "zeros": "x"}]
)
def test_a_request_without_a_role_or_with_a_misspelt_option_is_refused(service: Service, params: dict) -> None:
    answer = service.post(f"{MODEL}/class-frequencies", content=TARGET, params=params)
    refused(answer, 422, "invalid-request")
    assert len(history(service)) == 1


def test_an_empty_file_and_two_files_are_refused(service: Service) -> None:
    refused(upload(service, b""), 422, "invalid-request", "empty")
    files = [("file", ("a.csv", TARGET)), ("file", ("b.csv", TARGET))]
    answer = service.post(f"{MODEL}/class-frequencies?role=target", files=files)
    refused(answer, 422, "invalid-request", "one file at a time")


def test_counts_say_nothing_where_the_implied_prior_was_measured(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service]
) -> None:
    made = make_bundle()
    edit_manifest(made.path, lambda document: document["ledger"].update(source="measured", trained_with="unknown"))
    refused(upload(make_service(made), TRAINING, role="training"), 409, "unknown-training-rule", "measured")


def test_a_model_without_a_calibration_set_can_still_be_recalibrated(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service]
) -> None:
    service = make_service(make_bundle(calibration_set=False))
    assert upload(service).json()["metrics"] is None
    answer = upload(service, TRAINING, role="training")
    assert answer.status_code == 201
    assert answer.json()["active"]["calibration"]["method"] == "closed-form"


# Dry runs


@pytest.mark.parametrize(("file", "role"), [(TARGET, "target"), (TRAINING, "training")])
def test_a_dry_run_reports_the_same_and_changes_nothing(service: Service, file: bytes, role: str) -> None:
    before = ask(service).content
    dry = upload(service, file, role=role, dry_run=True)
    assert (dry.status_code, dry.headers["etag"], dry.json()["undo"]) == (200, '"1"', None)
    assert ask(service).content == before
    assert len(history(service)) == 1
    assert len(service.get(f"{MODEL}/calibrations").json()["calibrations"]) == 1
    wet = upload(service, file, role=role)
    differ = ("dry_run", "revision", "undo", "active")
    assert {key: value for key, value in wet.json().items() if key not in differ}.items() <= dry.json().items()
    assert dry.json()["active"]["calibration"]["id"] == ("c1" if role == "target" else None)  # c2 does not exist
