"""The numbers of a report: whose they are, and what is compared with what."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.calibration import metrics_detail
from models.calibration.errors import CalibrationError
from models.calibration.marc_paper import published_scores
from models.calibration.packing import pack_logits
from models.calibration.types import ClassPrior
from training import runs
from training.report import report_runs
from training.run_folder import IncompleteRun, read_calibration, read_run


def test_the_figures_are_those_of_the_metrics(fitted):
    report = report_runs([fitted])["runs"][0]
    run, calibration = read_run(fitted), read_calibration(fitted)
    labels = run.test_set.labels
    scores = {
        "raw": run.test_set.raw.scores(),
        "marc": calibration.debias(run.test_set.raw).adjust(ClassPrior.uniform(10)).scores(),
    }
    metrics = runs.evaluate_run(fitted)
    assert [row["name"] for row in report["rows"]] == ["raw", "marc"]
    for row, expected in zip(report["rows"], (metrics["raw"], metrics["debiased"]), strict=True):
        own = scores[row["name"]]
        for name, interval in (("accuracy", expected.balanced_accuracy), ("few", expected.few), ("nll", expected.nll)):
            assert row[name] == {"value": interval.value, "low": interval.low, "high": interval.high}
        assert row["many"]["value"] == expected.many.value
        assert row["medium"]["value"] == expected.medium.value
        assert row["ece"]["value"] == expected.ece.value
        assert row["items"] == {"all": 400, "many": 40, "medium": 160, "few": 200}
        assert row["macro_f1"] == metrics_detail.macro_f1(own, labels)
        assert row["class_wise_ece"] == metrics_detail.class_wise_ece(own, labels)
        assert row["brier"] == metrics_detail.brier_score(own, labels)
        assert row["accuracy_by_class"] == metrics_detail.per_class_accuracy(own, labels).tolist()
    right = {name: values.argmax(axis=1) == labels for name, values in scores.items()}
    gain = metrics_detail.paired_difference(right["raw"], right["marc"], labels)
    assert report["differences"] == [
        {"row": "marc", "to": "raw", "value": gain.value, "low": gain.low, "high": gain.high}
    ]
    assert gain.value > 0


def test_the_reliability_diagram_holds_the_calibration_error_also_of_an_unbalanced_test_set(fitted, run_copy):
    uneven = run_copy()
    (uneven / "feature_lengths_test.npy").unlink()
    (uneven / "logits_test.npz").write_bytes(pack_logits(read_run(uneven).test_set.subset(np.arange(150))))
    assert np.ptp(read_run(uneven).test_set.class_counts) > 0
    for row in [row for run in report_runs([fitted, uneven])["runs"] for row in run["rows"]]:
        bins = row["reliability"]
        known = [each for each in zip(*bins.values(), strict=True) if each[0] is not None]
        confidence, accuracy, share = np.array(known).T
        assert share.sum() == pytest.approx(1)
        assert share @ abs(confidence - accuracy) == pytest.approx(row["ece"]["value"])
        assert share @ accuracy == pytest.approx(row["accuracy"]["value"])


def test_margins_are_those_of_each_classs_own_images_and_marc_makes_them_depend_less_on_the_count(fitted):
    report = report_runs([fitted])["runs"][0]
    run, calibration = read_run(fitted), read_calibration(fitted)
    logits, labels = run.test_set.logits, run.test_set.labels
    after = calibration.scale * logits + calibration.offset
    after -= after.mean(axis=1, keepdims=True)
    for row, values in (("raw", logits), ("marc", after)):
        logit = np.array([values[labels == label, label].mean() for label in range(10)])
        margin = logit / np.array(run.row_norms)
        np.testing.assert_allclose(report["mean_logit"][row], logit)
        np.testing.assert_allclose(report["mean_margin"][row], margin)
        log_counts = np.log(run.ledger.class_counts)
        for what, figure in (("mean_logit", logit), ("mean_margin", margin)):
            assert report["correlations"][what][row] == pytest.approx(np.corrcoef(figure, log_counts)[0, 1])
    raw, marc = (report["correlations"]["mean_margin"][row] for row in ("raw", "marc"))
    assert marc < raw


def test_feature_lengths_are_averaged_within_the_classes(fitted):
    lengths, labels = np.load(fitted / "feature_lengths_test.npy"), read_run(fitted).test_set.labels
    expected = [lengths[labels == label].mean() for label in range(10)]
    np.testing.assert_allclose(report_runs([fitted])["runs"][0]["feature_length"], expected)


def test_marc_as_published_is_scored_without_a_prior_at_test_time_as_well(two_stages):
    report = report_runs([two_stages])["runs"][0]
    assert [row["name"] for row in report["rows"]] == ["raw", "marc-paper", "marc-paper, as published"]
    run = read_run(two_stages)
    published = published_scores(read_calibration(two_stages), run.test_set.raw)
    assert report["rows"][2]["brier"] == metrics_detail.brier_score(published, run.test_set.labels)
    assert report["rows"][1]["brier"] != report["rows"][2]["brier"]
    assert [each["row"] for each in report["differences"]] == ["marc-paper", "marc-paper, as published"]


def test_runs_are_compared_to_the_first_on_the_same_images_raw_to_raw_and_calibrated_to_calibrated(
    fitted, alphas, two_stages
):
    comparisons = report_runs([fitted, alphas[0], two_stages])["comparisons"]
    pairs = [(each["run"], each["row"], each["to"], each["to_row"]) for each in comparisons]
    assert pairs == [
        ("$_0.5", "raw", "<b>x", "raw"),
        ("meta", "raw", "<b>x", "raw"),
        ("meta", "marc-paper", "<b>x", "marc"),
    ]
    labels = read_run(fitted).test_set.labels
    own, first = (read_run(run).test_set.logits.argmax(axis=1) == labels for run in (two_stages, fitted))
    expected = metrics_detail.paired_difference(first, own, labels)
    assert comparisons[1]["value"] == expected.value < 0  # two epochs against forty
    assert (comparisons[1]["low"], comparisons[1]["high"]) == (expected.low, expected.high)


def test_as_many_other_test_images_are_other_test_images(fitted, run_copy):
    other = run_copy()
    description = json.loads((other / "run.json").read_text())
    description["provenance"]["test_sha256"] = "0" * 64
    (other / "run.json").write_text(json.dumps(description))
    (comparison,) = report_runs([fitted, other])["comparisons"]
    assert "other test images" in comparison["left_out"]


def test_a_run_with_other_classes_is_not_compared(fitted, run_copy):
    other = run_copy()
    description = json.loads((other / "run.json").read_text())
    description["class_names"].reverse()
    (other / "run.json").write_text(json.dumps(description))
    assert "left_out" in report_runs([fitted, other])["comparisons"][0]


def test_runs_that_differ_in_alpha_alone_give_a_curve_over_alpha(alphas, fitted):
    (curve,) = report_runs([alphas[0], fitted, alphas[1]])["alpha_curves"]
    assert curve["alpha"] == [0.05, 0.5]
    assert curve["runs"] == ["$_0.05", "$_0.5"]
    few = [runs.evaluate_run(run)["raw"].few.value for run in reversed(alphas)]
    assert [each["value"] for each in curve["few"]] == few


def test_runs_that_differ_in_more_than_alpha_or_not_at_all_give_no_curve(alphas, tmp_path):
    assert report_runs([alphas[0], alphas[0]])["alpha_curves"] == []
    longer = Path(shutil.copytree(alphas[1], tmp_path / "longer"))
    description = json.loads((longer / "run.json").read_text())
    description["provenance"]["training"]["epochs"] = 3
    (longer / "run.json").write_text(json.dumps(description))
    assert report_runs([alphas[0], longer])["alpha_curves"] == []


def test_runs_of_one_name_are_told_apart(fitted):
    names = [run["name"] for run in report_runs([fitted, fitted, fitted])["runs"]]
    assert names == ["<b>x", "<b>x (2)", "<b>x (3)"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("curves.json", "[{}]"),
        ("curves.json", "[{"),
        ("second_stage.json", "{}"),
        ("feature_lengths_test.npy", "no array"),
        ("calibration.json", "{}"),
    ],
)
def test_a_broken_file_is_told_by_its_name(run_copy, name, content):
    run = run_copy()
    (run / name).write_text(content)
    with pytest.raises(IncompleteRun, match=f"{name} cannot be read"):
        report_runs([run])


def test_feature_lengths_of_other_images_are_refused(run_copy):
    run = run_copy()
    np.save(run / "feature_lengths_test.npy", np.ones(3))
    with pytest.raises(IncompleteRun, match=r"has shape \(3,\) for 400 test images"):
        report_runs([run])


def test_a_run_that_does_not_say_how_it_was_trained_is_refused(run_copy):
    run = run_copy()
    description = json.loads((run / "run.json").read_text())
    del description["provenance"]["training"]["loss"]
    (run / "run.json").write_text(json.dumps(description))
    with pytest.raises(IncompleteRun, match="does not say how it was trained: KeyError\\('loss'\\)"):
        report_runs([run])


def test_no_run_at_all_is_refused():
    with pytest.raises(CalibrationError, match="at least one run folder"):
        report_runs([])
