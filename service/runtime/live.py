"""The models that answer requests now. A change puts a new `LiveModel` in place; a request keeps the one it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.calibration.manifest import InputSize
from models.calibration.recalibrate import Deployment
from models.calibration.types import ClassPrior
from service.catalog import BUILT_IN, NONE, TRAINING, UNIFORM
from service.errors import ModelNotLoaded, UnknownModel, UnknownPrior
from service.runtime.onnx import LogitRunner

PRODUCTION = "production"  # the alias that every model has: of the version that is live


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveModel:
    """One model in one state, complete: nothing of it changes, apart from what is kept of past requests.

    Args: made_at, which tells a model from a deleted one of the same name; version and calibration, their ids; prior,
        the name of the active one, whose law is in `deployment`; stored_priors by name, those that fit these classes,
        and the editions of all;
        aliases, of versions; runner, None for a model that takes logits only.
    """

    name: str
    made_at: str
    revision: int
    version: str
    calibration: str
    prior: str
    class_names: tuple[str, ...]
    input_size: InputSize | None
    deployment: Deployment
    stored_priors: Mapping[str, ClassPrior]
    editions: Mapping[str, int]
    aliases: Mapping[str, int]
    runner: LogitRunner | None
    laws: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)  # that requests asked for; see law_of

    def prior_named(self, name: str) -> ClassPrior | None:
        """The law behind a name; None for `none`. Raises: UnknownPrior."""
        if name == NONE:
            return None
        built_in = {
            UNIFORM: ClassPrior.uniform(len(self.class_names)),
            TRAINING: self.deployment.ledger.training_prior,
        }
        found = built_in.get(name) or self.stored_priors.get(name)
        if found is None:
            known = ", ".join([*BUILT_IN, *sorted(self.stored_priors)])
            raise UnknownPrior(
                f"model {self.name!r} has no prior {name[:80]!r}; it knows {known}. Upload one to class-frequencies, "
                "or send the numbers themselves as a JSON list or object."
            )
        return found

    def prior_shown(self, name: str) -> dict[str, Any]:
        """How answers name a prior: a stored one with its edition, since a name may get another meaning."""
        return {"name": name} | ({"edition": self.editions[name]} if name in self.editions else {})


class Registry:
    """Live models by name. Assigning an entry of a dict is atomic, so readers need no lock."""

    def __init__(self) -> None:
        self._models: dict[str, LiveModel] = {}
        self._failed: dict[str, str] = {}

    def put(self, model: LiveModel) -> None:
        self._models[model.name] = model
        self._failed.pop(model.name, None)

    def fail(self, name: str, reason: str) -> None:
        """Remember why the newest state of a model is not live; what was live before answers on."""
        self._failed[name] = reason

    def remove(self, name: str) -> None:
        self._models.pop(name, None)
        self._failed.pop(name, None)

    def find(self, name: str) -> LiveModel | None:
        return self._models.get(name)

    def get(self, name: str) -> LiveModel:
        """Raises: UnknownModel, ModelNotLoaded."""
        model = self._models.get(name)
        if model is not None:
            return model
        if name in self._failed:
            raise ModelNotLoaded(f"model {name!r} is registered but cannot be loaded: {self._failed[name]}")
        raise UnknownModel(f"there is no model {name[:80]!r}; the models are: {', '.join(self.names()) or 'none'}.")

    def names(self) -> list[str]:
        return sorted({*self._models, *self._failed})

    def missing(self) -> list[str]:
        """What keeps the service from answering for every model."""
        if not self.names():
            return ["no model is registered: POST a bundle to /v1/models, or start with one, `equipoise serve BUNDLE`"]
        return [f"model {name}: {why}" for name, why in sorted(self._failed.items()) if name not in self._models]

    def behind(self) -> list[str]:
        """Models that answer, but not in their newest state."""
        return [f"model {name}: {why}" for name, why in sorted(self._failed.items()) if name in self._models]
