"""A recalibrated graph and the NumPy calibration are twins, like an exported one."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import ShapeMismatch
from models.calibration.types import Calibration, ClassPrior, RawLogits
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.graph import overridable, session
from models.onnx_graph.imported import imported
from models.onnx_graph.recalibrated import with_calibration
from tests.models.onnx_graph.networks import CLASSES, COUNTS, IMAGES, MEAN, STD, network

TOLERANCE = 1e-5  # of scores: the graph calculates in float32, NumPy in float64


@pytest.fixture(scope="module")
def standard() -> bytes:
    told = {"name": "pets", "class_names": CLASSES, "class_counts": COUNTS, "trained_with": "cross-entropy"}
    graph = imported(network().SerializeToString(), **told, mean=MEAN, std=STD)[1]
    assert graph is not None
    return graph


def random_calibration(seed: int, classes: int = 4) -> Calibration:
    rng = np.random.default_rng(seed)
    return Calibration(
        scale=rng.uniform(0.3, 2, classes),
        offset=rng.normal(size=classes) * 3,
        implied_prior=ClassPrior(rng.dirichlet(np.ones(classes))),
        method="random",
    )


def run(graph: bytes) -> tuple[np.ndarray, np.ndarray]:
    logits, scores = session(graph).run(["logits", "scores"], {"images": IMAGES})
    return logits, scores


def by_formula(calibration: Calibration, logits: np.ndarray, target: ClassPrior) -> np.ndarray:
    """softmax(scale z + offset + log target - log r), of weights."""
    adjusted = calibration.scale * RawLogits(logits).values + calibration.offset
    weights = np.exp(adjusted - adjusted.max(axis=1, keepdims=True)) * target.probs / calibration.implied_prior.probs
    return weights / weights.sum(axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), weights=st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any))
def test_the_scores_are_those_of_the_formula_for_any_calibration_and_target(standard, seed, weights):
    calibration, target = random_calibration(seed), ClassPrior.from_weights(weights)
    logits, scores = run(with_calibration(standard, calibration, target))
    np.testing.assert_allclose(scores, by_formula(calibration, logits, target), atol=TOLERANCE)


def test_without_a_target_it_is_uniform(standard):
    calibration = random_calibration(1)
    recalibrated = with_calibration(standard, calibration)
    logits, scores = run(recalibrated)
    uniform = ClassPrior.uniform(4)
    np.testing.assert_allclose(scores, by_formula(calibration, logits, uniform), atol=TOLERANCE)
    assert np.ptp(scores, axis=0).max() > 0.01  # not all alike, which would prove nothing
    assert with_calibration(standard, calibration, uniform) == recalibrated


def test_a_class_that_cannot_occur_gets_exactly_nothing_and_the_others_share_the_rest(standard):
    _, scores = run(with_calibration(standard, random_calibration(2), ClassPrior([0, 0.5, 0.5, 0])))
    assert not scores[:, [0, 3]].any()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    _, alone = run(with_calibration(standard, random_calibration(2), ClassPrior([0, 0, 1, 0])))
    np.testing.assert_array_equal(alone, np.eye(4, dtype=np.float32)[[2] * len(IMAGES)])


def test_the_network_stays_as_it_was_and_the_defaults_can_still_be_overridden(standard):
    other = random_calibration(3)
    recalibrated = with_calibration(standard, random_calibration(4), ClassPrior([0, 0.5, 0.25, 0.25]))
    np.testing.assert_array_equal(run(recalibrated)[0], run(standard)[0])
    fed = {name: values for name, (_, values) in overridable(other).items()}
    (scores,) = session(recalibrated).run(["scores"], {"images": IMAGES} | fed)
    np.testing.assert_array_equal(scores, run(with_calibration(standard, other))[1])


def test_recalibrating_twice_leaves_no_trace_of_the_first(standard):
    first = with_calibration(standard, random_calibration(6), ClassPrior([1, 0, 0, 0]))
    assert with_calibration(first, random_calibration(5)) == with_calibration(standard, random_calibration(5))


@pytest.mark.parametrize(
    ("calibration", "target"), [(random_calibration(0, 5), None), (random_calibration(0), ClassPrior.uniform(3))]
)
def test_the_classes_must_be_those_of_the_graph(standard, calibration, target):
    with pytest.raises(ShapeMismatch):
        with_calibration(standard, calibration, target)


def without_initialiser(model: onnx.ModelProto) -> None:
    kept = [each for each in model.graph.initializer if each.name != "offset"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def with_a_constant(model: onnx.ModelProto) -> None:
    kept = [each for each in model.graph.input if each.name != "log_prior"]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def without_scores(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


@pytest.mark.parametrize(
    ("change", "lacking"), [(without_initialiser, "offset"), (with_a_constant, "log_prior"), (without_scores, "scores")]
)
def test_a_graph_of_another_form_is_refused_and_what_it_lacks_is_named(standard, change, lacking):
    model = onnx.load_model_from_string(standard)
    change(model)
    with pytest.raises(InvalidModel, match=rf"this one lacks {lacking}\. Export or import"):
        with_calibration(model.SerializeToString(), random_calibration(0))


@pytest.mark.parametrize("content", [b"", b"not a model", network().SerializeToString()])
def test_what_is_no_standard_graph_is_refused(content):
    with pytest.raises(InvalidModel):
        with_calibration(content, random_calibration(0))
