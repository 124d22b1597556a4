"""MARC as published (Wang et al., ACML 2022, arXiv 2112.07225): fitted on the training set, by SGD, for fixed steps.

Where the paper and its code differ, this follows the code (microsoft/robustlearn, folder marc). Two things are ours:
the logits are centred first, as everywhere here, and the learning rate moves at every step instead of every epoch.
`marc.fit_held_out` is the fit for data that the network never saw.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.errors import CalibrationError, FitFailed, LeakedSplit, NotEnoughData, ShapeMismatch
from models.calibration.implied_prior import estimate_implied_prior
from models.calibration.marc import checked_row_norms
from models.calibration.prior import checked_counts
from models.calibration.temperature import fitted_on
from models.calibration.types import (
    Calibration,
    ClassPrior,
    FitReport,
    FloatArray,
    IntArray,
    LogitSet,
    RawLogits,
    log_softmax,
    softmax,
)

METHOD = "marc-paper"
MEMORISED = (
    0.99  # share of fit rows that the classifier has right: beyond it the loss has hardly a mistake to learn from
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperFit:
    """The recipe of the official code for CIFAR-10-LT and CIFAR-100-LT, the gamma that of every data set.

    Args: gamma, exponent of the class weights. steps, of `batch_size` rows. The learning rate rises linearly from
        first_learning_rate to peak_learning_rate over warmup_steps, then falls by a cosine to 0 at the last step.
        momentum, plain and not Nesterov's. weight_decay, on omega and beta both: it pulls omega to 0 and not to 1.
        seed, of the order of the rows.
    Raises: CalibrationError for a number out of its range.
    """

    gamma: float = 1.2
    steps: int = 2000
    batch_size: int = 512
    peak_learning_rate: float = 0.1
    first_learning_rate: float = 0.05
    warmup_steps: int = 800
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        peak = self.peak_learning_rate
        rules = {
            "gamma is at least 0 and finite": 0 <= self.gamma < inf,
            "steps is at least 1": self.steps >= 1,
            "batch_size is at least 1": self.batch_size >= 1,
            "peak_learning_rate is positive and finite": 0 < peak < inf,
            "first_learning_rate is at least 0, at most the peak": 0 <= self.first_learning_rate <= peak,
            "warmup_steps lies in [0, steps]": 0 <= self.warmup_steps <= self.steps,
            "momentum lies in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay is at least 0 and finite": 0 <= self.weight_decay < inf,
            "seed is at least 0": self.seed >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise CalibrationError(f"{rule}; got {getattr(self, rule.split()[0])!r}.")


AS_PUBLISHED = PaperFit()
COLD = (
    "no temperature was fitted, for want of held-out rows of every class: the scores are as sure as on training "
    "images, which is too sure."
)


def fit_paper(
    logit_set: LogitSet,
    class_counts: ArrayLike,
    row_norms: ArrayLike | None = None,
    *,
    config: PaperFit = AS_PUBLISHED,
    held_out: LogitSet | None = None,
) -> tuple[Calibration, FitReport]:
    """d_j = omega_j z~_j + beta_j ||W_j||, by mini-batch SGD on the re-weighted cross-entropy of the training set.

    Unlike in `marc.fit_held_out`, the row norms matter: the decay and the step size lie on beta and not on the offset.

    Args: logit_set, split `train`: raw logits of the training images seen through their augmentation, in one or several
        passes. class_counts `(C,)`, the training images a class, which give the weights; several passes do not multiply
        them. row_norms `(C,)`, ||W_j|| of the linear head without its bias; ones where the head is unknown, and
        where all are equal (cosine heads). held_out, rows that neither the network nor this fit saw: with every class
        among them the finished map is divided by a temperature, which the training set cannot tell.
    Returns: the calibration and a report; the objective is the weighted NLL (nats) of all rows at the end, without the
        decay and the temperature. The implied prior is measured on the same held-out rows, else the formula
        n^(1-gamma), which a fit of fixed steps with decay meets only roughly; the provenance says which.
    Raises: LeakedSplit for a wrong split, ShapeMismatch, EmptyClass for a count of 0, NotEnoughData for a class without
        a row, InvalidCalibration for a row norm that is not positive, FitFailed for a descent that runs away.
    """
    counts = checked_counts(class_counts)
    norms = checked_row_norms(row_norms, logit_set.num_classes)
    told_apart = bool(np.ptp(norms) > 1e-9 * norms.max())
    if not told_apart:  # a cosine head: its scale, 30 say, would make the steps of the offset 900 times as long
        norms = np.ones(norms.size)
    _check_sets(logit_set, counts, held_out)
    weights = class_weights(counts, config.gamma)
    omega, beta = descend(logit_set.logits, logit_set.labels, weights, norms, config)
    debiased = omega * logit_set.logits + beta * norms
    temperature, implied_prior, source = 1.0, _by_formula(counts, config.gamma), "formula n^(1-gamma)"
    warmed = held_out is not None and bool(held_out.class_counts.all())
    if held_out is not None and warmed:
        seen = replace(held_out, logits=omega * held_out.logits + beta * norms)
        temperature, implied_prior = estimate_implied_prior(seen, implied_prior)
        source = f"measured on {seen.labels.size} rows ({', '.join(filter(None, (seen.split, seen.drawn)))})"
    calibration = Calibration(
        scale=omega / temperature,
        offset=beta * norms / temperature,
        implied_prior=implied_prior,
        method=METHOD,
        parameters={
            "omega": omega.tolist(),
            "beta": beta.tolist(),
            "gamma": config.gamma,
            "temperature": temperature,
        },
        provenance={
            **fitted_on(logit_set),
            "config": asdict(config),
            "row_norms": "given" if told_apart else "ones",
            "implied_prior": source,
        },
    )
    report = FitReport(
        method=METHOD,
        objective=weighted_nll(debiased, logit_set.labels, weights),
        iterations=config.steps,
        num_items=logit_set.labels.size,
        warnings=_warnings(logit_set, omega) + (() if warmed else (COLD,)),
    )
    return calibration, report


def published_scores(calibration: Calibration, raw: RawLogits) -> FloatArray:
    """What the paper scores, `(N, C)`: softmax of omega z~ + beta ||W||, without a temperature or a target prior."""
    return softmax(calibration.parameters.get("temperature", 1.0) * calibration.debias(raw).values)


def _by_formula(counts: IntArray, gamma: float) -> ClassPrior:
    log_r = (1.0 - gamma) * np.log(counts)
    return ClassPrior.from_weights(np.exp(log_r - log_r.max()))


def class_weights(class_counts: ArrayLike, gamma: float = 1.2) -> FloatArray:
    """U_j = C n_j^-gamma / sum_k n_k^-gamma, `(C,)`: their sum is C, and gamma 0 gives ones (Wang et al. 2022).

    Raises: ShapeMismatch, EmptyClass for a count below 1.
    """
    counts = checked_counts(class_counts)
    powers = (counts / counts.min()) ** -gamma  # relative to the rarest class: in (0, 1], whatever the counts
    return np.asarray(counts.size * powers / powers.sum(), dtype=np.float64)


def weighted_nll(logits: FloatArray, labels: IntArray, weights: FloatArray) -> float:
    """sum U_y l / sum U_y over rows `(N, C)` and class weights `(C,)`, in nats: the weighted mean of the official code,
    where the paper prints a division by N."""
    items = weights[labels]
    return -float(items @ log_softmax(logits)[np.arange(labels.size), labels] / items.sum())


def learning_rates(config: PaperFit) -> FloatArray:
    """The rate of every step, `(steps,)`: the code's formula with steps in the place of epochs. The last one is 0."""
    falling = config.steps - config.warmup_steps
    rise = np.linspace(config.first_learning_rate, config.peak_learning_rate, config.warmup_steps)
    fall = config.peak_learning_rate * 0.5 * (1.0 + np.cos(np.pi * np.arange(1, falling + 1) / falling))
    return np.concatenate([rise, fall])


def batches(num_items: int, config: PaperFit) -> Iterator[IntArray]:
    """Row numbers of each step's batch: epoch after epoch, no row twice in an epoch.

    The rows that do not fill a batch sit an epoch out; with fewer rows than a batch, every batch is all of them.
    """
    size = min(config.batch_size, num_items)
    per_epoch = num_items // size
    rng = np.random.default_rng(config.seed)
    for step in range(config.steps):
        place = step % per_epoch
        if place == 0:
            order = rng.permutation(num_items)
        yield order[place * size : (place + 1) * size]


def descend(
    logits: FloatArray, labels: IntArray, weights: FloatArray, row_norms: FloatArray, config: PaperFit
) -> tuple[FloatArray, FloatArray]:
    """omega `(C,)` and beta `(C,)` after SGD from 1 and 0 on `weighted_nll` of omega z + beta ||W||.

    Args: logits `(N, C)`, taken as they come: `fit_paper` gives centred ones. labels `(N,)`; weights and row_norms
        `(C,)`. The step is that of torch.optim.SGD: g + decay theta goes into the momentum, the momentum times the rate
        comes off theta.
    Raises: FitFailed where the parameters leave the finite numbers.
    """
    num_classes = logits.shape[1]
    theta = np.stack([np.ones(num_classes), np.zeros(num_classes)])  # the paper's letters: row 0 omega, row 1 beta
    velocity = np.zeros_like(theta)
    with np.errstate(over="ignore", invalid="ignore"):  # said below, once and in words
        for rows, rate in zip(batches(labels.size, config), learning_rates(config), strict=True):
            gradient = _gradient(theta, logits[rows], labels[rows], weights, row_norms)
            velocity = config.momentum * velocity + (gradient + config.weight_decay * theta)
            theta = theta - rate * velocity
    if not np.isfinite(theta).all():
        raise FitFailed(
            f"the descent ran away: after {config.steps} steps omega or beta is not finite. "
            f"Lower peak_learning_rate ({config.peak_learning_rate:g}) or weight_decay ({config.weight_decay:g})."
        )
    return theta[0], theta[1]


def _gradient(
    theta: FloatArray, z: FloatArray, labels: IntArray, weights: FloatArray, row_norms: FloatArray
) -> FloatArray:
    """Of `weighted_nll` of a batch with respect to omega and beta, `(2, C)`."""
    calibrated = theta[0] * z + theta[1] * row_norms
    residual = np.exp(calibrated - calibrated.max(axis=1, keepdims=True))
    residual /= residual.sum(axis=1, keepdims=True)
    residual[np.arange(labels.size), labels] -= 1.0
    items = weights[labels]
    residual *= (items / items.sum())[:, None]
    return np.stack([np.einsum("nc,nc->c", residual, z), residual.sum(axis=0) * row_norms])


def _check_sets(logit_set: LogitSet, counts: IntArray, held_out: LogitSet | None) -> None:
    if logit_set.split != "train":
        raise LeakedSplit(
            f"MARC as published is fitted on the training set; got the {logit_set.split} split. "
            "Held-out data belong to marc.fit_held_out."
        )
    if held_out is not None and held_out.split == "train":
        raise LeakedSplit(
            "held_out measures the implied prior on data never seen; got the training split. Leave it out."
        )
    sizes = [counts.size] if held_out is None else [counts.size, held_out.num_classes]
    if set(sizes) != {logit_set.num_classes}:
        raise ShapeMismatch(
            f"the training logits have {logit_set.num_classes} classes, the class counts and the held-out logits "
            f"{' and '.join(map(str, sizes))}. Give logits and counts of the same classifier."
        )
    present = logit_set.class_counts
    if not present.all():
        raise NotEnoughData(
            f"the published fit needs a training row of every class; class {int(present.argmin())} has none, of "
            f"{int(counts[present.argmin()])} training images. Collect the logits of the whole training set."
        )


def _warnings(logit_set: LogitSet, omega: FloatArray) -> tuple[str, ...]:
    warnings = []
    if (omega < 0).any():
        negative = f"omega is negative for {int((omega < 0).sum())} classes (first {int(np.argmax(omega < 0))})"
        warnings.append(f"{negative}: there a larger logit lowers the class. Use choose on held-out data.")
    right = float((logit_set.logits.argmax(axis=1) == logit_set.labels).mean())
    if right >= MEMORISED:
        warnings.append(
            f"the classifier has {right:.1%} of these rows right: little is left to learn from. Collect the logits "
            "through the augmentation of the training, or use choose on held-out data."
        )
    return tuple(warnings)
