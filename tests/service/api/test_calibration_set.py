"""`POST …/calibration-set`: labelled logits or images take the place of the examples that a version came with."""

import io
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from models.calibration.choose import choose, out_of_fold
from models.calibration.choose import fit_named as named
from models.calibration.metrics import evaluate
from models.calibration.prior import Ledger
from models.calibration.types import ClassPrior, LogitSet, softmax
from tests.service.api.asking import LOGITS, MODEL, TRAINING, ask, history, live, refused, scores, upload
from tests.service.bundles import CLASSES, COUNTS, HEIGHT, WIDTH, Made, edit_manifest, formula
from tests.service.conftest import Service, png

SET = f"{MODEL}/calibration-set"


def examples(per_class: int = 30, classes: int = 4, seed: int = 5) -> LogitSet:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    logits = 2 * np.eye(classes)[labels] + rng.normal(size=(labels.size, classes)) + np.log(COUNTS[:classes])
    return LogitSet(logits=logits.astype(np.float32), labels=labels, split="calibration", drawn="by the test")


def npz(made: LogitSet, **changed: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **({"logits": made.logits, "labels": made.labels} | changed))
    return buffer.getvalue()


def as_json(made: LogitSet, **more: Any) -> bytes:
    labels = [CLASSES[label] for label in made.labels]
    return orjson.dumps(
        {"logits": made.logits, "labels": labels, "drawn": made.drawn} | more, option=orjson.OPT_SERIALIZE_NUMPY
    )


def images(per_class: int = 6) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A .zip of folders named by their class, its pixels and their labels."""
    labels = np.repeat(np.arange(4), per_class)
    pixels = np.random.default_rng(3).integers(0, 256, (labels.size, HEIGHT, WIDTH, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index, (label, image) in enumerate(zip(labels, pixels, strict=True)):
            archive.writestr(f"{CLASSES[label]}/{index}.png", png(image))
    return buffer.getvalue(), pixels, labels


def send(service: Service, data: bytes, *, headers: dict | None = None, **params: Any) -> httpx.Response:
    return service.post(SET, content=data, params=params, headers=headers or {})


def stored(service: Service, calibration: str = "c2") -> dict:
    return dict(service.get(f"{MODEL}/calibrations/{calibration}").json()["calibration"])


def fitted(made: LogitSet, counts: tuple[int, ...] = COUNTS) -> Any:
    return choose(made, Ledger.by_rule("cross-entropy", counts)).calibration


@pytest.mark.parametrize("pack", [npz, as_json])
def test_labelled_logits_are_fitted_on_and_live(service: Service, pack: Callable[[LogitSet], bytes]) -> None:
    answer = send(service, pack(examples()), drawn="in spring", headers={"from": "ada"})
    assert (answer.status_code, answer.headers["etag"]) == (201, '"2"'), answer.text
    report = answer.json()
    assert report["items"] == 120
    assert report["drawn"] == ("in spring" if pack is npz else "by the test")  # what the file says itself counts
    assert live(service)["calibration"]["id"] == "c2"
    expected = fitted(examples())
    assert stored(service)["method"] == expected.method
    np.testing.assert_allclose(stored(service)["offset"], expected.offset, atol=1e-9)
    np.testing.assert_allclose(scores(ask(service)), formula(stored(service), np.array(LOGITS)), atol=1e-12)
    assert history(service)[-1]["actor"] == "ada"


def test_labelled_images_are_run_through_the_network_first(service: Service, pets: Made) -> None:
    data, pixels, labels = images()
    answer = send(service, data)
    assert answer.status_code == 201, answer.text
    assert answer.json()["items"] == 24
    of_images = stored(service)
    again = send(service, npz(LogitSet(logits=pets.raw(pixels), labels=labels, split="calibration")))
    assert again.status_code == 201
    np.testing.assert_allclose(of_images["offset"], stored(service, "c3")["offset"], atol=1e-4)
    np.testing.assert_allclose(of_images["scale"], stored(service, "c3")["scale"], atol=1e-4)


def test_the_file_is_kept_as_it_came_and_an_undo_brings_the_former_set_back(service: Service) -> None:
    before = ask(service).content
    refitted = upload(service, TRAINING, role="training", dry_run=True).json()["metrics"]
    answer = send(service, npz(examples()))
    assert service.get(f"{MODEL}/history/2/file").content == npz(examples())
    assert service.post(answer.json()["undo"]["href"]).status_code == 200
    assert ask(service).content == before
    assert upload(service, TRAINING, role="training", dry_run=True).json()["metrics"] == refitted


def test_the_figures_are_out_of_fold_on_the_new_examples(service: Service) -> None:
    report = send(service, npz(examples())).json()["metrics"]
    assert (report["sample"]["items"]["all"], report["sample"]["out_of_fold"]) == (120, 5)
    ledger, uniform = Ledger.by_rule("cross-entropy", COUNTS), ClassPrior.uniform(4)
    method = stored(service)["method"]
    held_out = out_of_fold(named(method, np.ones(4)), examples(), ledger).adjust(uniform)
    figures = evaluate(held_out, examples().labels, class_counts=np.array(COUNTS), target=uniform)
    assert report["after"]["nll"]["value"] == pytest.approx(figures.nll.value)
    fit = fitted(examples()).debias(examples().raw).adjust(uniform)
    flattering = evaluate(fit, examples().labels, class_counts=np.array(COUNTS), target=uniform)
    assert report["after"]["nll"]["value"] != pytest.approx(flattering.nll.value)


def test_training_counts_afterwards_are_fitted_on_the_new_examples(service: Service) -> None:
    send(service, npz(examples()))
    answer = upload(service, TRAINING, role="training")
    assert answer.json()["metrics"]["sample"]["items"]["all"] == 120
    expected = fitted(examples(), (4000, 100, 60, 9)).offset
    np.testing.assert_allclose(stored(service, "c3")["offset"], expected, atol=1e-6)  # the set is kept as float32


def test_a_dry_run_reports_the_same_and_changes_nothing(service: Service) -> None:
    before = ask(service).content
    dry = send(service, npz(examples()), dry_run=True)
    assert (dry.status_code, dry.headers["etag"], dry.json()["undo"]) == (200, '"1"', None)
    assert dry.json()["active"]["calibration"]["id"] is None
    assert ask(service).content == before
    assert len(service.get(f"{MODEL}/calibrations").json()["calibrations"]) == 1
    assert len(history(service)) == 1
    assert send(service, npz(examples())).json()["metrics"] == dry.json()["metrics"]


def test_a_measured_implied_prior_is_measured_anew(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service]
) -> None:
    made = make_bundle()
    edit_manifest(made.path, lambda document: document["ledger"].update(source="measured", trained_with="unknown"))
    service = make_service(made)
    before = service.get(MODEL).json()["implied_prior"]["probs"]
    assert send(service, npz(examples())).status_code == 201
    after = service.get(MODEL).json()["implied_prior"]
    assert after["source"] == "measured"
    assert np.abs(np.array(after["probs"]) - before).max() > 1e-3


def test_a_model_without_a_network_takes_logits_and_refuses_images(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service]
) -> None:
    service = make_service(make_bundle(network=False, calibration_set=False))
    refused(send(service, images()[0]), 422, "logits-only", "labelled logits")
    assert service.get(MODEL).json()["calibration_set"] is False
    assert send(service, npz(examples())).status_code == 201
    assert service.get(MODEL).json()["calibration_set"] is True


@pytest.mark.parametrize(
    ("data", "status", "kind", "word"),
    [
        (npz(examples(classes=3)), 422, "shape-mismatch", "(N, 4)"),
        (npz(examples(), labels=np.full(120, 4)), 422, "invalid-calibration-set", "0 to 3"),
        (npz(examples(), labels=np.zeros(7, int)), 422, "shape-mismatch", "(120,)"),
        (npz(examples(), split="train"), 409, "leaked-split", "held-out"),
        (npz(examples(), logits=np.full((120, 4), np.nan)), 422, "invalid-logits", "finite"),
        (as_json(examples(), labels=["cow"] * 120), 422, "invalid-calibration-set", "'cow'"),
        (b"a,b\n1,2\n", 422, "invalid-calibration-set", "labelled examples are"),
        (images()[0][:-200], 422, "invalid-calibration-set", "damaged"),
    ],
)
def test_examples_that_cannot_be_used_are_refused_and_change_nothing(
    service: Service, data: bytes, status: int, kind: str, word: str
) -> None:
    before = ask(service).content
    refused(send(service, data), status, kind, word)
    assert ask(service).content == before
    assert len(history(service)) == 1


def test_too_few_examples_are_refused(service: Service) -> None:
    few = LogitSet(logits=np.zeros((1, 4)), labels=np.array([0]), split="calibration")
    refused(send(service, npz(few)), 409, "not-enough-data")


def test_a_set_may_demand_the_state_it_was_meant_for(service: Service) -> None:
    refused(send(service, npz(examples()), headers={"if-match": '"7"'}), 409, "changed-since")
    assert send(service, npz(examples()), headers={"if-match": '"1"'}).status_code == 201


def test_examples_may_come_in_a_form(service: Service) -> None:
    assert service.post(SET, files={"file": ("set.npz", npz(examples()))}).json()["items"] == 120


def test_labelled_probabilities_are_taken_as_what_they_are_said_to_be(service: Service) -> None:
    made = examples()
    shares = npz(made, logits=softmax(made.logits.astype(np.float64)))
    refused(send(service, shares), 422, "invalid-model", "output_kind=probabilities")
    assert send(service, shares, output_kind="probabilities").status_code == 201
    by_logits = fitted(made)
    np.testing.assert_allclose(stored(service)["offset"], by_logits.offset, atol=1e-4)
    refused(send(service, npz(made), output_kind="probabilities"), 422, "invalid-model", "output_kind=logits")
