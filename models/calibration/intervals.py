"""Intervals: a bootstrap over items in bounded memory, one for sums of absolute values, and Wilson's for a share."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.calibration.types import FloatArray

CONFIDENCE = 0.95
TAIL = (1.0 - CONFIDENCE) / 2
NORMAL_QUANTILE = 1.959964  # of 1 - TAIL
DRAWN_AT_ONCE = 500_000  # counts: 4 MB, and a few times that for what is computed from them
MOST_ERRORS = 4.0  # standard errors by which all bins at once can hardly be wrong
HALVINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % interval, which holds the value; all None where no example speaks to it."""

    value: float | None
    low: float | None
    high: float | None


NOTHING = Interval(value=None, low=None, high=None)


def item_draws(num_items: int, resamples: int) -> Iterator[FloatArray]:
    """How often each item is drawn in each resample of the bootstrap, `(b, N)`, a block of b resamples at a time.

    The first row of the first block is the sample itself, every item once. The seed is fixed, and the counts do not
    depend on the size of the blocks.
    """
    yield np.ones((1, num_items))
    rng = np.random.default_rng(0)
    at_once = max(1, DRAWN_AT_ONCE // num_items)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        yield rng.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=size).astype(np.float64)


def percentile_interval(values: FloatArray) -> Interval:
    """Percentile bootstrap: values `(1 + R,)`, the sample's own first; a resample without a value (NaN) is left out."""
    if not np.isfinite(values[0]):
        return NOTHING
    value = float(values[0])
    low, high = np.nanpercentile(values, [100 * TAIL, 100 * (1 - TAIL)])
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def absolute_sum_interval(sums: FloatArray) -> Interval:
    """95 % interval of `sum_b |m_b|`, the form of a binned calibration error, by inverting a test.

    Noise in a bin makes the absolute value larger, once in the sample and once more in each resample, so that the
    percentile bootstrap of calibrated scores never reaches the true 0. Here a candidate for the bins' true means
    moves every bin of the sample by t of its standard errors, all towards 0 or all away from it. The candidates kept
    are those under which the sample's own sum is no extreme one; the noise is that of the resamples around the sample.
    The interval is that of the sums of the candidates that are kept, and reaches 0 where "all bins are 0" is kept.
    It is stretched to hold the sample's own value, which noise may have raised above all of them.

    Args: sums `(1 + R, B)`, a row for the sample and one for each resample; rows with NaN are left out.
    Returns: bounds within [0, 1].
    """
    if not np.isfinite(sums[0]).all():
        return NOTHING
    own, drawn = sums[0], sums[1:][np.isfinite(sums[1:]).all(axis=1)]
    size, value = np.abs(own), float(np.abs(own).sum())
    if not drawn.size:
        return Interval(value=value, low=value, high=value)
    noise = np.sign(own) * (drawn - own)  # each bin turned so that its own sum is not negative
    errors = noise.std(axis=0)

    def moved(steps: float) -> FloatArray:
        return np.asarray(np.maximum(size + steps * errors, 0.0), dtype=np.float64)

    def too_small(steps: float) -> bool:
        return bool((np.abs(moved(steps) + noise).sum(axis=1) >= value).mean() < TAIL)

    def too_large(steps: float) -> bool:
        return bool((np.abs(moved(steps) + noise).sum(axis=1) <= value).mean() < TAIL)

    to_zero = -2.0 * float(np.max(size[errors > 0] / errors[errors > 0], initial=0.0))  # well beyond: exactly 0
    low, high = to_zero, 0.0
    for _ in range(HALVINGS if too_small(to_zero) else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    lowest = float(moved(low).sum())
    low, high = 0.0, MOST_ERRORS
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if too_large(middle) else (middle, high)
    return Interval(value=value, low=min(lowest, value), high=max(min(float(moved(low).sum()), 1.0), value))


def wilson_interval(share: float, effective_items: float) -> Interval:
    """Wilson's score interval of a share of n items (Wilson, JASA 1927), sound at shares of 0 and 1 too.

    Args: effective_items, n, or (sum w)^2 / sum w^2 of items that weigh w (Kish 1965).
    """
    if not effective_items > 0:
        return NOTHING
    spread = NORMAL_QUANTILE**2 / effective_items
    middle = (share + spread / 2) / (1 + spread)
    half = (
        NORMAL_QUANTILE / (1 + spread) * np.sqrt(share * (1 - share) / effective_items + spread / effective_items / 4)
    )
    return Interval(value=share, low=min(max(middle - half, 0.0), share), high=max(min(middle + half, 1.0), share))
