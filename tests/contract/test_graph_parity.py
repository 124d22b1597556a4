"""The ONNX graph and the NumPy calibration are twins: they give the same scores, whatever is fed."""

import logging

import numpy as np
import pytest
import torch

from models.calibration.types import Calibration, ClassPrior, RawLogits
from models.networks.classifier import Architecture, Classifier
from models.onnx_graph.graph import session
from training.export import to_onnx

CLASSES = 7
TOLERANCE = 1e-5  # of scores: the graph calculates in float32, NumPy in float64


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def calibration(rng) -> Calibration:
    """With an implied prior that is not uniform, so that a log prior left out or with the wrong sign shows."""
    return Calibration(
        scale=rng.uniform(0.3, 2, CLASSES),
        offset=rng.normal(size=CLASSES) * 3,
        implied_prior=ClassPrior(rng.dirichlet(np.ones(CLASSES))),
        method="random",
    )


def exported(calibration: Calibration, spread: float):
    """A network whose logits are about `spread` apart."""
    torch.manual_seed(0)
    network = Classifier(Architecture(backbone="small"), CLASSES, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.3))
    images = torch.randint(0, 256, (64, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(30):  # running statistics, without which the features explode
            network(images)
        network.eval()
        network.head.weight *= spread / network(images).std()
    return network, to_onnx(network, calibration, height=8, width=8)


@pytest.fixture(scope="module", params=[1.0, 1e4], ids=["ordinary", "extreme"])
def graph(request, calibration):
    network, model = exported(calibration, request.param)
    return network, session(model)


@pytest.fixture(scope="module")
def images(rng):
    random = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    return np.concatenate([random, np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)])


def log_ratio(calibration: Calibration, *targets: ClassPrior) -> np.ndarray:
    return np.stack([each.log_probs - calibration.implied_prior.log_probs for each in targets]).astype(np.float32)


def test_the_logits_are_torchs_and_centred(graph, images):
    network, onnx = graph
    (logits,) = onnx.run(["logits"], {"images": images})
    with torch.no_grad():
        raw = network(torch.from_numpy(images)).double().numpy()
    size = np.abs(raw).max()
    np.testing.assert_allclose(logits, raw - raw.mean(axis=1, keepdims=True), atol=2e-6 * max(size, 10))
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-6 * max(size, 1))


def test_alone_it_gives_the_debiased_scores_for_uniform_classes(graph, images, calibration):
    logits, scores = graph[1].run(["logits", "scores"], {"images": images})
    expected = calibration.debias(RawLogits(logits)).adjust(ClassPrior.uniform(CLASSES)).scores()
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert expected.max() > 1.5 / CLASSES  # not all alike, which would prove nothing


def test_a_target_a_row_goes_through_one_batch(graph, images, calibration, rng):
    targets = [ClassPrior(rng.dirichlet(np.full(CLASSES, 0.3))) for _ in images]
    logits, scores = graph[1].run(
        ["logits", "scores"], {"images": images, "log_prior": log_ratio(calibration, *targets)}
    )
    debiased = [calibration.debias(RawLogits(row[None])) for row in logits]
    expected = [row.adjust(target).scores()[0] for row, target in zip(debiased, targets, strict=True)]
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


def test_one_target_serves_the_whole_batch_and_a_class_may_be_impossible(graph, images, calibration):
    target = ClassPrior.from_weights([0, 5, 1, 1, 1, 1, 1])
    logits, scores = graph[1].run(["logits", "scores"], {"images": images, "log_prior": log_ratio(calibration, target)})
    np.testing.assert_allclose(scores, calibration.debias(RawLogits(logits)).adjust(target).scores(), atol=TOLERANCE)
    assert not scores[:, 0].any()


def test_another_calibration_needs_no_new_export(graph, images, rng):
    other = Calibration(
        scale=rng.uniform(0.3, 2, CLASSES),
        offset=rng.normal(size=CLASSES),
        implied_prior=ClassPrior.uniform(CLASSES),
        method="other",
    )
    target = ClassPrior(rng.dirichlet(np.ones(CLASSES)))
    feed = {
        "images": images,
        "scale": other.scale.astype(np.float32)[None],
        "offset": other.offset.astype(np.float32)[None],
        "log_prior": log_ratio(other, target),
    }
    logits, scores = graph[1].run(["logits", "scores"], feed)
    np.testing.assert_allclose(scores, other.debias(RawLogits(logits)).adjust(target).scores(), atol=TOLERANCE)


def test_the_batch_size_is_free_and_no_image_sees_its_neighbours(graph, images):
    alone = np.concatenate([graph[1].run(["scores"], {"images": images[i : i + 1]})[0] for i in range(5)])
    np.testing.assert_allclose(graph[1].run(["scores"], {"images": images[:5]})[0], alone, atol=TOLERANCE)


def test_it_needs_the_images_and_nothing_else(graph):
    assert [(each.name, each.type, each.shape) for each in graph[1].get_inputs()] == [
        ("images", "tensor(uint8)", ["N", 8, 8, 3])
    ]
    overridable = {each.name: each.shape for each in graph[1].get_overridable_initializers()}
    assert overridable == {"scale": [1, CLASSES], "offset": [1, CLASSES], "log_prior": ["prior_rows", CLASSES]}


def test_the_export_says_nothing_on_the_terminal(calibration, capfd, caplog):
    exported(calibration, 1.0)
    assert capfd.readouterr() == ("", "")
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
