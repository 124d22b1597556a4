import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.bbse import Confusion, bbse, project_on_simplex, shift_test
from models.calibration.errors import CalibrationError, InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.prior import total_variation
from models.calibration.types import ClassPrior, softmax


class World:
    """Scores of a Gaussian classifier that was never calibrated."""

    def __init__(self, *, classes=10, apart=0.8, seed=0):
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(classes, 8)) * apart

    def scores(self, labels):
        points = self.centres[labels] + self.rng.normal(size=(labels.size, 8))
        return softmax(1.5 * (points @ self.centres.T - 0.5 * (self.centres**2).sum(axis=1)))

    def drawn(self, law, items):
        return self.scores(self.rng.choice(law.num_classes, items, p=law.probs))

    def labelled(self, per_class):
        labels = np.repeat(np.arange(len(self.centres)), per_class)
        return self.scores(labels), labels


TAIL = ClassPrior.from_weights(np.geomspace(1.0, 0.02, 10))


class TestBbse:
    def test_by_hand(self):
        # half of class 0 is said to be class 1, all of class 1 is said to be class 1; 20 % said to be 0 means 40 % of 0
        confusion = Confusion.of(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 0, 1, 1]))
        np.testing.assert_allclose(confusion.columns, [[0.5, 0.0], [0.5, 1.0]])
        np.testing.assert_allclose(bbse(confusion, np.array([0.2, 0.8]), ridge=0.0).probs, [0.4, 0.6])

    def test_finds_the_law_without_calibrated_scores(self):
        world = World()
        confusion = Confusion.of(*world.labelled(1000))
        estimate = bbse(confusion, world.drawn(TAIL, 20_000).mean(axis=0))
        naive = ClassPrior(world.drawn(TAIL, 20_000).mean(axis=0))
        assert total_variation(estimate, TAIL) < 0.08 < 0.16 < total_variation(naive, TAIL)

    def test_a_matrix_without_an_inverse_gives_a_law_all_the_same(self):
        confusion = Confusion.of(np.full((4, 2), 0.5), np.array([0, 0, 1, 1]))
        np.testing.assert_allclose(bbse(confusion, np.array([0.5, 0.5])).probs, [0.5, 0.5])

    def test_without_a_ridge_it_is_refused_in_words(self):
        confusion = Confusion.of(np.full((4, 2), 0.5), np.array([0, 0, 1, 1]))
        with pytest.raises(CalibrationError, match="set one above 0"):
            bbse(confusion, np.array([0.5, 0.5]), ridge=0.0)

    @pytest.mark.parametrize(
        ("mean_scores", "ridge", "words"),
        [([np.nan, 0.5], 0.01, "finite"), ([0.5, 0.5], -0.1, "ridge"), ([0.5, 0.5], np.nan, "ridge")],
    )
    def test_numbers_that_mean_nothing_are_refused(self, mean_scores, ridge, words):
        with pytest.raises(CalibrationError, match=words):
            bbse(Confusion.of(np.eye(2), np.arange(2)), np.array(mean_scores), ridge=ridge)

    def test_the_mean_scores_must_be_of_the_same_classes(self):
        with pytest.raises(ShapeMismatch, match="mean_scores"):
            bbse(Confusion.of(*World().labelled(2)), np.ones(3) / 3)


class TestTheSimplex:
    @given(point=st.lists(st.floats(-10, 10), min_size=2, max_size=20))
    @settings(deadline=None, max_examples=50)
    def test_no_law_on_it_is_nearer(self, point):
        values = np.array(point)
        nearest = project_on_simplex(values)
        assert nearest.sum() == pytest.approx(1.0)
        assert nearest.min() >= 0
        for corner in np.eye(values.size):  # convexity: no corner lies on the point's side of the projection
            assert (values - nearest) @ (corner - nearest) <= 1e-9

    def test_a_point_beside_which_one_is_nothing_has_a_nearest_law(self):
        np.testing.assert_array_equal(project_on_simplex(np.array([0.0, 1e17])), [0.0, 1.0])


class TestConditioning:
    @given(seed=st.integers(0, 2**16), spread=st.sampled_from([0.1, 0.2, 0.3, 0.5]))
    @settings(deadline=None, max_examples=50)
    def test_the_groups_are_chains_of_classes_at_a_small_distance(self, seed, spread):
        rng = np.random.default_rng(seed)
        scores = softmax(rng.normal(size=12) + spread * rng.normal(size=(12, 12)))
        near = np.array([[np.sqrt(((np.sqrt(a) - np.sqrt(b)) ** 2).sum() / 2) < 0.1 for a in scores] for b in scores])
        linked = np.linalg.matrix_power(near.astype(float), 12) > 0
        chains = {tuple(int(index) for index in np.flatnonzero(row)) for row in linked}
        groups = Confusion.of(scores, np.arange(12)).groups
        assert set(groups) == {chain for chain in chains if len(chain) > 1}

    def test_classes_that_look_alike_are_named(self):
        world = World(apart=1.5)
        world.centres[[4, 7]] = world.centres[2]
        confusion = Confusion.of(*world.labelled(500))
        assert confusion.groups == ((2, 4, 7),)
        assert confusion.smallest_singular_value < 0.05

    def test_a_classifier_that_never_errs_has_condition_one(self):
        confusion = Confusion.of(np.eye(5), np.arange(5))
        assert confusion.condition_number == pytest.approx(1.0)
        assert confusion.groups == ()

    def test_a_class_without_an_example_is_named(self):
        with pytest.raises(NotEnoughData, match="class 1 has none"):
            Confusion.of(np.eye(3)[[0, 2]], np.array([0, 2]))

    def test_scores_and_labels_belong_together(self):
        with pytest.raises(ShapeMismatch):
            Confusion.of(np.eye(3), np.arange(2))

    @pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, 3], [0.0, 1.0, 2.0]])
    def test_labels_are_indices_of_classes(self, labels):
        with pytest.raises(InvalidLabels, match="labels must"):
            Confusion.of(np.eye(3), np.array(labels))
        with pytest.raises(InvalidLabels, match="labels must"):
            shift_test(np.eye(3), np.eye(3), np.array(labels), ClassPrior.uniform(3))

    @pytest.mark.parametrize("row", [[np.nan, 1.0], [np.inf, 0.0], [1.5, -0.5], [3.0, 1.0]])
    def test_rows_that_are_no_scores_are_refused(self, row):
        scores = np.array([[0.5, 0.5], row])
        with pytest.raises(CalibrationError, match="row 1 is not so"):
            Confusion.of(scores, np.arange(2))
        good, labels = np.full((4, 2), 0.5), np.array([0, 0, 1, 1])
        for items, labelled in ((scores, good), (good, np.concatenate([scores, scores]))):
            with pytest.raises(CalibrationError, match="row 1 is not so"):
                shift_test(items, labelled, labels, ClassPrior.uniform(2))


class TestTheShiftTest:
    @pytest.mark.parametrize("per_class", [4, 20])
    @pytest.mark.parametrize("law", [ClassPrior.uniform(10), TAIL], ids=["as the labelled", "another law"])
    def test_keeps_its_level(self, law, per_class):
        # 300 worlds; four standard errors of 5 % of 300 are 0.05, of a half 0.115, of the mean statistic 0.1
        tests = []
        for seed in range(300):
            world = World(seed=seed)
            tests.append(shift_test(world.drawn(law, 300), *world.labelled(per_class), law))
        p_values = np.array([test.p_value for test in tests])
        assert 0.01 <= np.mean(p_values < 0.05) < 0.1
        assert 0.385 < np.mean(p_values < 0.5) < 0.615
        assert np.mean([test.statistic for test in tests]) == pytest.approx(1.0, abs=0.2)

    @pytest.mark.parametrize(
        ("counts", "law"),
        [
            ([200, 2], [1, 1]),
            ([200, 5], [1, 1]),
            ([2, 2], [1, 1]),
            ([100, 10, 2], [1, 1, 1]),
            ([200, 50, 10, 3], [1, 4, 16, 64]),
        ],
    )
    def test_keeps_its_level_when_a_heavy_class_has_few_labelled_examples(self, counts, law):
        # 400 worlds; four standard errors of 1 % of 400 are 0.02, of 5 % 0.044
        rng, prior = np.random.default_rng(0), ClassPrior.from_weights(law)
        p_values = []
        for _ in range(400):
            centres = rng.normal(size=(len(counts), 4)) * 1.2

            def posteriors(labels, centres=centres):
                points = centres[labels] + rng.normal(size=(labels.size, 4))
                return softmax(points @ centres.T - 0.5 * (centres**2).sum(axis=1) + prior.log_probs)

            labels, truth = np.repeat(np.arange(len(counts)), counts), rng.choice(len(counts), 500, p=prior.probs)
            p_values.append(shift_test(posteriors(truth), posteriors(labels), labels, prior).p_value)
        assert np.mean(np.array(p_values) < 0.01) < 0.03
        assert np.mean(np.array(p_values) < 0.05) < 0.094

    def test_finds_a_shift_of_a_class_with_few_labelled_examples(self):
        # 5 labelled examples of class 1, half of the law; in the traffic it is a fifth
        found = []
        for seed in range(40):
            world = World(classes=2, apart=1.0, seed=seed)
            labels = np.repeat([0, 1], [200, 5])
            items = world.drawn(ClassPrior(np.array([0.8, 0.2])), 500)
            found.append(shift_test(items, world.scores(labels), labels, ClassPrior.uniform(2)).p_value < 0.01)
        assert np.mean(found) > 0.7

    @given(seed=st.integers(0, 2**16), other=st.sampled_from([0.0, 1.0]), items=st.integers(1, 1000))
    @settings(deadline=None, max_examples=50)
    def test_scores_that_do_not_vary_tell_nothing(self, seed, other, items):
        rng, labels = np.random.default_rng(seed), np.repeat(np.arange(5), 7)
        logits = rng.normal(size=(1, 5))
        constant, elsewhere = softmax(logits), softmax(logits + other * rng.normal(size=(1, 5)))
        law = ClassPrior(rng.dirichlet(np.ones(5)))
        assert shift_test(np.repeat(elsewhere, items, axis=0), np.repeat(constant, 35, axis=0), labels, law) is None

    def test_a_single_item_of_a_classifier_that_never_errs_is_tested(self):
        labels = np.repeat(np.arange(1000), 2)
        p_value = shift_test(np.eye(1000)[:1], np.eye(1000)[labels], labels, ClassPrior.uniform(1000)).p_value
        assert 0.01 < p_value <= 1

    def test_scores_that_vary_by_a_billionth_are_tested_all_the_same(self):
        rng, labels = np.random.default_rng(0), np.repeat(np.arange(3), 7)
        items, labelled = (softmax(1e-9 * rng.normal(size=(count, 3))) for count in (50, 21))
        assert 0.01 < shift_test(items, labelled, labels, ClassPrior.uniform(3)).p_value < 0.99

    def test_finds_a_shift(self):
        world = World()
        labelled, labels = world.labelled(20)
        assert shift_test(world.drawn(TAIL, 300), labelled, labels, ClassPrior.uniform(10)).p_value < 1e-4

    def test_few_labelled_examples_are_part_of_the_noise(self):
        world = World()
        items = world.drawn(ClassPrior.from_weights([1.2] * 5 + [0.8] * 5), 3000)
        p_few, p_many = (
            shift_test(items, *World().labelled(count), ClassPrior.uniform(10)).p_value for count in (2, 500)
        )
        assert p_many < 1e-4 < p_few

    def test_the_order_of_classes_does_not_matter(self):
        world = World()
        labelled, labels = world.labelled(20)
        items, order = world.drawn(TAIL, 100), np.random.default_rng(1).permutation(10)
        straight = shift_test(items, labelled, labels, TAIL)
        moved = shift_test(items[:, order], labelled[:, order], order.argsort()[labels], ClassPrior(TAIL.probs[order]))
        assert moved.p_value == pytest.approx(straight.p_value)

    def test_a_class_that_cannot_occur_does_no_harm(self):
        world = World()
        law = ClassPrior.from_weights([0.0] + [1.0] * 9)
        without = softmax(np.log(world.labelled(20)[0]) + law.log_probs)
        items = softmax(np.log(world.drawn(law, 300)) + law.log_probs)
        assert 0 < shift_test(items, without, np.repeat(np.arange(10), 20), law).p_value < 1

    def test_a_single_example_of_a_class_tells_no_spread(self):
        world = World()
        labelled, labels = world.labelled(2)
        assert shift_test(world.drawn(TAIL, 10), labelled[1:], labels[1:], TAIL) is None

    def test_wrong_shapes_and_no_items_are_refused(self):
        labelled, labels = World().labelled(2)
        with pytest.raises(ShapeMismatch):
            shift_test(labelled[:, :3], labelled, labels, TAIL)
        with pytest.raises(NotEnoughData, match="got none"):
            shift_test(labelled[:0], labelled, labels, TAIL)
