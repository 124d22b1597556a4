import json
from dataclasses import replace

import numpy as np
import pytest

from models.calibration.choose import fit_named
from models.calibration.difference import difference
from models.calibration.errors import ShapeMismatch
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, LogitSet

NAMES = [f"class-{index}" for index in range(10)]
PETS = ["ant", "bee", "cat"]
LEDGER = Ledger.by_rule("cross-entropy", [60, 30, 10])


def calibration(scale=(1, 1, 1), offset=(0, 0, 0), prior=(1, 1, 1), method="by hand"):
    implied = ClassPrior.from_weights(np.array(prior, dtype=float))
    return Calibration(scale=np.array(scale), offset=np.array(offset), implied_prior=implied, method=method)


def pets(a, b, ledger_b=LEDGER, **options):
    return difference(a, b, ledger_a=LEDGER, ledger_b=ledger_b, class_names=PETS, **options)


def told(sample, a, b, **options):
    return difference(a, b, ledger_a=sample.ledger, ledger_b=sample.ledger, class_names=NAMES, **options)


class TestByHand:
    def test_each_class_says_what_changed(self):
        a = calibration(scale=[1, 2, 4], offset=[0, 0, 0], prior=[1, 1, 1], method="a way")
        b = calibration(scale=[2, 2, 2], offset=[4, 1, 1], prior=[1, 1, np.e**-3], method="another")
        report = pets(a, b, Ledger.by_rule("cross-entropy", [60, 30, 20]))
        assert (report["method_a"], report["method_b"]) == ("a way", "another")
        # offsets +4, +1, +1 of mean 2; log r 0, 0, -3 of mean -1; offset - log r +4, +1, +4 of mean 3
        columns = {key: [row[key] for row in report["classes"]] for key in report["classes"][0]}
        assert columns["class"] == PETS
        assert columns["scale_ratio"] == [2, 1, 0.5]
        assert columns["offset_nats"] == pytest.approx([2, -1, -1])
        assert columns["log_implied_prior_nats"] == pytest.approx([1, 1, -2])
        assert columns["log_weight_nats"] == pytest.approx([1, -2, 1])
        assert (columns["training_count_a"], columns["training_count_b"]) == ([60, 30, 10], [60, 30, 20])
        assert report["raised_most"] == [{"class": name, "shift_nats": pytest.approx(1)} for name in ("ant", "cat")]
        assert report["lowered_most"] == [{"class": "bee", "shift_nats": pytest.approx(-2)}]
        assert report["mean_absolute_change_nats"] == pytest.approx(4 / 3)

    def test_the_temperatures_are_compared_where_both_have_one(self):
        cold, hot, mixed = (calibration(scale=scale) for scale in ([2, 2, 2], [0.5, 0.5, 0.5], [1, 2, 2]))
        assert pets(cold, hot)["temperature_ratio"] == 4  # T = 1/2 and 2
        assert pets(cold, mixed)["temperature_ratio"] is None
        assert pets(mixed, hot)["temperature_ratio"] is None
        assert pets(cold, calibration(scale=[0, 0, 0]))["temperature_ratio"] is None

    def test_a_scale_of_zero_is_json_ready(self):
        report = pets(calibration(scale=[0, 0, 1]), calibration(scale=[0, 1, 1]))
        json.dumps(report, allow_nan=False)
        assert [row["scale_ratio"] for row in report["classes"]] == [None, None, 1]

    def test_the_decisions_that_flip_are_counted(self):
        logits = [[3, 0, 0], [0, 3, 0], [0, 2, 1.5], [0, 2, 1.8], [3, 0, 0]]
        labelled = LogitSet(logits=np.array(logits), labels=np.zeros(5, dtype=int), split="calibration")
        report = pets(calibration(), calibration(offset=[0, 0, 1]), calibration_set=labelled)
        assert report["decisions"] == {
            "items": 5,
            "share": 0.4,
            "most_frequent": [{"from": "bee", "to": "cat", "items": 2}],
        }

    def test_decisions_are_those_of_the_uniform_target(self):
        labelled = LogitSet(logits=np.array([[1.0, 0, 0]]), labels=np.array([0]), split="calibration")
        # the implied prior of b holds ant for 20 times as frequent: taken out, 1 - log 20 loses to 0
        report = pets(calibration(), calibration(prior=[20, 1, 1]), calibration_set=labelled)
        assert report["decisions"]["share"] == 1


class TestOfFits:
    def test_nothing_differs_from_itself(self, simulate):
        sample = simulate()
        marc, _ = fit_named("marc")(sample.logit_set, sample.ledger)
        report = told(sample, marc, marc, calibration_set=sample.logit_set)
        assert report["decisions"]["share"] == report["mean_absolute_change_nats"] == 0
        assert report["raised_most"] == report["lowered_most"] == []

    def test_one_law_written_in_two_ways_is_no_change(self, simulate):
        sample = simulate()
        closed, temperature = (
            fit_named(name)(sample.logit_set, sample.ledger)[0] for name in ("closed-form", "temperature")
        )
        report = told(sample, closed, temperature, calibration_set=sample.logit_set)
        assert report["temperature_ratio"] == 1
        assert report["raised_most"] == report["lowered_most"] == []
        assert report["decisions"]["share"] == 0
        assert max(abs(row["offset_nats"]) for row in report["classes"]) > 1

    def test_the_way_back_is_the_opposite(self, simulate):
        sample = simulate(confidence=2.0)
        identity = Calibration.identity(sample.ledger.implied_prior)
        closed, _ = fit_named("closed-form")(sample.logit_set, sample.ledger)
        there, back = told(sample, identity, closed), told(sample, closed, identity)
        assert there["temperature_ratio"] == pytest.approx(1 / back["temperature_ratio"])
        assert there["temperature_ratio"] == pytest.approx(2, abs=0.2)
        moved = [[row["log_weight_nats"] for row in report["classes"]] for report in (there, back)]
        assert moved[0] == pytest.approx([-shift for shift in moved[1]])

    def test_without_a_set_no_decision_is_compared(self, simulate):
        sample = simulate()
        closed, _ = fit_named("closed-form")(sample.logit_set, sample.ledger)
        report = told(sample, Calibration.identity(sample.ledger.implied_prior), closed)
        assert report["decisions"] is None
        json.dumps(report, allow_nan=False)

    def test_no_more_than_five_classes_are_named(self, simulate):
        sample = simulate()
        one = Calibration.identity(ClassPrior.uniform(10))
        other = replace(one, offset=np.arange(10.0))
        report = told(sample, one, other)
        assert [row["class"] for row in report["raised_most"]] == [f"class-{index}" for index in (9, 8, 7, 6, 5)]
        assert [row["class"] for row in report["lowered_most"]] == [f"class-{index}" for index in range(5)]


@pytest.mark.parametrize("wrong", ["b", "ledger_b", "class_names", "calibration_set"])
def test_other_classes_are_refused(wrong, simulate):
    sample = simulate()
    same = Calibration.identity(sample.ledger.implied_prior)
    parts = {"b": same, "ledger_b": sample.ledger, "class_names": NAMES, "calibration_set": sample.logit_set}
    three = LogitSet(logits=np.zeros((2, 3)), labels=np.zeros(2, dtype=int), split="calibration")
    others = {"b": calibration(), "ledger_b": LEDGER, "class_names": PETS, "calibration_set": three}
    parts[wrong] = others[wrong]
    with pytest.raises(ShapeMismatch):
        difference(same, ledger_a=sample.ledger, **parts)
