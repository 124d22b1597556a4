"""MARC, margin calibration for long-tailed recognition (Wang et al., ACML 2022, arXiv 2112.07225)."""

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.affine import Anchor, fit_affine, require_every_class
from models.calibration.errors import InvalidCalibration, ShapeMismatch
from models.calibration.prior import Ledger
from models.calibration.temperature import few_examples, fit_closed_form, fitted_on
from models.calibration.types import Calibration, ClassPrior, FitReport, FloatArray, LogitSet, frozen, numbers


def fit_held_out(
    logit_set: LogitSet, ledger: Ledger, row_norms: ArrayLike | None = None
) -> tuple[Calibration, FitReport]:
    """d_j = omega_j z~_j + beta_j ||W_j||: the paper's map, fitted on data that the network never saw.

    The loss is the class-balanced NLL with a penalty towards the closed form. The penalty lies on the offset and not
    on beta, so that unknown row norms change the letters of the answer and nothing else. No omega goes below 0: a
    larger logit never lowers its class.

    Args: row_norms `(C,)`, ||W_j|| of the linear head without its bias; ones where the head is unknown.
    Returns: the calibration with a uniform implied prior, and a report that warns of classes that omega 0 silences and
        of a class with fewer than 5 examples.
    Raises: LeakedSplit for training data, NotEnoughData for a class without an example, ShapeMismatch,
        InvalidCalibration, FitFailed.
    """
    norms = checked_row_norms(row_norms, logit_set.num_classes)
    require_every_class(logit_set)
    base, base_report = fit_closed_form(logit_set, ledger)
    anchor = Anchor(scale=float(base.scale[0]), offset=base.offset)
    fit = fit_affine(logit_set, anchor=anchor, scale_per_class=True)
    omega, beta = fit.scale, np.divide(fit.offset, norms)
    warnings = base_report.warnings + few_examples(logit_set)
    if (omega == 0).any():
        silent = f"omega ended at 0 for {int((omega == 0).sum())} classes (first {int(np.argmax(omega == 0))})"
        warnings += (f"{silent}: their own logits speak against them. Check the labels and the order of the classes.",)
    calibration = Calibration(
        scale=omega,
        offset=fit.offset,
        implied_prior=ClassPrior.uniform(logit_set.num_classes),
        method="marc",
        parameters={"omega": omega.tolist(), "beta": beta.tolist()},
        provenance=fitted_on(logit_set),
    )
    report = FitReport(
        method="marc",
        objective=fit.objective,
        iterations=fit.iterations,
        num_items=logit_set.labels.size,
        warnings=warnings,
    )
    return calibration, report


def checked_row_norms(row_norms: ArrayLike | None, num_classes: int) -> FloatArray:
    """Raises: ShapeMismatch, InvalidCalibration for a norm that is not positive and finite."""
    given = np.ones(num_classes) if row_norms is None else row_norms
    norms = frozen(numbers(given, InvalidCalibration, "row norms are one number a class"))
    if norms.shape != (num_classes,):
        raise ShapeMismatch(f"row_norms must be ({num_classes},), one norm a class; got {norms.shape}.")
    if not (np.isfinite(norms).all() and (norms >= np.finfo(np.float32).tiny).all()):
        raise InvalidCalibration("row norms must be positive and finite; leave them out where the head is unknown.")
    return norms


def fold_into_linear(calibration: Calibration, weight: ArrayLike, bias: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """A plain linear head that gives the debiased logits: W' = omega (W - mean W), b' = omega (b - mean b) + offset.

    Args: weight `(C, D)` and bias `(C,)` of the head that the calibration was fitted for. A cosine head is linear in
        the normalised features: give its normalised rows times its scale, and zeros.
    Returns: weight `(C, D)` and bias `(C,)`. Exact, because centring the logits is centring the rows.
    """
    rule = "the weight and the bias of a head are numbers"
    w, b = (numbers(each, InvalidCalibration, rule).astype(np.float64) for each in (weight, bias))
    if w.ndim != 2 or w.shape[0] != calibration.num_classes or b.shape != (calibration.num_classes,):
        raise ShapeMismatch(
            f"the head must have weight ({calibration.num_classes}, D) and bias ({calibration.num_classes},); "
            f"got {w.shape} and {b.shape}."
        )
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise InvalidCalibration("the weight and the bias of a head are finite; some number is not.")
    folded_weight = calibration.scale[:, None] * (w - w.mean(axis=0))
    return folded_weight, calibration.scale * (b - b.mean()) + calibration.offset
