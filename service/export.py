"""A model of the service as a bundle again, with whichever of its calibrations."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace

import orjson

from models.calibration.manifest import (
    CALIBRATION_SET_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Manifest,
    calibration_from_json,
    ledger_from_json,
)
from service.catalog import Catalog
from service.store.tables import CalibrationRow


def recalibrated_bundle(catalog: Catalog, row: CalibrationRow) -> bytes:
    """An uncompressed .tar: the graph of the calibration's version with this calibration inside, manifest, examples.

    Raises: UnknownVersion, StorageUnavailable.
    """
    manifest = Manifest.from_json(catalog.database.version(row.model, row.version).manifest)
    calibration = calibration_from_json(row.calibration)
    files: dict[str, bytes] = {}
    if MODEL_FILE in manifest.files:
        from models.onnx_graph.recalibrated import with_calibration  # needs onnx, which scoring never loads

        files[MODEL_FILE] = with_calibration(catalog.artifacts.get(manifest.files[MODEL_FILE]), calibration)
    if row.calibration_set is not None:
        files[CALIBRATION_SET_FILE] = catalog.artifacts.get(row.calibration_set)
    own = row.file_digest is None  # the bundle's own: what it measured holds for it
    complete = replace(
        manifest,
        ledger=ledger_from_json(row.ledger),
        calibration=calibration,
        metrics=manifest.metrics if own else {},
        provenance={**manifest.provenance, "exported_from": f"{row.model} version {row.version}, {row.id}"},
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    return _packed({MANIFEST_FILE: orjson.dumps(complete.to_json(), option=orjson.OPT_INDENT_2), **files})


def _packed(files: dict[str, bytes]) -> bytes:
    """The same files give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
