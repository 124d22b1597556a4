"""The class law that a request asks for: by name, as numbers, or on the line between uniform and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from models.calibration.apply import ScoreMap
from models.calibration.errors import InvalidPrior
from models.calibration.prior import prior_between
from models.calibration.types import Calibration, ClassPrior
from service.errors import InvalidRequest
from service.runtime.arrays import numbers
from service.runtime.live import LiveModel

KEPT = 256  # laws a state of a model: clients ask for few, again and again
LONGEST_KEPT = 4096  # characters of a prior written out

Asked = str | Sequence[Any] | Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class Law:
    """A class law under one calibration, with the map from logits to scores.

    Args: named, what answers say of it; prior, None for the word `none`, the softmax of the debiased logits.
    """

    named: Mapping[str, Any]
    prior: ClassPrior | None
    calibration: Calibration

    @cached_property
    def on_float32(self) -> ScoreMap:
        return ScoreMap.of(self.calibration, self.prior)

    @cached_property
    def on_float64(self) -> ScoreMap:
        return ScoreMap.of(self.calibration, self.prior, np.float64)


def law_of(live: LiveModel, prior: Asked = None, kappa: float | None = None) -> Law:
    """Args: prior, a name, or numbers in class order or by class name, also as JSON text; kappa, the law n^kappa. One
    of the two at most; without both, the active prior.

    Raises: InvalidRequest for both, UnknownPrior, InvalidPrior, UnknownClass.
    """
    if not (prior is None or (isinstance(prior, str) and len(prior) <= LONGEST_KEPT)):
        return _law(live, prior, kappa)
    key = (prior, kappa)
    found: Law | None = live.laws.get(key)
    if found is None:
        found = _law(live, prior, kappa)
        if len(live.laws) >= KEPT:
            live.laws.clear()
        live.laws[key] = found
    return found


def _law(live: LiveModel, prior: Asked, kappa: float | None) -> Law:
    named, law = _named(live, prior, kappa)
    return Law(named, law, live.deployment.calibration)


def _named(live: LiveModel, prior: Asked, kappa: float | None) -> tuple[dict[str, Any], ClassPrior | None]:
    if kappa is not None:
        if prior is not None:
            raise InvalidRequest("prior and kappa both say which class law is meant. Give one of them.")
        return {"name": "kappa", "kappa": kappa}, prior_between(live.deployment.ledger.class_counts, kappa)
    if prior is None:
        return live.prior_shown(live.prior), live.deployment.prior
    if isinstance(prior, str) and not prior.lstrip().startswith(("[", "{")):
        law = live.prior_named(prior)
        return live.prior_shown(prior), law
    return {"name": "inline"}, _inline_prior(live, _inline(prior) if isinstance(prior, str) else prior)


def _inline_prior(live: LiveModel, asked: Any) -> ClassPrior:
    rule = "a prior is one number a class, as a list in class order or an object by class name"
    if isinstance(asked, dict):
        numbers(list(asked.values()), InvalidPrior, rule)
        return ClassPrior.from_mapping(asked, live.class_names)
    return ClassPrior.from_weights(numbers(asked, InvalidPrior, rule))


def _inline(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPrior(f"a prior that begins with [ or {{ is JSON; got {text[:80]!r}: {error}.") from error
