"""What a bundle says about its classifier: the manifest, as data. Reading and writing files is the callers' business.

Training writes it, the service reads it; one definition keeps the two from drifting apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.calibration.errors import CalibrationError, InvalidManifest
from models.calibration.frequency.entries import normal
from models.calibration.marc import checked_row_norms
from models.calibration.prior import SOURCES, TRAINED_WITH, Ledger, checked_counts
from models.calibration.types import Calibration, ClassPrior, FloatArray, frozen

FORMAT_VERSION = 1
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MANIFEST_FILE, MODEL_FILE, CALIBRATION_SET_FILE = "manifest.json", "model.onnx", "calibration_set.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSize:
    """Pixels of the image that the classifier takes."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise InvalidManifest(f"an input size is at least 1 x 1 pixels; got {self.height} x {self.width}.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """A classifier, complete: classes in order, how it was trained, what it takes in, and its calibration.

    Args: input_size, None for a logits-only model; row_norms `(C,)` of the linear head, ones when unknown; metrics and
        provenance, free-form JSON; files, SHA-256 in hex of every other file of the bundle by name.
    Raises: InvalidManifest.
    """

    name: str
    class_names: tuple[str, ...]
    ledger: Ledger
    calibration: Calibration
    row_norms: FloatArray
    input_size: InputSize | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name):
            raise InvalidManifest(
                "a model's name is up to 64 letters, digits, dots, dashes and underscores, because it is part of "
                f"addresses; got {self.name!r}. Give it another name."
            )
        check_class_names(self.class_names)
        for what, count in (
            ("class counts", self.ledger.class_counts.size),
            ("calibration", self.calibration.num_classes),
        ):
            if count != len(self.class_names):
                raise InvalidManifest(f"{what} must cover the {len(self.class_names)} classes; got {count}.")
        object.__setattr__(self, "row_norms", checked_row_norms(self.row_norms, len(self.class_names)))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; floats keep every digit."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "class_names": list(self.class_names),
            "input": None
            if self.input_size is None
            else {"height": self.input_size.height, "width": self.input_size.width},
            "ledger": ledger_to_json(self.ledger),
            "row_norms": self.row_norms.tolist(),
            "calibration": calibration_to_json(self.calibration),
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, document: Any) -> Manifest:
        """Raises: InvalidManifest, saying which part is missing or wrong."""
        if not isinstance(document, dict):
            raise InvalidManifest(f"a manifest is a JSON object; got {type(document).__name__}.")
        if document.get("format_version") != FORMAT_VERSION:
            raise InvalidManifest(
                f"this Equipoise reads bundles of format version {FORMAT_VERSION}; got "
                f"{document.get('format_version')!r}. Export the bundle again with this version."
            )
        try:
            size = document["input"]
            return cls(
                name=str(document["name"]),
                class_names=tuple(document["class_names"]),
                input_size=None if size is None else InputSize(height=int(size["height"]), width=int(size["width"])),
                ledger=ledger_from_json(document["ledger"]),
                row_norms=document["row_norms"],
                calibration=calibration_from_json(document["calibration"]),
                metrics=document["metrics"],
                provenance=document["provenance"],
                files={str(name): str(digest) for name, digest in document["files"].items()},
            )
        except KeyError as error:
            raise InvalidManifest(f"the manifest lacks the field {error.args[0]!r}. Export the bundle again.") from None
        except InvalidManifest:
            raise
        except (CalibrationError, TypeError, ValueError, AttributeError) as error:
            raise InvalidManifest(f"the manifest is not consistent: {error}") from error


def check_class_names(class_names: tuple[str, ...]) -> None:
    """Raises: InvalidManifest unless there are at least two names, each a text, none empty, no two the same when
    trimmed and normalised (NFC), the form in which files are matched to them."""
    if len(class_names) < 2:
        raise InvalidManifest(f"a classifier has at least two classes; got {len(class_names)}.")
    wrong = next((name for name in class_names if not isinstance(name, str) or not name.strip()), None)
    if wrong is not None:
        raise InvalidManifest(f"class names are texts, none of them empty; got {wrong!r}.")
    if len(set(class_names)) != len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise InvalidManifest(f"class names differ from each other; {twice!r} stands twice.")
    seen: dict[str, str] = {}
    for name in class_names:
        if (other := seen.setdefault(normal(name), name)) != name:
            raise InvalidManifest(
                "class names differ after trimming and Unicode normalisation (NFC), because files are matched to them "
                f"so; {other!a} and {name!a} are the same then. Rename one."
            )


def calibration_to_json(calibration: Calibration) -> dict[str, Any]:
    return {
        "method": calibration.method,
        "scale": calibration.scale.tolist(),
        "offset": calibration.offset.tolist(),
        "implied_prior": calibration.implied_prior.probs.tolist(),
        "parameters": dict(calibration.parameters),
        "provenance": dict(calibration.provenance),
    }


def calibration_from_json(document: Mapping[str, Any]) -> Calibration:
    return Calibration(
        scale=document["scale"],
        offset=document["offset"],
        implied_prior=ClassPrior(document["implied_prior"]),
        method=str(document["method"]),
        parameters=document["parameters"],
        provenance=document["provenance"],
    )


def ledger_to_json(ledger: Ledger) -> dict[str, Any]:
    return {
        "trained_with": ledger.trained_with,
        "class_counts": ledger.class_counts.tolist(),
        "loss_counts": None if ledger.loss_counts is None else ledger.loss_counts.tolist(),
        "implied_prior": ledger.implied_prior.probs.tolist(),
        "source": ledger.source,
        "tau": ledger.tau,
        "rates": None if ledger.rates is None else ledger.rates.tolist(),
    }


def ledger_from_json(document: Mapping[str, Any]) -> Ledger:
    if document["trained_with"] not in TRAINED_WITH:
        raise InvalidManifest(f"trained_with is one of {', '.join(TRAINED_WITH)}; got {document['trained_with']!r}.")
    if document["source"] not in SOURCES:
        raise InvalidManifest(f"the source of an implied prior is {', '.join(SOURCES)}; got {document['source']!r}.")
    loss_counts, rates = document["loss_counts"], document.get("rates")  # bundles of version 0.1.0 have no rates
    ledger = Ledger(
        trained_with=document["trained_with"],
        class_counts=checked_counts(document["class_counts"]),
        implied_prior=ClassPrior(document["implied_prior"]),
        source=document["source"],
        loss_counts=None if loss_counts is None else checked_counts(loss_counts),
        tau=document.get("tau"),
        rates=None if rates is None else frozen(rates),
    )
    gap = ledger.gap_to_rule if ledger.source != "measured" else 0.0
    if gap is None or gap > 1e-6:
        raise InvalidManifest(
            f"the implied prior does not follow from the rule {ledger.trained_with!r} and the class counts."
        )
    return ledger
