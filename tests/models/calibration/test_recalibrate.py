import json
import re
from dataclasses import replace

import numpy as np
import pytest

from models.calibration.choose import choose, fit_named
from models.calibration.errors import UnknownTrainingRule
from models.calibration.frequencies import read_frequencies
from models.calibration.marc_paper import PaperFit, fit_paper
from models.calibration.prior import Ledger
from models.calibration.recalibrate import Deployment, OutOfFold, compare, with_target, with_training_counts
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import Calibration, ClassPrior, softmax

SHORT = PaperFit(steps=100, warmup_steps=40)
NAMES = [f"class-{index}" for index in range(10)]


def frequencies(values, role="target"):
    return read_frequencies(json.dumps(values).encode(), NAMES, role=role, zeros="impossible")


def live(sample, method=None):
    fitted = choose(sample.logit_set, sample.ledger).calibration
    calibration = fit_named(method)(sample.logit_set, sample.ledger)[0] if method else fitted
    return Deployment(ledger=sample.ledger, calibration=calibration, prior=ClassPrior.uniform(10))


def report(sample, before, after):
    return compare(before, after, class_names=NAMES, calibration_set=sample.logit_set)


class TestATarget:
    def test_helps_where_the_model_then_runs(self, simulate):
        sample = simulate()
        before = live(sample)
        after = with_target(before, frequencies([1, 1, 1, 1, 1, 1, 1, 20, 20, 20]))
        told = report(sample, before, after)
        assert after.calibration is before.calibration
        assert told["metrics"]["after"]["accuracy"]["value"] > told["metrics"]["before"]["accuracy"]["value"] + 0.02
        assert told["metrics"]["after"]["nll"]["value"] < told["metrics"]["before"]["nll"]["value"]
        assert {row["class"] for row in told["raised_most"]} == {"class-7", "class-8", "class-9"}
        assert told["flips"]["share"] > 0.05
        assert told["flips"]["most_frequent"][0]["to"] in {"class-7", "class-8", "class-9"}

    def test_shift_by_hand(self, simulate):
        sample = simulate()
        before = live(sample)
        told = report(sample, before, with_target(before, frequencies([np.e, 1, 1, 1, 1, 1, 1, 1, 1, 1])))
        # one class up by 1 nat against the other nine, relative to the average
        assert told["classes"][0]["shift_nats"] == pytest.approx(0.9)
        assert told["classes"][1]["shift_nats"] == pytest.approx(-0.1)

    def test_that_is_the_training_law_is_a_warning(self, simulate):
        sample = simulate()
        before = live(sample)
        told = report(sample, before, with_target(before, frequencies(sample.ledger.class_counts.tolist())))
        assert "training law" in told["warnings"][0]

    def test_warnings_of_the_new_fit_are_told(self, simulate):
        sample = simulate(per_class=4)
        marc = replace(live(sample), calibration=fit_named("marc")(sample.logit_set, sample.ledger)[0])
        after = with_training_counts(marc, frequencies([5] * 10), sample.logit_set)
        assert any("a class with 4" in text for text in report(sample, marc, after)["warnings"])

    def test_with_an_impossible_class_is_json_ready(self, simulate):
        sample = simulate()
        before = live(sample)
        told = report(sample, before, with_target(before, frequencies([0, 1, 1, 1, 1, 1, 1, 1, 1, 1])))
        json.dumps(told, allow_nan=False)
        assert told["classes"][0]["shift_nats"] is None
        assert told["prior"]["impossible_classes"] == 1

    def test_far_from_the_implied_prior_is_a_warning(self, simulate):
        sample = simulate()
        before = live(sample)
        told = report(
            sample, before, with_target(before, frequencies([1, 5000, 5000, 5000, 5000, 5000, 5000, 5000, 1, 1]))
        )
        assert any("factor of 100" in text for text in told["warnings"])

    def test_figures_are_out_of_fold_and_name_the_sample(self, simulate):
        sample = simulate(per_class=5)
        before = live(sample, "marc")
        measured = report(sample, before, before)["metrics"]
        assert measured["sample"]["out_of_fold"] == 5
        assert measured["sample"]["items"]["all"] == 50
        seen = before.calibration.debias(sample.logit_set.raw).adjust(before.prior).scores()
        in_sample = -np.log(seen[np.arange(50), sample.logit_set.labels]).mean()
        assert measured["after"]["nll"]["value"] > in_sample + 0.01

    def test_a_fit_that_no_fold_carries_does_not_stop_an_upload(self, simulate):
        sample = simulate(per_class=20)
        one_of_the_last = np.flatnonzero((sample.logit_set.labels != 9) | (np.arange(200) == 199))
        lacking = replace(sample, logit_set=sample.logit_set.subset(one_of_the_last))
        before = live(lacking, "marc")
        told = report(lacking, before, with_target(before, frequencies([1] * 9 + [5])))
        assert told["metrics"]["sample"]["out_of_fold"] == 0
        assert any("flatter" in text for text in told["warnings"])

    def test_says_which_groups_nothing_was_measured_of(self, simulate):
        sample = simulate(per_class=40)
        common = replace(sample, logit_set=sample.logit_set.subset(np.flatnonzero(sample.logit_set.labels < 3)))
        before = live(common)
        told = report(common, before, with_target(before, frequencies([1] * 9 + [5])))
        assert any("medium classes rest on 0 labelled" in text for text in told["warnings"])
        assert any("7 of 10 classes have no labelled example" in text for text in told["warnings"])

    def test_with_a_class_that_was_impossible_already(self, simulate):
        sample = simulate()
        impossible = [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        before = with_target(live(sample), frequencies(impossible))
        told = report(sample, before, with_target(before, frequencies([0, 2, *impossible[2:]])))
        json.dumps(told, allow_nan=False)
        assert told["classes"][0]["shift_nats"] is None


class TestTrainingCounts:
    @pytest.mark.parametrize("method", ["closed-form", "temperature"])
    def test_without_labelled_examples_leave_the_temperature(self, simulate, method):
        sample = simulate(confidence=2.0)
        before = live(sample, method)
        after = with_training_counts(before, frequencies(list(range(10, 20)), role="training"), None)
        assert after.calibration.method == method
        np.testing.assert_array_equal(after.calibration.scale, before.calibration.scale)
        target = ClassPrior.uniform(10)
        logits = sample.logit_set.raw
        expected = softmax(before.calibration.scale * logits.values - np.log(np.arange(10, 20)))
        np.testing.assert_allclose(after.calibration.debias(logits).adjust(target).scores(), expected, atol=1e-12)

    def test_of_an_untouched_model_leave_it_untouched(self, simulate):
        sample = simulate()
        before = replace(live(sample), calibration=Calibration.identity(sample.ledger.implied_prior))
        after = with_training_counts(before, frequencies([5] * 10, role="training"), sample.logit_set)
        assert after.calibration.method == "identity"
        np.testing.assert_allclose(after.calibration.implied_prior.probs, 0.1)

    @pytest.mark.parametrize(("method", "said"), [("temperature", None), ("vector-scaling", "labelled examples alone")])
    def test_say_by_how_much_they_act(self, simulate, method, said):
        sample = simulate(per_class=300)
        before = live(sample, method)
        after = with_training_counts(before, frequencies([100] * 5 + [10] * 5, role="training"), sample.logit_set)
        (told,) = [text for text in report(sample, before, after)["warnings"] if "act through" in text]
        moved, followed = map(float, re.findall(r"by (\d\.\d+)", told))
        assert followed == pytest.approx(moved if said is None else 0, abs=0.002)
        assert said is None or said in told

    def test_repair_a_ledger_that_was_wrong(self, simulate):
        sample = simulate(per_class=40)
        wrong = Ledger.by_rule("cross-entropy", [100] * 10)
        before = Deployment(
            ledger=wrong,
            calibration=fit_named("closed-form")(sample.logit_set, wrong)[0],
            prior=ClassPrior.uniform(10),
        )
        counts = frequencies(sample.ledger.class_counts.tolist(), "training")
        after = with_training_counts(before, counts, sample.logit_set)
        told = report(sample, before, after)
        assert told["metrics"]["after"]["accuracy"]["value"] > told["metrics"]["before"]["accuracy"]["value"] + 0.03
        assert any("act through the implied prior" in text for text in told["warnings"])
        right, _ = fit_named("closed-form")(sample.logit_set, sample.ledger)
        np.testing.assert_array_equal(after.calibration.offset, right.offset)

    def test_choose_again_where_the_data_had_chosen(self, simulate):
        sample = simulate(per_class=10)
        after = with_training_counts(live(sample), frequencies(list(range(10, 0, -1)), "training"), sample.logit_set)
        assert "chosen" in after.calibration.provenance
        kept = with_training_counts(live(sample, "marc"), frequencies([5] * 10, "training"), sample.logit_set)
        assert kept.calibration.method == "marc"
        assert "chosen" not in kept.calibration.provenance

    def test_let_the_data_choose_where_the_training_logits_of_the_published_fit_are_missing(self, simulate):
        sample = simulate()
        train = replace(sample.logit_set, split="train")
        before = replace(live(sample), calibration=fit_paper(train, sample.ledger.class_counts, config=SHORT)[0])
        after = with_training_counts(before, frequencies(list(range(20, 10, -1)), "training"), sample.logit_set)
        assert after.calibration.method == choose(sample.logit_set, after.ledger).calibration.method
        told = report(sample, before, after)["warnings"]
        assert any("was marc-paper" in text and "training logits" in text for text in told)

    def test_say_that_the_fit_is_another_one_where_nothing_is_left_to_fit_on(self, simulate):
        sample = simulate()
        before = live(sample, "marc")
        after = with_training_counts(before, frequencies(list(range(20, 10, -1)), "training"), None)
        told = compare(before, after, class_names=NAMES, calibration_set=None)["warnings"]
        assert any("was marc and is now closed-form: there are too few" in text for text in told)
        kept = with_training_counts(before, frequencies(list(range(20, 10, -1)), "training"), sample.logit_set)
        assert not any("calibration was" in text for text in report(sample, before, kept)["warnings"])

    def test_work_without_a_calibration_set_and_say_that_nothing_was_measured(self, simulate):
        sample = simulate()
        before = Deployment(
            ledger=sample.ledger,
            calibration=closed_form_without_data(sample.ledger),
            prior=ClassPrior.uniform(10),
        )
        after = with_training_counts(before, frequencies([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], "training"), None)
        np.testing.assert_allclose(
            np.diff(after.calibration.offset), np.log(np.arange(10, 1, -1) / np.arange(9, 0, -1))
        )
        told = compare(before, after, class_names=NAMES, calibration_set=None)
        assert told["metrics"] is None
        assert any("nothing was measured" in text for text in told["warnings"])

    def test_say_when_they_change_nothing(self, simulate):
        sample = simulate(trained_with="balanced-sampling")
        before = live(sample)
        after = with_training_counts(before, frequencies([9, 8, 7, 6, 5, 4, 3, 2, 1, 1], "training"), sample.logit_set)
        assert any("did not change" in text for text in report(sample, before, after)["warnings"])

    def test_cannot_change_a_measured_prior(self, simulate):
        sample = simulate()
        measured = Deployment(
            ledger=Ledger.measured(sample.logit_set, [5] * 10),
            calibration=live(sample).calibration,
            prior=ClassPrior.uniform(10),
        )
        with pytest.raises(UnknownTrainingRule):
            with_training_counts(measured, frequencies([6] * 10, "training"), sample.logit_set)


class TestOutOfFold:
    @pytest.mark.parametrize("values", [[1, 1, 1, 1, 1, 1, 1, 20, 20, 20], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    def test_kept_logits_change_no_figure(self, simulate, values):
        sample = simulate()
        before, keeping = live(sample), OutOfFold()
        after = with_target(before, frequencies(values))
        options = {"class_names": NAMES, "calibration_set": sample.logit_set}
        first = compare(before, after, measure=keeping, **options)
        assert first == compare(before, after, measure=keeping, **options) == compare(before, after, **options)

    def test_are_kept_for_what_they_depend_on_and_for_nothing_else(self, simulate):
        sample, other = simulate(), simulate(seed=1)
        deployment, keeping = live(sample), OutOfFold(kept=9)
        debiased, folds = keeping(deployment, sample.logit_set, None)
        target = with_target(deployment, frequencies([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]))
        assert keeping(target, sample.logit_set, None)[0] is debiased
        assert folds > 1
        counted = sample.ledger.with_class_counts([9, 8, 7, 6, 5, 4, 3, 2, 1, 1])
        named = live(sample, "bcts" if deployment.calibration.method == "closed-form" else "closed-form")
        for different in (
            keeping(named, sample.logit_set, None),
            keeping(deployment, other.logit_set, None),
            keeping(replace(deployment, ledger=counted), sample.logit_set, None),
            keeping(deployment, sample.logit_set, np.arange(1.0, 11.0)),
        ):
            assert different[0] is not debiased

    def test_keep_only_the_last(self, simulate):
        sample = simulate()
        keeping = OutOfFold(kept=1)
        first = keeping(live(sample), sample.logit_set, None)[0]
        keeping(live(sample, "marc"), sample.logit_set, None)
        assert keeping(live(sample), sample.logit_set, None)[0] is not first
