import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration import intervals
from models.calibration.intervals import absolute_sum_interval, item_draws, percentile_interval, wilson_interval


class TestDraws:
    def test_the_sample_comes_first_and_a_resample_has_as_many_items(self):
        draws = np.concatenate(list(item_draws(30, 20)))
        assert draws.shape == (21, 30)
        assert (draws[0] == 1).all()
        assert (draws.sum(axis=1) == 30).all()
        assert draws[1:].std() == pytest.approx(np.sqrt(29 / 30), abs=0.1)

    def test_do_not_depend_on_the_blocks(self, monkeypatch):
        whole = np.concatenate(list(item_draws(30, 20)))
        monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 100)
        blocks = list(item_draws(30, 20))
        assert max(len(block) for block in blocks) == 3
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


class TestPercentiles:
    def test_leave_out_resamples_without_a_value(self):
        interval = percentile_interval(np.array([5.0, *np.arange(101.0), np.nan]))
        assert (interval.value, interval.low, interval.high) == pytest.approx((5.0, 2.5, 97.5), abs=0.05)

    def test_are_stretched_to_the_value(self):
        assert percentile_interval(np.array([5.0, 1.0, 2.0])).high == 5.0
        assert percentile_interval(np.array([0.5, 1.0, 2.0])).low == 0.5

    def test_say_nothing_of_nothing(self):
        assert percentile_interval(np.array([np.nan, 1.0])).value is None


def bins(rng, means, *, error=0.02, resamples=300):
    """A sample of bins whose sums have normal errors, and resamples of it."""
    own = means + error * rng.normal(size=means.size)
    return np.concatenate([own[None], own + error * rng.normal(size=(resamples, means.size))])


class TestAbsoluteSums:
    @pytest.mark.parametrize(
        "means", [np.zeros(15), np.full(15, 0.01), np.full(15, 0.06), np.array([0.1] + [0.0] * 14)]
    )
    def test_hold_the_truth_about_95_times_of_100(self, means):
        rng = np.random.default_rng(0)
        found = [absolute_sum_interval(bins(rng, means)) for _ in range(300)]
        share = np.mean([each.low <= np.abs(means).sum() <= each.high for each in found])
        assert share > 0.91  # 3 standard errors of 300 draws are .038

    def test_the_percentile_bootstrap_would_never_hold_zero(self):
        rng = np.random.default_rng(0)
        sums = [np.abs(bins(rng, np.zeros(15))).sum(axis=1) for _ in range(100)]
        assert not any(percentile_interval(each).low < 0.05 for each in sums)

    def test_of_one_clear_bin_are_those_of_a_normal_error(self):
        rng = np.random.default_rng(0)
        found = absolute_sum_interval(bins(rng, np.array([0.5]), resamples=20_000))
        assert (found.low, found.high) == pytest.approx((found.value - 0.0392, found.value + 0.0392), abs=0.002)

    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 15), scale=st.sampled_from([0.0, 0.01, 0.3]))
    def test_hold_the_value_and_do_not_depend_on_signs_or_order(self, seed, size, scale):
        rng = np.random.default_rng(seed)
        sums = bins(rng, scale * rng.normal(size=size) / size, error=0.01, resamples=50)
        found = absolute_sum_interval(sums)
        assert 0 <= found.low <= found.value <= found.high <= max(1, found.value)
        order = rng.permutation(size)
        turned = absolute_sum_interval(sums[:, order] * rng.choice([-1, 1], size=size))
        assert (turned.low, turned.high) == pytest.approx((found.low, found.high), abs=1e-6)

    def test_of_bins_without_noise_or_resamples_are_the_value(self):
        for sums in (np.full((5, 3), 0.1), np.full((1, 3), 0.1)):
            found = absolute_sum_interval(sums)
            assert (found.low, found.value, found.high) == pytest.approx((0.3, 0.3, 0.3))

    def test_leave_out_resamples_without_a_value_and_say_nothing_of_nothing(self):
        sums = bins(np.random.default_rng(0), np.full(3, 0.1))
        gap = np.insert(sums, 5, np.nan, axis=0)
        assert absolute_sum_interval(gap) == absolute_sum_interval(sums)
        assert absolute_sum_interval(np.full((3, 3), np.nan)).value is None


class TestWilson:
    def test_holds_the_share_about_95_times_of_100(self):
        rng = np.random.default_rng(0)
        for truth, items in ((0.05, 20), (0.5, 30), (0.97, 100)):
            found = [wilson_interval(float(hits) / items, items) for hits in rng.binomial(items, truth, size=2000)]
            assert 0.92 < np.mean([each.low <= truth <= each.high for each in found]) < 0.985

    def test_of_no_items_says_nothing(self):
        assert wilson_interval(np.nan, 0.0).value is None
