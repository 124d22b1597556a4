"""The numbers of a report on runs: one JSON document, from which `report_plots` draws and `report` writes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import CalibrationError
from models.calibration.marc_paper import METHOD as MARC_PAPER
from models.calibration.marc_paper import published_scores
from models.calibration.metrics import evaluate, target_weights
from models.calibration.metrics_detail import (
    brier_score,
    class_wise_ece,
    macro_f1,
    mean_logit_by_class,
    mean_margin_by_class,
    paired_difference,
    per_class_accuracy,
)
from models.calibration.reliability import reliability
from models.calibration.types import Calibration, ClassPrior, FloatArray, IntArray, LogitSet
from training.run_folder import (
    CALIBRATION_FILE,
    CURVES_FILE,
    FEATURE_LENGTHS_FILE,
    IncompleteRun,
    Run,
    read_calibration,
    read_run,
)

BoolArray = NDArray[np.bool_]

RAW = "raw"
AS_PUBLISHED = f"{MARC_PAPER}, as published"
SECOND_STAGE_FILE = "second_stage.json"
OTHER_TEST_SET = "left out: other test images or other classes than the first run"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Decided:
    """What a comparison needs of a run: `correct` is row -> booleans `(N,)`."""

    name: str
    class_names: tuple[str, ...]
    test_sha256: str | None  # None of runs from before it was written down
    labels: IntArray
    correct: dict[str, BoolArray]


def report_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that the report shows, as plain numbers and texts ready for JSON.

    All figures are of the test images. Accuracies, F1, ECE, shares: fractions; NLL in nats. A number is None where no
    image speaks to it, and a part is None where the run folder lacks its file.

    Returns: `runs`, in the order given; `comparisons`, each run's row minus the same row of the first run;
        `alpha_curves`, of runs that differ in CIBL's alpha (and the seed) and in nothing else.
    Raises: IncompleteRun for a folder that is no complete run or holds a broken file, CalibrationError for no folder.
    """
    if not folders:
        raise CalibrationError("a report needs at least one run folder; got none. Make one with: equipoise train")
    documents: list[dict[str, Any]] = []
    decided: list[_Decided] = []
    keys: list[str | None] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        run = read_run(folder)
        document, correct = _run_report(run, name)
        documents.append(document)
        keys.append(_all_but_alpha(run))
        names = tuple(run.description["class_names"])
        digest = run.description["provenance"].get("test_sha256")
        labels = run.test_set.labels
        decided.append(_Decided(name=name, class_names=names, test_sha256=digest, labels=labels, correct=correct))
    return {"runs": documents, "comparisons": _comparisons(decided), "alpha_curves": _alpha_curves(documents, keys)}


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, told apart by a number where two are alike."""
    names: list[str] = []
    for folder in folders:
        own = folder.resolve().name
        tries = (own if number == 1 else f"{own} ({number})" for number in count(1))
        names.append(next(name for name in tries if name not in names))
    return names


def _run_report(run: Run, name: str) -> tuple[dict[str, Any], dict[str, BoolArray]]:
    """The part of one run, and which of its decisions are right."""
    counts, labels = run.ledger.class_counts, run.test_set.labels
    calibration = read_calibration(run.folder) if (run.folder / CALIBRATION_FILE).exists() else None
    rows, correct = [], {}
    for row, scores in _scores(run.test_set, calibration):
        rows.append({"name": row, **_figures(scores, labels, counts)})
        correct[row] = scores.argmax(axis=1) == labels
    document = {
        "name": name,
        **_made(run),
        "class_counts": counts.tolist(),
        "ledger": {
            "trained_with": run.ledger.trained_with,
            "source": run.ledger.source,
            "gap_to_rule": run.ledger.gap_to_rule,
        },
        "calibration": None if calibration is None else _fitted(run.folder, calibration),
        "rows": rows,
        "differences": [
            {"row": row, "to": RAW, **asdict(paired_difference(correct[RAW], right, labels))}
            for row, right in correct.items()
            if row != RAW
        ],
        **_by_class(run, calibration),
        "curves": _curves(run.folder),
        "second_stage": _second_stage(run),
    }
    return document, correct


def _scores(test_set: LogitSet, calibration: Calibration | None) -> Iterator[tuple[str, FloatArray]]:
    """One row after the other, so that only one `(N, C)` of scores is held."""
    yield RAW, test_set.raw.scores()
    if calibration is None:
        return
    debiased = calibration.debias(test_set.raw)
    yield calibration.method, debiased.adjust(ClassPrior.uniform(test_set.num_classes)).scores()
    if calibration.method == MARC_PAPER:
        yield AS_PUBLISHED, published_scores(calibration, test_set.raw)


def _figures(scores: FloatArray, labels: IntArray, counts: IntArray) -> dict[str, Any]:
    metrics = evaluate(scores, labels, class_counts=counts, target=ClassPrior.uniform(counts.size))
    return {
        "accuracy": asdict(metrics.balanced_accuracy),
        "many": asdict(metrics.many),
        "medium": asdict(metrics.medium),
        "few": asdict(metrics.few),
        "macro_f1": macro_f1(scores, labels),
        "ece": asdict(metrics.ece),
        "class_wise_ece": class_wise_ece(scores, labels),
        "nll": asdict(metrics.nll),
        "brier": brier_score(scores, labels),
        "items": metrics.items,
        "accuracy_by_class": _plain(per_class_accuracy(scores, labels)),
        "reliability": _reliability(scores, labels),
    }


def _reliability(scores: FloatArray, labels: IntArray) -> dict[str, Any]:
    """Mean confidence, accuracy and share of the items in each bin (low, high] of confidence, every class weighing
    alike: the gaps times the shares sum to the ECE."""
    weights = target_weights(labels, ClassPrior.uniform(scores.shape[1]))
    bins = reliability(scores, labels, weights=weights)
    return {
        "confidence": [each.confidence for each in bins],
        "accuracy": [each.accuracy.value for each in bins],
        "share": [each.share for each in bins],
    }


def _by_class(run: Run, calibration: Calibration | None) -> dict[str, Any]:
    """Mean logit and mean margin of the true class, before and after, with their correlation to the log class count.

    Both are of centred logits: a constant added to all classes of an image says nothing, but would count in a margin.
    """
    raw, labels, counts = run.test_set.raw, run.test_set.labels, run.ledger.class_counts
    logits: dict[str, dict[str, FloatArray]] = {"mean_logit": {}, "mean_margin": {}}
    for row in [RAW] if calibration is None else [RAW, calibration.method]:
        values = raw.values if row == RAW or calibration is None else calibration.debias(raw).values
        centred = values - values.mean(axis=1, keepdims=True)
        logits["mean_logit"][row] = mean_logit_by_class(centred, labels)
        logits["mean_margin"][row] = mean_margin_by_class(centred, labels, run.row_norms)
    return {
        **{what: {row: _plain(values) for row, values in rows.items()} for what, rows in logits.items()},
        "correlations": {
            what: {row: _correlation(values, counts) for row, values in rows.items()} for what, rows in logits.items()
        },
        "feature_length": _feature_length(run),
    }


def _correlation(values: FloatArray, counts: IntArray) -> float | None:
    """Pearson's, of a figure of each class with the log of its training images; None where either does not vary."""
    known = np.isfinite(values)
    x, y = np.log(counts[known]), values[known]
    if x.size < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _feature_length(run: Run) -> list[float | None] | None:
    """Mean length of the feature vectors of each class's test images."""
    path, labels = run.folder / FEATURE_LENGTHS_FILE, run.test_set.labels
    if not path.exists():
        return None
    try:
        lengths = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _broken(path, error) from error
    if lengths.shape != labels.shape:
        raise _broken(path, f"it has shape {lengths.shape} for {labels.size} test images")
    present = np.bincount(labels, minlength=run.test_set.num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 for a class without a test image: None
        return _plain(np.bincount(labels, weights=lengths, minlength=present.size) / present)


def _made(run: Run) -> dict[str, Any]:
    """The data and how it was trained, the parts that runs usually differ in. Raises: IncompleteRun."""
    try:
        provenance, training = run.description["provenance"], run.training
        architecture, second = training["architecture"], training["decoupled"]
        shown = {
            **{key: training[key] for key in ("loss", "epochs", "batch_size", "seed", "precision")},
            **{key: architecture[key] for key in ("backbone", "norm", "head", "rectify")},
            "tau": training["tau"] if training["loss"] == "logit-adjusted" else None,
            "cibl_alpha": None if training["cibl"] is None else training["cibl"]["alpha"],
            "second_stage": None if second is None else {key: second[key] for key in ("sampler", "steps")},
            "code": provenance["code"],
        }
        return {
            "data": provenance["data"],
            "imbalance_ratio": provenance["imbalance_ratio"],
            "class_names": list(run.description["class_names"]),
            "training": shown,
        }
    except (KeyError, TypeError) as error:
        raise IncompleteRun(f"{run.folder} does not say how it was trained: {error!r} in run.json.") from error


def _fitted(folder: Path, calibration: Calibration) -> dict[str, Any]:
    return {"method": calibration.method, "reason": (_optional_json(folder / CALIBRATION_FILE) or {}).get("reason")}


def _curves(folder: Path) -> dict[str, Any] | None:
    """None also for a run that took its first stage from another."""
    rows = _optional_json(folder / CURVES_FILE)
    if not rows:
        return None
    try:
        return {
            "epoch": [row["epoch"] for row in rows],
            "loss": [row["loss"] for row in rows],
            "validation_accuracy": [row["validation_accuracy"] for row in rows]
            if "validation_accuracy" in rows[0]
            else None,
        }
    except (KeyError, TypeError) as error:
        raise _broken(folder / CURVES_FILE, error) from error


def _second_stage(run: Run) -> dict[str, Any] | None:
    """Loss of each step, and the rate of each class where the Meta Sampler drew."""
    path = run.folder / SECOND_STAGE_FILE
    stage = _optional_json(path)
    if stage is None:
        return None
    try:
        rates = stage["rates"] if run.training["decoupled"]["sampler"] == "meta" else None
        return {"losses": stage["losses"], "rates": rates}
    except (KeyError, TypeError) as error:
        raise _broken(path, error) from error


def _comparisons(decided: Sequence[_Decided]) -> list[dict[str, Any]]:
    """Each run's raw row minus the first run's, and calibrated minus calibrated where both are fitted."""
    first, found = decided[0], []
    for run in decided[1:]:
        same = (run.class_names, run.test_sha256) == (first.class_names, first.test_sha256)
        if not same or not np.array_equal(run.labels, first.labels):
            found.append({"run": run.name, "to": first.name, "left_out": OTHER_TEST_SET})
            continue
        for row, base in zip(list(run.correct)[:2], list(first.correct)[:2], strict=False):
            difference = asdict(paired_difference(first.correct[base], run.correct[row], run.labels))
            found.append({"run": run.name, "row": row, "to": first.name, "to_row": base, **difference})
    return found


def _all_but_alpha(run: Run) -> str | None:
    """What runs of one alpha curve have in common; None without CIBL."""
    training = run.training
    if training["cibl"] is None:
        return None
    shared = {**training, "seed": None, "cibl": {**training["cibl"], "alpha": None}}
    return json.dumps([run.description["provenance"].get("data_sha256"), shared], sort_keys=True)


def _alpha_curves(documents: Sequence[dict[str, Any]], keys: Sequence[str | None]) -> list[dict[str, Any]]:
    """For every such family with at least two values of alpha: its runs, by alpha."""
    curves = []
    for key in dict.fromkeys(key for key in keys if key is not None):
        family = [document for document, own in zip(documents, keys, strict=True) if own == key]
        family.sort(key=lambda document: float(document["training"]["cibl_alpha"]))
        alphas = [document["training"]["cibl_alpha"] for document in family]
        if len(set(alphas)) > 1:
            rows = [document["rows"][0] for document in family]
            groups = {group: [row[group] for row in rows] for group in ("many", "medium", "few")}
            curves.append({"runs": [each["name"] for each in family], "alpha": alphas, **groups})
    return curves


def _plain(values: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _optional_json(path: Path) -> Any:
    """None where the file is missing. Raises: IncompleteRun."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, why: object) -> IncompleteRun:
    return IncompleteRun(f"{path} cannot be read: {why}. Remove it, and the report does without, or train again.")
