"""What an uploaded class-frequency file does to a live model, and how much it changes: before and after, measured."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.choose import METHODS, choose, fit_named, num_folds, out_of_fold, was_chosen, with_warnings
from models.calibration.difference import centred, finite, flips, log_weights, most_moved
from models.calibration.errors import FitFailed, NotEnoughData
from models.calibration.frequencies import Frequencies
from models.calibration.marc_paper import METHOD as MARC_PAPER
from models.calibration.metrics import GROUPS, evaluate, group_of_class
from models.calibration.prior import LARGE_FACTOR, Ledger, capped, kl_divergence, total_variation
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import Calibration, ClassPrior, DebiasedLogits, FloatArray, LogitSet

RESTORES_BIAS_BELOW = 0.02  # total variation between a target and the training law
SMALL_GROUP = 20  # labelled examples of a group under which its figures say little


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """All that turns raw logits into scores: the ledger, the calibration fitted on it, and the target prior."""

    ledger: Ledger
    calibration: Calibration
    prior: ClassPrior


def with_target(deployment: Deployment, frequencies: Frequencies, *, cap: float | None = None) -> Deployment:
    """The same calibration under another target prior: closed form, no refit.

    Args: cap, the largest factor by which a class may move against the others; none by default.
    Raises: InvalidPrior for a cap that is not above 1.
    """
    if cap is None:
        return replace(deployment, prior=frequencies.prior)
    return replace(deployment, prior=capped(frequencies.prior, deployment.calibration.implied_prior, cap))


def with_training_counts(
    deployment: Deployment,
    frequencies: Frequencies,
    calibration_set: LogitSet | None,
    row_norms: ArrayLike | None = None,
) -> Deployment:
    """A new ledger from the true training counts, and the calibration fitted again the way it was fitted before.

    Args: calibration_set, None where the model came without: then the closed form without data.
    Raises: UnknownTrainingRule where r was measured, and whatever the fit raises.
    """
    ledger = deployment.ledger.with_class_counts(frequencies.counts if frequencies.counts is not None else [])
    calibration = refit(deployment.calibration, ledger, calibration_set, row_norms)
    return replace(deployment, ledger=ledger, calibration=calibration)


def refit(
    calibration: Calibration, ledger: Ledger, calibration_set: LogitSet | None, row_norms: ArrayLike | None
) -> Calibration:
    """The calibration that the same way of fitting gives under this ledger.

    MARC as published needs training logits, which a live model does not have: the held-out data choose then.
    """
    if calibration.method == MARC_PAPER and calibration_set is not None and calibration_set.labels.size > 1:
        return choose(calibration_set, ledger, row_norms).calibration
    if not _fitted_on(calibration, calibration_set) or calibration_set is None:
        return _without_data(calibration, ledger)
    if was_chosen(calibration):
        return choose(calibration_set, ledger, row_norms).calibration
    return with_warnings(*fit_named(calibration.method, row_norms)(calibration_set, ledger))


def _without_data(calibration: Calibration, ledger: Ledger) -> Calibration:
    """What new counts alone can change: the prior that is taken out. A temperature stays."""
    if calibration.method == "identity":
        return Calibration.identity(ledger.implied_prior)
    if calibration.method == "temperature":
        return replace(calibration, implied_prior=ledger.implied_prior)
    if calibration.method == "closed-form":
        return replace(calibration, offset=-ledger.implied_prior.log_probs)
    return closed_form_without_data(ledger)


def _fitted_on(calibration: Calibration, calibration_set: LogitSet | None) -> bool:
    return (
        calibration_set is not None
        and calibration.method in METHODS
        and bool(calibration.provenance.get("num_items"))
        and calibration_set.labels.size > 1
    )


class OutOfFold:
    """Debiased logits of a calibration set, each example's by a fit that did not see it, and how many folds they come
    from: 0 where no fit is repeated. The last ones are kept: a target prior changes none of them, and fits take long.
    """

    def __init__(self, *, kept: int = 2) -> None:
        self._kept = kept
        self._known: dict[bytes, tuple[DebiasedLogits, int]] = {}

    def __call__(
        self, deployment: Deployment, calibration_set: LogitSet, row_norms: ArrayLike | None
    ) -> tuple[DebiasedLogits, int]:
        key = _digest(deployment, calibration_set, row_norms)
        found = self._known.pop(key, None) or _out_of_fold(deployment, calibration_set, row_norms)
        self._known[key] = found
        while len(self._known) > self._kept:
            del self._known[next(iter(self._known))]
        return found


def compare(
    before: Deployment,
    after: Deployment,
    *,
    class_names: Sequence[str],
    calibration_set: LogitSet | None,
    row_norms: ArrayLike | None = None,
    measure: OutOfFold | None = None,
) -> dict[str, Any]:
    """A JSON-ready report of what changes from one deployment to the other.

    The metrics of both are weighted to the *new* target prior, on the stored calibration set; where a calibration was
    fitted on that set, every example is scored by a fit that did not see it. `measure` is given by callers that compare
    often.
    """
    with np.errstate(invalid="ignore"):  # a class that was impossible and is: NaN, shown as null
        shift = centred(_log_weights(after) - _log_weights(before))
    measured, flipped = _measure(
        before, after, class_names, calibration_set, row_norms, _out_of_fold if measure is None else measure
    )
    return {
        "prior": _describe_prior(after),
        "classes": _classes(before, after, class_names, shift),
        **most_moved(shift, class_names),
        "metrics": measured,
        "flips": flipped,
        "warnings": _warnings(before, after, class_names, measured),
    }


def _log_weights(deployment: Deployment) -> FloatArray:
    return log_weights(deployment.calibration, deployment.prior)


def _describe_prior(after: Deployment) -> dict[str, Any]:
    probs = after.prior.probs
    held = probs[probs > 0]
    entropy = -float((held * np.log(held)).sum())
    return {
        "entropy_nats": entropy,
        "effective_classes": float(np.exp(entropy)),
        "imbalance_ratio": float(held.max() / held.min()),
        "impossible_classes": int((probs == 0).sum()),
        "kl_to_debiased_prior_nats": kl_divergence(after.prior, after.calibration.implied_prior),
        "total_variation_to_training_prior": total_variation(after.prior, after.ledger.training_prior),
    }


def _classes(
    before: Deployment, after: Deployment, class_names: Sequence[str], shift: FloatArray
) -> list[dict[str, Any]]:
    """One row a class; `shift_nats` is relative to the average class, null where the class is or was impossible."""
    columns = {
        "prior_before": before.prior.probs,
        "prior": after.prior.probs,
        "implied_prior_before": before.ledger.implied_prior.probs,
        "implied_prior": after.ledger.implied_prior.probs,
        "shift_nats": shift,
    }
    return [
        {"class": name} | {key: finite(values[index]) for key, values in columns.items()}
        for index, name in enumerate(class_names)
    ]


def _measure(
    before: Deployment,
    after: Deployment,
    class_names: Sequence[str],
    calibration_set: LogitSet | None,
    row_norms: ArrayLike | None,
    out_of_fold_logits: Callable[[Deployment, LogitSet, ArrayLike | None], tuple[DebiasedLogits, int]],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Metrics before and after, and the decisions that flip; None where there is nothing to measure on."""
    if calibration_set is None or not calibration_set.labels.size:
        return None, None
    debiased, folds = out_of_fold_logits(after, calibration_set, row_norms)
    former = debiased
    if before.calibration is not after.calibration or before.ledger is not after.ledger:
        former, _ = out_of_fold_logits(before, calibration_set, row_norms)
    adjusted = [former.adjust(before.prior), debiased.adjust(after.prior)]
    results = [
        asdict(evaluate(each, calibration_set.labels, class_counts=after.ledger.class_counts, target=after.prior))
        for each in adjusted
    ]
    sample = {
        "drawn": calibration_set.drawn,
        "items": results[1].pop("items"),
        "weighted_to": "the target prior after the change; balanced_accuracy, many, medium and few weigh classes alike",
        "out_of_fold": folds,
    }
    results[0].pop("items")
    return {"sample": sample, "before": results[0], "after": results[1]}, flips(
        adjusted[0].values, adjusted[1].values, class_names
    )


def _digest(deployment: Deployment, calibration_set: LogitSet, row_norms: ArrayLike | None) -> bytes:
    """Of everything that the debiased logits of a set depend on."""
    calibration, ledger = deployment.calibration, deployment.ledger
    told = (calibration.method, bool(calibration.provenance.get("num_items")), ledger.trained_with, ledger.source)
    digest = hashlib.sha256(repr((told, ledger.tau)).encode())
    arrays = (
        calibration.scale,
        calibration.offset,
        calibration.implied_prior.log_probs,
        ledger.implied_prior.log_probs,
        ledger.class_counts,
        np.zeros(0) if ledger.loss_counts is None else ledger.loss_counts,
        np.zeros(0) if ledger.rates is None else ledger.rates,
        np.zeros(0) if row_norms is None else np.asarray(row_norms),
        calibration_set.labels,
        calibration_set.logits,
    )
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _out_of_fold(
    deployment: Deployment, calibration_set: LogitSet, row_norms: ArrayLike | None
) -> tuple[DebiasedLogits, int]:
    calibration = deployment.calibration
    if _fitted_on(calibration, calibration_set):
        # A fold may leave too little for a fit that all examples together allow: that must not stop a change.
        with suppress(NotEnoughData, FitFailed):
            fit = fit_named(calibration.method, row_norms)
            return out_of_fold(fit, calibration_set, deployment.ledger), num_folds(calibration_set)
    return calibration.debias(calibration_set.raw), 0


def _warnings(
    before: Deployment, after: Deployment, class_names: Sequence[str], measured: dict[str, Any] | None
) -> list[str]:
    found = [str(warning) for warning in after.calibration.provenance.get("warnings", [])]
    if total_variation(after.prior, after.ledger.training_prior) < RESTORES_BIAS_BELOW:
        found.append(
            "the target prior is the training law: the scores will favour the classes common in training, as the raw "
            "classifier does. Right only if the model runs where classes occur as they did in training."
        )
    if after.ledger is not before.ledger:
        found += _ledger_warnings(before, after)
    with np.errstate(invalid="ignore"):
        gap = np.abs(after.prior.log_probs - after.calibration.implied_prior.log_probs)
    far = np.flatnonzero(np.isfinite(gap) & (gap > np.log(LARGE_FACTOR)))
    if far.size:
        found.append(
            f"{far.size} classes are moved by more than a factor of {LARGE_FACTOR:g} (first {class_names[far[0]]!r}): "
            "a prior wrong by a factor of 7 is already worse than none."
        )
    if measured is None:
        found.append("nothing was measured: the model came without a calibration set.")
    else:
        items = measured["sample"]["items"]
        if not measured["sample"]["out_of_fold"] and after.calibration.provenance.get("num_items"):
            found.append("the fit has seen the examples that these figures rest on: they flatter it.")
        found += [
            f"the figures of the {group} classes rest on {items[group]} labelled examples."
            for group in GROUPS
            if items[group] < SMALL_GROUP and (group_of_class(after.ledger.class_counts) == GROUPS.index(group)).any()
        ]
    return found


def _other_method(before: Calibration, after: Calibration) -> str:
    why = "there are too few labelled examples to fit the former again."
    if before.method == MARC_PAPER:
        why = "MARC as published is fitted on training logits, which the service does not have."
    elif was_chosen(after):
        why = "the method is the held-out data's choice, under these counts too."
    return f"the calibration was {before.method} and is now {after.method}: {why} Undo takes counts and method back."


def _ledger_warnings(before: Deployment, after: Deployment) -> list[str]:
    found = []
    if before.calibration.method != after.calibration.method:
        found.append(_other_method(before.calibration, after.calibration))
    uniform = ClassPrior.uniform(after.prior.num_classes)
    if total_variation(after.ledger.training_prior, uniform) < RESTORES_BIAS_BELOW:
        found.append("the training counts are nearly uniform: there is hardly a bias to take out.")
    moved = after.ledger.implied_prior.log_probs - before.ledger.implied_prior.log_probs
    if np.ptp(moved) < 1e-9:
        found.append(
            f"the implied prior did not change: for a classifier trained with {after.ledger.trained_with} these counts "
            "say the same as before."
        )
        return found
    anchor = float(np.abs(moved - moved.mean()).mean())
    offset = _log_weights(replace(after, prior=uniform)) - _log_weights(replace(before, prior=uniform))
    followed = float(np.abs(offset - offset.mean()).mean())
    found.append(
        f"the counts act through the implied prior: it moved by {anchor:.3f} nats a class on average, the fitted "
        f"offsets by {followed:.3f}." + (" The fit rests on the labelled examples alone." if followed < 5e-4 else "")
    )
    return found
