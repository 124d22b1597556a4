"""The class law behind unlabelled traffic, as a proposal with its evidence: nothing here changes a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.calibration.affine import OFFSET_SD, balanced_weights, require_held_out
from models.calibration.bbse import Confusion, ShiftTest, bbse, require_examples, shift_test
from models.calibration.em import PSEUDO_COUNTS, EmResult, LikelihoodRatios, em_batch, em_prior
from models.calibration.errors import CalibrationError, NotEnoughData, ShapeMismatch
from models.calibration.prior import Ledger, total_variation
from models.calibration.temperature import MIN_PER_CLASS, fit_bcts, fit_closed_form
from models.calibration.traffic import Traffic
from models.calibration.types import Calibration, ClassPrior, DebiasedLogits, FloatArray, LogitSet, RawLogits

MIN_ITEMS_PER_CLASS = 30  # on average; with fewer an estimate often costs more accuracy than it gains
SIGNIFICANCE = 0.01
ILL_CONDITIONED = 30.0
AGREES_WITHIN = 1.5  # half-widths between EM and BBSE; below 1 in every simulation in which the classes looked the same
RESAMPLES = 200
RESAMPLE_TOLERANCE = 1e-3  # L1; two orders under the width of any interval worth having


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PriorProposal:
    """What the traffic says about its class law, and whether to act on it.

    `estimate` is the law found (MAP-EM). `proposed` is the estimate where the evidence supports a change, else
    `present`, as `recommended` and, with the reason, `summary` say. `low` and `high` `(C,)` bound each class with
    5-95 % bootstrap intervals over both samples; nine of ten resampled laws lie within `tv_half_width` of the estimate
    (total variation). `test` is of "the traffic follows the present prior", None where a class has a single labelled
    example or the scores do not vary. `cross_check` is the same law by BBSE, and `confusion` says how well the classes
    can be told apart. Of `items_seen`, `items` were used.
    """

    estimate: ClassPrior
    proposed: ClassPrior
    present: ClassPrior
    recommended: bool
    low: FloatArray
    high: FloatArray
    tv_half_width: float
    test: ShiftTest | None
    cross_check: ClassPrior
    confusion: Confusion
    em: EmResult
    calibration: Calibration
    items: int
    items_seen: int
    warnings: tuple[str, ...]
    summary: str


def propose_prior(
    seen: Traffic | RawLogits,
    calibration_set: LogitSet,
    ledger: Ledger,
    *,
    present: ClassPrior,
    force: bool = False,
    resamples: int = RESAMPLES,
) -> PriorProposal:
    """Estimate the class law of traffic, test it against the present target prior, and say whether to change.

    BCTS is fitted on the calibration set where that has 5 examples of every class, the closed form otherwise; then
    MAP-EM (Alexandari et al., ICML 2020) finds the law.

    Args: seen, traffic or raw logits without labels. calibration_set, labelled logits that the network never saw, of
        any class law. present, the prior that the scores are adjusted to now. force takes fewer than 30 items a class.
        resamples of the bootstrap, at least 1, seed fixed.
    Raises: NotEnoughData for too little traffic or a class without a labelled example, LeakedSplit, ShapeMismatch,
        FitFailed, CalibrationError for no resample.
    """
    if resamples < 1:
        raise CalibrationError(f"the intervals need at least one resample; got {resamples}. {RESAMPLES} are usual.")
    raw = seen.sample if isinstance(seen, Traffic) else seen
    num_items = raw.values.shape[0]
    _check(seen, raw, calibration_set, present, force)
    calibration, measured = _calibrate(calibration_set, ledger)
    debiased, labelled = calibration.debias(raw), calibration.debias(calibration_set.raw)
    implied = measured_at_uniform(labelled, calibration_set) if measured else calibration.implied_prior
    spread = 1.0 + num_items / calibration_set.labels.size if measured else 1.0
    em, estimate = estimate_law(debiased, implied, spread=spread)
    resampled = _resampled_calibration(calibration_set, labelled, implied, resamples) if measured else None
    laws = _bootstrap(debiased, implied, em, resampled, spread=spread, resamples=resamples)
    low, high = np.percentile(laws, [5.0, 95.0], axis=1)
    confusion = Confusion.of(labelled.scores(), calibration_set.labels)
    test = shift_test(
        debiased.adjust(present).scores(), labelled.adjust(present).scores(), calibration_set.labels, present
    )
    half_width = float(np.quantile(0.5 * np.abs(laws - estimate.probs[:, None]).sum(axis=0), 0.9))
    cross_check = bbse(confusion, debiased.scores().mean(axis=0))
    agrees = total_variation(cross_check, estimate) <= AGREES_WITHIN * half_width
    distance = total_variation(estimate, present)
    single = calibration_set.class_counts.min() < 2
    objection = _objection(test, em, single=bool(single), far_enough=distance > half_width, agrees=agrees)
    said = (
        f"The estimate from {num_items} items is {distance:.2f} from the present prior, give or take {half_width:.2f}"
    )
    return PriorProposal(
        estimate=estimate,
        proposed=estimate if objection is None else present,
        present=present,
        recommended=objection is None,
        low=low,
        high=high,
        tv_half_width=half_width,
        test=test,
        cross_check=cross_check,
        confusion=confusion,
        em=em,
        calibration=calibration,
        items=num_items,
        items_seen=seen.num_items if isinstance(seen, Traffic) else num_items,
        warnings=_warnings(raw, confusion, em, agrees=agrees, measured=measured),
        summary=f"{_verdict(test, objection)} {said} (total variation).",
    )


def estimate_law(debiased: DebiasedLogits, implied: ClassPrior, *, spread: float) -> tuple[EmResult, ClassPrior]:
    """MAP-EM on debiased logits, and the law it means: the ratio to `implied`, times the uniform law.

    `implied` is the mean debiased score on examples weighted to the uniform law. On such examples the ratio is 1 and
    the law uniform: no shift yields no shift (Alexandari et al. 2020, section 3.2). The pseudo-counts follow
    `implied`, so that they pull the law to uniform too.

    Args: spread, by how much the noise of the calibration set enlarges the variance that N items alone would leave:
        1 + N / examples. Half an item of each class is added `spread` times: more traffic cannot make up for few
        labelled examples, so that the pull must not fade with it.
    """
    em = em_prior(debiased.values, implied, pseudo_counts=_pseudo_counts(implied, spread), start=implied)
    return em, ClassPrior.from_weights(em.prior.probs / implied.probs)


def _pseudo_counts(implied: ClassPrior, spread: float) -> FloatArray:
    return np.asarray(PSEUDO_COUNTS * spread * implied.num_classes * implied.probs)


def measured_at_uniform(labelled: DebiasedLogits, calibration_set: LogitSet) -> ClassPrior:
    """Mean debiased score of examples that weigh the same in every class.

    Weighted to the training law instead, the rare classes' few examples would decide about most of the mean.
    """
    return ClassPrior.from_weights(balanced_weights(calibration_set) @ labelled.scores())


def _check(
    seen: Traffic | RawLogits, raw: RawLogits, calibration_set: LogitSet, present: ClassPrior, force: bool
) -> None:
    require_held_out(calibration_set)
    require_examples(calibration_set.class_counts)
    num_items, num_classes = raw.values.shape
    if not num_classes == calibration_set.num_classes == present.num_classes:
        raise ShapeMismatch(
            "traffic, calibration set and present prior must have the same classes; got "
            f"{num_classes}, {calibration_set.num_classes} and {present.num_classes}."
        )
    wanted = MIN_ITEMS_PER_CLASS * num_classes
    if not num_items:
        raise NotEnoughData("a class law is estimated from items; got 0. Wait for traffic.")
    if num_items < wanted and not force:
        way_out = "Wait for more traffic"
        if isinstance(seen, Traffic) and seen.capacity < wanted:
            way_out = (
                f"This traffic keeps at most {seen.capacity} rows: give the logits themselves, or a larger capacity"
            )
        raise NotEnoughData(
            f"a class law is estimated from at least {MIN_ITEMS_PER_CLASS} items a class on average, here {wanted}; "
            f"got {num_items}. {way_out}, or force an estimate whose intervals will be wide."
        )


def _calibrate(calibration_set: LogitSet, ledger: Ledger) -> tuple[Calibration, bool]:
    """The calibration, and whether there are enough examples to measure what it leaves of a prior."""
    if calibration_set.class_counts.min() < MIN_PER_CLASS:
        return fit_closed_form(calibration_set, ledger)[0], False
    return fit_bcts(calibration_set, ledger)[0], True


def _bootstrap(
    debiased: DebiasedLogits,
    implied: ClassPrior,
    em: EmResult,
    resampled: tuple[FloatArray, FloatArray] | None,
    *,
    spread: float,
    resamples: int,
) -> FloatArray:
    """Laws `(C, B)` from items and calibration examples weighted anew at random.

    The Bayesian bootstrap (Rubin, Annals of Statistics 1981): an item weighs Gamma(1), half an item Gamma(1/2). Where
    the classes are told apart for certain this draws from the Dirichlet posterior, which keeps its level for classes
    that were seen once or never; resampling would say that those cannot occur.
    """
    rng = np.random.default_rng(0)
    shape = (implied.num_classes, resamples)
    offsets, log_implied = resampled or (np.zeros(shape), np.broadcast_to(implied.log_probs[:, None], shape))
    batch = em_batch(
        LikelihoodRatios.of(debiased.values, implied),
        rng.standard_exponential((debiased.values.shape[0], resamples), dtype=np.float32),
        np.repeat(em.prior.probs[:, None], resamples, axis=1),
        pseudo_counts=spread * rng.gamma(np.broadcast_to(_pseudo_counts(implied, 1.0)[:, None], shape)),
        log_factors=offsets - (log_implied - implied.log_probs[:, None]),
        tolerance=RESAMPLE_TOLERANCE,
    )
    laws = batch.priors / np.exp(log_implied)
    return np.asarray(laws / laws.sum(axis=0))


def _resampled_calibration(
    calibration_set: LogitSet, labelled: DebiasedLogits, implied: ClassPrior, resamples: int
) -> tuple[FloatArray, FloatArray]:
    """By how much BCTS' offsets move, and the logarithm of the implied prior then, `(C, B)` each, in nats.

    Examples are weighted anew within their class, and the fit follows by one Newton step: exact to first order, and
    200 times cheaper than 200 fits. The temperature rests on all examples at once and stays.
    """
    rng = np.random.default_rng(1)
    counts, labels = calibration_set.class_counts, calibration_set.labels
    num_classes, scores = counts.size, labelled.scores()
    weights = balanced_weights(calibration_set)
    # Gamma(1 - 2 / m) in a class of m: the weighted mean then varies by the unbiased variance over m
    drawn = rng.gamma((1.0 - 2.0 / counts)[labels, None], size=(labels.size, resamples))
    totals: FloatArray = np.zeros((num_classes, resamples))
    np.add.at(totals, labels, drawn)
    moved = scores.T @ (drawn / (totals[labels] * num_classes) - weights[:, None])
    curvature = np.diag(weights @ scores) - (scores * weights[:, None]).T @ scores
    penalised = curvature + np.eye(num_classes) / (OFFSET_SD**2 * labels.size)
    offsets = -np.linalg.solve(penalised, moved)
    log_implied = np.log(np.maximum(implied.probs[:, None] + moved + curvature @ offsets, 0.1 * implied.probs[:, None]))
    return np.asarray(offsets), np.asarray(log_implied)


def _objection(test: ShiftTest | None, em: EmResult, *, single: bool, far_enough: bool, agrees: bool) -> str | None:
    """Why the present prior should stay, or None."""
    if test is None and single:
        return "a class has a single labelled example, so that a shift cannot be tested"
    if test is None:
        return "under it the scores are the same for every item, so that a shift cannot be tested"
    if test.p_value >= SIGNIFICANCE:
        return f"no shift was found (p = {test.p_value:.2g})"
    if not em.converged:
        return "EM did not converge"
    if not agrees:
        return "the scores changed in a way that a shift of the classes alone does not explain"
    if not far_enough:
        return f"there is a shift (p = {test.p_value:.2g}), but too little data to say where to"
    return None


def _verdict(test: ShiftTest | None, objection: str | None) -> str:
    if objection is not None:
        return f"Keep the present prior: {objection}."
    assert test is not None  # else there is an objection
    return f"Accept: the class law has shifted (p = {test.p_value:.2g})."


def _warnings(raw: RawLogits, confusion: Confusion, em: EmResult, *, agrees: bool, measured: bool) -> tuple[str, ...]:
    found = []
    if raw.values.shape[0] < MIN_ITEMS_PER_CLASS * raw.values.shape[1]:
        found.append(f"forced on fewer than {MIN_ITEMS_PER_CLASS} items a class: mostly the prior assumption speaks.")
    if not measured:
        found.append(
            f"the calibration set has a class with fewer than {MIN_PER_CLASS} examples: the closed form was used, and "
            "the intervals leave out that it may be wrong."
        )
    if not em.converged:
        found.append(f"EM had not converged after {em.iterations} steps: the classes can hardly be told apart.")
    if confusion.condition_number > ILL_CONDITIONED:
        found.append(
            f"ill-conditioned (condition number {confusion.condition_number:.3g}): the classifier confuses some "
            "mixtures of classes, and errors in the scores are magnified."
        )
    for group in confusion.groups:
        shown = ", ".join(map(str, group[:10])) + (", ..." if len(group) > 10 else "")
        found.append(f"classes {shown} get nearly the same scores: only the sum over these {len(group)} is known.")
    if not agrees:
        found.append(
            "the cross-check by BBSE disagrees with EM by more than the noise: the items of a class may look different "
            "than in the calibration set, which no class prior repairs."
        )
    return tuple(found)
