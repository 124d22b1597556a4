"""`POST /v1/models/{model}/import`: classifiers that were made elsewhere, and models that are sent logits."""

import numpy as np
import orjson
import pytest

from tests.models.onnx_graph.networks import CLASSES, COUNTS, HEIGHT, IMAGES, WIDTH, by_hand, labelled, network
from tests.service.api.asking import LOGITS, refused, scores
from tests.service.api.importing import BIRDS, FILES, IMPORT, npz, send
from tests.service.bundles import formula
from tests.service.conftest import Service, names, png


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def calibration(service: Service) -> dict:
    live = service.get(BIRDS).json()["active"]["calibration"]["id"]
    return dict(service.get(f"{BIRDS}/calibrations/{live}").json()["calibration"])


def nothing_came_of_it(service: Service) -> None:
    assert names(service.get("/v1/models").json()["models"]) == ["pets"]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_an_imported_classifier_scores_images_as_its_own_logits_say(service: Service, layout: str) -> None:
    answer = send(service, network(layout=layout))
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"'), answer.text
    assert answer.json()["version"] == "1"
    assert answer.json()["known"] is False
    detail = service.get(BIRDS).json()
    assert detail["class_names"] == list(CLASSES)
    assert detail["class_counts"] == COUNTS
    assert detail["input"] == {"height": HEIGHT, "width": WIDTH}
    expected = formula(calibration(service), by_hand(layout))
    got = service.post(f"{BIRDS}/scores", files=[("image", png(image)) for image in IMAGES])
    np.testing.assert_allclose(scores(got), expected, atol=1e-5)


def test_a_model_without_a_graph_is_sent_logits(service: Service) -> None:
    assert send(service).status_code == 201
    assert service.get(BIRDS).json()["input"] is None
    answer = service.post(f"{BIRDS}/scores", json={"logits": LOGITS})
    # closed form: what training put in is taken out
    expected = probabilities(np.array(LOGITS) - np.log(COUNTS))
    np.testing.assert_allclose(scores(answer), expected, atol=1e-12)


def test_how_it_was_trained_decides_what_is_taken_out(service: Service) -> None:
    assert send(service, trained_with="balanced-softmax").status_code == 201
    answer = service.post(f"{BIRDS}/scores", json={"logits": LOGITS})
    np.testing.assert_allclose(scores(answer), probabilities(np.array(LOGITS)), atol=1e-12)


def test_the_options_reach_the_graph(service: Service) -> None:
    model = network(dims=["batch", None, None, None], names=("pixels", "answer"))
    refused(send(service, model), 422, "invalid-model", "layout=nchw")
    refused(send(service, model, layout="nchw"), 422, "invalid-model", "size=HEIGHTxWIDTH")
    size = f"{HEIGHT}x{WIDTH}"
    refused(send(service, model, layout="nchw", size=size, input="input"), 422, "invalid-model", "pixels")
    told = {"layout": "nchw", "size": size, "input": "pixels", "output": "answer"}
    assert send(service, model, **told).status_code == 201
    raw = service.post(
        f"{BIRDS}/scores", files=[("image", png(image)) for image in IMAGES], params={"explain": "true"}
    ).json()
    shown = np.array([row["explain"]["raw"] for row in raw["results"]])
    np.testing.assert_allclose(shown, probabilities(by_hand()), atol=1e-5)


def test_labelled_logits_choose_the_calibration_and_are_kept_for_refits(service: Service) -> None:
    answer = send(service, network(), logits=npz(labelled(40)))
    assert answer.status_code == 201, answer.text
    assert service.get(BIRDS).json()["calibration_set"] is True
    assert calibration(service)["provenance"]["num_items"] == 160


def test_unknown_training_is_measured_on_labelled_logits(service: Service) -> None:
    refused(send(service, trained_with="unknown"), 409, "unknown-training-rule", "logits")
    nothing_came_of_it(service)
    assert send(service, trained_with="unknown", logits=npz(labelled(40))).status_code == 201
    assert service.get(BIRDS).json()["implied_prior"]["source"] == "measured"


@pytest.mark.parametrize("as_json", [False, True])
def test_probabilities_become_logits_where_the_client_says_so(service: Service, as_json: bool) -> None:
    examples = labelled(40)
    probs = probabilities(examples.logits)
    document = {"logits": probs, "labels": examples.labels}
    data = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY) if as_json else npz(examples, logits=probs)
    assert send(service, network(kind="probabilities"), output_kind="probabilities", logits=data).status_code == 201
    of_probabilities = calibration(service)
    assert send(service, network(), logits=npz(examples)).status_code == 201
    of_logits = calibration(service)
    np.testing.assert_allclose(of_probabilities["scale"], of_logits["scale"], atol=1e-4)
    np.testing.assert_allclose(of_probabilities["offset"], of_logits["offset"], atol=1e-4)


def test_probabilities_are_not_taken_for_logits_nor_logits_for_probabilities(service: Service) -> None:
    examples = labelled()
    probs = npz(examples, logits=probabilities(examples.logits))
    refused(send(service, logits=probs), 422, "invalid-model", "output_kind=probabilities")
    refused(send(service, network(kind="probabilities")), 422, "invalid-model", "output_kind=probabilities")
    wrong = send(service, logits=npz(examples), output_kind="probabilities")
    refused(wrong, 422, "invalid-model", "output_kind=logits")
    nothing_came_of_it(service)


def test_another_import_is_another_version_and_the_same_one_is_known(service: Service) -> None:
    assert send(service, network()).json()["version"] == "1"
    again = send(service, network())
    assert (again.status_code, again.json()["known"], again.json()["revision"]) == (200, True, 1)
    waiting = send(service, network(), params={"activate": "false"}, trained_with="balanced-softmax")
    assert (waiting.json()["version"], waiting.json()["active"]["version"]) == ("2", "1")
    assert send(service, network(), mean="0.5,0.5,0.5").json()["active"]["version"] == "3"


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ({"counts": None}, "invalid-request", ["counts did not come"]),
        ({"classes": None, "counts": None}, "invalid-request", ["multipart/form-data"]),
        ({"classes": None, "counts": None, "logits": b"{}"}, "invalid-request", ["counts and classes"]),
        ({"trained_with": None}, "invalid-request", ["trained_with"]),
        ({"trained_with": "magic"}, "invalid-request", ["trained_with", "'balanced-softmax'"]),
        ({"layer": "last"}, "invalid-request", ["layer"]),
        ({"weights": b"1"}, "invalid-request", ["weights"]),
        ({"size": "6 by 5"}, "invalid-request", ["size"]),
        ({"mean": "0.5,0.5"}, "invalid-request", ["mean", "three numbers"]),
        ({"std": "nan,1,1"}, "invalid-request", ["std", "three numbers"]),
        ({"classes": b"ant,bee,cat,dog"}, "invalid-manifest", ["one name a line"]),
        ({"classes": b"ant\nbee\ncat\nd\xe4g\n"}, "invalid-manifest", ["not UTF-8"]),
        ({"classes": b"ant\nbee\nant\ndog\n"}, "invalid-manifest", ["'ant' stands twice"]),
        ({"counts": b"ant,5\n"}, "frequency-file-error", ["'bee'"]),
        ({"counts": b"ant,0\nbee,1\ncat,1\ndog,1\n"}, "frequency-file-error", []),
        ({"logits": b"hello"}, "invalid-calibration-set", ["labelled examples are"]),
        ({"logits": npz(labelled(20, 3))}, "shape-mismatch", ["(N, 4)"]),
    ],
)
def test_a_wrong_form_is_refused_by_the_part_that_is_wrong(
    service: Service, parts: dict, kind: str, words: list[str]
) -> None:
    refused(send(service, **parts), 422, kind, *words)
    nothing_came_of_it(service)


def test_a_part_that_comes_twice_is_refused(service: Service) -> None:
    files = [("counts", ("a", FILES["counts"])), ("counts", ("b", b"1\n2\n3\n4\n")), ("classes", FILES["classes"])]
    answer = service.post(IMPORT, files=files, data={"trained_with": "cross-entropy"})
    refused(answer, 422, "invalid-request", "counts came more often")


@pytest.mark.parametrize("value", ["1", ("a", b"1")])
def test_a_form_of_more_parts_than_any_import_has_is_refused_before_it_fills_the_memory(
    service: Service, value: object
) -> None:
    parts = {f"p{number}": value for number in range(21)}
    sent = {"data": parts, "files": {"counts": b"1"}} if value == "1" else {"files": parts}
    refused(service.post(IMPORT, **sent), 422, "invalid-request", "Too many", "20")


def test_training_logits_are_refused(service: Service) -> None:
    refused(send(service, logits=npz(labelled(), split="train")), 409, "leaked-split")


def test_a_name_that_cannot_stand_in_an_address_is_refused(service: Service) -> None:
    refused(send(service, url="/v1/models/a%20b/import"), 422, "invalid-request", "name of a model")


def test_a_file_of_classes_from_windows_is_read(service: Service) -> None:
    classes = b"\xef\xbb\xbf" + FILES["classes"].replace(b"\n", b"\r\n")
    assert send(service, classes=classes).status_code == 201
    assert service.get(BIRDS).json()["class_names"] == list(CLASSES)


def test_a_file_that_is_no_model_is_refused_and_leaves_no_trace(service: Service) -> None:
    refused(send(service, model=b"not a graph"), 422, "invalid-model")
    nothing_came_of_it(service)
