"""Writing a bundle: the only thing that passes from training to the service."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.calibration.errors import CalibrationError
from models.calibration.manifest import CALIBRATION_SET_FILE, MANIFEST_FILE, MODEL_FILE, Manifest
from models.calibration.packing import pack_logits
from models.calibration.types import LogitSet


class OutputExists(CalibrationError):
    """A folder that would be overwritten."""


def write_bundle(out: Path, manifest: Manifest, *, model: bytes | None, calibration_set: LogitSet | None) -> Manifest:
    """Write the folder; it appears complete or not at all.

    Args: manifest, whose `files` are filled in here; model, None for a logits-only bundle.
    Returns: the manifest as written. Raises: OutputExists.
    """
    files: dict[str, bytes] = {}
    if model is not None:
        files[MODEL_FILE] = model
    if calibration_set is not None:
        files[CALIBRATION_SET_FILE] = pack_logits(calibration_set)
    complete = replace(manifest, files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    files[MANIFEST_FILE] = json.dumps(complete.to_json(), indent=1, ensure_ascii=False, allow_nan=False).encode()
    with new_folder(out) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return complete


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name `out` only when all went well.

    Raises: OutputExists, CalibrationError where it cannot be written.
    """
    _refuse_existing(out)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.absolute().parent))
        partial = beside / "new"  # mkdtemp's folder is for its owner only; one inside has the usual permissions
        partial.mkdir()
    except OSError as error:
        raise CalibrationError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from error
    try:
        yield partial
        _refuse_existing(out)
        partial.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise OutputExists(f"{out} exists already and is not overwritten. Remove it, or choose another --out.")


def unpack_logits(data: Mapping[str, np.ndarray]) -> LogitSet:
    return LogitSet(logits=data["logits"], labels=data["labels"], split=str(data["split"]), drawn=str(data["drawn"]))
