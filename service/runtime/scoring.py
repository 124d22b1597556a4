"""From logits to scores, and the answer to a scores request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.calibration.apply import LogitArray
from models.calibration.errors import ImageTooLarge, InvalidImage
from models.calibration.manifest import InputSize
from models.calibration.types import DebiasedLogits, FloatArray, RawLogits, check_logits, softmax
from models.images import UInt8Array, decode_image
from service.errors import BodyTooLarge, InvalidRequest, LogitsOnly
from service.runtime.laws import Asked, Law, law_of
from service.runtime.live import LiveModel

MOST_EXAMPLES = 20_000
MOST_NUMBERS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """How a client wants the answer; `prior` and `kappa` as `law_of` takes them."""

    prior: Asked = None
    kappa: float | None = None
    top_k: int | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """From logits to scores, `(N, C)`, with what lies between."""

    raw: RawLogits
    debiased: DebiasedLogits
    scores: FloatArray
    law: Law


def scored(live: LiveModel, logits: LogitArray, law: Law) -> Scored:
    """Args: logits `(N, C)`, raw. Raises: ShapeMismatch, InvalidLogits."""
    raw = RawLogits(logits)
    debiased = live.deployment.calibration.debias(raw)
    scores = debiased.scores() if law.prior is None else debiased.adjust(law.prior).scores()
    return Scored(raw=raw, debiased=debiased, scores=scores, law=law)


def score(live: LiveModel, logits: LogitArray, options: Options) -> dict[str, Any]:
    """The answer to a scores request, ready for orjson with numpy; it depends on the state and the input alone.

    Args: logits `(N, C)`, raw. Raises: BodyTooLarge, ShapeMismatch, InvalidLogits, InvalidRequest, and as `law_of`.
    """
    check_options(live, options)
    check_amount(len(logits) if logits.ndim else 1, live, each=4 if options.explain else 1)
    law = law_of(live, options.prior, options.kappa)
    if not options.explain:
        return answer(live, law, scores_of(live, logits, law), options.top_k)
    found = scored(live, logits, law)
    document = answer(live, law, found.scores, options.top_k)
    for result, explanation in zip(document["results"], _explain(found), strict=True):
        result["explain"] = explanation
    return document


def scores_of(live: LiveModel, logits: LogitArray, law: Law) -> FloatArray:
    """`(N, C)`, as `scored` gives them, of logits that a client sent. Raises: ShapeMismatch, InvalidLogits."""
    check_logits(logits)
    live.deployment.calibration.check_width(logits)
    return law.on_float64(np.asarray(logits, dtype=np.float64))


def check_amount(examples: int, live: LiveModel, *, each: int = 1) -> None:
    """An answer is many times as large as the request, where that holds bytes. Args: each, rows an example.

    Raises: BodyTooLarge.
    """
    numbers = examples * each * len(live.class_names)
    if examples > MOST_EXAMPLES or numbers > MOST_NUMBERS:
        raise BodyTooLarge(
            f"a request has at most {MOST_EXAMPLES:,} examples, and at most {MOST_NUMBERS:,} numbers in its answer; "
            f"got {examples:,} examples of {len(live.class_names):,} classes. Send several requests."
        )


def check_options(live: LiveModel, options: Options) -> None:
    """Before the network is run for nothing. Raises: InvalidRequest."""
    if options.top_k is not None and not 1 <= options.top_k <= len(live.class_names):
        raise InvalidRequest(f"top_k is 1 to {len(live.class_names)}, the number of classes; got {options.top_k}.")


def answer(live: LiveModel, law: Law, scores: LogitArray, top_k: int | None) -> dict[str, Any]:
    """Args: scores `(N, C)`."""
    return {
        "model": live.name,
        "version": live.version,
        "calibration": {"id": live.calibration, "method": law.calibration.method},
        "prior": law.named,
        "results": [_result(live.class_names, row, top_k) for row in scores],
    }


def pixels_of(
    files: Sequence[bytes], size: InputSize, *, max_pixels: int, names: Sequence[str] = (), first: int = 1
) -> UInt8Array:
    """`(N, H, W, 3)` from image files; `names`, where they have any, are told in errors with a number from `first`.

    Raises: InvalidImage, ImageTooLarge.
    """
    images = []
    for number, data in enumerate(files):
        try:
            images.append(decode_image(data, height=size.height, width=size.width, max_pixels=max_pixels))
        except (InvalidImage, ImageTooLarge) as error:
            if not names:
                raise
            raise type(error)(f"file {first + number} ({names[number]}): {error}") from error
    return np.stack(images) if len(images) > 1 else images[0][np.newaxis]


def logits_of_images(live: LiveModel, files: Sequence[bytes], *, max_pixels: int) -> FloatArray:
    """`(N, C)` from image files, for callers with a thread of their own. Raises: as `pixels_of`, LogitsOnly."""
    if live.input_size is None or live.runner is None:
        raise no_network(live)
    return live.runner.run(pixels_of(files, live.input_size, max_pixels=max_pixels)).astype(np.float64)


def no_network(live: LiveModel) -> LogitsOnly:
    return LogitsOnly(
        f"model {live.name!r} has no network and takes no images. Send its logits as JSON (with the Content-Type "
        "application/json) or as an .npy file."
    )


def _result(class_names: Sequence[str], scores: LogitArray, top_k: int | None) -> dict[str, Any]:
    numbers = scores.tolist()
    best = numbers.index(max(numbers))  # argmax would let go of the interpreter, for which model threads wait
    result: dict[str, Any] = {"class": class_names[best], "score": scores[best]}
    if top_k is None:
        result["scores"] = scores
        return result
    order = np.argsort(-scores, kind="stable")[:top_k]
    result["top"] = [{"class": class_names[index], "score": scores[index]} for index in order]
    return result


def _explain(found: Scored) -> list[dict[str, Any]]:
    """Probabilities at each step; the log prior shift is null (minus infinity) for a class that cannot occur."""
    implied, prior = found.debiased.implied_prior, found.law.prior
    shift = np.zeros(implied.num_classes) if prior is None else prior.log_probs - implied.log_probs
    steps = zip(found.raw.scores(), softmax(found.debiased.values), found.scores, strict=True)
    return [
        {"raw": before, "debiased": between, "adjusted": after, "log_prior_shift": shift}
        for before, between, after in steps
    ]
