"""A training on disk, so that one that was killed goes on to the same result."""

import hashlib
import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.calibration.errors import CalibrationError
from training.config import TrainConfig
from training.data import DataSplits


class StaleCheckpoint(CalibrationError):
    """A checkpoint of another training."""


def identity_of(config: TrainConfig, data: DataSplits) -> str:
    """What makes two trainings the same: a hash of configuration and data. The second stage is not part of it, so that
    it can be added to a first stage that is done."""
    deciding = asdict(config) | {"decoupled": None}
    return hashlib.sha256(json.dumps([deciding, data.digest, data.class_names], sort_keys=True).encode()).hexdigest()


def save(path: Path, state: dict[str, Any], *, identity: str) -> None:
    """Replace the checkpoint as a whole: a kill leaves the one before it.

    Args: state of tensors and plain values; identity, what makes two trainings the same (configuration and data).
    """
    partial = path.with_name(f".{path.name}.partial")
    torch.save({"identity": identity, **state}, partial)
    partial.replace(path)


def load(path: Path, *, identity: str, device: torch.device) -> dict[str, Any] | None:
    """The state, or None where there is no checkpoint yet.

    Raises: StaleCheckpoint for one of another configuration or other data, or one that cannot be read.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise StaleCheckpoint(f"{path} cannot be read: {error}. Remove its folder and train again.") from error
    if state.get("identity") != identity:
        raise StaleCheckpoint(
            f"{path} belongs to a training with another configuration or other data, and is not continued. "
            "Give the same options as then, or choose another --out."
        )
    return state
