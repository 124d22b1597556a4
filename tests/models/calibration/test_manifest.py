import json
from dataclasses import replace

import numpy as np
import pytest

from models.calibration.errors import InvalidManifest
from models.calibration.manifest import InputSize, Manifest, ledger_from_json, ledger_to_json
from models.calibration.prior import Ledger
from models.calibration.temperature import closed_form_without_data


def some_manifest(**changes):
    ledger = Ledger.by_rule("balanced-softmax", [7, 2, 1], loss_counts=[6, 3, 1])
    values = {
        "name": "birds",
        "class_names": ("tit", "owl", "crane"),
        "ledger": ledger,
        "calibration": closed_form_without_data(ledger),
        "row_norms": np.array([1.0, 1 / 3, 0.1]),
        "input_size": InputSize(height=32, width=48),
        "files": {"model.onnx": "ab" * 32},
    }
    return Manifest(**(values | changes))


def broken(**changes):
    return some_manifest().to_json() | changes


def test_survives_json_with_every_digit():
    manifest = some_manifest()
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again.to_json() == manifest.to_json()
    np.testing.assert_array_equal(again.calibration.offset, manifest.calibration.offset)
    assert again.input_size == InputSize(height=32, width=48)


def test_a_logits_only_model_has_no_input():
    assert Manifest.from_json(broken(input=None)).input_size is None


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "JSON object"),
        (broken(name="my birds"), "letters, digits.*'my birds'"),
        (broken(name="../birds"), "letters, digits"),
        (broken(format_version=2), "format version 1; got 2"),
        (broken(class_names=["tit", "owl"]), "cover the 2 classes; got 3"),
        (broken(class_names=["tit", "owl", "tit"]), "'tit' stands twice"),
        (broken(class_names=["tit", "owl", "tit "]), "NFC.*'tit' and 'tit ' are the same"),
        (broken(class_names=["caf\u00e9", "owl", "cafe\u0301"]), r"'caf\\xe9' and 'cafe\\u0301' are the same"),
        (broken(class_names=["tit", "owl", " "]), "none of them empty"),
        (broken(class_names=["tit", "owl", 3]), "texts"),
        (broken(input={"height": 0, "width": 3}), "at least 1 x 1"),
        (broken(row_norms=[1, 2]), "not consistent"),
        (broken(row_norms=[1, 2, 0]), "positive"),
        (broken(files=None), "not consistent"),
        (broken(ledger=some_manifest().to_json()["ledger"] | {"trained_with": "magic"}), "trained_with is one of"),
        (broken(ledger=some_manifest().to_json()["ledger"] | {"implied_prior": [0.5, 0.3, 0.2]}), "does not follow"),
        (broken(ledger=some_manifest().to_json()["ledger"] | {"class_counts": [7, 0, 1]}), "class 1 has 0"),
        ({key: value for key, value in broken().items() if key != "ledger"}, "lacks the field 'ledger'"),
    ],
)
def test_says_what_is_wrong(document, said):
    with pytest.raises(InvalidManifest, match=said):
        Manifest.from_json(document)


@pytest.mark.parametrize(
    "ledger",
    [
        Ledger.by_rule("logit-adjusted", [16, 4, 1], tau=0.5),
        Ledger.by_rule("meta-sampler", [16, 4, 1], rates=[0.1, 0.5, 0.9]),
        replace(Ledger.by_rule("cross-entropy", [16, 4, 1]), source="approximate"),
        replace(Ledger.by_rule("meta-sampler", [8, 1], rates=[0.1, 0.5]), source="measured"),
    ],
)
def test_a_ledger_of_our_own_training_comes_back_as_it_was(ledger):
    document = json.loads(json.dumps(ledger_to_json(ledger)))
    assert ledger_to_json(ledger_from_json(document)) == document


@pytest.mark.parametrize("source", ["rule", "approximate"])
def test_a_prior_that_contradicts_its_rule_is_refused(source):
    document = ledger_to_json(Ledger.by_rule("logit-adjusted", [16, 4, 1], tau=0.5)) | {"tau": 0.9, "source": source}
    with pytest.raises(InvalidManifest, match="does not follow from the rule 'logit-adjusted'"):
        ledger_from_json(document)


def test_an_unknown_training_has_no_rule():
    document = ledger_to_json(Ledger.by_rule("cross-entropy", [2, 1])) | {"trained_with": "unknown"}
    with pytest.raises(InvalidManifest, match="'unknown'"):
        ledger_from_json(document)
