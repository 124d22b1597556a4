"""The closed form (take the implied prior out, temperature inside) and its bias-corrected relative."""

import numpy as np
from scipy.optimize import minimize_scalar

from models.calibration.affine import LOG_TEMPERATURE_SD, balanced_nll, fit_affine, require_held_out
from models.calibration.errors import ShapeMismatch
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, FitReport, LogitSet

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_closed_form(logit_set: LogitSet, ledger: Ledger) -> tuple[Calibration, FitReport]:
    """d = z~ / T - log r_raw, with T the minimiser of the class-balanced NLL of d; r becomes uniform.

    The temperature stays inside, before the prior term: dividing the finished map would scale the prior too. A Gaussian
    prior on log T keeps a calibration set without a single error from driving T to 0.
    Prior correction: Saerens et al. 2002, Menon et al. ICLR 2021; temperature: Guo et al. ICML 2017.

    Raises: LeakedSplit for training data, NotEnoughData for none, ShapeMismatch.
    """
    require_held_out(logit_set)
    check_ledger(logit_set, ledger)
    offset = -ledger.implied_prior.log_probs
    bounds = (-np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE))  # of log(1 / T)
    penalty = 0.5 / (LOG_TEMPERATURE_SD**2 * logit_set.labels.size)

    def objective(log_scale: float) -> float:
        nll = balanced_nll(np.exp(log_scale) * logit_set.logits + offset, logit_set)
        return nll + penalty * float(log_scale) ** 2

    result = minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    scale = float(np.exp(result.x))
    warnings: tuple[str, ...] = ()
    if min(result.x - bounds[0], bounds[1] - result.x) < 1e-3:
        warnings = (f"the temperature ran into its limit ({1 / scale:.3g}): the logits hardly tell the classes apart.",)
    calibration = Calibration(
        scale=np.full(logit_set.num_classes, scale),
        offset=offset,
        implied_prior=ClassPrior.uniform(logit_set.num_classes),
        method="closed-form",
        parameters={"temperature": 1 / scale},
        provenance=fitted_on(logit_set),
    )
    report = FitReport(
        method="closed-form",
        objective=float(result.fun),
        iterations=int(result.nfev),
        num_items=logit_set.labels.size,
        warnings=warnings,
    )
    return calibration, report


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

    Raises: LeakedSplit, NotEnoughData, ShapeMismatch, FitFailed.
    """
    base, _ = fit_closed_form(logit_set, ledger)
    fit = fit_affine(logit_set, anchor_scale=float(base.scale[0]), anchor_offset=base.offset, scale_per_class=False)
    calibration = Calibration(
        scale=fit.scale,
        offset=fit.offset,
        implied_prior=ClassPrior.uniform(logit_set.num_classes),
        method="bcts",
        parameters={"temperature": 1 / float(fit.scale[0]), "bias": fit.offset.tolist()},
        provenance=fitted_on(logit_set),
    )
    report = FitReport(
        method="bcts", objective=fit.objective, iterations=fit.iterations, num_items=logit_set.labels.size
    )
    return calibration, report


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
