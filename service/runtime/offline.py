"""Scores from a bundle alone, without a server or any state, by the same path as the service's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.calibration.manifest import MODEL_FILE
from models.calibration.recalibrate import Deployment
from models.calibration.types import ClassPrior
from models.images import MAX_PIXELS
from service.bundle import Bundle, read_bundle
from service.catalog import UNIFORM
from service.runtime.live import LiveModel
from service.runtime.onnx import OnnxRunner
from service.runtime.scoring import Options, logits_of_images, score


def score_files(
    bundle: Path, files: Sequence[bytes], *, prior: str | None = None, top_k: int | None = None
) -> list[dict[str, Any]]:
    """One result an image file, as `POST …/scores` gives it; the active prior of a bundle is the uniform one.

    Raises: InvalidBundle, LogitsOnly for a bundle without a network, InvalidImage, UnknownPrior, InvalidRequest.
    """
    live = _live(read_bundle(bundle))
    logits = logits_of_images(live, files, max_pixels=MAX_PIXELS)
    answer = score(live, logits, Options(prior=prior, top_k=top_k))
    return list(answer["results"])


def _live(bundle: Bundle) -> LiveModel:
    manifest = bundle.manifest
    deployment = Deployment(
        ledger=manifest.ledger,
        calibration=manifest.calibration,
        prior=ClassPrior.uniform(manifest.num_classes),
    )
    size = manifest.input_size
    runner = (
        None
        if size is None
        else OnnxRunner(bundle.files[MODEL_FILE], num_classes=manifest.num_classes, input_size=size)
    )
    return LiveModel(
        name=manifest.name,
        made_at="",
        revision=0,
        version="1",
        calibration="c1",
        prior=UNIFORM,
        class_names=manifest.class_names,
        input_size=size,
        deployment=deployment,
        stored_priors={},
        editions={},
        aliases={},
        runner=runner,
    )
