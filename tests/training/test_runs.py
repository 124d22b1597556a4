import io
import json
import tarfile

import numpy as np
import onnxruntime
import pytest

from models.calibration.errors import CalibrationError, EmptyClass
from models.calibration.manifest import Manifest
from models.networks.classifier import Architecture
from training import runs
from training.bundle import OutputExists
from training.config import DecoupledConfig, InvalidConfig
from training.export import ParityError
from training.loop import TrainingDiverged
from training.losses.cibl import CiblConfig
from training.run_folder import IncompleteRun, RunInUse


def test_the_debiased_digits_beat_the_raw_ones_by_three_points_and_few_shot_accuracy_rises(run_copy):
    run = run_copy()
    choice = runs.fit_run(run)
    rows = runs.evaluate_run(run)
    raw, debiased = rows["raw"], rows["debiased"]
    assert debiased.balanced_accuracy.value >= raw.balanced_accuracy.value + 0.03
    assert debiased.few.value > raw.few.value
    assert debiased.nll.value < raw.nll.value
    assert raw.items == {"all": 400, "many": 40, "medium": 160, "few": 200}
    assert choice.calibration.method in choice.reason


def test_a_balanced_softmax_head_is_not_debiased_twice(tmp_path):
    run = runs.train_run("digits", out=tmp_path / "run", loss="balanced-softmax", epochs=2)
    calibration = runs.fit_run(run, method="closed-form").calibration
    assert np.ptp(calibration.offset) == 0  # its raw logits already imply the uniform law: nothing is taken out
    assert runs.read_run(run).ledger.trained_with == "balanced-softmax"


def test_the_ledger_counts_the_images_that_were_trained_on(digits_run):
    ledger = runs.read_run(digits_run).ledger
    assert ledger.class_counts.tolist() == [114, 73, 47, 30, 20, 12, 8, 5, 3, 2]
    np.testing.assert_allclose(ledger.implied_prior.probs, ledger.class_counts / 314)


def test_raw_figures_are_there_before_a_fit(digits_run):
    assert list(runs.evaluate_run(digits_run)) == ["raw"]


@pytest.mark.parametrize("method", ["closed-form", "bcts", "marc", "choose"])
def test_a_later_fit_takes_the_place_of_an_earlier_one(run_copy, method):
    run = run_copy()
    runs.fit_run(run, method="closed-form")
    fitted = runs.fit_run(run, method=method).calibration
    read = runs.read_calibration(run)
    assert read.method == fitted.method
    np.testing.assert_array_equal(read.offset, fitted.offset)
    assert not [each for each in run.iterdir() if "partial" in each.name]


def test_an_unknown_method_is_refused(digits_run):
    with pytest.raises(CalibrationError, match="closed-form, bcts, marc"):
        runs.fit_run(digits_run, method="platt")


def test_the_bundle_says_how_it_was_made_and_its_graph_gives_the_networks_logits(run_copy, tmp_path):
    run = run_copy()
    choice = runs.fit_run(run)
    manifest = runs.export_run(run, tmp_path / "bundle", name="digits")
    assert 0 < manifest.metrics["onnx_parity"] <= 1e-4
    read = Manifest.from_json(json.loads((tmp_path / "bundle" / "manifest.json").read_text()))
    assert read.to_json() == manifest.to_json()
    assert (read.name, read.class_names) == ("digits", tuple("0123456789"))
    assert (read.input_size.height, read.input_size.width) == (8, 8)
    assert read.calibration.method == choice.calibration.method
    assert read.provenance["training"]["seed"] == 0
    assert read.provenance["imbalance_ratio"] == 50
    assert len(read.provenance["data_sha256"]) == 64
    assert {"torch", "onnx", "numpy"} <= set(read.provenance["packages"])
    assert np.ptp(read.row_norms) > 0
    rows = runs.evaluate_run(run)
    assert read.metrics["test"]["debiased"]["accuracy"]["value"] == rows["debiased"].accuracy.value


def test_a_bundle_names_no_path_of_the_machine(run_copy, tmp_path):
    run = run_copy()
    runs.fit_run(run)
    runs.export_run(run, tmp_path / "bundle", name="digits")
    for file in (tmp_path / "bundle").iterdir():
        content = file.read_bytes()
        assert b"classifier.py" not in content  # torch's exporter notes source files and lines
        assert str(tmp_path).encode() not in content


def test_a_graph_that_differs_from_the_network_is_not_written(run_copy, tmp_path, monkeypatch):
    run = run_copy()
    runs.fit_run(run)
    monkeypatch.setattr("training.export.MAX_DIFFERENCE", 0.0)
    with pytest.raises(ParityError, match=r"they differ by .* Nothing was exported"):
        runs.export_run(run, tmp_path / "bundle", name="digits")
    assert not [each for each in tmp_path.iterdir() if "bundle" in each.name]


def test_exporting_before_the_fit_says_what_to_do(digits_run, tmp_path):
    with pytest.raises(IncompleteRun, match="equipoise fit"):
        runs.export_run(digits_run, tmp_path / "bundle", name="digits")


@pytest.mark.parametrize("name", ["run.json", "logits_calibration.npz", "logits_test.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"PK\x03\x04 cut off"])
def test_a_run_that_lacks_a_file_or_half_of_it_is_refused(run_copy, name, content):
    run = run_copy()
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    with pytest.raises(IncompleteRun, match="is not a complete run folder"):
        runs.fit_run(run)


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_a_damaged_checkpoint_is_refused(run_copy, tmp_path, content):
    run = run_copy()
    runs.fit_run(run)
    (run / "checkpoint.pt").unlink()
    if content is not None:
        (run / "checkpoint.pt").write_bytes(content)
    with pytest.raises(IncompleteRun, match=r"checkpoint\.pt cannot be read"):
        runs.export_run(run, tmp_path / "bundle", name="digits")


def test_a_damaged_calibration_is_refused(run_copy):
    run = run_copy()
    (run / "calibration.json").write_text('{"method": ')
    with pytest.raises(IncompleteRun, match="Fit again"):
        runs.evaluate_run(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(IncompleteRun, match="equipoise train"):
        runs.fit_run(tmp_path)


def test_nothing_is_overwritten(run_copy, tmp_path):
    run = run_copy()
    runs.fit_run(run)
    before = (run / "run.json").read_bytes()
    with pytest.raises(OutputExists, match="Remove it, or choose another"):
        runs.train_run("digits", out=run, progress=lambda *_: pytest.fail("it trained first"))
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputExists):
        runs.export_run(run, tmp_path / "bundle", name="digits")
    assert (run / "run.json").read_bytes() == before


def test_training_that_fails_leaves_nothing_behind(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.array([0, 0, 2, 2])
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images + 1, y_test=labels)
    with pytest.raises(EmptyClass):
        runs.train_run(str(tmp_path / "data.npz"), out=tmp_path / "run")
    assert [each.name for each in tmp_path.iterdir()] == ["data.npz"]


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CalibrationError, match="cannot be written"):
        runs.train_run("digits", out=tmp_path / "file" / "run")


def test_the_service_reads_the_bundle_as_a_folder_and_as_a_tar(run_copy, tmp_path):
    from service.bundle import read_bundle  # training and service meet in a bundle, and here

    run = run_copy()
    runs.fit_run(run)
    written = runs.export_run(run, tmp_path / "bundle", name="digits")
    with tarfile.open(tmp_path / "bundle.tar", "w") as archive:
        archive.add(tmp_path / "bundle", arcname="bundle")
    for path in (tmp_path / "bundle", tmp_path / "bundle.tar"):
        bundle = read_bundle(path)
        assert bundle.manifest.to_json() == written.to_json()
        with np.load(io.BytesIO(bundle.files["calibration_set.npz"]), allow_pickle=False) as arrays:
            assert arrays["logits"].dtype == np.float32
            assert arrays["logits"].shape == (200, 10)
            assert str(arrays["split"]) == "calibration"
            assert "20 images of each class" in str(arrays["drawn"])


class Killed(Exception):
    """What a kill between two epochs looks like from inside."""


def dying_after(epoch):
    def progress(done, *_):
        if done == epoch:
            raise Killed

    return progress


def test_the_same_call_goes_on_with_a_killed_training_to_the_same_run(tmp_path):
    whole = runs.train_run("digits", out=tmp_path / "whole", epochs=4)
    with pytest.raises(Killed):
        runs.train_run("digits", out=tmp_path / "run", epochs=4, progress=dying_after(2))
    with pytest.raises(IncompleteRun):
        runs.read_run(tmp_path / "run")
    seen = []
    runs.train_run("digits", out=tmp_path / "run", epochs=4, progress=lambda epoch, *_: seen.append(epoch))
    assert seen == [3, 4]
    for split in ("calibration_set", "test_set"):
        first, second = (getattr(runs.read_run(folder), split).logits for folder in (whole, tmp_path / "run"))
        np.testing.assert_array_equal(first, second)
    assert "going on from the last finished epoch" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "training.pt").exists()


def test_an_unfinished_training_is_not_taken_over_by_another(tmp_path):
    with pytest.raises(Killed):
        runs.train_run("digits", out=tmp_path / "run", epochs=4, progress=dying_after(1))
    before = (tmp_path / "run" / "training.pt").read_bytes()
    with pytest.raises(OutputExists, match="another configuration or other data"):
        runs.train_run("digits", out=tmp_path / "run", epochs=5)
    assert (tmp_path / "run" / "training.pt").read_bytes() == before


def test_a_training_that_failed_in_its_first_epoch_can_be_tried_again_with_other_options(tmp_path):
    with pytest.raises(TrainingDiverged):
        runs.train_run("digits", out=tmp_path / "run", epochs=1, learning_rate=1e30)
    assert runs.read_run(runs.train_run("digits", out=tmp_path / "run", epochs=1)).training["learning_rate"] == 0.05


def test_two_trainings_do_not_write_to_one_folder(tmp_path):
    def another(*_):
        with pytest.raises(RunInUse, match="another training writes"):
            runs.train_run("digits", out=tmp_path / "run", epochs=2)

    runs.train_run("digits", out=tmp_path / "run", epochs=2, progress=another)


def test_a_run_says_how_it_was_made(tmp_path):
    run = runs.read_run(runs.train_run("digits", out=tmp_path / "run", epochs=2, seed=3))
    provenance = run.description["provenance"]
    assert provenance["training"]["seed"] == 3
    assert provenance["training"]["architecture"]["backbone"] == "small"
    assert provenance["code"] is None or len(provenance["code"].rstrip("+")) == 40
    assert {"torch", "torchvision", "accelerate"} <= set(provenance["packages"])
    curves = json.loads((tmp_path / "run" / "curves.json").read_text())
    assert [row["epoch"] for row in curves] == [1, 2]
    assert "epoch 2 of 2, loss" in (tmp_path / "run" / "log.txt").read_text()


META = DecoupledConfig(steps=10, batch_size=32)


def test_a_second_stage_on_a_first_stage_that_is_done_is_the_same_as_both_in_one(tmp_path):
    first = runs.train_run("digits", out=tmp_path / "first", epochs=2)
    whole = runs.read_run(runs.train_run("digits", out=tmp_path / "whole", epochs=2, decoupled=META))
    apart = runs.read_run(runs.train_run("digits", out=tmp_path / "apart", epochs=2, decoupled=META, first_stage=first))
    np.testing.assert_array_equal(whole.test_set.logits, apart.test_set.logits)
    assert apart.ledger.trained_with == "meta-sampler"
    assert apart.ledger.source == "measured"
    assert len(json.loads((tmp_path / "apart" / "second_stage.json").read_text())["rates"]) == 10


def test_another_first_stage_is_refused(tmp_path):
    first = runs.train_run("digits", out=tmp_path / "first", epochs=1)
    with pytest.raises(IncompleteRun, match="another first stage"):
        runs.train_run("digits", out=tmp_path / "run", epochs=2, decoupled=META, first_stage=first)


def test_a_number_of_passes_below_none_is_refused_before_training(tmp_path):
    with pytest.raises(InvalidConfig, match="at least 0; got -3"):
        runs.train_run("digits", out=tmp_path / "run", epochs=1, augmented_passes=-3)
    assert not (tmp_path / "run").exists()


def test_a_first_stage_needs_a_training_in_two_stages(tmp_path):
    first = runs.train_run("digits", out=tmp_path / "first", epochs=1)
    with pytest.raises(InvalidConfig, match="single stage"):
        runs.train_run("digits", out=tmp_path / "run", epochs=1, first_stage=first)
    assert not (tmp_path / "run").exists()


def test_a_second_stage_that_was_killed_is_made_again_by_the_same_call(tmp_path, monkeypatch):
    first = runs.train_run("digits", out=tmp_path / "first", epochs=1)
    options = {"epochs": 1, "decoupled": META, "first_stage": first}
    whole = runs.read_run(runs.train_run("digits", out=tmp_path / "whole", **options))

    def dies(*_):
        raise Killed

    finish = runs._finish
    monkeypatch.setattr(runs, "_finish", dies)
    with pytest.raises(Killed):
        runs.train_run("digits", out=tmp_path / "run", **options)
    monkeypatch.setattr(runs, "_finish", finish)
    assert (tmp_path / "run" / "second_stage.json").exists()
    again = runs.read_run(runs.train_run("digits", out=tmp_path / "run", **options))
    np.testing.assert_array_equal(again.test_set.logits, whole.test_set.logits)


def test_marc_as_published_is_fitted_on_the_training_images_through_their_augmentation(tmp_path):
    run = runs.train_run("digits", out=tmp_path / "run", epochs=10, augmented_passes=3)
    seen = runs.read_logits(run, "train")
    assert seen.split == "train"
    assert seen.class_counts.tolist() == [3 * n for n in [114, 73, 47, 30, 20, 12, 8, 5, 3, 2]]
    raw = runs.evaluate_run(run)["raw"]
    choice = runs.fit_run(run, method="marc-paper")
    assert choice.calibration.method == "marc-paper"
    assert runs.evaluate_run(run)["debiased"].few.value > raw.few.value
    assert runs.export_run(run, tmp_path / "bundle", name="digits").calibration.method == "marc-paper"


def test_without_such_passes_marc_as_published_says_what_to_do(run_copy):
    with pytest.raises(IncompleteRun, match="--augmented-passes"):
        runs.fit_run(run_copy(), method="marc-paper")


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(backbone="small", norm="nbn"),
        Architecture(backbone="small", norm="nbn", rectify=True),
        Architecture(backbone="small", head="cosine"),
        Architecture(backbone="small", head="cosine", rectify=True),
    ],
    ids=["NBN", "NBN rectified", "cosine", "cosine rectified"],
)
def test_every_kind_of_network_is_exported_with_the_logits_it_had(tmp_path, architecture):
    run = runs.train_run("digits", out=tmp_path / "run", epochs=2, architecture=architecture, cibl=CiblConfig())
    runs.fit_run(run, method="closed-form")
    manifest = runs.export_run(run, tmp_path / "bundle", name="digits")
    assert 0 < manifest.metrics["onnx_parity"] <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.load(run / "test_images.npy")
    (logits,) = session.run(["logits"], {"images": images})
    expected = runs.read_run(run).test_set.logits[:: max(1, 400 // 64)][:64]
    np.testing.assert_allclose(logits, expected, atol=1e-4)
