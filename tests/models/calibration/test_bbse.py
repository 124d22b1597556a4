import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.bbse import Confusion, bbse, project_on_simplex, shift_test
from models.calibration.errors import NotEnoughData, ShapeMismatch
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


class TestConditioning:
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
