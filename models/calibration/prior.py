"""The ledger: which class prior a classifier's raw logits already contain, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.errors import EmptyClass, InvalidPrior, ShapeMismatch, UnknownTrainingRule
from models.calibration.implied_prior import estimate_implied_prior
from models.calibration.types import ClassPrior, FloatArray, IntArray, LogitSet, frozen, numbers

TrainedWith = Literal[
    "cross-entropy", "balanced-softmax", "logit-adjusted", "balanced-sampling", "meta-sampler", "unknown"
]
TRAINED_WITH: tuple[TrainedWith, ...] = get_args(TrainedWith)
Source = Literal["rule", "measured", "approximate"]
SOURCES: tuple[Source, ...] = get_args(Source)

KAPPA_RANGE = (-0.5, 1.5)
LARGE_FACTOR = 100.0  # between target and implied prior; beyond it a warning
MAX_COUNT = 2**53  # beyond it, float64 no longer holds every whole number
WIDE_SD = 2.0  # nats of log r around the uniform law, where nothing is known of the training


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ledger:
    """The implied prior r of the raw logits and where it comes from.

    Args: trained_with, the rule; class_counts `(C,)`, the training examples a class; implied_prior, r; source, `rule`
        where the rule holds, `measured` on labelled logits where it holds at best approximately, `approximate` where it
        does not hold exactly and there was nothing to measure on; loss_counts `(C,)`, the counts that Balanced Softmax
        was given (usually the same); tau of the logit-adjusted loss; rates `(C,)`, the relative rate at which the Meta
        Sampler drew an image of each class.
    """

    trained_with: TrainedWith
    class_counts: IntArray
    implied_prior: ClassPrior
    source: Source
    loss_counts: IntArray | None = None
    tau: float | None = None
    rates: FloatArray | None = None

    def __post_init__(self) -> None:
        if self.trained_with not in TRAINED_WITH or self.source not in SOURCES:
            raise UnknownTrainingRule(
                f"a classifier is trained with one of {', '.join(TRAINED_WITH)}, and its prior known by one of "
                f"{', '.join(SOURCES)}; got {self.trained_with!r} and {self.source!r}."
            )
        if self.class_counts.shape != self.implied_prior.probs.shape:
            raise ShapeMismatch(
                f"class counts and implied prior are of the same classes; got {self.class_counts.size} and "
                f"{self.implied_prior.num_classes}."
            )
        if not (self.implied_prior.probs > 0).all():
            raise InvalidPrior(
                f"an implied prior is positive for every class; class {int(self.implied_prior.probs.argmin())} has 0."
            )

    @classmethod
    def by_rule(
        cls,
        trained_with: TrainedWith,
        class_counts: ArrayLike,
        *,
        loss_counts: ArrayLike | None = None,
        tau: float | None = None,
        rates: ArrayLike | None = None,
    ) -> Ledger:
        """r proportional to class mass drawn times exp(-offset added in training) (Menon et al., ICLR 2021; Ren et al.,
        NeurIPS 2020): n for cross-entropy, n / loss_counts for Balanced Softmax, n / loss_counts^tau for the
        logit-adjusted loss, uniform for class-balanced sampling, n rates / loss_counts for Balanced Softmax under the
        Meta Sampler.

        Raises: UnknownTrainingRule for `unknown` and where tau or rates are missing, EmptyClass for a class without
            training examples, ShapeMismatch.
        """
        counts = checked_counts(class_counts)
        if trained_with == "unknown":
            raise UnknownTrainingRule(
                "class counts alone do not tell the implied prior of a classifier trained in an unknown way. "
                "Give labelled logits, so that it can be measured."
            )
        loss = checked_counts(counts if loss_counts is None else loss_counts)
        if loss.shape != counts.shape:
            raise ShapeMismatch(f"loss_counts must be {counts.shape} like class_counts; got {loss.shape}.")
        offset_in_loss = trained_with in ("balanced-softmax", "logit-adjusted", "meta-sampler")
        return cls(
            trained_with=trained_with,
            class_counts=counts,
            implied_prior=ClassPrior.from_log_weights(_log_mass(trained_with, counts, loss, tau, rates)),
            source="rule",
            loss_counts=loss if offset_in_loss else None,
            tau=tau if trained_with == "logit-adjusted" else None,
            rates=frozen(rates) if trained_with == "meta-sampler" and rates is not None else None,
        )

    @classmethod
    def measured(cls, logit_set: LogitSet, class_counts: ArrayLike) -> Ledger:
        """For a classifier trained in an unknown way: r measured on labelled held-out logits."""
        return cls(
            trained_with="unknown",
            class_counts=checked_counts(class_counts),
            implied_prior=estimate_implied_prior(
                logit_set, ClassPrior.uniform(logit_set.num_classes), deviation=WIDE_SD
            )[1],
            source="measured",
        )

    def with_class_counts(self, class_counts: ArrayLike) -> Ledger:
        """The ledger after the training counts turned out to be others; the counts that the loss used stay.

        Raises: UnknownTrainingRule where r was measured, so that new counts cannot change it.
        """
        if self.source == "measured":
            raise UnknownTrainingRule(
                "this model's implied prior was measured on labelled logits; new training counts do not change it. "
                "Import the model again with how it was trained, or with other labelled logits."
            )
        ruled = Ledger.by_rule(
            self.trained_with, class_counts, loss_counts=self.loss_counts, tau=self.tau, rates=self.rates
        )
        return replace(ruled, source=self.source)

    def measured_on(self, logit_set: LogitSet) -> Ledger:
        """The ledger of a classifier for which the rule holds only approximately (a cosine head, a contrastive loss,
        logit rectification, a second stage that ends early): r measured on labelled held-out logits, or the rule marked
        as approximate where a class has no example to measure on."""
        if not logit_set.class_counts.all():
            return replace(self, source="approximate")
        _, implied_prior = estimate_implied_prior(logit_set, self.implied_prior)
        return replace(self, source="measured", implied_prior=implied_prior)

    def measured_anew(self, logit_set: LogitSet) -> Ledger:
        """This ledger with r measured on these labelled logits alone, so that held-out rows stay unseen; itself where a
        rule gives r, or where a class has no example here."""
        if self.source != "measured" or not logit_set.class_counts.all():
            return self
        if self.trained_with == "unknown":
            return Ledger.measured(logit_set, self.class_counts)
        return self._rule().measured_on(logit_set)

    def _rule(self) -> Ledger:
        return Ledger.by_rule(
            self.trained_with, self.class_counts, loss_counts=self.loss_counts, tau=self.tau, rates=self.rates
        )

    @property
    def gap_to_rule(self) -> float | None:
        """Total variation between r and what the rule says; None where there is no rule."""
        if self.trained_with == "unknown":
            return None
        return total_variation(self.implied_prior, self._rule().implied_prior)

    @property
    def training_prior(self) -> ClassPrior:
        return ClassPrior.from_weights(self.class_counts)


def _log_mass(
    trained_with: TrainedWith, counts: IntArray, loss_counts: IntArray, tau: float | None, rates: ArrayLike | None
) -> FloatArray:
    log_counts, log_loss_counts = np.log(counts), np.log(loss_counts)
    if trained_with == "cross-entropy":
        return np.asarray(log_counts)
    if trained_with == "balanced-softmax":
        return np.asarray(log_counts - log_loss_counts)
    if trained_with == "balanced-sampling":
        return np.zeros(counts.size)
    if trained_with == "logit-adjusted":
        if not isinstance(tau, int | float) or not np.isfinite(tau):
            raise UnknownTrainingRule(f"the implied prior of a logit-adjusted loss needs its tau; got {tau!r}.")
        return np.asarray(log_counts - tau * log_loss_counts)
    if trained_with != "meta-sampler":
        raise UnknownTrainingRule(
            f"a classifier is trained with one of {', '.join(TRAINED_WITH)}; got {trained_with!r}."
        )
    rule = "the implied prior under the Meta Sampler needs its rates, one positive number for each class"
    given = numbers([] if rates is None else rates, UnknownTrainingRule, rule)
    if given.shape != counts.shape or not ((given > 0) & np.isfinite(given)).all():
        raise UnknownTrainingRule(f"{rule}; got {rates!r}.")
    return np.asarray(log_counts + np.log(given) - log_loss_counts)


def checked_counts(class_counts: ArrayLike) -> IntArray:
    """Training examples a class as a read-only `(C,)` array of int64.

    Raises: ShapeMismatch, EmptyClass for a count below 1.
    """
    counts = np.array(numbers(class_counts, ShapeMismatch, "class counts are whole numbers, one a class"))
    if counts.ndim != 1 or counts.size < 2 or counts.dtype.kind not in "iu":
        raise ShapeMismatch(
            f"class counts are whole numbers, one a class, at least two; got {counts.dtype} of shape {counts.shape}."
        )
    if (counts < 1).any():
        empty = int(counts.argmin())
        raise EmptyClass(
            f"every class needs at least one training example; class {empty} has {counts[empty]}. "
            "A class without examples has no evidence: leave it out of the class list."
        )
    if (counts > MAX_COUNT).any():
        raise ShapeMismatch(f"a class count is at most 2**53; class {int(counts.argmax())} has {counts.max()}.")
    counts = counts.astype(np.int64)
    counts.setflags(write=False)
    return counts


def prior_between(class_counts: ArrayLike, kappa: float) -> ClassPrior:
    """The target n^kappa: uniform at kappa 0, the training law at 1, in favour of rare classes below 0.

    Args: class_counts `(C,)`, training examples a class. kappa in [-0.5, 1.5].
    Raises: InvalidPrior for another kappa, EmptyClass, ShapeMismatch.
    """
    if not KAPPA_RANGE[0] <= kappa <= KAPPA_RANGE[1]:
        raise InvalidPrior(
            f"kappa lies in [{KAPPA_RANGE[0]}, {KAPPA_RANGE[1]}] (0 is uniform, 1 the training law); got {kappa}."
        )
    return ClassPrior.from_log_weights(kappa * np.log(checked_counts(class_counts)))


def capped(target: ClassPrior, implied_prior: ClassPrior, factor: float) -> ClassPrior:
    """The target with no class moved by more than `factor` against the median class, up or down.

    An assumed prior that is wrong by a factor of 7 is worse than none, and a rare class has little evidence of its own:
    a cap bounds what a wrong number can do. The log ratio of target and implied prior is held within log factor of its
    median, so that two classes may end factor squared apart. A class that cannot occur stays so.

    Raises: InvalidPrior for a factor that is not above 1, ShapeMismatch for another number of classes.
    """
    if not factor > 1:
        raise InvalidPrior(f"a cap is a factor above 1; got {factor}.")
    if target.num_classes != implied_prior.num_classes:
        raise ShapeMismatch(
            f"the target prior must have {implied_prior.num_classes} classes as the implied prior has; "
            f"got {target.num_classes}."
        )
    possible = target.probs > 0
    ratio = target.log_probs[possible] - implied_prior.log_probs[possible]
    middle, reach = np.median(ratio), np.log(factor)
    log_target = np.full(target.num_classes, -np.inf)
    log_target[possible] = implied_prior.log_probs[possible] + np.clip(ratio, middle - reach, middle + reach)
    return ClassPrior.from_log_weights(log_target)


def total_variation(p: ClassPrior, q: ClassPrior) -> float:
    """Half the L1 distance, in [0, 1]. Raises: ShapeMismatch."""
    _check_alike(p, q)
    return 0.5 * float(np.abs(p.probs - q.probs).sum())


def kl_divergence(p: ClassPrior, q: ClassPrior) -> float:
    """KL(p || q) in nats; classes with p = 0 add nothing. Raises: ShapeMismatch."""
    _check_alike(p, q)
    held = p.probs > 0
    return float((p.probs[held] * (p.log_probs[held] - q.log_probs[held])).sum())


def _check_alike(p: ClassPrior, q: ClassPrior) -> None:
    if p.num_classes != q.num_classes:
        raise ShapeMismatch(f"two laws over the same classes are compared; got {p.num_classes} and {q.num_classes}.")
