"""The closed form (implied prior out, temperature inside) and its relatives: temperature, BCTS, vector scaling."""

from dataclasses import replace

import numpy as np

from models.calibration.affine import Anchor, fit_affine, require_every_class
from models.calibration.errors import FitFailed, ShapeMismatch
from models.calibration.prior import Ledger
from models.calibration.scale import fit_scale
from models.calibration.types import Calibration, ClassPrior, FitReport, LogitSet

SEPARATED = 1e-4  # nats: a loss that falls to it falls on for ever
MIN_PER_CLASS = 5  # fewer labelled examples of a class do not carry parameters of its own


def fit_closed_form(logit_set: LogitSet, ledger: Ledger) -> tuple[Calibration, FitReport]:
    """d = z~ / T - log r_raw, with T the minimiser of the class-balanced NLL of d; r becomes uniform.

    The temperature stays inside, before the prior term: dividing the finished map would scale the prior too. A Gaussian
    prior on log T keeps a calibration set without a single error from driving T to 0.
    Prior correction: Saerens et al. 2002, Menon et al. ICLR 2021; temperature: Guo et al. ICML 2017.

    Raises: LeakedSplit for training data, NotEnoughData for none, ShapeMismatch.
    """
    check_ledger(logit_set, ledger)
    offset = -ledger.implied_prior.log_probs
    fit = fit_scale(logit_set, offset)
    calibration = Calibration(
        scale=np.full(logit_set.num_classes, fit.scale),
        offset=offset,
        implied_prior=ClassPrior.uniform(logit_set.num_classes),
        method="closed-form",
        parameters={"temperature": 1 / fit.scale},
        provenance=fitted_on(logit_set),
    )
    report = FitReport(
        method="closed-form",
        objective=fit.objective,
        iterations=fit.iterations,
        num_items=logit_set.labels.size,
        warnings=fit.warnings,
    )
    return calibration, report


def fit_temperature(logit_set: LogitSet, ledger: Ledger) -> tuple[Calibration, FitReport]:
    """d = z~ / T with the closed form's T, the classifier's own prior left in: r stays r_raw (Guo et al., ICML 2017).

    Adjusted to any target it gives the scores of the closed form; without a target, those of the training law.

    Raises: as `fit_closed_form`.
    """
    closed, report = fit_closed_form(logit_set, ledger)
    calibration = replace(
        closed, offset=np.zeros(closed.num_classes), implied_prior=ledger.implied_prior, method="temperature"
    )
    return calibration, replace(report, method="temperature")


def closed_form_without_data(ledger: Ledger) -> Calibration:
    """d = z~ - log r_raw: what can be said without a labelled example; the confidence stays the classifier's own."""
    num_classes = ledger.implied_prior.num_classes
    return Calibration(
        scale=np.ones(num_classes),
        offset=-ledger.implied_prior.log_probs,
        implied_prior=ClassPrior.uniform(num_classes),
        method="closed-form",
        parameters={"temperature": 1.0},
        provenance={"num_items": 0},
    )


def fit_bcts(logit_set: LogitSet, ledger: Ledger) -> tuple[Calibration, FitReport]:
    """Bias-corrected temperature scaling: d = z~ / T + b, with b pulled towards the closed form's -log r_raw.

    Class-balanced weights and a free offset a class make r uniform (Alexandari et al., ICML 2020).

    Raises: LeakedSplit, NotEnoughData for a class without an example, ShapeMismatch, FitFailed.
    """
    require_every_class(logit_set)
    base, base_report = fit_closed_form(logit_set, ledger)
    anchor = Anchor(scale=float(base.scale[0]), offset=base.offset)
    fit = fit_affine(logit_set, anchor=anchor, scale_per_class=False)
    if not fit.scale[0]:
        raise FitFailed(
            "the logits speak against the labels: the best common scale is 0. Check the labels and the order of the "
            "classes."
        )
    calibration = Calibration(
        scale=fit.scale,
        offset=fit.offset,
        implied_prior=ClassPrior.uniform(logit_set.num_classes),
        method="bcts",
        parameters={"temperature": 1 / float(fit.scale[0]), "bias": fit.offset.tolist()},
        provenance=fitted_on(logit_set),
    )
    report = FitReport(
        method="bcts",
        objective=fit.objective,
        iterations=fit.iterations,
        num_items=logit_set.labels.size,
        warnings=base_report.warnings + few_examples(logit_set),
    )
    return calibration, report


def fit_vector_scaling(logit_set: LogitSet, ledger: Ledger) -> tuple[Calibration, FitReport]:
    """d_j = a_j z~_j + b_j at the minimum of the class-balanced NLL, without any pull (Guo et al., ICML 2017).

    The same map as MARC's. A small calibration set has its minimum far out or at infinity: 20 examples a class are few.

    Raises: LeakedSplit, NotEnoughData for a class without an example, ShapeMismatch, FitFailed where there is no
        minimum.
    """
    require_every_class(logit_set)
    base, _ = fit_closed_form(logit_set, ledger)
    anchor = Anchor(scale=float(base.scale[0]), offset=base.offset, scale_sd=np.inf, offset_sd=np.inf)
    fit = fit_affine(logit_set, anchor=anchor, scale_per_class=True)
    if fit.objective < SEPARATED:
        raise FitFailed(
            f"vector scaling has no minimum here: it separates the {logit_set.labels.size} examples without an error "
            "(class-balanced NLL 0). Add examples, or use choose."
        )
    calibration = replace(
        base,
        scale=fit.scale,
        offset=fit.offset,
        method="vector-scaling",
        parameters={"scale": fit.scale.tolist(), "bias": fit.offset.tolist()},
    )
    report = FitReport(
        method="vector-scaling",
        objective=fit.objective,
        iterations=fit.iterations,
        num_items=logit_set.labels.size,
        warnings=few_examples(logit_set),
    )
    return calibration, report


def few_examples(logit_set: LogitSet) -> tuple[str, ...]:
    """The warning for a class with fewer examples than parameters of its own can be fitted on."""
    fewest = int(logit_set.class_counts.min())
    if fewest >= MIN_PER_CLASS:
        return ()
    rule = f"parameters of its own for each class need at least {MIN_PER_CLASS} examples of every class"
    return (f"{rule}; the calibration set has a class with {fewest}. Use choose, or the closed form.",)


def fitted_on(logit_set: LogitSet) -> dict[str, object]:
    """The provenance that every fit writes down."""
    return {
        "split": logit_set.split,
        "drawn": logit_set.drawn,
        "num_items": int(logit_set.labels.size),
        "items_per_class_min": int(logit_set.class_counts.min()),
        "items_per_class_max": int(logit_set.class_counts.max()),
    }


def check_ledger(logit_set: LogitSet, ledger: Ledger) -> None:
    """Raises: ShapeMismatch when logits and ledger have different numbers of classes."""
    if ledger.implied_prior.num_classes != logit_set.num_classes:
        raise ShapeMismatch(
            f"the calibration set has {logit_set.num_classes} classes, the class counts {ledger.class_counts.size}. "
            "Give logits and counts of the same classifier."
        )
