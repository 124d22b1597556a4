from functools import reduce
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import CalibrationError, InvalidLogits, ShapeMismatch
from models.calibration.traffic import Traffic
from models.calibration.types import RawLogits


def rows(items, classes=3, seed=0):
    return RawLogits(np.random.default_rng(seed).normal(size=(items, classes)))


def seen(batches, *, capacity=20, seed=0):
    """Traffic of a process that saw these batches."""
    rng = np.random.default_rng(seed)
    return reduce(lambda traffic, batch: traffic.add(batch, rng), batches, Traffic.none_yet("m", 3, capacity=capacity))


def assert_same(a, b):
    assert (a.model, a.capacity, a.num_items) == (b.model, b.capacity, b.num_items)
    np.testing.assert_array_equal(a.priorities, b.priorities)
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.decisions, b.decisions)
    np.testing.assert_allclose(a.score_sums, b.score_sums, rtol=1e-12)  # floating-point sums in another order


class TestAdding:
    def test_counts_every_item(self):
        first, second = rows(30), rows(15, seed=1)
        traffic = seen([first, second])
        everything = np.concatenate([first.values, second.values])
        assert traffic.num_items == 45
        np.testing.assert_array_equal(traffic.decisions, np.bincount(everything.argmax(axis=1), minlength=3))
        np.testing.assert_allclose(traffic.score_sums, RawLogits(everything).scores().sum(axis=0))

    def test_keeps_all_rows_until_the_sample_is_full_and_then_no_more(self):
        assert seen([rows(12)]).sample.values.shape == (12, 3)
        assert seen([rows(12), rows(500, seed=1)]).sample.values.shape == (20, 3)

    def test_the_sample_is_uniform_over_early_and_late_items(self):
        # 40 items in 4 batches, 20 kept: every item should be kept half of the time; se of 400 tries is 0.025
        batches = [RawLogits(np.array([[batch, -batch, 0.0]])[[0] * 10]) for batch in (1.0, 2.0, 3.0, 4.0)]
        kept = np.zeros(5)
        for seed in range(400):
            kept += np.bincount(np.rint(seen(batches, seed=seed).logits[:, 0]).astype(int), minlength=5)
        np.testing.assert_allclose(kept[1:] / (400 * 10), 0.5, atol=0.05)

    def test_changes_nothing_in_place(self):
        before = seen([rows(30)])
        logits = before.logits.copy()
        before.add(rows(1000, seed=1), np.random.default_rng(1))
        np.testing.assert_array_equal(before.logits, logits)
        with pytest.raises(ValueError, match="read-only"):
            before.logits[0] = 0

    def test_no_rows_change_nothing(self):
        before = seen([rows(30)])
        assert_same(before.add(RawLogits(np.zeros((0, 3))), np.random.default_rng(1)), before)

    def test_the_sample_stays_within_its_bytes_at_8142_classes(self):
        assert Traffic.none_yet("m", 8142).capacity * 8142 * 4 <= 128 * 2**20
        assert Traffic.none_yet("m", 100).capacity == 10_000


class TestMerging:
    def parts(self, sizes):
        return [seen([rows(size, seed=index)], seed=index) for index, size in enumerate(sizes)]

    @given(sizes=st.lists(st.integers(0, 40), min_size=3, max_size=3))
    @settings(deadline=None, max_examples=50)
    def test_is_the_same_in_every_order(self, sizes):
        a, b, c = self.parts(sizes)
        for first, second, third in permutations([a, b, c]):
            assert_same(first.merge(second).merge(third), a.merge(b.merge(c)))

    def test_of_processes_is_the_traffic_of_one_that_saw_all(self):
        # the same priorities, drawn by one process or by two
        both = [rows(30), rows(25, seed=1)]
        one = seen(both, seed=5)
        rng = np.random.default_rng(5)
        empty = Traffic.none_yet("m", 3, capacity=20)
        first = empty.add(both[0], rng)
        assert_same(first.merge(empty.add(both[1], rng)), one)

    def test_with_nothing_changes_nothing(self):
        (part,) = self.parts([30])
        assert_same(part.merge(Traffic.none_yet("m", 3, capacity=20)), part)

    @pytest.mark.parametrize(
        "other",
        [
            Traffic.none_yet("another", 3, capacity=20),
            Traffic.none_yet("m", 4, capacity=20),
            Traffic.none_yet("m", 3, capacity=21),
        ],
    )
    def test_of_different_things_is_refused(self, other):
        with pytest.raises(CalibrationError, match="adds up for one model"):
            seen([rows(3)]).merge(other)


class TestWhatIsNoTraffic:
    def test_logits_of_another_model_are_refused(self):
        with pytest.raises(ShapeMismatch, match="3 classes"):
            seen([rows(3, classes=4)])

    def test_a_row_that_float32_cannot_hold_once_centred_is_refused(self):
        # each number fits float32, their distance does not
        raw = RawLogits(np.array([[1.0, 2.0, 3.0], [3.4e38, -3.4e38, -3.4e38]]))
        with pytest.raises(InvalidLogits, match="row 1 exceeds"):
            seen([raw])

    @pytest.mark.parametrize("num_classes", [0, 1])
    def test_fewer_than_two_classes_are_refused(self, num_classes):
        with pytest.raises(CalibrationError, match="at least two classes"):
            Traffic.none_yet("m", num_classes)

    def test_a_sample_that_does_not_fit_the_counts_is_refused(self):
        good = seen([rows(5)])
        parts = {name: getattr(good, name) for name in Traffic.__dataclass_fields__}
        with pytest.raises(CalibrationError, match="full sample"):
            Traffic(**{**parts, "num_items": 6})
        with pytest.raises(ShapeMismatch, match="decisions"):
            Traffic(**{**parts, "decisions": np.zeros(4, dtype=np.int64)})
        with pytest.raises(CalibrationError, match="at least one row"):
            Traffic(**{**parts, "capacity": 0})
