"""EM for the class law behind unlabelled scores: in the log domain, accelerated, and many resamples at a time.

Saerens, Latinne and Decaestecker (Neural Computation 2002), as MAP under a Dirichlet prior. The likelihood is concave
in the law, so that the maximum is the global one (Alexandari et al., ICML 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.calibration.errors import CalibrationError, InvalidLogits, InvalidPrior, NotEnoughData, ShapeMismatch
from models.calibration.types import ClassPrior, FloatArray, log_softmax, numbers

Ratios = NDArray[np.float32]

PSEUDO_COUNTS = 0.5  # of each class: Dirichlet(1.5), half an item more than what was seen
TOLERANCE = 1e-5
MAX_STEPS = 1000
BLOCK_BYTES = 4 * 2**20  # of ratios: stays in the cache between the two products of a step
BLOCK_ROWS = 4096  # sums over more rows would lose digits of float32
NEGLIGIBLE = 1e-18  # set to 0: cannot move the answer, and products of such numbers are slow in float32
START_FLOOR = 1e-12  # of each class where EM starts; it may end below
LEAST_WEIGHT = 1e-200  # of the largest: what is divided by it stays finite
SLACK = 1e-7  # nats an item by which an extrapolated law may be worse: float32 does not resolve less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmResult:
    """The class law, and how it was found.

    `iterations` counts passes over the items; `converged` is False where `max_steps` came first; `log_likelihood` is
    that above the implied prior, in nats over all items, of the law one EM step before `prior`: the last pass sees that
    law, and where EM converged the two differ by less than the tolerance.
    """

    prior: ClassPrior
    iterations: int
    converged: bool
    log_likelihood: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmBatch:
    """B laws as the columns of `priors (C, B)`, those of B weightings of the same items."""

    priors: FloatArray
    iterations: int
    converged: NDArray[np.bool_]
    log_likelihood: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodRatios:
    """p(x | class) of each item and class over the largest of the item's row: `values (N, C)` in [0, 1], float32.

    At the optimum no item's mixture lies under its share of the items (else its class would gain), so that a ratio
    which float32 takes to 0 cannot move the answer. `log_shift (N,)`, in nats, is what the largest of each row was.
    """

    values: Ratios
    log_shift: FloatArray

    @classmethod
    def of(cls, log_scores: FloatArray, implied_prior: ClassPrior) -> LikelihoodRatios:
        """softmax(log_scores) / implied_prior, without leaving the log domain on the way.

        Args: log_scores `(N, C)`: logits or log probabilities; a constant added to a row changes nothing.
        Raises: ShapeMismatch, NotEnoughData for no item, InvalidLogits for a number that is not finite, InvalidPrior
            for an implied prior with a zero.
        """
        log_scores = numbers(log_scores, InvalidLogits, "log_scores are numbers, one row an item")
        if log_scores.ndim != 2 or log_scores.shape[1] != implied_prior.num_classes:
            raise ShapeMismatch(
                f"log_scores must be (N, {implied_prior.num_classes}) like the implied prior; got {log_scores.shape}."
            )
        if not log_scores.shape[0]:
            raise NotEnoughData("a class law is estimated from items; got none.")
        if not (implied_prior.probs > 0).all():
            zero = int(implied_prior.probs.argmin())
            raise InvalidPrior(f"the implied prior must be positive for every class; class {zero} has 0.")
        values = np.empty(log_scores.shape, dtype=np.float32)
        log_shift = np.empty(log_scores.shape[0])
        for rows in blocks(*log_scores.shape):
            block = log_scores[rows].astype(np.float64, copy=False)
            if not np.isfinite(block).all():
                row = rows.start + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise InvalidLogits(f"log_scores must be finite; row {row} is not. Send logits, not log probabilities.")
            log_ratios = log_softmax(block) - implied_prior.log_probs
            log_shift[rows] = log_ratios.max(axis=1)
            block_ratios = np.exp(log_ratios - log_shift[rows, None])
            values[rows] = np.where(block_ratios < NEGLIGIBLE, 0.0, block_ratios)
        return cls(values, log_shift)


def blocks(num_items: int, num_classes: int) -> list[slice]:
    """Slices of rows, each of at most 4 MiB of ratios and 4,096 rows."""
    size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * num_classes)))
    return [slice(start, min(start + size, num_items)) for start in range(0, num_items, size)]


def em_prior(
    log_scores: FloatArray,
    implied_prior: ClassPrior,
    *,
    weights: FloatArray | None = None,
    pseudo_counts: ArrayLike = PSEUDO_COUNTS,
    start: ClassPrior | None = None,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> EmResult:
    """The class law under which the items' scores are most likely, given the prior that the scores imply.

    Args: log_scores `(N, C)`, logits or log probabilities that are calibrated for implied_prior. weights `(N,)` of the
        items, all 1 by default. pseudo_counts, one number or `(C,)`, items of each class added to what is seen: 0 is
        maximum likelihood. start, the law to begin from, the implied prior by default. tolerance, the L1 distance
        between a law and its plain EM step at which it stops; at least 1e-7. max_steps, passes over the items, at most.
    Raises: ShapeMismatch, NotEnoughData, InvalidLogits, InvalidPrior, CalibrationError for settings out of range.
    """
    ratios = LikelihoodRatios.of(log_scores, implied_prior)
    begin = implied_prior if start is None else start
    if begin.num_classes != implied_prior.num_classes or not (begin.probs > 0).all():
        raise InvalidPrior("EM starts from a law that is positive for every class, of as many classes as the scores.")
    items = _item_weights(np.ones(ratios.values.shape[0]) if weights is None else weights, ratios.values.shape[0])
    added = numbers(pseudo_counts, CalibrationError, "pseudo_counts are numbers").astype(np.float64)
    if added.shape not in ((), begin.probs.shape):
        raise ShapeMismatch(f"pseudo_counts are one number or {begin.probs.shape}, one a class; got {added.shape}.")
    largest = items.max()  # weights in units of it fit float32
    batch = em_batch(
        ratios,
        (items / largest)[:, None],
        begin.probs[:, None],
        pseudo_counts=np.broadcast_to(added / largest, begin.probs.shape)[:, None],
        tolerance=tolerance,
        max_steps=max_steps,
    )
    return EmResult(
        prior=ClassPrior.from_weights(batch.priors[:, 0]),
        iterations=batch.iterations,
        converged=bool(batch.converged[0]),
        log_likelihood=float(largest * (batch.log_likelihood[0] + items / largest @ ratios.log_shift)),
    )


def _item_weights(weights: ArrayLike, num_items: int) -> FloatArray:
    items = numbers(weights, CalibrationError, "weights of items are numbers").astype(np.float64)
    if items.shape != (num_items,):
        raise ShapeMismatch(f"weights must be ({num_items},) like the items; got {items.shape}.")
    if not (np.isfinite(items).all() and (items >= 0).all() and items.max() >= LEAST_WEIGHT):
        raise CalibrationError(f"weights of items are finite, not negative, and the largest is over {LEAST_WEIGHT:g}.")
    return items


def em_batch(
    ratios: LikelihoodRatios,
    weights: FloatArray | Ratios,
    start: FloatArray,
    *,
    pseudo_counts: FloatArray,
    log_factors: FloatArray | None = None,
    tolerance: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> EmBatch:
    """EM for B weightings of the same items, in products of matrices; each column stops by itself.

    Squared extrapolation (SQUAREM, Varadhan and Roland, Scandinavian Journal of Statistics 2008, scheme S3): two plain
    steps point to where the sequence goes, and the jump is taken back where the posterior falls.

    Args: weights `(N, B)` that fit float32. start `(C, B)`, positive columns, and pseudo_counts `(C, B)`. log_factors
        `(C, B)`, in nats: column b sees the ratios of class j times exp(log_factors[j, b]), as if the
        logits' offsets were others.
    """
    if not (tolerance >= 1e-7 and max_steps >= 1):
        raise CalibrationError(f"EM needs a tolerance of at least 1e-7 and a step; got {tolerance} and {max_steps}.")
    if not (np.isfinite(pseudo_counts).all() and (pseudo_counts >= 0).all()):
        raise CalibrationError(f"pseudo_counts are finite and not negative; the least is {np.min(pseudo_counts)}.")
    factors = np.ones_like(start) if log_factors is None else np.exp(log_factors)
    problem = _Problem(ratios.values, weights.astype(np.float32), factors, pseudo_counts)
    laws = np.maximum(start / start.sum(axis=0), START_FLOOR)
    found, gained = laws.copy(), np.zeros(laws.shape[1])
    converged = np.zeros(laws.shape[1], dtype=bool)
    active = np.arange(laws.shape[1])
    stepped, value = problem.step(laws)
    passes = 1
    while True:
        done = np.abs(stepped - laws).sum(axis=0) <= tolerance
        found[:, active], converged[active] = stepped, done
        gained[active] = value - problem.log_prior(laws)
        if done.all() or passes + 2 > max_steps:
            break
        if done.any():
            keep = ~done
            active, laws, stepped, problem = active[keep], laws[:, keep], stepped[:, keep], problem.columns(keep)
        twice, value = problem.step(stepped)
        ahead = _extrapolate(laws, stepped, twice)
        stepped_ahead, value_ahead = problem.step(ahead)
        passes += 2
        worse = value_ahead < value - SLACK * problem.total
        laws, value = np.where(worse, stepped, ahead), np.where(worse, value, value_ahead)
        stepped = np.where(worse, twice, stepped_ahead)
    return EmBatch(priors=found, iterations=passes, converged=converged, log_likelihood=gained)


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    ratios: Ratios
    weights: NDArray[np.float32]
    factors: FloatArray
    pseudo_counts: FloatArray

    @property
    def total(self) -> FloatArray:
        return np.asarray(self.weights.sum(axis=0, dtype=np.float64))

    def columns(self, keep: NDArray[np.bool_]) -> _Problem:
        return _Problem(self.ratios, self.weights[:, keep], self.factors[:, keep], self.pseudo_counts[:, keep])

    def step(self, laws: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The plain EM step of each column `(C, B)`, and the log posterior at `laws` `(B,)` without its constant."""
        shares = self.factors * laws
        mixing = np.where(shares < NEGLIGIBLE, 0.0, shares).astype(np.float32)
        gain: FloatArray = np.zeros(laws.shape)
        value: FloatArray = np.zeros(laws.shape[1])
        for rows in blocks(*self.ratios.shape):
            block, weights = self.ratios[rows], self.weights[rows]
            mixture: Ratios = np.maximum(_product(block, mixing), NEGLIGIBLE, dtype=np.float32)
            value += np.einsum("nb,nb->b", weights, np.log(mixture), dtype=np.float64)
            gain += _product(block.T, weights / mixture)
        counts = laws * self.factors * gain + self.pseudo_counts
        return counts / counts.sum(axis=0), value + self.log_prior(laws)

    def log_prior(self, laws: FloatArray) -> FloatArray:
        """Of the Dirichlet, without its constant, `(B,)`."""
        return np.asarray((self.pseudo_counts * np.log(np.maximum(laws, NEGLIGIBLE))).sum(axis=0))


def _product(left: Ratios, right: Ratios) -> Ratios:
    """A single column is bound by memory: on busy processors the threads of BLAS would only wait for one another."""
    return np.einsum("ij,jk->ik", left, right) if right.shape[1] == 1 else left @ right


def _extrapolate(laws: FloatArray, once: FloatArray, twice: FloatArray) -> FloatArray:
    first, second = once - laws, twice - 2 * once + laws
    bend = np.sqrt((second**2).sum(axis=0))
    length = np.sqrt((first**2).sum(axis=0)) / np.maximum(bend, np.finfo(np.float64).tiny)
    length = np.clip(length, 1.0, 1e3)  # 1 is the second plain step itself
    ahead = laws + 2 * length * first + length**2 * second
    ahead = np.maximum(ahead, 0.1 * twice)  # a jump never leaves the simplex; what shrinks, shrinks at most tenfold
    return np.asarray(ahead / ahead.sum(axis=0))
