"""Uploading class frequencies, activating, undoing: what changes, what is kept, and who is told when it is too late."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api.test_scores import LOGITS, refused, scores
from tests.service.bundles import CLASSES, COUNTS, Made, edit_manifest, formula
from tests.service.conftest import Service, running

MODEL = "/v1/models/pets"
TARGET = b"class,count\nant,5\nbee,10\ncat,20\ndog,65\n"
LAW = [5, 10, 20, 65]
TRAINING = b'{"ant": 4000, "bee": 100, "cat": 60, "dog": 9}'


def ask(service: Service, **options: Any) -> httpx.Response:
    return service.post(f"{MODEL}/scores", json={"logits": LOGITS}, **options)


def upload(service: Service, data: bytes = TARGET, *, role: str = "target", **params: Any) -> httpx.Response:
    headers = params.pop("headers", {})
    return service.post(f"{MODEL}/class-frequencies", content=data, params={"role": role} | params, headers=headers)


def history(service: Service) -> list[dict]:
    return list(service.get(f"{MODEL}/history").json()["changes"])


def live(service: Service) -> dict:
    return dict(service.get(MODEL).json()["active"])


def other_target(number: int) -> bytes:
    return f"class,count\nant,{number + 1}\nbee,10\ncat,20\ndog,65\n".encode()


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
    assert ask(service).json()["prior"] == {"name": "summer"}


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
    digest = service.get(f"{MODEL}/priors").json()["priors"][0]["file_digest"]
    assert digest == hashlib.sha256(TARGET).hexdigest()
    assert service.app.state.catalog.artifacts.get(digest) == TARGET


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
    assert (listed["active"], [row["name"] for row in listed["priors"]]) == ("summer", ["summer"])


def test_the_same_file_again_is_another_change_of_the_same_prior(service: Service) -> None:
    first, second = upload(service), upload(service)
    assert first.json()["active"]["prior"] == second.json()["active"]["prior"]
    assert (second.status_code, second.json()["revision"]) == (201, 3)
    assert len(service.get(f"{MODEL}/priors").json()["priors"]) == 1


def test_a_name_never_changes_its_meaning(service: Service) -> None:
    upload(service, name="summer")
    refused(upload(service, other_target(50), name="summer"), 409, "name-taken", "'summer'")
    assert len(history(service)) == 2


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
    assert service.get(f"{MODEL}/priors").json()["priors"] == []


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
    refused(answer, 422, "invalid-request", "one class-frequency file")


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
    same = {key: value for key, value in wet.json().items() if key not in ("dry_run", "revision", "undo")}
    assert same.items() <= dry.json().items()


# Undo


def test_undo_walks_back_through_every_change_to_the_last_byte(service: Service) -> None:
    answers = [ask(service).content]
    for change in (
        lambda: upload(service, name="summer"),
        lambda: upload(service, TRAINING, role="training"),
        lambda: service.post(f"{MODEL}/priors/training/activate"),
        lambda: service.post(f"{MODEL}/calibrations/c1/activate"),
    ):
        assert change().status_code in (200, 201)
        answers.append(ask(service).content)
    assert len(set(answers)) == 5
    for expected in reversed(answers[:-1]):
        assert service.post(f"{MODEL}/undo").status_code == 200
        assert ask(service).content == expected
    refused(service.post(f"{MODEL}/undo"), 409, "nothing-to-undo")
    assert len(history(service)) == 9


def test_a_change_after_an_undo_is_undone_first(service: Service) -> None:
    first = ask(service).content
    upload(service, name="summer")
    service.post(f"{MODEL}/undo")
    upload(service, other_target(50), name="winter")
    service.post(f"{MODEL}/undo")
    assert ask(service).content == first
    refused(service.post(f"{MODEL}/undo"), 409, "nothing-to-undo")


def test_the_history_tells_what_happened(service: Service) -> None:
    upload(service, name="summer")
    service.post(f"{MODEL}/undo")
    rows = history(service)
    assert [row["revision"] for row in rows] == [1, 2, 3]
    assert [row["action"] for row in rows] == [
        "registered",
        "uploaded target prior summer",
        "undid revision 2, back to 1",
    ]
    assert [row["prior"] for row in rows] == ["uniform", "summer", "uniform"]


def test_an_undo_of_a_change_that_is_not_the_newest_any_more_is_refused(service: Service) -> None:
    link = upload(service, name="mine").json()["undo"]["href"]
    upload(service, other_target(50), name="theirs")
    answer = service.post(link)
    refused(answer, 409, "changed-since", "revision 2", "revision 3")
    assert answer.headers["etag"] == '"3"'
    assert live(service)["prior"] == "theirs"


def test_the_same_undo_twice_undoes_once(service: Service) -> None:
    link = upload(service).json()["undo"]["href"]
    assert service.post(link).status_code == 200
    refused(service.post(link), 409, "changed-since")
    assert len(history(service)) == 3


CHANGES = [
    f"{MODEL}/undo",
    f"{MODEL}/calibrations/c1/activate",
    f"{MODEL}/priors/training/activate",
    f"{MODEL}/versions/1/activate",
    f"{MODEL}/class-frequencies?role=target",
    f"{MODEL}/class-frequencies?role=target&dry_run=true",
]


@pytest.mark.parametrize("url", CHANGES)
@pytest.mark.parametrize(
    ("header", "fits"), [('"2"', True), ('"1", "2"', True), ("*", True), ('"1"', False), ("2", False), ("", False)]
)
def test_a_change_may_demand_the_state_it_was_meant_for(service: Service, url: str, header: str, fits: bool) -> None:
    upload(service, name="summer")
    answer = service.post(url, content=TARGET, headers={"if-match": header})
    if fits:
        assert answer.status_code in (200, 201), answer.text
    else:
        refused(answer, 409, "changed-since", "revision 2")
        assert answer.headers["etag"] == '"2"'
        assert len(history(service)) == 2


def test_the_etag_of_a_model_is_the_one_that_changes_ask_for(service: Service) -> None:
    etag = service.get(MODEL).headers["etag"]
    assert upload(service, headers={"if-match": etag}).status_code == 201
    refused(upload(service, headers={"if-match": etag}), 409, "changed-since")


# At the same time


def test_uploads_at_once_are_all_in_the_history_and_none_is_half_applied(service: Service, pets: Made) -> None:
    files = [other_target(number) for number in range(6)] + [TRAINING.replace(b"9}", b"%d}" % n) for n in range(1, 4)]
    with running(service.app) as url, ThreadPoolExecutor(len(files)) as pool:

        def send(file: bytes) -> httpx.Response:
            role = "training" if file.startswith(b"{") else "target"
            return httpx.post(f"{url}{MODEL}/class-frequencies?role={role}", content=file, timeout=60)

        answers = list(pool.map(send, files))
    assert [answer.status_code for answer in answers] == [201] * len(files)
    assert sorted(answer.json()["revision"] for answer in answers) == list(range(2, len(files) + 2))
    rows = history(service)
    assert [row["revision"] for row in rows] == list(range(1, len(files) + 2))
    assert rows[-1]["calibration"] == "c4"
    for answer in answers:  # the state of each revision is what its sender was told
        row = rows[answer.json()["revision"] - 1]
        told = answer.json()["active"]
        assert (row["prior"], row["calibration"]) == (told["prior"], told["calibration"]["id"])
    fitted = service.get(f"{MODEL}/calibrations/c4").json()["calibration"]
    law = next(row for row in service.get(f"{MODEL}/priors").json()["priors"] if row["active"])["probs"]
    expected = formula(fitted, np.array(LOGITS), [law[name] for name in CLASSES])
    np.testing.assert_allclose(scores(ask(service)), expected, atol=1e-12)


def test_two_processes_on_one_database_lose_nothing(make_service: Callable[..., Service], pets: Made) -> None:
    services = [make_service(pets), make_service(pets)]  # each with its own locks, as two processes have

    def send(number: int) -> int:
        return upload(services[number % 2], other_target(number)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [201] * 8
    assert [row["revision"] for row in history(services[0])] == list(range(1, 10))
    assert len(services[1].get(f"{MODEL}/priors").json()["priors"]) == 8


def test_a_request_keeps_the_state_it_began_with(service: Service, pets: Made) -> None:
    async def run() -> set[bytes]:
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            seen: set[bytes] = set()
            done = asyncio.Event()

            async def keep_asking() -> None:
                while not done.is_set():
                    seen.add((await client.post(f"{MODEL}/scores", json={"logits": LOGITS})).content)

            asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
            for number in range(5):
                url = f"{MODEL}/class-frequencies?role=target&name=p{number}"
                await client.post(url, content=other_target(number))
            done.set()
            await asyncio.gather(*asking)
            return seen

    seen = asyncio.run(run())
    allowed = {ask(service, params={"prior": f"p{number}"}).content for number in range(5)}
    allowed.add(ask(service, params={"prior": "uniform"}).content)
    assert seen <= allowed


# After a restart


def test_a_restart_keeps_state_and_answers_to_the_last_byte(make_service: Callable[..., Service], pets: Made) -> None:
    first = make_service(pets)
    upload(first, name="summer")
    upload(first, TRAINING, role="training")
    expected, changes = ask(first).content, history(first)
    first.close()
    for bundles in ((), (pets,)):  # without the bundle, and with the same one again
        again = make_service(*bundles)
        assert ask(again).content == expected
        assert history(again) == changes
        again.close()
    last = make_service()
    assert last.post(f"{MODEL}/undo").json()["active"]["prior"] == "summer"
    assert live(last)["calibration"]["id"] == "c1"


# What is not there


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/v1/models/cars", "unknown-model"),
        ("GET", "/v1/models/cars/calibrations", "unknown-model"),
        ("GET", "/v1/models/cars/calibrations/c1", "unknown-model"),
        ("GET", "/v1/models/cars/priors", "unknown-model"),
        ("GET", "/v1/models/cars/history", "unknown-model"),
        ("POST", "/v1/models/cars/undo", "unknown-model"),
        ("POST", "/v1/models/cars/calibrations/c1/activate", "unknown-model"),
        ("POST", "/v1/models/cars/versions/1/activate", "unknown-model"),
        ("POST", "/v1/models/cars/priors/uniform/activate", "unknown-model"),
        ("GET", f"{MODEL}/calibrations/c2", "unknown-calibration"),
        ("GET", f"{MODEL}/calibrations/1", "unknown-calibration"),
        ("POST", f"{MODEL}/calibrations/c0/activate", "unknown-calibration"),
        ("POST", f"{MODEL}/calibrations/c99999999999999999999/activate", "unknown-calibration"),
        ("POST", f"{MODEL}/versions/2/activate", "unknown-version"),
        ("POST", f"{MODEL}/versions/v1/activate", "unknown-version"),
        ("POST", f"{MODEL}/priors/winter/activate", "unknown-prior"),
    ],
)
def test_what_is_not_there_is_a_404_of_its_own_kind(service: Service, method: str, path: str, kind: str) -> None:
    refused(service.request(method, path), 404, kind)


def test_an_upload_to_an_unknown_model_is_refused(service: Service) -> None:
    answer = service.post("/v1/models/cars/class-frequencies?role=target", content=TARGET)
    refused(answer, 404, "unknown-model")


def test_none_cannot_be_a_models_active_prior(service: Service) -> None:
    refused(service.post(f"{MODEL}/priors/none/activate"), 422, "invalid-request", "none")
