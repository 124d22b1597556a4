"""The page: what it shows, what it draws, where it is written."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from models.calibration.errors import CalibrationError
from models.calibration.packing import pack_logits
from training.report import report_runs, to_html, write_report
from training.run_folder import IncompleteRun, read_run


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, texts, cells of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def under(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    def sections(self) -> list[str]:
        return self.under("h2")


@pytest.fixture(scope="module")
def of_four(fitted, alphas, two_stages):
    """Four runs, their report and its page, made once for the tests that only read them."""
    runs = [fitted, *alphas, two_stages]
    document = report_runs(runs)
    return runs, document, to_html(document)


def test_a_run_with_other_test_images_is_shown_and_not_compared(fitted, run_copy):
    other = run_copy()
    (other / "feature_lengths_test.npy").unlink()
    half = read_run(other).test_set.subset(np.arange(200))
    (other / "logits_test.npz").write_bytes(pack_logits(half))
    document = report_runs([fitted, other])
    assert document["runs"][1]["rows"][0]["items"]["all"] == 200
    (comparison,) = document["comparisons"]
    assert comparison == {"run": "run", "to": "<b>x", "left_out": comparison["left_out"]}
    assert "other test images" in comparison["left_out"]
    assert comparison["left_out"] in Page(to_html(document)).under("td")


def test_the_report_says_how_a_run_was_trained_and_why_it_was_calibrated_so(of_four, fitted, alphas):
    _, document, text = of_four
    first, cibl, _, decoupled = document["runs"]
    assert first["name"] == "<b>x"
    assert first["data"] == read_run(fitted).description["provenance"]["data"]
    assert first["training"]["loss"] == "cross-entropy"
    assert (first["training"]["epochs"], first["training"]["seed"]) == (40, 0)
    assert first["training"]["code"] == read_run(fitted).description["provenance"]["code"]
    assert first["ledger"] == {"trained_with": "cross-entropy", "source": "rule", "gap_to_rule": 0.0}
    assert first["calibration"]["method"] == "marc"
    assert first["calibration"]["reason"].startswith("marc: as asked; 200 rows fitted")
    assert cibl["training"]["cibl_alpha"] == 0.5
    assert cibl["calibration"] is None
    assert cibl["ledger"]["source"] == "measured"
    assert cibl["ledger"]["gap_to_rule"] == read_run(alphas[0]).ledger.gap_to_rule > 0
    assert decoupled["training"]["second_stage"] == {"sampler": "meta", "steps": 20}
    assert decoupled["ledger"]["trained_with"] == "meta-sampler"
    page = Page(text)
    for said in (first["calibration"]["reason"], "meta sampler, 20 steps", "meta-sampler, implied prior by measured"):
        assert said in page.under("td")


def test_the_page_shows_the_numbers_of_the_json_and_is_drawn_from_it_alone(of_four, tmp_path):
    runs, expected, _ = of_four
    write_report(runs, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    document = json.loads((tmp_path / "new" / "report.json").read_text())
    assert document == expected
    assert to_html(document) == page
    cells = Page(page).under("td")
    for run in document["runs"]:
        for row in run["rows"]:
            for name in ("accuracy", "many", "medium", "few", "ece"):
                value, low, high = (100 * row[name][part] for part in ("value", "low", "high"))
                assert f"{value:.1f} ({low:.1f} to {high:.1f})" in cells
            nll = row["nll"]
            assert f"{nll['value']:.3f} ({nll['low']:.3f} to {nll['high']:.3f})" in cells
            assert {f"{100 * row['macro_f1']:.1f}", f"{row['brier']:.3f}"} <= set(cells)
    gain = document["runs"][0]["differences"][0]
    assert f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})" in cells


def test_correlations_stand_next_to_the_plots(fitted):
    document = report_runs([fitted])
    captions = Page(to_html(document)).under("figcaption")
    for rows in document["runs"][0]["correlations"].values():
        said = f"raw {rows['raw']:.2f}, marc {rows['marc']:.2f}"
        assert any(said in caption and "centred" in caption for caption in captions)


def test_the_page_fetches_nothing_and_every_tag_is_closed(of_four):
    *_, text = of_four
    page = Page(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name.split(":")[-1] in ("src", "href"):
                assert value.startswith(("#", "data:"))
            assert "url(" not in value or "url(#" in value
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) > 0
    referred = {attributes["xlink:href"] for _, attributes in page.tags if "xlink:href" in attributes}
    assert {each[1:] for each in referred} <= set(ids)
    assert "width=device-width" in text


def test_names_are_escaped_wherever_they_stand(fitted, alphas):
    document = report_runs([fitted, alphas[0]])
    for run in document["runs"]:
        run["data"] = run["training"]["backbone"] = run["ledger"]["source"] = "<i>&\"'"
    document["runs"][0]["calibration"]["reason"] = "<u>"
    page = Page(to_html(document))
    assert not {"b", "i", "u"} & {tag for tag, _ in page.tags}
    assert "<b>x" in page.under("title")[0]
    assert {"<b>x", "$_0.5"} <= set(page.under("h3"))
    assert " $_0.5" in page.under("li")  # neither mathematics nor hidden, as matplotlib would have it


def test_a_run_with_all_its_files_has_every_plot(of_four):
    page = Page(of_four[2])
    assert page.sections() == [
        "Figures",
        "Differences",
        "How they were made",
        "Training",
        "Accuracy by class",
        "Mean logit by class",
        "Mean margin by class",
        "Reliability",
        "Feature strength",
        "CIBL's trade-off",
        "Second stage",
    ]
    # four runs: five plots each, one of feature strength, one of alpha, two of the second stage
    assert sum(tag == "svg" for tag, _ in page.tags) == 4 * 5 + 1 + 1 + 2


def test_plots_without_data_are_left_out(run_copy):
    run = run_copy()
    for name in ("curves.json", "feature_lengths_test.npy"):
        (run / name).unlink()
    document = report_runs([run])
    assert document["runs"][0]["curves"] is document["runs"][0]["feature_length"] is None
    plots = ["Accuracy by class", "Mean logit by class", "Mean margin by class", "Reliability"]
    assert Page(to_html(document)).sections() == ["Figures", "How it was made", *plots]


def test_a_first_stage_taken_from_another_run_has_no_training_curve(run_copy):
    run = run_copy()
    (run / "curves.json").write_text("[]")
    assert "Training" not in Page(to_html(report_runs([run]))).sections()


def test_validation_accuracy_is_drawn_where_it_was_measured(run_copy):
    run = run_copy()
    rows = [
        {"epoch": 1, "loss": 2.0, "validation_accuracy": 0.1},
        {"epoch": 2, "loss": 1.0, "validation_accuracy": 0.4},
    ]
    (run / "curves.json").write_text(json.dumps(rows))
    document = report_runs([run])
    assert document["runs"][0]["curves"] == {"epoch": [1, 2], "loss": [2.0, 1.0], "validation_accuracy": [0.1, 0.4]}
    captions = Page(to_html(document)).under("figcaption")
    assert "Class-balanced accuracy on the validation images after each epoch." in captions


def test_the_second_stage_shows_its_losses_and_the_samplers_rates(two_stages, tmp_path):
    stored = json.loads((two_stages / "second_stage.json").read_text())
    assert report_runs([two_stages])["runs"][0]["second_stage"] == stored
    assert (len(stored["losses"]), len(stored["rates"])) == (20, 10)
    alike = Path(shutil.copytree(two_stages, tmp_path / "alike"))
    description = json.loads((alike / "run.json").read_text())
    description["provenance"]["training"]["decoupled"]["sampler"] = "instance"
    (alike / "run.json").write_text(json.dumps(description))
    assert report_runs([alike])["runs"][0]["second_stage"]["rates"] is None  # nothing was learnt: all are one


def test_a_class_without_test_images_is_null_in_the_json_and_missing_in_the_plots(run_copy, tmp_path):
    run = run_copy()
    test_set = read_run(run).test_set
    kept = np.flatnonzero(test_set.labels != 9)
    (run / "logits_test.npz").write_bytes(pack_logits(test_set.subset(kept)))
    np.save(run / "feature_lengths_test.npy", np.load(run / "feature_lengths_test.npy")[kept])
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    report = json.loads(text)["runs"][0]
    for by_class in (report["rows"][0]["accuracy_by_class"], report["mean_margin"]["raw"], report["feature_length"]):
        assert [value is None for value in by_class] == [False] * 9 + [True]
    assert report["correlations"]["mean_logit"]["raw"] > 0


def test_balanced_training_has_no_correlation_to_show(run_copy):
    run = run_copy()
    description = json.loads((run / "run.json").read_text())
    description["ledger"] |= {"class_counts": [30] * 10, "implied_prior": [0.1] * 10}
    (run / "run.json").write_text(json.dumps(description))
    document = report_runs([run])
    assert document["runs"][0]["correlations"]["mean_logit"] == {"raw": None}
    assert document["runs"][0]["rows"][0]["few"] == {"value": None, "low": None, "high": None}
    page = Page(to_html(document))
    assert "-" in page.under("td")
    assert not any("Correlation" in caption for caption in page.under("figcaption"))


def test_a_thousand_classes_keep_a_plot_small(fitted):
    document = report_runs([fitted])
    report, rng = document["runs"][0], np.random.default_rng(0)
    report["class_counts"] = rng.integers(5, 1280, 1000).tolist()
    report["feature_length"] = rng.random(1000).tolist()
    for row in report["rows"]:
        row["accuracy_by_class"] = rng.random(1000).tolist()
        report["mean_logit"][row["name"]] = report["mean_margin"][row["name"]] = rng.normal(size=1000).tolist()
    plots = to_html(document).split("<svg ")[1:]
    assert len(plots) == 6
    assert max(len(plot.split("</svg>")[0]) for plot in plots) < 200_000


@pytest.mark.parametrize("present", [False, True])
def test_a_folder_that_is_no_run_is_refused(tmp_path, digits_run, present):
    folder = tmp_path / "nothing"
    if present:
        folder.mkdir()
    with pytest.raises(IncompleteRun, match="is not a complete run folder"):
        write_report([digits_run, folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_earlier_report_is_replaced_and_nothing_partial_stays(digits_run, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("the earlier one")
    write_report([digits_run], out)
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_place_that_cannot_be_written_is_told(digits_run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "report.html").mkdir()
    for out in (tmp_path / "file" / "report.html", tmp_path / "report.html"):
        with pytest.raises(CalibrationError, match="cannot be written"):
            write_report([digits_run], out)
    assert not [each for each in tmp_path.iterdir() if "partial" in each.name]
    with pytest.raises(CalibrationError, match=r"is an \.html file"):
        write_report([digits_run], tmp_path / "report.json")


def test_drawing_opens_no_display_and_warns_of_nothing(fitted, tmp_path):
    """Also without a display, with a backend that needs one, and with no place for matplotlib's own files."""
    (tmp_path / "file").write_text("")
    hostile = {"MPLBACKEND": "tkagg", "MPLCONFIGDIR": str(tmp_path / "file"), "DISPLAY": ""}
    probe = (
        "import sys; from pathlib import Path; from training.report import write_report; "
        "write_report([Path(sys.argv[1])], Path(sys.argv[2])); "
        "print(sorted({'matplotlib.pyplot', 'tkinter'} & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", probe, str(fitted), str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **hostile})
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "report.html").exists()
